"""Fifty-three rows: through the job, and by hand through the same model."""

from __future__ import annotations

from typing import Any

import numpy as np
import pyarrow as pa

from tests.support.nights import Array, Night, saved

ROWS = 53
BATCH = 16
RNG = np.random.default_rng(7)
WIDE = RNG.normal(size=(ROWS, 4)).astype(np.float32)


def score(night: Night, model: Any, table: pa.Table, *flags: str) -> pa.Table:
    """Score one shard of ``table`` plus an ``id`` and return the predictions, in order."""
    night.shard("a", table.append_column("id", pa.array(np.arange(ROWS))), group_rows=20)
    path = saved(model, night.folder / "m.keras")
    night.score(path, "--keys=id", f"--batch_size={BATCH}", *flags)
    scored = night.scored()
    assert scored.column("id").to_pylist() == list(range(ROWS))
    return scored.drop_columns(["id"])


def numbers(column: pa.ChunkedArray) -> Array:
    return np.array(column.to_pylist())


def check(found: pa.Table, model: Any, fed: Any) -> None:
    """One output column equals ``Model.predict`` on what is fed, bitwise, in equal batches."""
    expected = model.predict(fed, batch_size=BATCH, verbose=0).astype(np.float64)
    (name,) = found.column_names
    np.testing.assert_array_equal(numbers(found.column(name)).reshape(ROWS, -1), expected.reshape(ROWS, -1))


def scalars(values: Array) -> pa.Table:
    return pa.table({f"f{i}": values[:, i] for i in range(values.shape[1])})
