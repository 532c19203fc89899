"""How nights ended, and what is told of them together."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from job import console, telling
from job.errors import JobError
from job.preparing import Outcome

if TYPE_CHECKING:
    from rich.table import Table


@dataclass(frozen=True)
class Ending:
    """How one night ended: with an outcome, or with an error."""

    ds: str
    output: str
    outcome: Outcome | None = None
    error: JobError | None = None

    @property
    def exit_code(self) -> int:
        """Return what ``score`` would have ended with."""
        return self.error.exit_code if self.error else 0

    @property
    def told(self) -> str:
        """Return it in a word or two."""
        if self.outcome is None:
            return "failed"
        if self.outcome.kept:
            return "kept, of another run"
        return "already published" if self.outcome.already_published else "published"

    def noted(self) -> Ending:
        """Note it for whoever is told how the command ended; see ``job.telling``."""
        report = None if self.outcome is None else self.outcome.published
        done_before = self.outcome is not None and self.outcome.already_published
        telling.add(self.ds, self.output, report, self.error, already_published=done_before)
        return self


def exit_code(endings: Sequence[Ending]) -> int:
    """Return 0 if all nights are there; what all that failed would have ended with, or 1 if they differ."""
    codes = {ending.exit_code for ending in endings} - {0}
    return codes.pop() if len(codes) == 1 else int(bool(codes))


def table(endings: Sequence[Ending]) -> Table:
    """Return a line for each night, and how many ended how."""
    from rich.table import Table

    shown = Table(box=None, pad_edge=False, show_footer=True)
    counts = Counter(ending.told for ending in endings)
    total = ", ".join(
        f"{number:,} {told}" for told, number in sorted(counts.items(), key=lambda one: -one[1])
    )
    published = [ending.outcome.report for ending in endings if ending.outcome is not None]
    rows, rejected = sum(one.rows_read for one in published), sum(one.rows_rejected for one in published)
    shown.add_column("night", footer=f"{len(endings):,} nights", no_wrap=True)
    shown.add_column("rows", footer=f"{rows:,}", justify="right", no_wrap=True)
    shown.add_column("rejected", footer=f"{rejected:,}", justify="right", no_wrap=True)
    shown.add_column("", footer=total, overflow="fold")
    for ending in endings:
        if ending.outcome is None:
            shown.add_row(ending.ds, "", "", console.cell(f"exit {ending.exit_code}: {ending.error}"))
        else:
            report = ending.outcome.report
            shown.add_row(ending.ds, f"{report.rows_read:,}", f"{report.rows_rejected:,}", ending.told)
    return shown
