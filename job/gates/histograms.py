"""How predictions are distributed: histograms that add up, and how far apart two of them are.

The first part is one histogram and its PSI against another. The second part counts the predictions of a split
into bins while they are written to a file, which costs about 6 ns a value.

A bin is the upper bits of a float32, so it needs no baseline, no range and no second look at the data, and
histograms of any splits merge by addition, bin by bin. 16 bits are sign, exponent and 7 bits of mantissa: 128
bins for each doubling. Where predictions fall into more than ``MOST_BINS``, pairs of bins are merged until
they do not, down to 12 bits: 8 for each doubling. A wide distribution does not need finer ones, and a narrow
one (an air pressure, say) would be all in one bin of those. Values within 0.8 % of each other may share one.

``-0.0`` and what is not finite have bins as any other pattern has; what they mean is told by :func:`psi`.
"""

from __future__ import annotations

import base64
import math
import zlib
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from job.binding.output_kinds import leaf_of
from job.spec import Receipt

# A receipt holds one for each prediction column, and there may be a million receipts.
MOST_BINS: Final = 128
FINEST_BITS: Final = 16
COARSEST_BITS: Final = 12
# By as many groups the population stability index is commonly taken.
GROUPS: Final = 10
SMALLEST_SHARE: Final = 1e-4


@dataclass(frozen=True)
class Histogram:
    """How many values fall into each bin; ``bits`` of a float32's pattern are the bin's number."""

    bits: int
    counts: Mapping[int, int]

    @property
    def values(self) -> int:
        """How many values were counted."""
        return sum(self.counts.values())

    def of_bits(self, bits: int) -> Histogram:
        """Return the same with fewer bits, which merges neighbouring bins."""
        merged: Counter[int] = Counter()
        for number, count in self.counts.items():
            merged[number >> (self.bits - bits)] += count
        return Histogram(bits, merged)

    def compact(self) -> Histogram:
        """Return the finest that has few enough bins, or else the coarsest that there is."""
        found = self
        while len(found.counts) > MOST_BINS and found.bits > COARSEST_BITS:
            found = found.of_bits(found.bits - 1)
        return found

    def text(self) -> str:
        """Return it as short text: bits, then each bin's count, behind how many bins were skipped.

        >>> Histogram(12, {1016: 3, 1017: 5, 1020: 1}).text()
        '12:1016+3,5,2+1'
        """
        words, following = [], 0
        for number, count in sorted(self.counts.items()):
            words.append(f"{number - following}+{count}" if number > following else str(count))
            following = number + 1
        return f"{self.bits}:{','.join(words)}"

    @classmethod
    def of_text(cls, text: str) -> Histogram:
        """Return what :meth:`text` wrote.

        Raises:
            ValueError: it is none.
        """
        bits, colon, words = text.partition(":")
        counts, number = {}, 0
        for word in words.split(",") if words else ():
            skipped, plus, count = word.rpartition("+")
            number += int(skipped) if plus else 0
            counts[number] = int(count)
            number += 1
        if not colon or not COARSEST_BITS <= int(bits) <= FINEST_BITS or number > 1 << int(bits):
            raise ValueError(f"{text[:40]!r} is no histogram")
        return cls(int(bits), counts)

    def packed(self) -> str:
        """Return its text compressed to about a half, as it travels in receipts."""
        return base64.b85encode(zlib.compress(self.text().encode())).decode()

    @classmethod
    def of_packed(cls, packed: str) -> Histogram:
        """Return what :meth:`packed` gave."""
        return cls.of_text(zlib.decompress(base64.b85decode(packed)).decode())


def of(receipts: Iterable[Receipt]) -> dict[str, Histogram]:
    """Return the histogram of each prediction column; none where an older version scored a part."""
    return summed(receipt.histograms for receipt in receipts if receipt.rows_scored)


def summed(parts: Iterable[Iterable[tuple[str, str]]]) -> dict[str, Histogram]:
    """Return the sum of the packed histograms of each name that all parts have, as fine as the coarsest."""
    found: dict[str, Counter[tuple[int, int]]] = {}
    for number, part in enumerate(parts):
        packed = dict(part)
        if number == 0:
            found = {name: Counter() for name in packed}
        found = {name: counts for name, counts in found.items() if name in packed}
        for name, counts in found.items():
            one = Histogram.of_packed(packed[name])
            for place, count in one.counts.items():
                counts[one.bits, place] += count
    return {name: _as_the_coarsest(counts) for name, counts in found.items()}


def _as_the_coarsest(counts: Mapping[tuple[int, int], int]) -> Histogram:
    bits = min((bits for bits, _ in counts), default=FINEST_BITS)
    every: Counter[int] = Counter()
    for (finer, place), count in counts.items():
        every[place >> (finer - bits)] += count
    return Histogram(bits, every).compact()


def psi(before: Histogram, now: Histogram) -> float | None:
    """Return the population stability index of two distributions; ``None`` where one has no values.

    That is Σ (pᵢ - qᵢ) · ln(pᵢ / qᵢ) over about ten groups of equal weight in the first, as in N. Siddiqi,
    *Credit Risk Scorecards* (2006): below 0.1 nothing of note has changed, above 0.25 much has. A share p or
    q is at least 0.0001, and at least that of half a value. What is not finite is a group of its own. Chance
    alone gives about 9 · (1/n + 1/m) for n and m values (B. Yurdakul, *Statistical Properties of Population
    Stability Index*, Western Michigan University, 2018).
    """
    bits = min(before.bits, now.bits)
    ours, theirs = (_by_value(histogram.of_bits(bits)) for histogram in (now, before))
    n, m = sum(ours.values()), sum(theirs.values())
    if not n or not m:
        return None
    finite = sum(count for place, count in theirs.items() if place is not None)
    groups: dict[int, list[int]] = {}
    so_far = 0
    for place in sorted(ours.keys() | theirs.keys(), key=lambda place: math.inf if place is None else place):
        count = theirs[place]
        # A bin belongs where its middle is, so that one which holds half of all is not cut.
        group = min(GROUPS - 1, GROUPS * (2 * so_far + count) // (2 * finite)) if finite else 0
        pair = groups.setdefault(GROUPS if place is None else group, [0, 0])
        pair[0] += ours[place]
        pair[1] += count
        so_far += count
    shares = (
        (max(a / n, SMALLEST_SHARE, 0.5 / n), max(b / m, SMALLEST_SHARE, 0.5 / m))
        for a, b in groups.values()
        if a or b
    )
    return sum((p - q) * math.log(p / q) for p, q in shares)


def _by_value(histogram: Histogram) -> Counter[int | None]:
    """Return the counts by their values' order, ``None`` for what is not finite."""
    sign = 1 << (histogram.bits - 1)
    infinite = 0xFF << (histogram.bits - 9)
    found: Counter[int | None] = Counter()
    for number, count in histogram.counts.items():
        size = number & (sign - 1)
        # Both zeros have one place.
        found[None if size >= infinite else -size if number & sign else size] += count
    return found


# Counting. NumPy takes few steps for many values, because the thread that writes shares the interpreter's
# lock with the threads that score.


# Numbers of bins, ascending, and how many values each of them has.
_Counts = tuple[NDArray[np.int64], NDArray[np.int64]]

_BINS: Final = 1 << FINEST_BITS
# Below, sorting the values costs less than looking through all bins.
_FEW: Final = 4096


class Binned:
    """Numbers counted into bins, some at a time."""

    def __init__(self) -> None:
        nothing = np.empty(0, np.int64)
        self._counts: _Counts = (nothing, nothing)

    def add(self, values: NDArray[np.floating[Any]]) -> None:
        """Count more numbers; what is beyond a float32 counts as infinite."""
        if len(values):
            with np.errstate(over="ignore"):
                self._counts = _sum(self._counts, _counted(np.ascontiguousarray(values, np.float32)))

    def histogram(self) -> Histogram:
        """Return the finest histogram that has few enough bins, or else the coarsest that there is."""
        return _compact(self._counts)


class Counting:
    """Counts the prediction columns of tables on their way to a file; columns of text are left out."""

    def __init__(self, fields: Iterable[pa.Field]) -> None:
        self._columns = {field.name: Binned() for field in fields if is_counted(field.type)}

    def add(self, table: pa.Table) -> None:
        """Count the rows of a table."""
        for name, binned in self._columns.items():
            values = [_numbers(chunk) for chunk in table.column(name).chunks]
            if values:
                binned.add(values[0] if len(values) == 1 else np.concatenate(values))

    def packed(self) -> tuple[tuple[str, str], ...]:
        """Return the histogram of each column, packed."""
        return tuple((name, binned.histogram().packed()) for name, binned in self._columns.items())


def is_counted(kind: pa.DataType) -> bool:
    """Say whether a prediction column of this type has a histogram."""
    leaf = leaf_of(kind)
    return bool(pa.types.is_floating(leaf) or pa.types.is_integer(leaf) or pa.types.is_boolean(leaf))


def _numbers(array: pa.Array) -> NDArray[Any]:
    """Return all numbers of a column, ``(values,)``; all elements of its lists."""
    while pa.types.is_nested(array.type):
        array = array.flatten()
    values: NDArray[Any] = array.to_numpy(zero_copy_only=False)
    return values


def _counted(values: NDArray[np.float32]) -> _Counts:
    """Return how many values there are of each pattern of the upper 16 bits."""
    upper = values.view(np.uint32) >> (32 - FINEST_BITS)
    if len(upper) < _FEW:
        numbers, counts = np.unique(upper, return_counts=True)
        return numbers.astype(np.int64), counts
    every = np.bincount(upper, minlength=_BINS)
    numbers = np.flatnonzero(every != 0)
    return numbers, every[numbers]


def _sum(one: _Counts, other: _Counts) -> _Counts:
    if not len(one[0]):
        return other
    numbers = np.concatenate([one[0], other[0]])
    order = np.argsort(numbers, kind="stable")
    return _merged(numbers[order], np.concatenate([one[1], other[1]])[order])


def _merged(numbers: NDArray[np.int64], counts: NDArray[np.int64]) -> _Counts:
    """Add up what neighbours of one number have."""
    first = np.flatnonzero(np.diff(numbers, prepend=-1))
    return numbers[first], np.add.reduceat(counts, first)


def _compact(counts: _Counts) -> Histogram:
    bits = FINEST_BITS
    while len(counts[0]) > MOST_BINS and bits > COARSEST_BITS:
        counts = _merged(counts[0] >> 1, counts[1])
        bits -= 1
    return Histogram(bits, dict(zip(counts[0].tolist(), counts[1].tolist(), strict=True)))
