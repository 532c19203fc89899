"""What is kept of very many numbers: counts by size, means; none of it grows with their number.

Quantiles are a DDSketch's (C. Masson, J. Rim, H. Lee: "DDSketch: a fast and fully-mergeable quantile sketch
with relative-error guarantees", VLDB 2019): within :data:`ACCURACY` of the number of that rank, relatively.
"""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import dataclass, field
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

ACCURACY: Final = 0.001
_DECADES: Final = 8

Floats = NDArray[np.float64]


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
