"""Images with a real MPI library each: this machine's, Debian releases', and those of Python wheels, which need no root to
install and come in the newest versions. Every image has `/messages`, strace and a shell."""

import glob
import os
import shutil
import subprocess

HERE = os.path.dirname(os.path.abspath(__file__))
SOURCE = os.path.join(HERE, "messages.c")
DEBIAN = {"Debian 11": "bullseye", "Debian 12": "bookworm", "Debian 13": "trixie"}
ROOT = os.path.dirname(os.path.dirname(HERE))
# The versions that the expectations of `matrix` were checked with.
with open(os.path.join(HERE, "wheels.txt")) as pins:
    WHEELS = dict(line.split()[0].split("==") for line in pins)


def run(*command, **more):
    return subprocess.run(command, check=True, text=True, stdout=subprocess.PIPE, **more).stdout


class Library:
    """One MPI library in one image. `tree` is a directory that is also the image's root."""

    def __init__(self, name, tree, hpcrun, program="/messages"):
        self.name, self.tree, self.program, self.image = name, tree, program, f"{tree}.sqsh"
        if not os.path.exists(self.image):
            run(hpcrun, "--quiet", "convert", f"dir:{tree}", self.image)
            os.chmod(self.image, 0o644)

    def __str__(self):
        return self.name


def closure(tree, files):
    """Copies the libraries that the dynamic linker would load for `files`, at their own paths."""
    # A plug-in for a fabric that this machine lacks may miss a library: ldd says so and goes on.
    listed = subprocess.run(["ldd", *files], text=True, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL).stdout
    wanted = {word for word in listed.split() if word.startswith("/") and not word.endswith(":")}
    copy(tree, [path for path in wanted if not path.startswith(tree)])


def copy(tree, paths):
    run("cp", "--parents", "--dereference", "--recursive", *sorted(paths), tree)


def bare(tree):
    """A root with a shell, strace and empty directories."""
    for name in "bin", "dev", "etc", "home", "opt", "proc", "sys", "tmp", "usr/bin":
        os.makedirs(f"{tree}/{name}")
    shutil.copy("/bin/busybox", f"{tree}/bin/busybox")
    os.symlink("busybox", f"{tree}/bin/sh")
    copy(tree, ["/usr/bin/strace"])
    closure(tree, ["/usr/bin/strace"])


def once(make):
    """A tree is made beside its place, so that one that is there is complete."""
    def made(tree, *arguments):
        if not os.path.isdir(tree):
            partial = f"{tree}.partial"
            shutil.rmtree(partial, ignore_errors=True)
            os.makedirs(partial)
            make(partial, *arguments)
            os.chmod(partial, 0o755)
            os.rename(partial, tree)
        return tree
    return made


@once
def of_host(tree, flavour):
    """This machine's own Open MPI (`openmpi`) or MPICH (`mpich`)."""
    bare(tree)
    run(f"mpicc.{flavour}", "-O2", "-o", f"{tree}/messages", SOURCE)
    plugins = glob.glob("/usr/lib/*-linux-gnu*/ucx")
    if flavour == "openmpi":
        told = dict(line.split(":", 2)[1:] for line in run("ompi_info", "--parsable", "--path", "all").splitlines())
        plugins += [told["pkglibdir"], told["pkgdatadir"], told["sysconfdir"], *glob.glob("/usr/lib/*-linux-gnu*/pmix2")]
    copy(tree, plugins)
    objects = [f for p in plugins for f in glob.glob(f"{p}/**/*.so*", recursive=True) if os.path.isfile(f)]
    closure(tree, [f"{tree}/messages", *objects])


@once
def of_wheel(tree, wheel, headers):
    """A wheel's library at /opt/mpi, with this machine's C library. Intel's wheel has no headers: MPICH's do."""
    bare(tree)
    shutil.copytree(wheel, f"{tree}/opt/mpi", symlinks=True)
    run("cc", "-O2", "-o", f"{tree}/messages", SOURCE, f"-I{headers}/include", f"-L{headers}/lib", "-lmpi",
        "-Wl,-rpath,/opt/mpi/lib")
    objects = [f for f in glob.glob(f"{tree}/opt/mpi/lib/**/*.so*", recursive=True) if os.path.isfile(f)]
    closure(tree, [f"{tree}/messages", *objects])


@once
def of_debian(tree, release):
    """A Debian release with both of its MPI libraries, and the program built there."""
    packages = "openmpi-bin,libopenmpi-dev,mpich,libmpich-dev,gcc,libc6-dev,strace"
    mirror = run("apt-get", "indextargets", "Created-By: Packages", "--format", "$(REPO_URI)").split()[0]
    run("mmdebstrap", "--quiet", "--mode=root", "--variant=minbase", "--format=directory", f"--include={packages}",
        release, tree, mirror)
    shutil.copy(SOURCE, f"{tree}/messages.c")
    for flavour in "openmpi", "mpich":
        run("chroot", tree, f"mpicc.{flavour}", "-O2", "-o", f"/messages.{flavour}", "/messages.c")
    shutil.rmtree(f"{tree}/var/lib/apt/lists")


def wheel(name):
    """Fetches a wheel; gives the directory that would be an installation's prefix."""
    run(f"{ROOT}/scripts/mpi-wheels", name)
    return f"{ROOT}/target/mpi-wheels/{name}"
