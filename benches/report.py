"""Prints Markdown tables, each group of rows as soon as it is measured, and keeps count of the bars."""

import os
import platform

# Columns by field of a sample: heading, and how a value is written.
COLUMNS = {
    "wall_s": ("wall", lambda value: seconds(value)),
    "cpu_s": ("CPU", lambda value: seconds(value)),
    "peak_mib": ("peak MiB", lambda value: f"{value:,.0f}"),
    "size_mib": ("output MiB", lambda value: f"{value:,.1f}"),
    "written_mib": ("written MiB", lambda value: f"{value:,.0f}"),
    "space_mib": ("space MiB", lambda value: f"{value:,.0f}"),
    "faults": ("faults", lambda value: f"{value:,.0f}"),
}


class Bars:
    """What was promised, what was measured, and whether that is enough."""

    def __init__(self):
        self.rows = []

    def at_least(self, what, wanted, value, unit="x"):
        return self.add(what, f">= {wanted:.3g}{unit}", value, unit, value >= wanted)

    def at_most(self, what, wanted, value, unit="x"):
        return self.add(what, f"<= {wanted:.3g}{unit}", value, unit, value <= wanted)

    def add(self, what, wanted, value, unit, met):
        self.rows.append((what, wanted, f"{value:.2f}{unit}", met))
        return f"{wanted} {'met' if met else 'MISSED'}"

    def print(self):
        """The summary; whether all bars were met."""
        print("| bar | wanted | measured | |\n| --- | ---: | ---: | --- |")
        for what, wanted, value, met in self.rows:
            print(f"| {what} | {wanted} | {value} | {'met' if met else '**missed**'} |")
        met = sum(row[3] for row in self.rows)
        print(f"\n{met} of {len(self.rows)} bars met.\n", flush=True)
        return met == len(self.rows)


class Table:
    """One table; ratios are to the row of `ours` in the same group."""

    def __init__(self, columns, ratios=("wall_s",), ours="hpcrun", extra=()):
        self.columns, self.ratios, self.ours, self.extra = columns, ratios, ours, extra
        heads = [COLUMNS[column][0] for column in columns]
        heads += [f"{COLUMNS[ratio][0]} / {ours}'s" for ratio in ratios] + [*extra]
        print("| what | program | " + " | ".join(heads) + " | bar |")
        print("| --- | --- |" + " ---: |" * len(heads) + " --- |", flush=True)

    def group(self, what, medians, verdicts=None, extra=None):
        """Rows of one comparison: medians by program name; `verdicts`: what the bar column says of a program."""
        base = medians[self.ours]
        for name, sample in medians.items():
            if isinstance(sample, str):
                cells = [sample] + [""] * (len(self.columns) + len(self.ratios) + len(self.extra) - 1)
            else:
                cells = [COLUMNS[c][1](getattr(sample, c)) for c in self.columns]
                cells += [f"{ratio(getattr(sample, r), getattr(base, r)):.2f}" for r in self.ratios]
                cells += [(extra or {}).get(name, {}).get(head, "") for head in self.extra]
            print(f"| {what} | {name} | " + " | ".join(cells) + f" | {(verdicts or {}).get(name, '')} |", flush=True)


def ratio(value, base):
    return value / base if base else float("nan")


def seconds(value):
    if value < 0.001:
        return f"{value * 1e6:.0f} us"
    return f"{value * 1000:.1f} ms" if value < 1 else f"{value:.2f} s"


def machine():
    with open("/proc/cpuinfo") as file:
        model = next((line.split(":", 1)[1].strip() for line in file if line.startswith("model name")), "?")
    with open("/proc/meminfo") as file:
        memory = int(file.readline().split()[1]) >> 20
    cpus = len(os.sched_getaffinity(0))
    return f"{cpus} CPUs ({model}), {memory} GiB, Linux {platform.release().split('-')[0]}; medians of interleaved runs"
