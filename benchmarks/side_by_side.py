"""How the benchmarks measure: cases in turn in one run (A B A B), ratios round by round, the machine beside them."""

import importlib.metadata
import os
import pathlib
import platform
import re
import statistics
import time
from collections.abc import Callable, Iterable, Mapping, Sequence

Measurements = dict[str, list[float]]
"""Of each case, one figure a round."""


def interleave(cases: Mapping[str, Callable[[], float]], rounds: int) -> Measurements:
    """Calls every case once a round, in turn; each returns what it measured, in its own unit.

    Whatever else the machine does in a round falls on all cases alike, so compare by `ratio` and not by the medians.
    """
    measured: Measurements = {name: [] for name in cases}
    for _ in range(rounds):
        for name, case in cases.items():
            measured[name].append(case())
    return measured


def seconds(function: Callable[[], object]) -> float:
    """Wall-clock seconds of one call, which must not return before its work is done."""
    start = time.perf_counter()
    function()
    return time.perf_counter() - start


def spread(values: Sequence[float], form: str = ".3g") -> str:
    """'median (min to max)'."""
    return f"{statistics.median(values):{form}} ({min(values):{form}} to {max(values):{form}})"


def ratio(measured: Measurements, numerator: str, denominator: str) -> list[float]:
    """The quotients of the figures of the same round."""
    return [a / b for a, b in zip(measured[numerator], measured[denominator], strict=True)]


def best(measured: Measurements, names: Iterable[str]) -> str:
    """Of these cases the one with the lowest median."""
    return min(names, key=lambda name: statistics.median(measured[name]))


def machine(*packages: str) -> str:
    """One line: the processor and how many of its cores this process may use, Python, and the packages' versions."""
    cpuinfo = pathlib.Path("/proc/cpuinfo")
    models = re.findall(r"^model name\s*:\s*(.*)$", cpuinfo.read_text(), re.M) if cpuinfo.exists() else []
    name = models[0] if models else platform.processor() or platform.machine()
    versions = [f"{package} {importlib.metadata.version(package)}" for package in packages]
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return ", ".join([name, f"{cores} cores", f"Python {platform.python_version()}", *versions])


def markdown(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A table for the terminal and for docs/results.md."""
    return "\n".join(f"| {' | '.join(row)} |" for row in (head, ["---"] * len(head), *rows))
