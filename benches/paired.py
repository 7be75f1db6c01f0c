"""Measures commands against each other in one run: interleaved (A B A B ...), medians, and the ratio of medians.

Absolute times of a shared machine mean little; a ratio taken in turns under the same disturbances means something. So every
figure here is a ratio between two things measured in the same run, and each table says on what machine.
"""

import contextlib
import dataclasses
import multiprocessing
import os
import platform
import pwd
import resource  # os.wait4 loads it, and the ordinary user may be unable to reach a root's Python by then
import signal
import statistics
import subprocess
import sys
import time

USER = "hpcrun-test"


@dataclasses.dataclass
class Sample:
    """One run of one command."""

    wall_s: float
    cpu_s: float  # user and system, of the command and the children that it waited for
    peak_mib: float  # of the largest of those processes
    output: bytes = b""


@dataclasses.dataclass
class Case:
    """One side of a comparison. `before` and `after` run as the caller, outside the measured time."""

    name: str
    command: list
    before: object = None
    after: object = None
    seconds_from_output: bool = False  # the command prints its own seconds, for parts of a run


def as_user(connection):
    """Serves runs from a process that has become the ordinary user, so that a sample holds no cost of becoming one."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    if os.geteuid() == 0:
        user = pwd.getpwnam(USER)
        os.initgroups(USER, user.pw_gid)
        os.setgid(user.pw_gid)
        os.setuid(user.pw_uid)
        os.environ.update(HOME=user.pw_dir, USER=USER, LOGNAME=USER)
        os.chdir("/tmp")
    while (command := connection.recv()) is not None:
        connection.send(run(command))
    connection.close()


def run(command):
    """Runs a command to its end; gives its sample, or the text of its failure."""
    # A file, not a pipe: nothing blocks on it, and waiting for the command is not waiting for whatever else holds it.
    captured = os.memfd_create("output")
    actions = [
        (os.POSIX_SPAWN_OPEN, 0, "/dev/null", os.O_RDONLY, 0),
        (os.POSIX_SPAWN_DUP2, captured, 1),
        (os.POSIX_SPAWN_DUP2, captured, 2),
    ]
    start = time.perf_counter()
    pid = os.posix_spawnp(command[0], command, os.environ, file_actions=actions)
    _, status, usage = os.wait4(pid, 0)
    wall = time.perf_counter() - start
    output = os.pread(captured, 1 << 20, 0)
    os.close(captured)
    code = os.waitstatus_to_exitcode(status)
    if code:
        return f"{' '.join(command)}: exit status {code}\n{output.decode(errors='replace')}"
    return Sample(wall, usage.ru_utime + usage.ru_stime, usage.ru_maxrss / 1024, output)


class Bench:
    """Runs cases in turn as the ordinary user and prints Markdown."""

    def __init__(self, title, directory):
        """`directory` holds the image that is measured, so the ordinary user must be able to reach it."""
        if os.geteuid() != 0:
            sys.exit("needs root: to drop caches and mount the peers; what is measured runs as an ordinary user")
        self.connection, child = multiprocessing.Pipe()
        self.runner = multiprocessing.Process(target=as_user, args=(child,), daemon=True)
        self.runner.start()
        child.close()  # so that a runner that died ends the bench instead of hanging it
        self.measure(Case(f"{directory} can be read by {USER}", ["test", "-r", f"{directory}/oci/index.json"]))
        print(f"### {title}\n\n{machine()}\n")

    def measure(self, case):
        if case.before:
            case.before()
        self.connection.send(case.command)
        sample = self.connection.recv()
        if case.after:
            case.after()
        if isinstance(sample, str):
            sys.exit(f"{case.name}: {sample}")
        if case.seconds_from_output:
            sample.wall_s = float(sample.output.split()[-1])
        return sample

    def compare(self, cases, rounds):
        """Medians of each case over `rounds` interleaved rounds, by name; one more round before them is not counted."""
        taken = {case.name: [] for case in cases}
        for number in range(rounds + 1):
            for case in cases if number % 2 else reversed(cases):
                sample = self.measure(case)
                if number:
                    taken[case.name].append(sample)
        return {name: median(samples) for name, samples in taken.items()}


def median(samples):
    def of(field):
        return statistics.median(getattr(sample, field) for sample in samples)

    return Sample(of("wall_s"), of("cpu_s"), of("peak_mib"))


def print_table(rows, ours, columns=("wall_s", "cpu_s", "peak_mib")):
    """`rows`: (what, medians by case name). The ratio is wall time of the case over that of `ours`."""
    heads = {"wall_s": "wall", "cpu_s": "CPU", "peak_mib": "peak MiB"}
    print("| what | program | " + " | ".join(heads[column] for column in columns) + f" | wall / {ours}'s |")
    print("| --- | --- |" + " ---: |" * (len(columns) + 1))
    for what, medians in rows:
        for name, sample in medians.items():
            cells = [f"{getattr(sample, c):.0f}" if c == "peak_mib" else seconds(getattr(sample, c)) for c in columns]
            ratio = f"{sample.wall_s / medians[ours].wall_s:.2f}"
            print(f"| {what} | {name} | " + " | ".join(cells) + f" | {ratio} |")
    print(flush=True)


def seconds(value):
    return f"{value * 1000:.1f} ms" if value < 1 else f"{value:.2f} s"


def machine():
    model = next((line.split(":", 1)[1].strip() for line in open("/proc/cpuinfo") if line.startswith("model name")), "?")
    return f"{os.cpu_count()} CPUs ({model}), Linux {platform.release().split('-')[0]}; medians of interleaved runs."


def drop_caches():
    """Page cache, dentries and inodes of the whole machine."""
    os.sync()
    with open("/proc/sys/vm/drop_caches", "w") as file:
        file.write("3")


def root(*command):
    """A preparation, as the caller."""
    done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True)
    if done.returncode:
        sys.exit(f"{' '.join(map(str, command))}: {done.stderr.decode(errors='replace')}")


@contextlib.contextmanager
def spinners(wanted):
    """One SCHED_IDLE busy loop a CPU: they yield to everything, but keep virtual CPUs from falling asleep, whose waking
    otherwise costs more than what is measured."""
    loops = [subprocess.Popen(["chrt", "-i", "0", "sh", "-c", "while :; do :; done"]) for _ in range(os.cpu_count() * wanted)]
    try:
        yield
    finally:
        for loop in loops:
            loop.kill()
            loop.wait()


def program():
    """The program under test."""
    top = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
    return os.environ.get("HPCRUN", os.path.join(top, "target/release/hpcrun"))
