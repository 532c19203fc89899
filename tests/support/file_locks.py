"""File systems whose locks hold for nobody, or for the processes of one machine alone."""

from __future__ import annotations

import errno
import fcntl
import os
import socket
from collections.abc import Callable
from pathlib import Path

import pytest

from job.commit import lease


def without(patch: pytest.MonkeyPatch) -> None:
    """There are no locks, as on NFS without its lock daemon, and the file system says so."""

    def refused() -> None:
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    _locked(patch, refused)


def alone(patch: pytest.MonkeyPatch) -> None:
    """Each process is on a machine of its own, and gets every lock, as on NFS with ``nolock``."""
    _locked(patch, lambda: None)
    patch.setattr(lease, "file_system", lambda path: "nfs")


def _locked(patch: pytest.MonkeyPatch, there: Callable[[], None]) -> None:
    """Outputs are on another file system than the rest."""
    real = fcntl.flock

    def flock(descriptor: int, operation: int) -> None:
        path = os.readlink(f"/proc/self/fd/{descriptor}")
        there() if "/_staging/" in path else real(descriptor, operation)

    patch.setattr(fcntl, "flock", flock)


def elsewhere(patch: pytest.MonkeyPatch) -> None:
    """This process is on a machine of its own."""
    name = f"machine-{os.getpid()}"
    patch.setattr(socket, "gethostname", lambda: name)


def standing_still(patch: pytest.MonkeyPatch) -> None:
    """No clock goes on while the machine stands still, and nothing is renewed."""
    patch.setattr(lease.Moment, "passed_s", property(lambda moment: 0.0 if moment.boot_s > 0 else 1e9))
    patch.setattr(lease, "RENEW_S", 1e6)


def mounted(folder: Path, kind: str, patch: pytest.MonkeyPatch) -> None:
    """Let the kernel say that this folder's file system is of this kind."""
    device = folder.stat().st_dev
    number = f"{os.major(device)}:{os.minor(device)}"
    told = folder / "mountinfo"
    told.write_text(
        "21 28 0:19 / /sys rw,nosuid shared:7 - sysfs sysfs rw\n"
        f"99 28 {number} /export /mnt/a\\040b rw shared:1 master:2 - {kind} server:/export rw,nolock\n"
    )
    patch.setattr(lease, "_MOUNTS", str(told))
