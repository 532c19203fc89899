"""Finds the last good night, and asks the gates whether a night may be published beside it.

What is compared, and how, is in ``job.gates``. The last good night is the newest night before this one whose
output has a ``_SUCCESS``. It is looked for when the night is published, since in a backfill it may have been
published only just now. Where nights follow each other in one output, it is the night that is to be replaced.

What a gate refuses stays in staging with a note (``staging.write_refusal``): the same command with another
threshold goes on from the receipts, and ``job publish`` releases it as it is.
"""

from __future__ import annotations

import datetime
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any, Final

from job import environment, forms, storage
from job.commit import output, staging
from job.errors import GateError, OutputConflictError, StorageError
from job.gates import gates
from job.gates.gate import Compared, Nights
from job.shards import dates
from job.spec import Receipt, Run, ScoringSpec

NIGHTS_BACK: Final = 35

# Says how a run compares with the last good night, or raises what refuses it.
Ask = Callable[[Run, Sequence[Receipt], output.Seen], Compared]


def baselines(spec: ScoringSpec) -> tuple[str, ...]:
    """Return where the nights before are, the latest first; none where the output's path has no date."""
    if not dates.has_date(spec.output_template):
        return ()
    return candidates(spec.output_template, forms.day("ds", spec.ds), spec.output)


def candidates(template: str, ds: datetime.date, folder: str) -> tuple[str, ...]:
    """Return where the nights before ``ds`` are published, the latest first; none where it is in ``folder``.

    Args:
        template: the output, with its placeholders.
        ds: the night.
        folder: the output of that night.
    """
    days = dates.before(ds, NIGHTS_BACK)
    folders = (dates.expand(template, day) for day in days)
    return tuple(one for one in dict.fromkeys(map(storage.absolute, folders)) if one != folder)


def passed(run: Run, receipts: Sequence[Receipt], seen: output.Seen) -> Compared:
    """Return how a night compares with the last good one.

    Raises:
        GateError: a gate refuses it; a note of that is in its staging.
        StorageError: the last good night cannot be read, and a gate needs it.
    """
    compared = _compared(run, receipts, seen)
    rows = sum(receipt.rows_scored for receipt in receipts)
    told = tuple(gates.refusals(run.gates, rows, compared))
    if told:
        compared = replace(compared, refused=told)
        staging.write_refusal(run, compared)
        flag = " --if_exists=replace" if run.replace else ""
        raise GateError(
            f"{run.output}: {'; '.join(told)}; nothing was published and all is kept in staging: look at it, "
            f"then `{environment.program()} publish {run.output} --run_id={run.run_id[:12]}{flag}` releases "
            f"it, or the same command with another threshold"
        )
    return compared


def _compared(run: Run, receipts: Sequence[Receipt], seen: output.Seen) -> Compared:
    try:
        folder, before = last_good(run.output, run.gates.baselines, seen.published)
    except StorageError as e:
        # Whoever asks for no comparison need not be allowed to read the night before.
        if gates.needs_last_good(run):
            raise
        return Compared(note=f"cannot be read: {e}")
    return gates.compare(Nights(run, receipts, folder, before, held=seen.published))


def last_good(
    folder: str, baselines: Sequence[str], held: Mapping[str, Any] | None
) -> tuple[str, Mapping[str, Any] | None]:
    """Return the folder of the last good night and its manifest; ``None`` where there is none.

    Args:
        folder: the output.
        baselines: where the nights before are, the latest first; none where the output holds them in turn.
        held: the manifest of the night that the output holds.

    Raises:
        StorageError: it cannot be read.
    """
    if not baselines:
        return folder, held

    def is_whole(folder: str) -> bool:
        return storage.size_bytes(storage.join(folder, output.SUCCESS)) is not None

    # Mostly it is the night before, and a bucket asks a price for each look.
    for some in (baselines[:1], baselines[1:]):
        for folder, found in zip(some, storage.parallel(is_whole, some, name="baseline"), strict=True):
            night = _manifest(folder) if found else None
            if night is not None:
                return folder, night
    return "", None


def _manifest(folder: str) -> dict[str, Any] | None:
    try:
        night = output.published(folder)
    except OutputConflictError:
        # Somebody else's manifest: no night of this job.
        return None
    # A night without rows is no yardstick for any other.
    rows = 0 if night is None else night.get("rows_scored")
    return night if isinstance(rows, int) and rows else None
