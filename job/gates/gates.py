"""Gates before publishing: is a night that is scored, counted and whole like the last good one?

The last good night is the newest before this one whose output has a ``_SUCCESS``; it is looked for when the
night is published, since in a backfill it may have been published only just now. Where nights follow each
other in one output, it is the night that is to be replaced. A gate without it passes, and the report says so.

One gate needs no flag: columns that feed the model by position must be those of the last good night, in its
order. It is asked before the first prediction, and here again, for the same reason.

What is refused stays in staging with a note (``job.commit.refusal``): the same command with another
threshold goes
on from the receipts, and ``job publish`` releases it as it is.
"""

from __future__ import annotations

import datetime
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import chain
from typing import TYPE_CHECKING, Any, Final

from job import storage
from job.commit import output, refusal
from job.errors import GateError, OutputConflictError, StorageError, UsageError
from job.gates import histograms
from job.gates.comparison import Compared
from job.gates.histograms import Histogram
from job.model.signature import listed
from job.shards import dates
from job.spec import Gates, Receipt, Run, ScoringSpec
from job.storage.parallel import parallel

if TYPE_CHECKING:
    import pyarrow as pa

NIGHTS_BACK: Final = 35

# Says how a run compares with the last good night, or raises what refuses it.
Ask = Callable[[Run, Sequence[Receipt], output.Seen], Compared]


def of(spec: ScoringSpec, predictions: Sequence[pa.Field]) -> Gates:
    """Return what a spec asks of its night; ``predictions`` are the prediction columns.

    Raises:
        UsageError: a threshold is for another column.
    """
    names = [field.name for field in predictions]
    for name, most in spec.max_psi:
        if name and name not in names:
            these = ", ".join(names)
            raise UsageError(f"--max_psi={name}={most}: no prediction column has this name, of {these}")
    return Gates(spec.min_rows or 0, spec.max_rows_change, spec.max_psi, baselines(spec))


def baselines(spec: ScoringSpec) -> tuple[str, ...]:
    """Return where the nights before are, the latest first; none where the output's path has no date."""
    if not dates.has_date(spec.output_template):
        return ()
    return candidates(spec.output_template, dates.day("ds", spec.ds), spec.output)


def say_if_alone(spec: ScoringSpec, held: Mapping[str, Any] | None, announce: Callable[[str], None]) -> None:
    """Announce that gates can compare the night with no other, where that may be so every night.

    ``held`` is the manifest of the night that its output holds now.
    """
    asked = {"--max_rows_change": spec.max_rows_change is not None, "--max_psi": bool(spec.max_psi)}
    if held is None and any(asked.values()) and not dates.has_date(spec.output_template):
        flags = " and ".join(flag for flag, given in asked.items() if given)
        announce(
            f"{flags}: nothing to compare with, as --output={spec.output} holds no night yet; where each "
            f"night has a folder of its own, give the date as {{ds}}, by which earlier nights are found"
        )


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
    compared = _compare(run, receipts, seen)
    rows = sum(receipt.rows_scored for receipt in receipts)
    told = tuple(_refusals(run.gates, rows, compared))
    if told:
        compared = replace(compared, refused=told)
        refusal.write(run, compared)
        flag = " --if_exists=replace" if run.replace else ""
        raise GateError(
            f"{run.output}: {'; '.join(told)}; nothing was published and all is kept in staging: look at it, "
            f"then `scoring-job publish {run.output} --run_id={run.run_id[:12]}{flag}` releases it, or the "
            f"same command with another threshold"
        )
    return compared


def _compare(run: Run, receipts: Sequence[Receipt], seen: output.Seen) -> Compared:
    scoring = json.loads(run.scoring)
    by = scoring.get("fed_by", "")
    try:
        folder, before = last_good(run.output, run.gates.baselines, seen.published)
    except StorageError as e:
        # Whoever asks for no comparison need not be allowed to read the night before.
        if run.gates.look_back or by == "position":
            raise
        return Compared(note=f"cannot be read: {e}")
    columns = columns_changed(by, _columns(scoring), folder or run.output, before or seen.published)
    if before is None:
        where = f"{run.gates.baselines[-1]} and later" if run.gates.baselines else run.output
        note = f"none in {where}: nothing to compare with" if run.gates.look_back else ""
        return Compared(note=note, columns=columns)
    rows = sum(receipt.rows_scored for receipt in receipts)
    rows_before = int(before["rows_scored"])
    now = histograms.of(receipts)
    then = _read(before)
    stability = {name: histograms.psi(then[name], now[name]) for name in now if name in then}
    notes = [] if rows_before else ["it has no rows"]
    if rows and not now and run.gates.max_psi:
        notes.append("the predictions are no numbers, so they have no PSI")
    elif now and not then and rows_before:
        notes.append("an older version of this job scored it, which noted no histograms")
    elif missing := [name for name in now if name not in then]:
        notes.append(f"it has no {', '.join(missing)}")
    return Compared(
        baseline=folder,
        baseline_run=before["run_id"],
        baseline_rows=rows_before,
        rows_change=(rows - rows_before) / rows_before if rows_before else None,
        psi=tuple((name, value) for name, value in stability.items() if value is not None),
        note="; ".join(notes),
        columns=columns,
    )


def columns_changed(
    by: str, columns: Sequence[Sequence[str]], where: str, before: Mapping[str, Any] | None
) -> str:
    """Say how columns that feed a model by position differ from those of the night before; else nothing.

    Args:
        by: how the columns were found, as a manifest's ``fed_by``.
        columns: those of each input, in its order.
        where: the folder of the night before.
        before: its manifest, or what that tells of its challenger; ``None`` where there is none.
    """
    then = _columns((before or {}).get("scoring"))
    now = [tuple(some) for some in columns]
    # What tells of no columns was not written by this job: there is nothing to compare with.
    if by != "position" or not then or now == then:
        return ""
    return (
        f"columns feed the model by position, {_told(now)}, and in the last published night, {where}, these "
        f"did: {_told(then)}{_first_other(now, then)}"
    )


def _columns(scoring: Any) -> list[tuple[str, ...]]:
    try:
        return [tuple(map(str, feed["columns"])) for feed in scoring["feeds"]]
    except (KeyError, TypeError):
        return []


def _told(feeds: Sequence[Sequence[str]]) -> str:
    return "; ".join(map(listed, feeds))


def _first_other(now: Sequence[Sequence[str]], then: Sequence[Sequence[str]]) -> str:
    """Say where two orders part, which long ones do not show."""
    pairs = zip(chain(*now), chain(*then), strict=False)
    found = next(((i, *pair) for i, pair in enumerate(pairs) if pair[0] != pair[1]), None)
    return f" (number {found[0] + 1} is {found[1]!r} and was {found[2]!r})" if found else ""


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
        for folder, found in zip(some, parallel(is_whole, some, name="baseline"), strict=True):
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


def _read(before: Mapping[str, Any]) -> dict[str, Histogram]:
    try:
        return {name: Histogram.of_text(text) for name, text in before.get("histograms", {}).items()}
    except (ValueError, AttributeError):
        return {}


def _refusals(gates: Gates, rows: int, compared: Compared) -> Iterator[str]:
    """Yield what a gate has against a night of so many published rows, with both values."""
    if compared.columns:
        yield f"{compared.columns}; give --features in the model's order if today's are wrong"
    if rows < gates.min_rows:
        yield f"{rows:,} rows are scored, fewer than --min_rows={gates.min_rows}"
    before = f"the last good night ({compared.baseline})"
    change, most = compared.rows_change, gates.max_rows_change
    if change is not None and most is not None and abs(change) > most:
        yield (
            f"{rows:,} rows are scored, {change:+.1%} against the {compared.baseline_rows:,} of {before}, "
            f"more than --max_rows_change={most}"
        )
    limits = dict(gates.max_psi)
    if limits and not rows and compared.baseline_rows:
        yield f"no rows are scored, which --max_psi cannot compare with {before}"
    over = [
        f"{name} {value:.3f} > {limit:g}"
        for name, value in compared.psi
        if (limit := limits.get(name, limits.get(""))) is not None and value > limit
    ]
    if over:
        yield f"predictions have another distribution than {before}, PSI above --max_psi: {', '.join(over)}"
