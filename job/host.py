"""What the launching process is: since when, and of which versions."""

from __future__ import annotations

import functools
import os
import platform
import time
from contextlib import suppress
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

_PACKAGES = ("scoring-job", "apache-beam", "keras", "tensorflow", "pyarrow", "numpy")


@functools.cache
def versions() -> tuple[tuple[str, str], ...]:
    """Return the versions that a night's predictions may depend on, by package."""
    found = [("python", platform.python_version())]
    for package in _PACKAGES:
        with suppress(PackageNotFoundError):
            found.append((package, version(package)))
    return tuple(found)


def process_start_unix_s() -> float:
    """Return when this process began, so that the report's times include start-up."""
    try:
        # Field 22 of proc_pid_stat(5): clock ticks from boot to the start of the process.
        ticks = int(Path("/proc/self/stat").read_text().rpartition(")")[2].split()[19])
        uptime_s = float(Path("/proc/uptime").read_text().split()[0])
        return time.time() - (uptime_s - ticks / os.sysconf("SC_CLK_TCK"))
    except (OSError, ValueError, IndexError):
        return time.time() - time.process_time()
