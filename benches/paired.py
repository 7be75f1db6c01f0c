"""Measures commands against each other in one run: interleaved (A B A B ...), medians, and the ratio of medians.

Absolute times of a shared machine mean little; a ratio taken in turns under the same disturbances means something. So every
figure here is a ratio between two things measured in the same run, and each table says on what machine.

A sample covers everything that a command starts, daemons included: it runs in a control group of its own runner, whose
processor time is read before and after.
"""

import contextlib
import ctypes
import dataclasses
import multiprocessing
import os
import pwd
import resource
import signal
import statistics
import struct
import subprocess
import sys
import time

USER = "hpcrun-test"
PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
LEAVE_S = 10  # how long a sample waits for what its command left running to end
CLONE_NEWNS = 0x00020000


class Failed(Exception):
    """A measured command did not end well."""


@dataclasses.dataclass
class Sample:
    """One run of one command, or the medians of several."""

    wall_s: float
    cpu_s: float  # user and system, of everything that ran on its behalf, servers included
    peak_mib: float  # of the largest process that it waited for
    written_mib: float = 0  # handed to write calls, pipes included
    faults: float = 0  # minor page faults of the command and the processes that it waited for
    space_mib: float = 0  # largest use of the watched file system beyond what lay there before
    size_mib: float = 0  # of the file that it made
    output: str = ""


@dataclasses.dataclass
class Case:
    """One side of a comparison. `before` and `after` run as the caller, outside the measured time."""

    name: str
    command: list
    runner: object
    before: object = None
    after: object = None
    rounds: int = 1 << 30  # at most so many, for what takes minutes
    warm_up: bool = True  # one more run, not counted, before the others
    copies: int = 1  # started at once
    makes: str = None  # file whose size is wanted
    env: dict = dataclasses.field(default_factory=dict)  # added to the plain environment


class Runner:
    """A process that has become the ordinary user, in a control group of its own, perhaps with another root directory.

    It stays for many runs, so that no sample holds the cost of becoming a user or of entering the tree.
    """

    def __init__(self, name, tree=None, binds=()):
        self.group = new_group(name)
        self.connection, child = multiprocessing.Pipe()
        self.process = multiprocessing.Process(target=serve, args=(child, self.group, tree, binds), daemon=True)
        self.process.start()
        child.close()  # so that a runner that died ends the bench instead of hanging it
        if self.connection.recv() != "ready":
            raise Failed(f"the runner {name} did not start")

    def run(self, command, copies=1, watch=None, every_s=0.02, leaves=False, env=None):
        """Runs `copies` of a command to their end; `watch` is called again and again meanwhile. `leaves`: it leaves a
        server behind on purpose, so its end is not waited for."""
        self.connection.send((list(command), copies, leaves, env or {}))
        while watch and not self.connection.poll(every_s):
            watch()
        sample = self.connection.recv()
        if isinstance(sample, str):
            raise Failed(sample)
        return sample

    def processes(self):
        """Ids of what runs in this runner's group, itself left out."""
        return members(self.group) - {self.process.pid}

    def close(self):
        for pid in self.processes():
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        self.connection.send(None)
        self.process.join(LEAVE_S)
        if self.group:
            with contextlib.suppress(OSError):
                os.rmdir(self.group)


def new_group(name):
    """A fresh control group (version 2), or None where there is none to be had."""
    for line in open("/proc/self/mounts"):
        _, point, kind, *_ = line.split()
        if kind == "cgroup2":
            path = os.path.join(point, f"hpcrun-bench-{os.getpid()}-{name}")
            with contextlib.suppress(OSError):
                os.mkdir(path)
                return path
    return None


def members(group):
    if not group:
        return set()
    with open(f"{group}/cgroup.procs") as file:
        return {int(line) for line in file}


def serve(connection, group, tree, binds):
    """The runner's life."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    if group:
        with open(f"{group}/cgroup.procs", "w") as file:
            file.write(str(os.getpid()))
    if tree:
        enter(tree, binds)
    counters = open("/proc/self/io", "rb", buffering=0)  # opened now: the file is root's once this process is not
    user = pwd.getpwnam(USER)
    os.initgroups(USER, user.pw_gid)
    os.setgid(user.pw_gid)
    os.setuid(user.pw_uid)
    # Nothing of the caller's: proxies, certificate bundles, paths and job steps would change what peers do.
    os.environ.clear()
    os.environ.update(PATH=PATH, HOME=user.pw_dir, USER=USER, LOGNAME=USER, LANG="C.UTF-8")
    os.chdir("/tmp")
    connection.send("ready")
    while (request := connection.recv()) is not None:
        connection.send(run(*request, group, counters))
    connection.close()


def enter(tree, binds):
    """Makes `tree` the root of this process and of what it starts.

    By pivot_root and not by chroot: the kernel lets no process in a chroot create a user namespace.
    """
    if ctypes.CDLL(None, use_errno=True).unshare(CLONE_NEWNS):
        raise OSError(ctypes.get_errno(), "unshare")
    root("mount", "--make-rprivate", "/")
    root("mount", "--bind", tree, tree)
    root("mount", "-t", "tmpfs", "-o", "mode=1777", "tmpfs", f"{tree}/tmp")
    for path in ("/proc", "/sys", "/dev", "/etc/passwd", "/etc/group", "/etc/hosts", pwd.getpwnam(USER).pw_dir, *binds):
        inside = tree + path
        if os.path.isdir(path):
            os.makedirs(inside, exist_ok=True)
        elif not os.path.exists(inside):
            open(inside, "w").close()
        root("mount", "--rbind", path, inside)
    os.makedirs(f"{tree}/tmp/.old")
    os.chdir(tree)
    root("pivot_root", ".", "tmp/.old")
    os.chdir("/")
    root("umount", "--lazy", "/tmp/.old")
    os.rmdir("/tmp/.old")


def run(command, copies, leaves, env, group, counters):
    """Runs a command to its end; gives its sample, or the text of its failure."""
    # A file, not a pipe: nothing blocks on it, and waiting for the command is not waiting for whatever else holds it.
    captured = os.memfd_create("output")
    actions = [
        (os.POSIX_SPAWN_OPEN, 0, "/dev/null", os.O_RDONLY, 0),
        (os.POSIX_SPAWN_DUP2, captured, 1),
        (os.POSIX_SPAWN_DUP2, captured, 2),
    ]
    before = members(group)
    written = write_bytes(counters)
    group_before = group_cpu_s(group)
    start = time.perf_counter()
    pids = [os.posix_spawnp(command[0], command, {**os.environ, **env}, file_actions=actions) for _ in range(copies)]
    ended = [os.wait4(pid, 0) for pid in pids]
    end = time.perf_counter()
    while group and not leaves and not members(group) <= before and time.perf_counter() - end < LEAVE_S:
        time.sleep(0.002)
    statuses = [os.waitstatus_to_exitcode(status) for _, status, _ in ended]
    usages = [usage for _, _, usage in ended]
    cpu = group_cpu_s(group) - group_before if group else sum(u.ru_utime + u.ru_stime for u in usages)
    written = write_bytes(counters) - written
    output = os.pread(captured, 1 << 20, 0).decode(errors="replace")
    os.close(captured)
    if any(statuses):
        return f"{' '.join(command)}: exit status {next(filter(None, statuses))}\n{output[-2000:]}"
    peak = max(u.ru_maxrss for u in usages) / 1024
    return Sample(end - start, cpu, peak, written / 2**20, sum(u.ru_minflt for u in usages), output=output)


def group_cpu_s(group):
    """Processor time of everything in the group but this process itself."""
    if not group:
        return 0
    with open(f"{group}/cpu.stat") as file:
        spent = next(int(line.split()[1]) for line in file if line.startswith("usage_usec"))
    own = resource.getrusage(resource.RUSAGE_SELF)
    return spent / 1e6 - own.ru_utime - own.ru_stime


def write_bytes(counters):
    """Bytes that this process, and those that it waited for, handed to write calls."""
    counters.seek(0)
    return next(int(line.split()[1]) for line in counters.read().splitlines() if line.startswith(b"wchar"))


class Bench:
    """Runs cases in turn. Stops peers, never ours, when the time that it was given is spent."""

    def __init__(self, budget_min=None, space_of=None, forgiving=True):
        """`space_of`: a directory whose file system's use is watched; `forgiving`: a peer may fail."""
        self.deadline = time.monotonic() + 60 * budget_min if budget_min else None
        self.space_of, self.forgiving = space_of, forgiving

    def measure(self, case, watch=None):
        if case.before:
            case.before()
        used = space = self.used_mib()

        def watch_space():
            nonlocal space
            space = max(space, self.used_mib())

        sample = case.runner.run(case.command, case.copies, watch or (watch_space if self.space_of else None), env=case.env)
        watch_space()
        sample.space_mib = space - used
        if case.makes:
            sample.size_mib = os.path.getsize(case.makes) / 2**20
        if case.after:
            case.after()
        return sample

    def used_mib(self):
        if not self.space_of:
            return 0
        stat = os.statvfs(self.space_of)
        return (stat.f_blocks - stat.f_bfree) * stat.f_frsize / 2**20

    def compare(self, cases, rounds):
        """Medians of each case, by name; a text instead of a sample says why there is none."""
        taken = self.collect(cases, rounds)
        return {name: samples if isinstance(samples, str) else median(samples) for name, samples in taken.items()}

    def collect(self, cases, rounds, ours="hpcrun"):
        """Samples of each case over interleaved rounds, by name; a text instead says why there are none."""
        taken, failures = {case.name: [] for case in cases}, {}
        for number in range(rounds + 1):
            for case in cases if number % 2 else reversed(cases):
                if case.name in failures or (number == 0 and not case.warm_up) or number > case.rounds:
                    continue
                if self.deadline and time.monotonic() > self.deadline and not case.name.startswith(ours):
                    continue
                try:
                    sample = self.measure(case)
                except Failed as failure:
                    if case.name.startswith(ours) or not self.forgiving:
                        raise
                    failures[case.name] = "failed: " + " ".join(str(failure).split())[-300:]
                    if case.after:
                        case.after()
                    continue
                print(f"  {case.name}: {sample.wall_s:.3f} s", file=sys.stderr, flush=True)
                if number:
                    taken[case.name].append(sample)
        return {name: failures.get(name) or samples or "not run: out of time" for name, samples in taken.items()}


def median(samples):
    fields = [field.name for field in dataclasses.fields(Sample) if field.name != "output"]
    middle = Sample(**{name: statistics.median(getattr(sample, name) for sample in samples) for name in fields})
    middle.output = samples[-1].output
    return middle


def drop_caches():
    """Page cache, dentries and inodes of the whole machine."""
    os.sync()
    with open("/proc/sys/vm/drop_caches", "w") as file:
        file.write("3")


def root(*command):
    """A preparation, as the caller."""
    done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True)
    if done.returncode:
        raise Failed(f"{' '.join(map(str, command))}: {done.stderr.decode(errors='replace')}")
    return done.stdout.decode(errors="replace")


LATENCY = "/dev/cpu_dma_latency"


@contextlib.contextmanager
def awake(wanted):
    """Keeps idle CPUs from falling asleep: waking a virtual one costs more than what is measured.

    By the kernel's own means, a latency of 0 us asked for as long as the device is open, so that idle CPUs poll. Where that is
    missing, by one SCHED_IDLE busy loop a CPU; but beside such a loop the scheduler lets a process that can run wait for the
    next tick, 4 ms, whenever another one on its CPU goes to sleep: several processes suffer from it more than one.
    """
    with contextlib.ExitStack() as stack:
        if wanted and os.path.exists(LATENCY):
            device = stack.enter_context(open(LATENCY, "wb", buffering=0))
            device.write(struct.pack("i", 0))
        elif wanted:
            for cpu in sorted(os.sched_getaffinity(0)):
                spin = ["taskset", "-c", str(cpu), "chrt", "-i", "0", "sh", "-c", "while :; do :; done"]
                loop = subprocess.Popen(spin)
                stack.callback(loop.wait)
                stack.callback(loop.kill)
        yield
