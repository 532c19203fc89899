"""A folder for the processes of one user on one machine; nobody else may write to it.

It holds copies of models, sockets and locks, below the folder for temporary files (``TMPDIR``).
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import tempfile
from collections.abc import Iterator
from typing import Final

from job.errors import JobError, StorageError, UsageError, of_place
from job.storage import disk

# The folder in it for copies of models, see ``job.model.copies``. Each other folder belongs to one launch,
# see ``job.model.sharing.client``.
MODELS: Final = "models"


@contextlib.contextmanager
def os_errors(what: str) -> Iterator[None]:
    """Raise an ``OSError`` of the body as one line: the file, ``what`` cannot be done, why, and the fix.

    Raises:
        UsageError: running again cannot help, as with a file where a folder must be.
        StorageError: any other, as of a full disk.
    """
    with of_place():
        try:
            yield
        except OSError as e:
            where = e.filename or "the folder for temporary files"
            raise StorageError(
                f"{where}: {what}: {disk.reason(e)}; make room or set TMPDIR to another folder"
            ) from e


def folder() -> str:
    """Return the folder's path; make the folder where there is none.

    Raises:
        UsageError: it is another user's, others may write to it, or it cannot be made.
        StorageError: there is no room for it.
    """
    with os_errors("the folder cannot be made"):
        path = os.path.join(tempfile.gettempdir(), f"scoring-job-{os.getuid()}")
        os.makedirs(path, mode=0o700, exist_ok=True)
        status = os.stat(path, follow_symlinks=False)
    if status.st_uid != os.getuid() or status.st_mode & 0o022:
        raise UsageError(
            f"{path}: it is another user's, or others may write to it; remove it, or set TMPDIR to another "
            f"folder"
        )
    return path


@contextlib.contextmanager
def turn(name: str) -> Iterator[None]:
    """Wait until no other process of this user on this machine runs a body under this name.

    A dead process is not waited for. Without such a folder, or without locks in it, nobody waits.
    """
    with contextlib.ExitStack() as stack:
        with contextlib.suppress(JobError, OSError):
            lock = stack.enter_context(open(os.path.join(folder(), f"{name}.lock"), "w"))
            fcntl.flock(lock, fcntl.LOCK_EX)
        yield
