"""How far two predictions of one row may be apart."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from job.binding.output_kinds import NUMPY_TYPES, leaf_of


@dataclass(frozen=True)
class Tolerance:
    """How far two predictions may be apart: ``|published - again| <= atol·s + rtol·|again|``.

    How rows are cut into batches changes the last digits. ``s`` is the column's median magnitude among the
    rows compared, at least 1, since sums of large terms cancel to small ones. Types with fewer digits than
    float32 are given four of their own rounding steps.
    """

    rtol: float = 1e-5
    atol: float = 1e-6


def unequal(old: pa.Array, new: pa.Array) -> NDArray[np.bool_]:
    """Return which values differ, ``(rows,) bool``; a NaN is equal to a NaN."""
    return np.array(
        [a != b and not (a != a and b != b) for a, b in zip(old.to_pylist(), new.to_pylist(), strict=True)]
    )


def apart(old: pa.Array, new: pa.Array, tolerance: Tolerance) -> NDArray[np.bool_]:
    """Return which rows of a prediction differ, ``(rows,) bool``; lists of other lengths do."""
    leaf = leaf_of(old.type)
    if not pa.types.is_floating(leaf):
        return unequal(old, new)
    differ = ~_of_one_shape(old, new)
    alike = np.flatnonzero(~differ)
    (a, of), (b, _) = (_flat(column.take(pa.array(alike))) for column in (old, new))
    step = float(np.finfo(NUMPY_TYPES[leaf]).eps)
    coarse = 4 * step if step > np.finfo(np.float32).eps else 0.0
    finite = np.where(np.isfinite(b), np.abs(b), np.nan)
    with np.errstate(invalid="ignore"):
        scale = max(1.0, float(np.nanmedian(finite))) if np.isfinite(b).any() else 1.0
        limit = max(tolerance.atol, coarse) * scale + max(tolerance.rtol, coarse) * np.abs(b)
        same = (np.abs(a - b) <= limit) | (a == b) | (np.isnan(a) & np.isnan(b))
    differ[alike[of[~same]]] = True
    return differ


def _of_one_shape(old: pa.Array, new: pa.Array) -> NDArray[np.bool_]:
    """Return in which rows the lists of two columns have equal lengths, at each level; ``(rows,) bool``."""
    same = np.ones(len(old), np.bool_)
    owner = np.arange(len(old))
    while pa.types.is_nested(old.type):
        lengths, others = (
            pc.fill_null(pc.list_value_length(column), 0).to_numpy().astype(np.int64) for column in (old, new)
        )
        unlike = owner[lengths != others]
        same[unlike] = False
        # Those that differ are looked at no further: the lists that follow no longer stand beside each other.
        keep = same[owner]
        owner = np.repeat(owner[keep], lengths[keep])
        old, new = (column.filter(pa.array(keep)).flatten() for column in (old, new))
    return same


def _flat(column: pa.Array) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    """Return the numbers of a column, row by row, and the row of each; null is NaN."""
    owner = np.arange(len(column))
    while pa.types.is_nested(column.type):
        lengths = pc.fill_null(pc.list_value_length(column), 0).to_numpy().astype(np.int64)
        owner, column = np.repeat(owner, lengths), column.flatten()
    return column.to_numpy(zero_copy_only=False).astype(np.float64), owner
