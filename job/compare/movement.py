"""How far predictions moved between two nights: counts, means, quantiles, and the rows that moved most.

Everything is added up part by part, in memory that does not grow with the rows. Counts, means, extremes,
correlation and biggest movers are exact; the PSI is of bins (``job.gates.histograms``). Quantiles are a
DDSketch's (C. Masson, J. Rim, H. Lee: "DDSketch: a fast and fully-mergeable quantile sketch with
relative-error guarantees", VLDB 2019): within :data:`ACCURACY` of the number of that rank, relatively.
"""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import dataclass, field
from typing import Any, Final

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from job.gates.histograms import Binned, psi

# Of pairs of texts that are counted exactly; beyond it the rarest are dropped.
_MOST_PAIRS: Final = 100_000
ACCURACY: Final = 0.001
_DECADES: Final = 8

Floats = NDArray[np.float64]
Mask = NDArray[np.bool_]


@dataclass
class Sketch:
    """How many of many positive numbers lie in each of a sequence of intervals that grow by a factor."""

    keys: NDArray[np.int64] = field(default_factory=lambda: np.zeros(0, np.int64))
    counts: NDArray[np.int64] = field(default_factory=lambda: np.zeros(0, np.int64))

    _GAMMA: Final = (1 + ACCURACY) / (1 - ACCURACY)

    def add(self, values: Floats) -> None:
        """Count numbers above 0."""
        found, counts = np.unique(np.ceil(np.log(values) / math.log(self._GAMMA)), return_counts=True)
        self._merge(found.astype(np.int64), counts)

    def plus(self, other: Sketch) -> Sketch:
        """Return the sketch of the numbers of both."""
        both = Sketch(self.keys, self.counts)
        both._merge(other.keys, other.counts)
        return both

    def _merge(self, keys: NDArray[np.int64], counts: NDArray[np.int64]) -> None:
        self.keys, place = np.unique(np.concatenate([self.keys, keys]), return_inverse=True)
        merged = np.zeros(len(self.keys), np.int64)
        np.add.at(merged, place, np.concatenate([self.counts, counts]))
        self.counts = merged

    @property
    def values(self) -> Floats:
        """The number that stands for each interval."""
        with np.errstate(over="ignore"):
            found: Floats = np.exp(self.keys * math.log(self._GAMMA)) * 2 / (self._GAMMA + 1)
        # The last interval reaches beyond the largest number.
        return np.minimum(found, np.finfo(np.float64).max)

    def quantile(self, share: float, zeros: int) -> float:
        """Return the number of rank ``⌈share × n⌉`` among these and so many zeros."""
        rank = max(1, math.ceil(share * (zeros + int(self.counts.sum()))))
        if rank <= zeros:
            return 0.0
        return float(self.values[np.searchsorted(zeros + np.cumsum(self.counts), rank)])


@dataclass
class Moments:
    """Means, variances and covariance of pairs, merged without loss of digits (Chan, Golub, LeVeque 1979)."""

    rows: int = 0
    mean: Floats = field(default_factory=lambda: np.zeros(2))
    scatter: Floats = field(default_factory=lambda: np.zeros((2, 2)))

    def add(self, a: Floats, b: Floats) -> None:
        """Take in more pairs."""
        if not len(a):
            return
        both = np.stack([a, b])
        mean = both.mean(axis=1)
        apart = both - mean[:, None]
        step = mean - self.mean
        rows = self.rows + len(a)
        self.scatter = self.scatter + apart @ apart.T + np.outer(step, step) * self.rows * len(a) / rows
        self.mean = self.mean + step * len(a) / rows
        self.rows = rows

    @property
    def correlation(self) -> float | None:
        """Pearson's, ``None`` where one side does not vary."""
        spread = math.sqrt(self.scatter[0, 0]) * math.sqrt(self.scatter[1, 1])
        return float(np.clip(self.scatter[0, 1] / spread, -1, 1)) if spread > 0 else None


def histogram(below: Sketch, zeros: int, above: Sketch) -> list[dict[str, Any]]:
    """Return how many rows moved how far, by powers of ten; from 0 to 0 are those that did not move."""
    # 1e308 is the last power of ten that a number can hold.
    powers = [np.minimum(np.floor(np.log10(one.values)), 307).astype(int) for one in (below, above)]
    every = np.concatenate(powers)
    if not len(every):
        return [{"from": 0.0, "to": 0.0, "rows": zeros}] if zeros else []
    least = max(int(every.min()), int(every.max()) - _DECADES + 1)
    counts = [Counter[int](), Counter[int]()]
    for found, sketch, counter in zip(powers, (below, above), counts, strict=True):
        for power, rows in zip(np.maximum(found, least), sketch.counts, strict=True):
            counter[int(power)] += int(rows)

    def bar(sign: int, power: int) -> dict[str, Any]:
        near = 0.0 if power == least and int(every.min()) < least else 10.0**power
        ends = sorted((sign * near, sign * 10.0 ** (power + 1)))
        return {"from": ends[0], "to": ends[1], "rows": counts[sign > 0][power]}

    span = range(least, int(every.max()) + 1)
    nothing = {"from": 0.0, "to": 0.0, "rows": zeros}
    return [*(bar(-1, power) for power in reversed(span)), nothing, *(bar(1, power) for power in span)]


@dataclass(frozen=True)
class Mover:
    """A row that moved; ``difference`` is ``None`` where one side is no finite number."""

    keys: dict[str, Any]
    a: float | None
    b: float | None
    difference: float | None


class Numbers:
    """What is told of one numeric column; ``tolerance`` is how far a row may be off without having moved."""

    def __init__(self, column: str, *, tolerance: float, threshold: float | None, top: int) -> None:
        self._column, self._tolerance, self._threshold, self._top = column, tolerance, threshold, top
        self._rows = self._equal = self._moved = self._not_finite = self._up = self._down = 0
        self._sum = self._sum_abs = self._max = 0.0
        self._above, self._below, self._moments = Sketch(), Sketch(), Moments()
        self._bins = Binned(), Binned()
        self._finite = 0
        self._movers: list[tuple[float, Mover]] = []

    # What is beyond the largest number is told as none, in the end.
    @np.errstate(over="ignore", invalid="ignore")
    def add(self, a: pa.ChunkedArray, b: pa.ChunkedArray, keys: pa.Table) -> Mask:
        """Take in pairs of values and the keys of their rows; return which rows moved."""
        x, y, apart = _floats(a), _floats(b), _apart(a, b)
        finite = np.isfinite(x) & np.isfinite(y) & np.isfinite(apart)
        apart = np.where(finite, apart, 0.0)
        # Infinities of one sign are equal, and so are two values that are none.
        same = np.where(finite, apart == 0, (x == y) | (np.isnan(x) & np.isnan(y)))
        moved: Mask = np.where(finite, np.abs(apart) > self._tolerance, ~same)
        self._rows += len(x)
        self._equal += int(same.sum())
        self._moved += int(moved.sum())
        self._not_finite += int((~finite & ~same).sum())
        self._finite += int(finite.sum())
        self._add_apart(apart[finite])
        self._moments.add(x[finite], y[finite])
        for binned, values in zip(self._bins, (x, y), strict=True):
            binned.add(values[finite])
        if self._threshold is not None:
            self._up += int((~(x >= self._threshold) & (y >= self._threshold)).sum())
            self._down += int(((x >= self._threshold) & ~(y >= self._threshold)).sum())
        self._add_movers(np.where(finite, np.abs(apart), np.where(same, 0.0, np.inf)), x, y, apart, keys)
        return moved

    def _add_apart(self, apart: Floats) -> None:
        self._sum += float(apart.sum())
        size = np.abs(apart)
        self._sum_abs += float(size.sum())
        self._max = max(self._max, float(size.max(initial=0.0)))
        self._above.add(apart[apart > 0])
        self._below.add(-apart[apart < 0])

    def _add_movers(self, size: Floats, x: Floats, y: Floats, apart: Floats, keys: pa.Table) -> None:
        top = (
            np.arange(len(size)) if len(size) <= self._top else np.argpartition(-size, self._top)[: self._top]
        )
        if not self._top:
            return
        least = self._movers[-1][0] if len(self._movers) == self._top else 0.0
        for row in top[size[top] > least]:
            of_row = keys.slice(int(row), 1).to_pylist()[0]
            told = Mover(
                {name: _number(key) if isinstance(key, float) else key for name, key in of_row.items()},
                _number(x[row]),
                _number(y[row]),
                None if np.isinf(size[row]) else float(apart[row]),
            )
            self._movers.append((float(size[row]), told))
        self._movers = sorted(self._movers, key=lambda one: -one[0])[: self._top]

    def told(self) -> dict[str, Any]:
        """Return all of it, by name."""
        size = self._above.plus(self._below)
        zeros = self._finite - int(size.counts.sum())
        rows = self._finite
        quantiles = {
            f"{name}_abs": min(size.quantile(share, zeros), self._max) if rows else math.nan
            for name, share in (("median", 0.5), ("p95", 0.95), ("p99", 0.99))
        }
        mean_a, mean_b = self._moments.mean
        stability = psi(*(binned.histogram() for binned in self._bins))
        numbers = {
            "mean_abs": self._sum_abs / max(1, rows),
            **quantiles,
            "max_abs": self._max,
            "mean": self._sum / max(1, rows),
            "mean_a": mean_a,
            "mean_b": mean_b,
            "correlation": self._moments.correlation,
            "psi": math.nan if stability is None else stability,
        }
        return {
            "column": self._column,
            "kind": "number",
            "rows": self._rows,
            "equal": self._equal,
            "moved": self._moved,
            "not_finite": self._not_finite,
            # Of no rows there is nothing to tell, nor of sums beyond what a number can hold.
            **{name: _number(value) if rows else None for name, value in numbers.items()},
            "flips_up": self._up if self._threshold is not None else None,
            "flips_down": self._down if self._threshold is not None else None,
            "histogram": histogram(self._below, zeros, self._above),
            "movers": [mover.__dict__ for _, mover in self._movers],
        }


class Words:
    """What is told of one column of texts, or of anything else that is only equal or not."""

    def __init__(self, column: str, *, top: int) -> None:
        self._column, self._top = column, top
        self._rows = self._moved = 0
        self._pairs: Counter[tuple[str | None, str | None]] = Counter()
        self._dropped = False

    def add(self, a: pa.ChunkedArray, b: pa.ChunkedArray, _: pa.Table) -> Mask:
        """Take in pairs of values; return which rows changed."""
        alike = pc.fill_null(pc.equal(a, b), False).to_numpy()
        nothing = pc.and_(pc.is_null(a), pc.is_null(b)).to_numpy()
        moved: Mask = ~(alike | nothing)
        self._rows += len(moved)
        self._moved += int(moved.sum())
        changed = pa.table({"a": a, "b": b}).filter(pa.array(moved))
        counted = changed.group_by(["a", "b"]).aggregate([([], "count_all")])
        for one in counted.to_pylist():
            self._pairs[one["a"], one["b"]] += one["count_all"]
        if len(self._pairs) > _MOST_PAIRS:
            self._pairs, self._dropped = Counter(dict(self._pairs.most_common(_MOST_PAIRS // 2))), True
        return moved

    def told(self) -> dict[str, Any]:
        """Return all of it, by name."""
        return {
            "column": self._column,
            "kind": "text",
            "rows": self._rows,
            "equal": self._rows - self._moved,
            "moved": self._moved,
            "changes": [
                {"a": a, "b": b, "rows": rows} for (a, b), rows in self._pairs.most_common(self._top)
            ],
            "changes_are_exact": not self._dropped,
        }


def _floats(column: pa.ChunkedArray) -> Floats:
    """Return numbers; what is null is not one."""
    plain = column.cast(pa.float64(), safe=False).to_numpy()
    return np.asarray(plain, np.float64)


def _apart(a: pa.ChunkedArray, b: pa.ChunkedArray) -> Floats:
    """Return ``b - a``, of integers without rounding them to floats first."""
    if pa.types.is_integer(a.type) and pa.types.is_integer(b.type):
        return _floats(pc.subtract(b.cast(pa.int64(), safe=False), a.cast(pa.int64(), safe=False)))
    return _floats(b) - _floats(a)


def _number(value: float | None) -> float | None:
    return float(value) if value is not None and math.isfinite(value) else None
