"""Gates before publishing: is a night that is scored, counted and whole like the last good one?

Decisions only: ``job.commit.baseline`` finds the last good night and refuses. A gate without such a night
passes, and the report says so.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, Final

from job import spec as values
from job.gates.columns import ChallengersColumnsByPosition, ColumnsByPosition
from job.gates.drift import Drift
from job.gates.gate import Compared, Gate, Nights
from job.gates.rows import MinRows, RowsChange
from job.shards import dates
from job.spec import Run, ScoringSpec

if TYPE_CHECKING:
    import pyarrow as pa

# All gates, in the order in which a night hears what they have against it.
GATES: Final[tuple[Gate, ...]] = (
    ColumnsByPosition(),
    ChallengersColumnsByPosition(),
    MinRows(),
    RowsChange(),
    Drift(),
)


def of(spec: ScoringSpec, predictions: Sequence[pa.Field], nights_before: tuple[str, ...]) -> values.Gates:
    """Return what a spec asks of its night.

    Args:
        spec: the spec.
        predictions: the prediction columns.
        nights_before: where the nights before are, the latest first.

    Raises:
        UsageError: a threshold is for another column.
    """
    limits = []
    for gate in GATES:
        if (limit := gate.asked(spec)) is not None:
            gate.check(limit, predictions)
            limits.append((gate.limit, limit))
    return values.Gates(tuple(limits), nights_before)


def say_if_alone(spec: ScoringSpec, held: Mapping[str, Any] | None, announce: Callable[[str], None]) -> None:
    """Announce that gates can compare the night with no other, where that may be so every night.

    ``held`` is the manifest of the night that its output holds now.
    """
    asked = [f"--{gate.limit}" for gate in GATES if gate.looks_back and gate.asked(spec) is not None]
    if held is None and asked and not dates.has_date(spec.output_template):
        announce(
            f"{' and '.join(asked)}: nothing to compare with, as --output={spec.output} holds no night yet; "
            f"where each night has a folder of its own, give the date as {{ds}}, by which earlier nights are "
            f"found"
        )


def needs_last_good(run: Run) -> bool:
    """Say whether a gate of a run cannot be asked where the last good night cannot be read."""
    return any(gate.needs_last_good(run) for gate in GATES)


def compare(nights: Nights) -> Compared:
    """Return how a night compares with the last good one."""
    found = [(gate, *gate.measured(nights)) for gate in GATES]
    measured = tuple((gate.measure, value) for gate, value, _ in found if gate.measure)
    if nights.before is None:
        limits = nights.run.gates
        asked = any(gate.looks_back and limits.limit(gate.limit) is not None for gate in GATES)
        where = f"{limits.baselines[-1]} and later" if limits.baselines else nights.run.output
        return Compared(measured=measured, note=f"none in {where}: nothing to compare with" if asked else "")
    return Compared(
        baseline=nights.folder,
        baseline_run=nights.before["run_id"],
        baseline_rows=nights.rows_before,
        measured=measured,
        note="; ".join(note for _, _, note in found if note),
    )


def refusals(limits: values.Gates, rows: int, compared: Compared) -> Iterator[str]:
    """Yield what gates have against a night of so many published rows, with both values."""
    for gate in GATES:
        yield from gate.refusals(limits.limit(gate.limit), rows, compared)


def lines(compared: Compared) -> dict[str, str]:
    """Return what a report tells of a comparison, by label; empty values are to be left out."""
    told = [
        text
        for gate in GATES
        if (value := compared.value(gate.measure)) is not None and (text := gate.told(value))
    ]
    told += [compared.note] if compared.note else []
    released = ""
    if compared.released_unix_s:
        at = datetime.fromtimestamp(compared.released_unix_s, UTC).isoformat(timespec="seconds")
        released = f"by hand at {at}; the gates had said: {'; '.join(compared.refused)}"
    beside = f" ({compared.baseline})" if compared.baseline else ""
    return {"last good night": f"{', '.join(told)}{beside}" if told else "", "released": released}
