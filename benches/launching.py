"""What the benches of launching share: the peers' view of the host, a file system to launch from, the memory of processes."""

import contextlib
import os
import pwd

import paired
import peers


def bwrap_binds(tree):
    """What `hpcrun exec` binds by default, over a directory."""
    home = pwd.getpwnam(paired.USER).pw_dir
    options = ["--bind", tree, "/"]
    for path in "/dev", "/proc", "/sys", "/tmp", home:
        options += ["--dev-bind" if path == "/dev" else "--bind", path, path]
    for path in "/etc/hosts", "/etc/resolv.conf", "/etc/localtime", "/etc/passwd", "/etc/group":
        if os.path.exists(path):
            options += ["--ro-bind", path, os.path.realpath(os.path.join(tree, path[1:])).removeprefix(tree) or path]
    return [*options, "--chdir", "/tmp"]


def prepare_tree(tree):
    """Mount points that the image lacks; bwrap can create none in a directory of root's."""
    for path in pwd.getpwnam(paired.USER).pw_dir, "/mnt", "/tmp", "/dev", "/proc", "/sys":
        os.makedirs(tree + path, exist_ok=True)
    for name in "hosts", "resolv.conf", "localtime", "passwd", "group":
        if not os.path.lexists(f"{tree}/etc/{name}"):
            os.makedirs(f"{tree}/etc", exist_ok=True)
            open(f"{tree}/etc/{name}", "w").close()


def file_system(stack, work, mib):
    """An ext4 on a loop device over a file in `work`."""
    point = f"{work}/ext4"
    with open(f"{work}/ext4.image", "wb") as file:
        file.truncate(mib << 20)
    paired.root("mkfs.ext4", "-q", "-O", "^has_journal", f"{work}/ext4.image")
    os.mkdir(point)
    paired.root("mount", "-o", "loop", f"{work}/ext4.image", point)
    stack.callback(paired.root, "umount", "--lazy", point)
    peers.open_to_user(point)
    return point


def command_line(pid):
    with contextlib.suppress(OSError):
        with open(f"/proc/{pid}/cmdline") as file:
            return file.read().split("\0")
    return [""]


def pss_kib(pid):
    with contextlib.suppress(OSError):
        with open(f"/proc/{pid}/smaps_rollup") as file:
            return next((int(line.split()[1]) for line in file if line.startswith("Pss:")), 0)
    return 0
