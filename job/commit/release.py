"""``job publish``: a night that a gate has refused is published as it lies in staging, at a person's word.

Nothing is scored: no model, no shard and no engine is needed. All that is counted before a night is published
is counted here too.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial

from job import environment, storage
from job.commit import handover, output, protocol, staging
from job.errors import UsageError
from job.report.run_report import RunReport
from job.spec import Receipt, Run


def release(
    folder: str,
    run_id: str,
    *,
    replacing: bool,
    announce: Callable[[str], None],
    clock: Callable[[], float],
) -> tuple[RunReport, bool]:
    """Publish a refused run; return its report, and whether it was published before.

    Args:
        folder: the output.
        run_id: the run's, or as many digits as tell it from others.
        replacing: take the place of the night that is there.
        announce: told what a person may want to know while waiting.
        clock: tells the time in seconds since 1970.

    Raises:
        UsageError: no such run is in staging, or no gate has refused it.
        OutputConflictError: a run is at work on the output, or another one is published there.
        StateUnknownError: a split has no receipt any more.
    """
    whole_id = _found(folder, run_id)
    with output.lease(folder, announce, partial(_has_said_no, folder, whole_id)) as lease:
        if (there := output.report_of(folder, whole_id)) is not None:
            output.remove_staging(folder, whole_id, lease)
            return there, True
        note = staging.read_refusal(folder, whole_id)
        if note is None:
            done = len(staging.finished(folder, whole_id))
            raise UsageError(
                f"--run_id={run_id}: no gate has refused run {whole_id[:12]}, {done:,} of whose splits have "
                f"their receipt; the command that scores it goes on from there"
            )
        run, compared = note
        now = replace(
            run,
            # As it is called now: its lease is held by this name.
            output=folder,
            replace=replacing,
            started_unix_s=environment.process_start_unix_s(),
            lease=lease,
            handed=False,
        )
        told = replace(compared, released_unix_s=clock())
        return protocol.publish(now, _receipts(now), ask=lambda *_: told, clock=clock), False


def _found(folder: str, run_id: str) -> str:
    """Return the whole id of a run that is in staging, or published."""
    if not storage.is_folder(folder):
        raise UsageError(f"{folder}: there is no such folder; give the --output of a run")
    staged = output.leftovers(folder, "")
    night = output.published(folder)
    known = {*staged, *([str(night["run_id"])] if night else [])}
    match = [one for one in known if one.startswith(run_id)]
    if len(match) != 1:
        told = f"it fits {len(match)} runs" if match else "no such run is there"
        those = ", ".join(sorted(one[:12] for one in match or staged)) or "none"
        raise UsageError(f"--run_id={run_id}: {told} ({folder}); in staging: {those}")
    return match[0]


def _has_said_no(folder: str, run_id: str, job: handover.Job) -> bool:
    """Say whether a job that nobody waited for has come to its end: a gate has refused its night."""
    return job.run == run_id and staging.read_refusal(folder, run_id) is not None


def _receipts(run: Run) -> list[Receipt]:
    """Return the receipts of a run's splits, as far as they are there."""
    plan = storage.join(staging.folder_of(run.output, run.run_id), staging.PLAN)
    found = storage.parallel(
        partial(staging.read_receipt, run.output, run.run_id), staging.read_plan(plan), name="receipts"
    )
    return [replace(receipt, reused=True) for receipt in found if receipt is not None]
