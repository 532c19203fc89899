"""Gates on the number of rows: at least so many, and about as many as in the last good night."""

from __future__ import annotations

from collections.abc import Iterator

from job.gates.gate import Compared, Gate, Nights


class MinRows(Gate):
    """``--min_rows``: so many rows must be published at least."""

    limit = "min_rows"

    def refusals(self, limit: int | None, rows: int, _compared: Compared, /) -> Iterator[str]:
        """Yield a refusal where there are fewer rows."""
        if limit is not None and rows < limit:
            yield f"{rows:,} rows are scored, fewer than --min_rows={limit}"


class RowsChange(Gate):
    """``--max_rows_change``: so large may the change be, as a share of the last good night's rows."""

    limit, measure, looks_back = "max_rows_change", "rows_change", True

    def measured(self, nights: Nights, /) -> tuple[float | None, str]:
        """Return the change as a share of the last good night's rows, ``None`` where there are none."""
        if nights.before is None:
            return None, ""
        before = nights.rows_before
        return ((nights.rows - before) / before, "") if before else (None, "it has no rows")

    def told(self, value: float | None, /) -> str:
        """Return the change in percent."""
        return "" if value is None else f"{value:+.1%} rows"

    def refusals(self, limit: float | None, rows: int, compared: Compared, /) -> Iterator[str]:
        """Yield a refusal where the change is larger, up or down."""
        change = compared.value(self.measure)
        if change is not None and limit is not None and abs(change) > limit:
            yield (
                f"{rows:,} rows are scored, {change:+.1%} against the {compared.baseline_rows:,} of "
                f"{compared.last_good}, more than --max_rows_change={limit}"
            )
