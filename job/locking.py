"""A lock that one process holds, and that a dead process cannot keep."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress

from job import storage
from job.errors import StorageError


@contextmanager
def held(path: str, owner: str) -> Iterator[str | None]:
    """Hold a lock file while the body runs, and remove it afterwards.

    Yields ``None`` when it is held, or what its holder wrote into it when somebody else does. The system
    lets go of it when its holder dies, however that happens. Where the file system has no locks, it counts
    as held.
    """
    descriptor = _locked(path)
    if descriptor is None:
        content = storage.read_bytes(path) or b""
        yield content.decode(errors="replace").strip() or "unknown"
        return
    try:
        # Only so that others can say who holds it: a full disk is told by whoever needs to write.
        with suppress(OSError):
            os.truncate(descriptor, 0)
            os.write(descriptor, owner.encode())
        yield None
    finally:
        with suppress(StorageError):
            storage.remove(path)
        os.close(descriptor)


def _locked(path: str) -> int | None:
    while True:
        try:
            descriptor = os.open(storage.local(path), os.O_RDWR | os.O_CREAT, 0o644)
        except OSError as e:
            raise StorageError(f"{path}: cannot be written: {storage.reason(e)}") from e
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(descriptor)
            return None
        except OSError:
            return descriptor
        # The holder before us may have removed the file between our opening and locking it.
        with suppress(FileNotFoundError):
            if os.stat(storage.local(path)).st_ino == os.fstat(descriptor).st_ino:
                return descriptor
        os.close(descriptor)
