"""What stands in an output's staging for a job that goes on when the command that submitted it has ended.

A lease is held by a process. With ``--no_wait`` that process ends, so it hands the lease over: from then on
it says which job of which engine has it, and does not expire. The job's publisher gives it back. Where that
never happens, because the job failed or was cancelled, it is free when the engine says that the job has
ended, or when somebody says so (``job clean OUTPUT --release_job=ID``).

In a bucket this is written into the lease itself, which keeps its token, so that the publisher's checks hold
as before; so it is in the lease of a file system whose locks cannot be relied on. On a disk, whose lock ends
with its process, it is a file beside it.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass
from typing import Any, Final

from job import environment, storage
from job.errors import OutputConflictError, UsageError

# Beside the lease, in the staging of an output on a disk.
NOTE: Final = "submitted.json"
# Beside it too: a lease like a bucket's, where the lock is not enough.
RENEWED: Final = "lease.json"

# Says whether a job has ended, as far as that can be known.
Ended = Callable[["Job"], bool]


@dataclass(frozen=True)
class Job:
    """A job that was submitted for a run, as it is written down.

    ``engine`` is Beam's name of the runner, ``link`` where a person looks at the job, empty where there is no
    such place. ``where`` is what is needed to ask the engine: it holds no secret.
    """

    run: str
    engine: str
    id: str
    link: str = ""
    where: str = ""

    def __str__(self) -> str:
        look = f", see {self.link}" if self.link else ""
        return f"job {self.id} of {self.engine}{look}"


def parsed(content: bytes | None) -> dict[str, Any]:
    """Return what a lease or a note holds, nothing where it cannot be made out."""
    with suppress(ValueError, TypeError):
        return dict(json.loads(content or b"{}"))
    return {}


def of(told: Mapping[str, Any]) -> Job | None:
    """Return the job that a lease or a note tells of, ``None`` where a process holds it, or nobody."""
    with suppress(TypeError, KeyError, AttributeError):
        return Job(**{name: str(text) for name, text in told["job"].items()})
    return None


def fields(job: Job) -> dict[str, Any]:
    """Return what :func:`of` reads, as JSON's object."""
    return {"job": asdict(job)}


def either(one: Ended, other: Ended) -> Ended:
    """Return what asks ``other`` where ``one`` says no."""
    return lambda job: one(job) or other(job)


def check_ended(output: str, job: Job, ended: Ended) -> None:
    """Return where a job has ended.

    Raises:
        OutputConflictError: it has not, or nobody can tell.
    """
    if not ended(job):
        raise OutputConflictError(
            f"{output}: run {job.run[:12]} was submitted as {job}; wait for it or cancel it there; "
            f"`{environment.program()} clean {output} --release_job={job.id}` frees the output of a job that "
            f"has ended"
        )


def check_named(output: str, job: Job | None, named: str) -> None:
    """Refuse to take an output from a job other than the ``named`` one.

    Raises:
        UsageError: it is another's, or nobody's.
    """
    if job is None or job.id != named:
        told = "no job has it" if job is None else f"{job} has it"
        raise UsageError(f"--release_job={named}: {told} ({output})")


def note(folder: str, job: Job) -> None:
    """Write down which job has an output on a disk; ``folder`` is its staging."""
    storage.write_atomic(storage.join(folder, NOTE), json.dumps(fields(job)).encode())


def forget(folder: str) -> None:
    """Remove what was noted, and the staging if nothing else is in it."""
    storage.remove(storage.join(folder, NOTE))
    storage.remove_empty_folder(folder)


def job_of(output: str, lease: str) -> Job | None:
    """Return the job that has an output, ``None`` where none has; ``lease`` is its lease."""
    if storage.is_remote(output):
        return of(parsed(storage.read_bytes(lease)))
    folder = storage.parent(lease)
    return noted(folder) or of(parsed(storage.read_bytes(storage.join(folder, RENEWED))))


def noted(folder: str) -> Job | None:
    """Return the job that has an output on a disk; ``folder`` is its staging."""
    return of(parsed(storage.read_bytes(storage.join(folder, NOTE))))


def give_back(output: str, lease: str, is_given: Callable[[Job, str], bool]) -> None:
    """Make an output free that a job has, if the job, and the lease's token in a bucket, are such."""
    if not storage.is_remote(output):
        folder = storage.parent(lease)
        if (job := noted(folder)) is not None and is_given(job, ""):
            forget(folder)
        _give_back(storage.join(folder, RENEWED), is_given)
        storage.remove_empty_folder(folder)
    else:
        _give_back(lease, is_given)


def _give_back(lease: str, is_given: Callable[[Job, str], bool]) -> None:
    store = storage.conditional(lease)
    found = store.read_stamped(lease)
    if found is None:
        return
    told = parsed(found[0])
    job = of(told)
    if job is not None and is_given(job, told.get("token", "")):
        store.remove([lease], found[1])
