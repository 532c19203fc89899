"""The gates on columns that feed a model by position: they must be the last good night's, in its order.

There is one for the model and one for its challenger. They need no flag. They are asked before the first
prediction, and again before publishing, since the last good night may be another by then.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from itertools import chain
from typing import Any, ClassVar

from job.gates.gate import Compared, Gate, Nights
from job.model.signature import listed
from job.spec import Run


class ColumnsByPosition(Gate):
    """Columns that feed the model by position are the last good night's."""

    measure = "columns"
    flag: ClassVar[str] = "--features"

    def scoring(self, run: Run) -> Mapping[str, Any]:
        """Return what a run tells of how its model is fed; empty where there is no such model."""
        return dict(json.loads(run.scoring))

    def of_manifest(self, manifest: Mapping[str, Any] | None) -> Mapping[str, Any] | None:
        """Return the part of a manifest that tells of the model."""
        return manifest

    def needs_last_good(self, run: Run) -> bool:
        """Say whether the run's columns feed the model by position."""
        return bool(self.scoring(run).get("fed_by") == "position")

    def measured(self, nights: Nights, /) -> tuple[str, str]:
        """Return how the columns differ, as text."""
        scoring = self.scoring(nights.run)
        where, before = nights.folder or nights.run.output, nights.before or nights.held
        return changed(scoring.get("fed_by", ""), _columns(scoring), where, self.of_manifest(before)), ""

    def refusals(self, _limit: None, _rows: int, compared: Compared, /) -> Iterator[str]:
        """Yield a refusal where they differ."""
        if told := compared.value(self.measure):
            yield f"{told}; give {self.flag} in the model's order if today's are wrong"


class ChallengersColumnsByPosition(ColumnsByPosition):
    """Columns that feed the challenger by position are those of the last good night's challenger."""

    measure = "challenger_columns"
    flag = "--challenger_features"

    def scoring(self, run: Run) -> Mapping[str, Any]:
        """Return what a run tells of how its challenger is fed; empty where it has none."""
        return {} if run.challenger is None else dict(json.loads(run.challenger.scoring))

    def of_manifest(self, manifest: Mapping[str, Any] | None) -> Mapping[str, Any] | None:
        """Return the part of a manifest that tells of the challenger."""
        return (manifest or {}).get("challenger")

    def measured(self, nights: Nights, /) -> tuple[str, str]:
        """Return how the columns differ, as text."""
        told, note = super().measured(nights)
        if told and nights.run.challenger is not None:
            told = f"--challenger={nights.run.challenger.model.path}: {told}"
        return told, note


def changed(by: str, columns: Sequence[Sequence[str]], where: str, before: Mapping[str, Any] | None) -> str:
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
