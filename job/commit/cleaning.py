"""What abandoned runs left in an output's staging, and how it is removed."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack, suppress
from dataclasses import dataclass

from job import environment, storage
from job.commit import handover, output, staging
from job.errors import OutputConflictError, StateUnknownError, StorageError, UsageError


@dataclass(frozen=True)
class Leftover:
    """What a run that nobody works on left in staging.

    ``age_s`` is since its newest file was written. ``kept`` says why it stays, empty where it does not.
    """

    run_id: str
    splits: int
    size_bytes: int
    age_s: float
    kept: str


def clean(
    folder: str, *, older_than_s: float | None, dry_run: bool, clock: Callable[[], float]
) -> list[Leftover]:
    """Remove the staging of runs that nobody works on, and return what there was.

    Args:
        folder: the output.
        older_than_s: younger ones stay; ``None`` keeps what a gate has refused, and nothing else.
        dry_run: remove nothing.
        clock: tells the time in seconds since 1970.

    Raises:
        OutputConflictError: a run is at work on the output.
        StorageError: something could not be removed.
        UsageError: there is no such folder.
    """
    if not storage.is_folder(folder):
        raise UsageError(f"{folder}: there is no such folder; give the --output of a run")
    with output.lease(folder) as lease:
        held = output.published(folder)
        published = None if held is None else held["run_id"]
        runs = output.leftovers(folder, "")
        found = [_look_at(folder, run_id, clock(), older_than_s, published) for run_id in runs]
        if not dry_run:
            kept = [one.run_id for one in found if one.kept]
            # First: where it fails, the staging still shows the next command that there is something to do.
            storage.sweep(folder, lambda: output.handles_of(folder, kept, lease))
            for one in found:
                if not one.kept:
                    output.remove_staging(folder, one.run_id, lease)
    return found


def release(folder: str, job: str) -> None:
    """Free an output from the job with this id, and remove nothing else: the same run may be resumed.

    Raises:
        UsageError: another job has it, or none.
    """
    lease = output.lease_path(folder)
    handover.check_named(folder, handover.job_of(folder, lease), job)
    handover.give_back(folder, lease, lambda found, _: found.id == job)


def remove_rest(folder: str, run: str) -> None:
    """Remove what a published run left when it was killed: its staging, and a lease that nobody holds."""
    # The night is there. On a disk that is read-only by now, say, the rest stays.
    with suppress(StorageError):
        if not storage.is_remote(folder):
            output.remove_staging(folder, run)
            left = storage.names(storage.join(folder, staging.STAGING))
            if {output.LEASE, handover.NOTE, handover.RENEWED} & {*left}:
                with suppress(OutputConflictError), output.lease(folder):
                    pass
        else:
            _remove_rest_in_bucket(folder, run)


def _remove_rest_in_bucket(folder: str, run: str) -> None:
    with suppress(OutputConflictError), ExitStack() as alone:

        def claimed() -> str:
            lease = alone.enter_context(output.lease(folder))
            if not output.is_published(folder, run):
                raise OutputConflictError(f"{folder}: another run has begun to replace it")
            return lease

        def kept(lease: str) -> set[str]:
            return output.handles_of(folder, output.leftovers(folder, run), lease)

        if storage.names(storage.join(folder, staging.STAGING)):
            lease = claimed()
            storage.sweep(folder, lambda: kept(lease))
            output.remove_staging(folder, run, lease)
        else:
            # An attempt that came too late may be an upload, of which no name in staging tells.
            storage.sweep(folder, lambda: kept(claimed()))


def _look_at(
    folder: str, run_id: str, now_s: float, older_than_s: float | None, published: str | None
) -> Leftover:
    place = staging.folder_of(folder, run_id)
    # No run leaves a mere file there, but somebody may.
    stray = None if storage.is_folder(place) else storage.describe(place)
    files = storage.tree(place) if stray is None else [stray]
    age_s = now_s - max((info.modified_unix_s for info in files), default=0.0)
    kept = ""
    if age_s < (older_than_s or 0.0):
        kept = "too young"
    elif run_id != published and output.read_marker(folder, run_id) is not None:
        # What is not yet under its final name would be lost, and the night with it.
        kept = "half published: finish it with its own command, or score with --if_exists=replace"
    elif run_id != published and older_than_s is None and stray is None:
        kept = _refusal(folder, run_id)
    size_bytes = sum(info.size_bytes for info in files)
    return Leftover(run_id, len(staging.finished(folder, run_id)), size_bytes, age_s, kept)


def _refusal(folder: str, run_id: str) -> str:
    """Return why a refused run stays, empty where no gate has refused it."""
    try:
        note = staging.read_refusal(folder, run_id)
    except StateUnknownError as e:
        return f"refused, though {e}; --older_than=0h removes it"
    if note is None:
        return ""
    why = "; ".join(note[1].refused)
    return f"refused: {why}; `{environment.program()} publish` releases it, --older_than=0h removes it"
