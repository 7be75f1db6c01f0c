"""Counts the requests that the kernel sends to a FUSE server, by the kernel's own trace event: no server has to help."""

import collections
import contextlib
import os
import re

import paired

TRACING = "/sys/kernel/tracing"
EVENT = "events/fuse/fuse_request_send"
LINE = re.compile(r" (\d+\.\d+): fuse_request_send: connection (\d+) req \d+ opcode \d+ \(FUSE_(\w+)\)")


class Requests:
    """A trace of its own, in memory; without Linux 6.9's event `usable` is false and nothing is counted."""

    def __init__(self):
        self.path = f"{TRACING}/instances/hpcrun-bench-{os.getpid()}"
        self.usable = False

    def __enter__(self):
        with contextlib.suppress(OSError, paired.Failed):
            if not os.path.isdir(f"{TRACING}/events"):
                paired.root("mount", "-t", "tracefs", "tracefs", TRACING)
            if os.path.isdir(f"{TRACING}/{EVENT}"):
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

    def start(self):
        if self.usable:
            self.write("trace", "")
            self.write(f"{EVENT}/enable", "1")

    def stop(self):
        if self.usable:
            self.write(f"{EVENT}/enable", "0")

    def busiest(self):
        """Requests by name of the file system that was asked most since the start."""
        counts = collections.defaultdict(collections.Counter)
        if self.usable:
            with open(f"{self.path}/trace") as file:
                for match in filter(None, map(LINE.search, file)):
                    counts[match[2]][match[3]] += 1
        return max(counts.values(), key=collections.Counter.total, default=collections.Counter())

    def count(self, windows, device):
        """Requests by name for each (begin, end) of `windows`, of the file system on `device`."""
        counts = [collections.Counter() for _ in windows]
        if not self.usable:
            return counts
        with open(f"{self.path}/trace") as file:
            for line in file:
                if (match := LINE.search(line)) and int(match[2]) == device:
                    for count, (begin, end) in zip(counts, windows):
                        if begin <= float(match[1]) <= end:
                            count[match[3]] += 1
        return counts


def words(count):
    """`1234 (READ 1000, LOOKUP 200, ...)`: the total, and the most frequent."""
    if not count:
        return "0"
    most = ", ".join(f"{name} {number:,}" for name, number in count.most_common(3))
    return f"{count.total():,} ({most})"
