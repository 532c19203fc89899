"""A check: one line of ``job doctor``."""

from __future__ import annotations

from dataclasses import dataclass

from job.errors import JobError


@dataclass(frozen=True)
class Check:
    """One line of ``job doctor``: what was checked, whether it is well, and what was found.

    ``ok`` is ``None`` if it could not be checked; ``told`` then says why. ``fix`` says what to do, and is
    empty if all is well.
    """

    name: str
    ok: bool | None
    told: str
    fix: str = ""


def of_error(name: str, error: JobError) -> Check:
    """Return an error as a failed check; the last part of its message is the fix."""
    told, _, fix = str(error).rpartition("; ")
    return Check(name, False, told, fix) if told else Check(name, False, fix, "correct it")
