"""Predictions on their way to a file, counted into the bins of ``job.histograms``: about 6 ns a value.

Few steps for many values: the thread that writes shares the interpreter's lock with those that score.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Final

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from job.histograms import COARSEST_BITS, FINEST_BITS, MOST_BINS, Histogram

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
    leaf = kind
    while pa.types.is_nested(leaf):
        leaf = leaf.value_type
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
