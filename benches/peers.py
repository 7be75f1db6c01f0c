"""What the benches stand on: the tree with the newest peers, file systems to put images on, a registry, one image mounted
by every peer."""

import contextlib
import glob
import os
import shutil
import socket
import subprocess
import tempfile
import time

import paired

TOP = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
PRIVATE_MIB = 10 << 10  # of memory that must be free before images are put there


class Sid:
    """The Debian sid tree of scripts/peers."""

    def __init__(self, directory):
        self.tree = os.path.join(os.path.abspath(directory), "sid")

    def there(self):
        return os.path.exists(f"{self.tree}/.complete")

    def runner(self, *binds):
        """Runs commands with the tree as their root and `binds` at their own paths."""
        return paired.Runner("sid", self.tree, binds)

    def outside(self, program):
        """The command of one of its programs, to be run beside the host's."""
        library = glob.glob(f"{self.tree}/usr/lib/*-linux-gnu*")[0]
        loader = glob.glob(f"{library}/ld-linux*")[0]
        return [loader, "--library-path", library, f"{self.tree}/usr/bin/{program}"]

    def versions(self, *packages):
        show = ["dpkg-query", f"--admindir={self.tree}/var/lib/dpkg", "--show", "--showformat=${Package} ${Version}, "]
        return paired.root(*show, *packages).rstrip(", ")


def open_to_user(path):
    os.chmod(path, 0o755)
    shutil.chown(path, paired.USER, paired.USER)


@contextlib.contextmanager
def place(directory, on_disk, need_mib=PRIVATE_MIB):
    """A new directory of the ordinary user's: a file system in memory, or below `directory`; and the word for it."""
    in_memory = not on_disk and available_mib() >= need_mib
    above = os.environ.get("TMPDIR", "/var/tmp") if in_memory else directory
    with tempfile.TemporaryDirectory(dir=above, prefix="hpcrun-bench-") as work:
        if in_memory:
            paired.root("mount", "-t", "tmpfs", "tmpfs", work)
        try:
            open_to_user(work)
            yield work, "in memory (tmpfs)" if in_memory else "on disk"
        finally:
            if in_memory:
                paired.root("umount", "--lazy", work)


def available_mib():
    with open("/proc/meminfo") as file:
        return next(int(line.split()[1]) >> 10 for line in file if line.startswith("MemAvailable"))


def built():
    """The program under test, where it was built."""
    return os.environ.get("HPCRUN", os.path.join(TOP, "target/release/hpcrun"))


def program(work):
    """The program under test, at a path that the ordinary user can reach."""
    return shutil.copy(built(), os.path.join(work, "hpcrun"))


def probe(work):
    """benches/probe.c, compiled: linked statically, so that it costs the image nothing to start."""
    out = os.path.join(work, "probe")
    paired.root("cc", "-O2", "-static", "-pthread", "-Wall", "-o", out, os.path.join(TOP, "benches/probe.c"))
    return out


@contextlib.contextmanager
def registry(directory, tls=False):
    """Debian's registry on a free loopback port, storing below `directory`; gives HOST:PORT."""
    with socket.socket() as probe_socket:
        probe_socket.bind(("127.0.0.1", 0))
        port = probe_socket.getsockname()[1]
    os.makedirs(directory, exist_ok=True)
    name = os.path.join(directory, "tls" if tls else "plain")
    secure = ""
    if tls:
        paired.root("openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-subj", "/CN=127.0.0.1",
                    "-keyout", f"{name}.key", "-out", f"{name}.crt")
        secure = f", tls: {{certificate: {name}.crt, key: {name}.key}}"
    with open(f"{name}.yml", "w") as file:
        file.write(f"""version: 0.1
log: {{level: error, accesslog: {{disabled: true}}}}
storage: {{filesystem: {{rootdirectory: "{directory}/blobs"}}}}
http: {{addr: "127.0.0.1:{port}"{secure}}}
""")
    with open(f"{name}.log", "w") as log:
        server = subprocess.Popen(["docker-registry", "serve", f"{name}.yml"], stdout=log, stderr=log)
    try:
        for _ in range(100):
            with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), 1):
                break
            time.sleep(0.1)
        else:
            raise paired.Failed(f"docker-registry did not start: {open(f'{name}.log').read()}")
        yield f"127.0.0.1:{port}"
    finally:
        server.terminate()
        server.wait()


class Mount:
    """One image file or file system image at one place, mounted anew before each run."""

    def __init__(self, name, point, command, runner, *, user):
        self.name, self.point, self.command, self.runner, self.user = name, point, command, runner, user
        os.makedirs(point, exist_ok=True)
        open_to_user(point)

    def up(self):
        self.down()
        # A server started by the runner is in its control group, so its processor time counts.
        self.runner.run(self.command, leaves=True) if self.user else paired.root(*self.command)

    def down(self):
        subprocess.run(["umount", "--quiet", self.point], stderr=subprocess.DEVNULL)


def kernel_squashfs(image, work, runner):
    point = f"{work}/kernel"
    return Mount("kernel squashfs", point, ["mount", "-t", "squashfs", "-o", "loop,ro", image, point], runner, user=False)


def squashfuse(name, program_command, image, work, runner):
    point = f"{work}/{'-'.join(name.split())}"
    return Mount(name, point, [*program_command, image, point], runner, user=True)


def ext4(tree, work, runner, name="ext4 directory"):
    """A read-only ext4 of exactly the size that `tree` needs."""
    image, point = f"{work}/{os.path.basename(tree)}.ext4", f"{work}/{os.path.basename(tree)}-ext4"
    if not os.path.exists(image):
        bytes_used = int(paired.root("du", "--summarize", "--bytes", tree).split()[0])
        entries = sum(len(names) + len(files) for _, names, files in os.walk(tree)) + 64
        size = bytes_used + entries * (4096 + 256) + (64 << 20)
        with open(image, "wb") as file:
            file.truncate(size)
        # Not mkfs.ext4 -d, which takes a time quadratic in the entries of a directory.
        paired.root("mkfs.ext4", "-q", "-O", "^has_journal", "-N", str(entries + 1024), image)
        os.mkdir(point)
        paired.root("mount", "-o", "loop", image, point)
        try:
            paired.root("cp", "--archive", f"{tree}/.", point)
        finally:
            paired.root("umount", point)
    return Mount(name, point, ["mount", "-t", "ext4", "-o", "loop,ro", image, point], runner, user=False)
