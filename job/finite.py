"""Which rows hold a NaN or an infinity."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from job.signature import CodedStrings, Feed, RowFault, Tensor

NONFINITE: Final = "nonfinite"
NONFINITE_PREDICTION: Final = "nonfinite_prediction"


def nonfinite_rows(array: NDArray[Any]) -> NDArray[np.int64]:
    """Return the rows of ``(rows, …)`` with a value that is not finite, ascending, ``(found,) int64``."""
    if not _has_fractions(array) or not array.size:
        return np.empty(0, np.int64)
    # 11 µs for 16,384 rows of 10, where predicting them takes 3,000.
    finite = np.isfinite(array)
    if finite.all():
        return np.empty(0, np.int64)
    return np.flatnonzero(~finite.reshape(len(array), -1).all(axis=1))


def feature_faults(tensors: Sequence[Tensor], feeds: Sequence[Feed]) -> tuple[RowFault, ...]:
    """Return the rows of a batch of which a feature is not finite, by the column that it came from.

    Args:
        tensors: one per feed, in order, each ``(rows, *shape)``.
        feeds: what feeds each of them.
    """
    faults: list[RowFault] = []
    for tensor, feed in zip(tensors, feeds, strict=True):
        if isinstance(tensor, CodedStrings):
            continue
        rows = nonfinite_rows(tensor)
        if not len(rows):
            continue
        values = tensor[rows].reshape(len(rows), len(feed.columns), -1)
        bad = ~np.isfinite(values)
        for i, name in enumerate(feed.columns):
            here = np.flatnonzero(bad[:, i].any(axis=1))
            if len(here):
                example = values[here[0], i][bad[here[0], i]][0]
                faults.append(RowFault(rows[here], NONFINITE, name, "it is not finite", str(example)))
    return tuple(faults)


def prediction_error(outputs: Sequence[NDArray[Any]], row: int) -> str:
    """Return which of a row's outputs, by its number, is not finite, and its value."""
    for i, output in enumerate(outputs):
        if len(nonfinite_rows(output[row : row + 1])):
            values = output[row].reshape(-1)
            which = f"output {i} of {len(outputs)}" if len(outputs) > 1 else "the prediction"
            return f"{which} is {values[~np.isfinite(values)][0]}"
    raise ValueError(f"row {row} is finite")


def _has_fractions(array: NDArray[Any]) -> bool:
    # bfloat16 and its like are of NumPy's kind V, or f, depending on who made them.
    return array.dtype.kind == "f" or "float" in array.dtype.name
