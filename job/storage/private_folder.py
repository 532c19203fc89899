"""Where processes of one person on one machine meet: a folder that nobody else may write to."""

from __future__ import annotations

import contextlib
import fcntl
import os
import tempfile
from collections.abc import Iterator
from typing import Final

from job.errors import JobError

# The folder in it for copies of models, see ``job.model.copies``. All others are launches', see
# ``job.model.sharing.client``.
MODELS: Final = "models"


def folder() -> str:
    """Return it, made where it is not there yet.

    Raises:
        JobError: somebody else has it, or may write to it.
    """
    path = os.path.join(tempfile.gettempdir(), f"scoring-job-{os.getuid()}")
    os.makedirs(path, mode=0o700, exist_ok=True)
    status = os.stat(path, follow_symlinks=False)
    if status.st_uid != os.getuid() or status.st_mode & 0o022:
        raise JobError(f"{path}: it is another user's, or others may write to it; remove it")
    return path


@contextlib.contextmanager
def turn(name: str) -> Iterator[None]:
    """Wait until no other process of this person on this machine is in a body of this name.

    A dead process is not waited for. Where there is no such folder, or no locks in it, nobody is.
    """
    with contextlib.ExitStack() as stack:
        with contextlib.suppress(JobError, OSError):
            lock = stack.enter_context(open(os.path.join(folder(), f"{name}.lock"), "w"))
            fcntl.flock(lock, fcntl.LOCK_EX)
        yield
