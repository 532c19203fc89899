"""A lock that one process holds, and that a dead process cannot keep.

The system keeps it (``flock``), so it is worth what the file system makes of it. Some have none and say so.
Of those that other machines see too, some ask their server, and some, by the way in which they are mounted,
keep the lock on this machine alone and say nothing; which of the two cannot be told from here. There a lock
counts for the processes of this machine, and a lease is needed besides: ``job.commit.lease``.
"""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from job import storage
from job.errors import StorageError, of_place

# As proc_pid_mountinfo(5) calls them; those in user space have names that begin with "fuse".
_SHARED: Final = frozenset(
    {
        *("9p", "acfs", "afs", "beegfs", "ceph", "cifs", "coda", "gfs2", "gpfs", "lustre", "ncpfs", "nfs"),
        *("nfs4", "ocfs2", "orangefs", "panfs", "prl_fs", "pvfs2", "smb3", "smbfs", "vboxsf", "virtiofs"),
        *("vmhgfs", "wekafs"),
    }
)
# A disk's, though its driver is in user space.
_OF_A_DISK: Final = "fuseblk"
_MOUNTS: Final = "/proc/self/mountinfo"


@dataclass(frozen=True)
class Lock:
    """What came of trying to take one.

    ``holder`` is what somebody else who has it wrote into it, ``None`` where nobody has. ``is_sure`` says
    that nobody else can have it, on whichever machine.
    """

    holder: str | None
    is_sure: bool


@contextmanager
def held(path: str, owner: str) -> Iterator[Lock]:
    """Hold a lock file while the body runs, and remove it afterwards, if nobody else has it.

    The system lets go of it when its holder dies, however that happens.
    """
    descriptor = _opened(path)
    while True:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(descriptor)
            content = storage.read_bytes(path) or b""
            yield Lock(content.decode(errors="replace").strip() or "unknown", True)
            return
        except OSError:
            # There are none here. What is written in the file is another machine's, which has some.
            is_empty = not os.fstat(descriptor).st_size
            os.close(descriptor)
            try:
                yield Lock(None, False)
            finally:
                if is_empty:
                    with suppress(StorageError):
                        storage.remove(path)
            return
        # The holder before us may have removed the file between our opening and locking it.
        with suppress(FileNotFoundError):
            if os.stat(storage.local(path)).st_ino == os.fstat(descriptor).st_ino:
                break
        os.close(descriptor)
        descriptor = _opened(path)
    try:
        # Only so that others can say who holds it: a full disk is told by whoever needs to write.
        with suppress(OSError):
            os.truncate(descriptor, 0)
            os.write(descriptor, owner.encode())
        yield Lock(None, not is_shared(path))
    finally:
        with suppress(StorageError):
            storage.remove(path)
        os.close(descriptor)


def _opened(path: str) -> int:
    with of_place(fix="choose another output"):
        try:
            return os.open(storage.local(path), os.O_RDWR | os.O_CREAT, 0o644)
        except OSError as e:
            raise StorageError(f"{path}: cannot be written: {storage.reason(e)}") from e


def is_shared(path: str) -> bool:
    """Say whether the file system of a path is of a kind that other machines may write to as well."""
    kind = file_system(path)
    return kind in _SHARED or (kind.startswith("fuse") and kind != _OF_A_DISK)


def file_system(path: str) -> str:
    """Return what kind of file system a path is on, in the kernel's word; empty where that is not known."""
    try:
        device = os.stat(storage.local(path)).st_dev
        mounts = Path(_MOUNTS).read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""
    number = f"{os.major(device)}:{os.minor(device)}"
    for line in mounts.splitlines():
        fields = line.split()
        if fields[2] == number:
            # Optional fields end with a dash; the kind comes next.
            return fields[fields.index("-") + 1]
    return ""
