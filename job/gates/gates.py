"""Gates before publishing: is a night that is scored, counted and whole like the last good one?

Decisions only: ``job.commit.baseline`` finds the last good night and refuses. A gate without such a night
passes, and the report says so.

One gate needs no flag: columns that feed the model by position must be those of the last good night, in its
order. It is asked before the first prediction, and here again, since the last good night may be another by
then.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import chain
from typing import TYPE_CHECKING, Any

from job.errors import UsageError
from job.gates import histograms
from job.gates.comparison import Compared
from job.gates.histograms import Histogram
from job.model.signature import listed
from job.shards import dates
from job.spec import Gates, Receipt, Run, ScoringSpec

if TYPE_CHECKING:
    import pyarrow as pa


def of(spec: ScoringSpec, predictions: Sequence[pa.Field], nights_before: tuple[str, ...]) -> Gates:
    """Return what a spec asks of its night.

    Args:
        spec: the spec.
        predictions: the prediction columns.
        nights_before: where the nights before are, the latest first.

    Raises:
        UsageError: a threshold is for another column.
    """
    names = [field.name for field in predictions]
    for name, most in spec.max_psi:
        if name and name not in names:
            these = ", ".join(names)
            raise UsageError(f"--max_psi={name}={most}: no prediction column has this name, of {these}")
    return Gates(spec.min_rows or 0, spec.max_rows_change, spec.max_psi, nights_before)


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


def compare(
    run: Run,
    receipts: Sequence[Receipt],
    folder: str,
    before: Mapping[str, Any] | None,
    held: Mapping[str, Any] | None,
) -> Compared:
    """Return how a night compares with the last good one.

    Args:
        run: the night's run.
        receipts: those of all its splits.
        folder: where the last good night is; empty where there is none.
        before: its manifest, ``None`` where there is none.
        held: the manifest of the night that the output holds now.
    """
    scoring = json.loads(run.scoring)
    columns = columns_changed(
        scoring.get("fed_by", ""), _columns(scoring), folder or run.output, before or held
    )
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


def _read(before: Mapping[str, Any]) -> dict[str, Histogram]:
    try:
        return {name: Histogram.of_text(text) for name, text in before.get("histograms", {}).items()}
    except (ValueError, AttributeError):
        return {}


def refusals(gates: Gates, rows: int, compared: Compared) -> Iterator[str]:
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
