"""Facts about this process: how it was called, when it began, its versions and its memory."""

from __future__ import annotations

import functools
import os
import platform
import re
import sys
import time
from contextlib import suppress
from pathlib import Path

_CGROUPS = "/sys/fs/cgroup"
_PACKAGES = ("scoring-job", "apache-beam", "keras", "tensorflow", "pyarrow", "numpy")


def program() -> str:
    """Return the command that people type: ``python -m job`` if it was called so, else ``scoring-job``."""
    # As argparse finds it out from Python 3.14 on.
    spec = getattr(sys.modules.get("__main__"), "__spec__", None)
    return "python -m job" if spec is not None and spec.name == "job.__main__" else "scoring-job"


@functools.cache
def versions() -> tuple[tuple[str, str], ...]:
    """Return the versions of the packages that may change a night's predictions, Python's first."""
    # Help need not wait for it.
    from importlib.metadata import PackageNotFoundError, version

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


def memory_bytes() -> int:
    """Return the bytes of memory that this process can still use; 0 if the kernel does not say.

    A container's limit counts too. Its page cache counts as free, because the kernel makes room from it.
    """
    try:
        told = dict(line.split(":") for line in Path("/proc/meminfo").read_text().splitlines())
        free = int(told["MemAvailable"].split()[0]) * 1024
    except (OSError, ValueError, KeyError):
        return 0
    folder = Path(_CGROUPS, _own_group())
    for above in (folder, *folder.parents):
        if not above.is_relative_to(_CGROUPS):
            break
        # Without a limit the file holds a word, and the top group has no such file.
        with suppress(OSError, ValueError, KeyError):
            limit = int((above / "memory.max").read_text())
            taken = int((above / "memory.current").read_text())
            kept = dict(line.split() for line in (above / "memory.stat").read_text().splitlines())
            cached = int(kept["active_file"]) + int(kept["inactive_file"])
            free = min(free, max(0, limit - taken + cached))
    return free


def _own_group() -> str:
    """Return the path of this process's control group; empty for the top group."""
    with suppress(OSError):
        groups = Path("/proc/self/cgroup").read_text()
        if found := re.search("^0::/(.*)$", groups, re.MULTILINE):
            return found[1]
    return ""
