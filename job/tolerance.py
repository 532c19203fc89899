"""How far two predictions of one row may be apart."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from job.predictions import NUMPY_TYPES


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


def apart(old: pa.Array, new: pa.ChunkedArray, tolerance: Tolerance) -> NDArray[np.bool_]:
    """Return which rows of a prediction differ, ``(rows,) bool``."""
    new = new.combine_chunks()
    leaf = old.type
    while pa.types.is_nested(leaf):
        leaf = leaf.value_type
    if not pa.types.is_floating(leaf):
        return unequal(old, new)
    a, b = (np.array(column.to_pylist(), np.float64).reshape(len(column), -1) for column in (old, new))
    step = float(np.finfo(NUMPY_TYPES[leaf]).eps)
    coarse = 4 * step if step > np.finfo(np.float32).eps else 0.0
    finite = np.where(np.isfinite(b), np.abs(b), np.nan)
    with np.errstate(invalid="ignore"):
        scale = max(1.0, float(np.nanmedian(finite))) if np.isfinite(b).any() else 1.0
        limit = max(tolerance.atol, coarse) * scale + max(tolerance.rtol, coarse) * np.abs(b)
        same = (np.abs(a - b) <= limit) | (a == b) | (np.isnan(a) & np.isnan(b))
    differ: NDArray[np.bool_] = ~same.all(axis=1)
    return differ
