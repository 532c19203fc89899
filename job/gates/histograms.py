"""How predictions are distributed: histograms that add up, and how far apart two of them are.

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
from typing import Final

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
