"""What a gate is: one question before publishing, which a night passes or is refused by.

A gate is one module with one subclass of :class:`Gate`, listed in ``gates.GATES``. It reads its flag from the
spec, measures a night beside the last good one, and says what it has against the night. Its limit travels
with the run and its measure is kept in the report, so nothing else has to know it. :class:`Compared` is what
all gates of a night measured and said.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any, ClassVar

import job.spec
from job.spec import Receipt, Run, ScoringSpec

if TYPE_CHECKING:
    import pyarrow as pa


@dataclass(frozen=True)
class Nights:
    """A night that is scored, and the last good one.

    ``receipts`` are those of all splits of ``run``. ``folder`` is where the last good night is, empty where
    there is none, and ``before`` its manifest. ``held`` is the manifest of the night that the output holds.
    """

    run: Run
    receipts: Sequence[Receipt]
    folder: str
    before: Mapping[str, Any] | None
    held: Mapping[str, Any] | None

    @cached_property
    def rows(self) -> int:
        """How many rows are to be published."""
        return sum(receipt.rows_scored for receipt in self.receipts)

    @property
    def rows_before(self) -> int:
        """How many rows the last good night has, 0 where there is none."""
        return 0 if self.before is None else int(self.before["rows_scored"])


@dataclass(frozen=True)
class Compared:
    """A night beside the last good one, the ``baseline``.

    ``baseline`` is that night's folder, empty where there is none. ``measured`` is what each gate measured,
    by the gate's name for it. ``note`` is what could not be compared. ``refused`` is what the gates said, one
    line each; ``released_unix_s`` is when somebody published the night nevertheless, 0 where nobody had to.
    """

    baseline: str = ""
    baseline_run: str = ""
    baseline_rows: int = 0
    measured: tuple[tuple[str, Any], ...] = ()
    note: str = ""
    refused: tuple[str, ...] = ()
    released_unix_s: float = 0.0

    def value(self, measure: str) -> Any:
        """Return what was measured, ``None`` where nothing was."""
        return dict(self.measured).get(measure)

    @property
    def last_good(self) -> str:
        """How messages name the last good night."""
        return f"the last good night ({self.baseline})"

    def to_fields(self) -> dict[str, Any]:
        """Return it as JSON's object, in which each measure has its own key."""
        fields = asdict(self)
        measured = fields.pop("measured")
        return {**fields, **dict(measured)}

    @classmethod
    def of_fields(cls, fields: Mapping[str, Any]) -> Compared:
        """Return what :meth:`to_fields` gave, from JSON; what is no field of ours was measured."""
        values = {name: as_tuples(value) for name, value in fields.items()}
        known = {name: values.pop(name) for name in cls.__dataclass_fields__ if name in values}
        return cls(**known, measured=tuple(values.items()))

    @property
    def release(self) -> dict[str, Any] | None:
        """Return when the night was released and what the gates had said, ``None`` where nobody had to."""
        if not self.released_unix_s:
            return None
        return {"released_unix_s": self.released_unix_s, "refused": list(self.refused)}


class Gate:
    """One gate. Every limit and measure must be what JSON can hold, with tuples for its lists.

    Attributes:
        limit: the flag without dashes, the field of ``ScoringSpec`` that has its value, and the name under
            which a run carries it; empty where the gate needs no flag.
        measure: the name of what is measured in a report's ``compared``; empty where nothing is.
        looks_back: whether the limit is about the last good night.
    """

    limit: ClassVar[str] = ""
    measure: ClassVar[str] = ""
    looks_back: ClassVar[bool] = False

    def asked(self, spec: ScoringSpec) -> Any:
        """Return the limit that a spec asks for, ``None`` where it asks for none."""
        return getattr(spec, self.limit) if self.limit else None

    def check(self, limit: Any, predictions: Sequence[pa.Field], /) -> None:
        """Raise ``UsageError`` where a limit does not go with a night's prediction columns."""

    def needs_last_good(self, run: Run) -> bool:
        """Say whether the gate cannot be asked where the last good night cannot be read."""
        return self.looks_back and is_limited(run.gates, self.limit)

    def measured(self, _nights: Nights, /) -> tuple[Any, str]:
        """Return the measure, also where there is no last good night, and a note on what was not compared."""
        return None, ""

    def told(self, _value: Any, /) -> str:
        """Return what a report's line tells of a measure, empty where there is nothing to tell."""
        return ""

    def refusals(self, limit: Any, rows: int, compared: Compared, /) -> Iterator[str]:
        """Yield what the gate has against a night of so many published ``rows``, with both values.

        ``limit`` is ``None`` where nobody asked; a gate without a flag is always asked.
        """
        raise NotImplementedError


def is_limited(limits: job.spec.Gates, name: str) -> bool:
    """Say whether a run has a limit of this name."""
    return limits.limit(name) is not None


def as_tuples(value: Any) -> Any:
    """Return a value that was read from JSON with tuples for its lists."""
    return tuple(map(as_tuples, value)) if isinstance(value, list) else value
