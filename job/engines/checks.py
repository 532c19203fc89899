"""What is looked at before a night is submitted, and what to do where it is not as it should be."""

from __future__ import annotations

from dataclasses import dataclass

from job.errors import JobError


@dataclass(frozen=True)
class Check:
    """One line of ``job doctor``.

    ``ok`` is ``None`` where it could not be looked at; ``told`` then says why. ``fix`` says what to do, and
    is empty where all is well.
    """

    name: str
    ok: bool | None
    told: str
    fix: str = ""


def of_error(name: str, error: JobError) -> Check:
    """Return what an error says as a check; the fix is its last part."""
    told, _, fix = str(error).rpartition("; ")
    return Check(name, False, told, fix) if told else Check(name, False, fix, "correct it")
