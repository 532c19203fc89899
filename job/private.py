"""Where processes of one person on one machine meet: a folder that nobody else may write to."""

from __future__ import annotations

import os
import tempfile

from job.errors import JobError


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
