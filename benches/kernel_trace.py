"""Counts what programs ask of the kernel and the kernel asks of a FUSE server, by the kernel's own trace events.

No server has to help, and nothing is stopped meanwhile: a tracer that stops a FUSE server and reads the memory of a
program whose pages that server provides waits for ever.
"""

import collections
import contextlib
import os
import re

import paired

TRACING = "/sys/kernel/tracing"
REQUEST = "fuse/fuse_request_send"
SYSTEM_CALL = "raw_syscalls/sys_enter"
REQUEST_LINE = re.compile(r" (\d+\.\d+): fuse_request_send: connection (\d+) req \d+ opcode \d+ \(FUSE_(\w+)\)")
SYSTEM_CALL_LINE = re.compile(r"-(\d+) +\[\d+\] .* sys_enter: NR")


class Trace:
    """A trace instance of its own for one kind of event; where the kernel has no such event (that of FUSE came with
    Linux 6.9) `usable` is false and nothing is counted."""

    def __init__(self, event):
        self.event = event
        self.path = f"{TRACING}/instances/hpcrun-bench-{os.getpid()}-{event.split('/')[0]}"
        self.usable = False

    def __enter__(self):
        with contextlib.suppress(OSError, paired.Failed):
            if not os.path.isdir(f"{TRACING}/events"):
                paired.root("mount", "-t", "tracefs", "tracefs", TRACING)
            if os.path.isdir(f"{TRACING}/events/{self.event}"):
                os.mkdir(self.path)
                self.write("trace_clock", "mono")  # the clock of the probe's passes
                self.write("buffer_size_kb", "24576")
                self.usable = True
        return self

    def __exit__(self, *_):
        if self.usable:
            self.stop()
            os.rmdir(self.path)

    def write(self, name, text):
        with open(f"{self.path}/{name}", "w") as file:
            file.write(text)

    def start(self, pid=None):
        """`pid`: count only what it and its descendants do."""
        if self.usable:
            self.write("trace", "")
            if pid:
                self.write("options/event-fork", "1")
                self.write("set_event_pid", str(pid))
            self.write(f"events/{self.event}/enable", "1")

    def stop(self):
        if self.usable:
            self.write(f"events/{self.event}/enable", "0")

    def matches(self, pattern):
        if self.usable:
            with open(f"{self.path}/trace") as file:
                yield from filter(None, map(pattern.search, file))

    def requests(self, windows, device):
        """Requests by name for each (begin, end) of `windows`, of the file system on `device`."""
        counts = [collections.Counter() for _ in windows]
        for match in self.matches(REQUEST_LINE):
            for count, (begin, end) in zip(counts, windows):
                if int(match[2]) == device and begin <= float(match[1]) <= end:
                    count[match[3]] += 1
        return counts

    def busiest_requests(self):
        """Requests by name of the file system that was asked most."""
        counts = collections.defaultdict(collections.Counter)
        for match in self.matches(REQUEST_LINE):
            counts[match[2]][match[3]] += 1
        return max(counts.values(), key=collections.Counter.total, default=collections.Counter())

    def system_calls(self):
        """Number of system calls by thread."""
        return collections.Counter(int(match[1]) for match in self.matches(SYSTEM_CALL_LINE))


def words(count):
    """`1,234 (READ 1,000, LOOKUP 200, ...)`: the total, and the most frequent."""
    if not count:
        return "0"
    most = ", ".join(f"{name} {number:,}" for name, number in count.most_common(3))
    return f"{count.total():,} ({most})"
