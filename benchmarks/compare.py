"""Did both sides do the same work? Compares predictions file by file, after the clock has stopped."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

RELATIVE = 1e-6


class UnequalOutputsError(Exception):
    """The two sides did not write the same predictions."""


def equal_outputs(ours: Path, theirs: Path) -> int:
    """Return the rows of both folders, which hold the same files with the same predictions.

    A value may differ by 1e-6 of its own size, or of the largest prediction in its file where
    cancellation left it small. Files whose names begin with ``_`` are not predictions.

    Raises:
        UnequalOutputsError: a file is on one side only, or rows or values differ.
    """
    names, other = (sorted(path.name for path in side.glob("[!_]*.parquet")) for side in (ours, theirs))
    if names != other or not names:
        only = sorted(set(names) ^ set(other))[:3]
        raise UnequalOutputsError(
            f"{len(names)} files in {ours}, {len(other)} in {theirs}; one side only: {only}"
        )
    return sum(_equal_file(ours / name, theirs / name) for name in names)


def _equal_file(ours: Path, theirs: Path) -> int:
    left, right = _predictions(ours), _predictions(theirs)
    if left.shape != right.shape:
        raise UnequalOutputsError(f"{ours} holds {left.shape} predictions, {theirs} {right.shape}")
    if not np.allclose(left, right, rtol=RELATIVE, atol=RELATIVE * float(np.abs(right).max(initial=0))):
        worst = int(np.abs(left - right).max(axis=1).argmax())
        raise UnequalOutputsError(f"row {worst} is {left[worst]} in {ours} and {right[worst]} in {theirs}")
    return len(left)


def _predictions(path: Path) -> NDArray[np.float32]:
    """Return ``(rows, outputs) float32`` of the one column there is."""
    table = pq.ParquetFile(path).read()
    if table.num_columns != 1:
        raise UnequalOutputsError(
            f"{path} holds {table.column_names}, one column of predictions was expected"
        )
    column = table.column(0).combine_chunks()
    if pa.types.is_list(column.type) or pa.types.is_fixed_size_list(column.type):
        column = column.flatten()
    values: NDArray[np.float32] = column.to_numpy(zero_copy_only=False)
    return values.reshape(table.num_rows, -1)
