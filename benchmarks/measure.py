"""One measurement: a command in a fresh process, its wall time and its peak memory as the system counts them.

The peak is ``ru_maxrss`` of the process from ``wait4``. Linux starts that count at the size of the
parent that forked it, so the measuring process must stay smaller than what it measures: it imports
neither TensorFlow nor Beam.
"""

from __future__ import annotations

import os
import platform
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from statistics import median

PACKAGES = ("apache-beam", "keras", "numpy", "pyarrow", "tensorflow")
TAIL_CHARACTERS = 2_000


class CommandFailedError(Exception):
    """A measured command did not exit with 0."""


@dataclass(frozen=True)
class Measured:
    """One run of one process. ``started`` is seconds since the epoch, ``cpu_s`` user and system time."""

    wall_s: float
    cpu_s: float
    peak_rss_bytes: int
    started: float
    stdout: str


def process(command: Sequence[str]) -> Measured:
    """Run ``command`` to its end in a process of its own.

    Raises:
        CommandFailedError: it exits with anything but 0; the message ends with what it printed last.
    """
    with tempfile.TemporaryFile("w+") as stdout, tempfile.TemporaryFile("w+") as stderr:
        started, clock = time.time(), time.perf_counter()
        # Not a with block: Popen would wait for a process that wait4 has already collected.
        child = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=stdout, stderr=stderr)
        _, status, usage = os.wait4(child.pid, 0)
        wall_s = time.perf_counter() - clock
        child.returncode = os.waitstatus_to_exitcode(status)
        stdout.seek(0)
        stderr.seek(0)
        if child.returncode:
            raise CommandFailedError(
                f"exit code {child.returncode} of {' '.join(command)}: …{stderr.read()[-TAIL_CHARACTERS:]}"
            )
        return Measured(
            wall_s=wall_s,
            cpu_s=usage.ru_utime + usage.ru_stime,
            peak_rss_bytes=usage.ru_maxrss * 1024,
            started=started,
            stdout=stdout.read(),
        )


def alternate(
    sides: Mapping[str, Callable[[], Sequence[str]]],
    runs: int,
    record: Callable[[str, int, Measured], None],
) -> dict[str, list[Measured]]:
    """Measure every side ``runs`` times in turns, A B A B …, so that drift meets all of them alike.

    A side is a function that clears away what its last run left and returns the command.
    """
    done: dict[str, list[Measured]] = {side: [] for side in sides}
    for run in range(runs):
        for side, prepare in sides.items():
            measured = process(prepare())
            record(side, run, measured)
            done[side].append(measured)
    return done


def median_wall_s(runs: Sequence[Measured]) -> float:
    """Median wall time in seconds."""
    return median(run.wall_s for run in runs)


def median_peak_bytes(runs: Sequence[Measured]) -> float:
    """Median peak resident memory in bytes."""
    return median(run.peak_rss_bytes for run in runs)


def environment() -> dict[str, object]:
    """Return what a number must be read with: processor, cores, memory, versions, commit."""
    return {
        "cpu": _processor(),
        "cores": len(os.sched_getaffinity(0)),
        "memory_bytes": os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
        "system": platform.platform(),
        "python": platform.python_version(),
        **{package: version(package) for package in PACKAGES},
        "commit": _git("rev-parse", "--short", "HEAD") or "none",
        "uncommitted": bool(_git("status", "--porcelain")),
    }


def python(*arguments: str) -> list[str]:
    """Return a command for this interpreter."""
    return [sys.executable, *arguments]


def _processor() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def _git(*arguments: str) -> str:
    done = subprocess.run(["git", *arguments], capture_output=True, text=True, check=False)
    return done.stdout.strip()
