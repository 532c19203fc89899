"""The gate on the predictions' distribution: its population stability index against the last good night's."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Final

from job.errors import UsageError
from job.gates.gate import Compared, Gate, Nights, is_limited
from job.spec import ScoringSpec

if TYPE_CHECKING:
    import pyarrow as pa

    from job.gates.histograms import Histogram

# The limit and the measure are both pairs of a column and a number.
Pairs = tuple[tuple[str, float], ...]

# A report tells of so many columns; the manifest and its JSON of all.
_MOST_TOLD: Final = 3


class Drift(Gate):
    """``--max_psi``: no prediction column's PSI may be more; ``""`` stands for columns that are not named."""

    limit, measure, looks_back = "max_psi", "psi", True

    def asked(self, spec: ScoringSpec) -> Pairs | None:
        """Return the limit of each column, ``None`` where there is none."""
        return spec.max_psi or None

    def check(self, limit: Pairs, predictions: Sequence[pa.Field], /) -> None:
        """Refuse a threshold of a column that is not predicted."""
        names = [field.name for field in predictions]
        for name, most in limit:
            if name and name not in names:
                these = ", ".join(names)
                raise UsageError(f"--max_psi={name}={most}: no prediction column has this name, of {these}")

    def measured(self, nights: Nights, /) -> tuple[Pairs, str]:
        """Return the index of each prediction column of numbers that both nights have."""
        if nights.before is None:
            return (), ""
        # It needs Arrow, and whoever reads a report does not.
        from job.gates import histograms

        now, then = histograms.of(nights.receipts), _read(nights.before)
        stability = ((name, histograms.psi(then[name], now[name])) for name in now if name in then)
        note = ""
        if nights.rows and not now and is_limited(nights.run.gates, self.limit):
            note = "the predictions are no numbers, so they have no PSI"
        elif now and not then and nights.rows_before:
            note = "an older version of this job scored it, which noted no histograms"
        elif missing := [name for name in now if name not in then]:
            note = f"it has no {', '.join(missing)}"
        return tuple((name, value) for name, value in stability if value is not None), note

    def told(self, value: Pairs, /) -> str:
        """Return the largest indexes."""
        by_size = sorted(value, key=lambda pair: -pair[1])
        more = f" and {len(by_size) - _MOST_TOLD} more" if len(by_size) > _MOST_TOLD else ""
        largest = ", ".join(f"{name} {psi:.3f}" for name, psi in by_size[:_MOST_TOLD])
        return f"PSI {largest}{more}" if value else ""

    def refusals(self, limit: Pairs | None, rows: int, compared: Compared, /) -> Iterator[str]:
        """Yield a refusal where an index is larger, or no row has a prediction to compare."""
        limits = dict(limit or ())
        if limits and not rows and compared.baseline_rows:
            yield f"no rows are scored, which --max_psi cannot compare with {compared.last_good}"
        over = [
            f"{name} {value:.3f} > {most:g}"
            for name, value in compared.value(self.measure) or ()
            if (most := limits.get(name, limits.get(""))) is not None and value > most
        ]
        if over:
            yield (
                f"predictions have another distribution than {compared.last_good}, PSI above --max_psi: "
                f"{', '.join(over)}"
            )


def _read(before: Mapping[str, Any]) -> dict[str, Histogram]:
    from job.gates.histograms import Histogram

    try:
        return {name: Histogram.of_text(text) for name, text in before.get("histograms", {}).items()}
    except (ValueError, AttributeError):
        return {}
