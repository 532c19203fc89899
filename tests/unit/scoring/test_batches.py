"""How many rows are read at once, whatever the columns are; against what the rows then take up."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from job.model.signature import Feed, InputSpec
from job.scoring import batches
from job.scoring.batches import CHUNK_BYTES, CHUNK_ROWS, chunk_rows, data_bytes
from job.spec import Shard, Split

FLOAT = Feed(InputSpec("x", (1,), "float32"), ("f",))


def opened(folder: Path, table: pa.Table, group_rows: int = 1000) -> tuple[pq.ParquetFile, Split]:
    pq.write_table(table, folder / "a.parquet", row_group_size=group_rows)
    file = pq.ParquetFile(folder / "a.parquet")
    return file, Split("a", Shard("a", 0, ""), tuple(range(file.num_row_groups)), 0, table.num_rows)


@pytest.mark.parametrize(
    ("shape", "batch_rows", "read_row_bytes", "expected"),
    [
        ((1,), 0, 0, CHUNK_ROWS),
        ((1,), 0, 512, CHUNK_BYTES // 512),
        # What the model is fed counts where it is more than what is read.
        ((1024,), 0, 512, 4096),
        ((1,), 0, 2 * CHUNK_BYTES, 1),
        ((1,), 1000, 512, 65_000),
        # A batch is one chunk at the least.
        ((1,), 1000, CHUNK_BYTES, 1000),
    ],
)
def test_rows_at_once(shape: tuple[int, ...], batch_rows: int, read_row_bytes: int, expected: int) -> None:
    feed = Feed(InputSpec("x", shape, "float32"), ("f",))
    assert chunk_rows([feed], batch_rows, read_row_bytes) == expected


@pytest.mark.parametrize("values", ["distinct", "same", "list", "struct"])
def test_keys_count(tmp_path: Path, values: str) -> None:
    """Text of 4 kB: whether it repeats or not, a chunk of it stays within its bytes."""
    rows = 3000
    texts = [f"{0 if values == 'same' else i:08d}" * 512 for i in range(rows)]
    keys = {"list": [[t] for t in texts], "struct": [{"t": t} for t in texts]}.get(values, texts)
    table = pa.table({"f": np.zeros(rows, np.float32), "key": keys, "unused": ["x" * 99] * rows})
    file, split = opened(tmp_path, table)
    row_bytes = batches.Sample(file, split, ["f", "key"]).row_bytes()
    assert 4096 <= row_bytes < 2.2 * 4100
    at_once = chunk_rows([FLOAT], 0, row_bytes)
    assert data_bytes(file.read().select(["f", "key"]).to_batches()[0].slice(0, 1)) * at_once <= CHUNK_BYTES


def test_numbers_count_as_they_are_stored(tmp_path: Path) -> None:
    table = pa.table(
        {"f": np.random.default_rng(0).normal(size=9000), "k.2": np.zeros(9000), "k": ["x"] * 9000}
    )
    file, split = opened(tmp_path, table, 3000)
    # A column whose name begins like another's is not that column.
    sizes = {name: batches.Sample(file, split, [name]).row_bytes() for name in ("f", "k.2", "k")}
    assert (sizes["f"], sizes["k.2"]) == (8, 8)
    assert sizes["k"] <= 6


@pytest.mark.parametrize(
    ("kind", "expected"),
    [
        (pa.float32(), 4),
        (pa.bool_(), 1 / 8),
        (pa.list_(pa.float32(), 784), 3136),
        (pa.fixed_shape_tensor(pa.uint8(), (28, 28)), 784),
        (pa.decimal128(10, 2), 16),
        (pa.timestamp("us"), 8),
        (pa.binary(7), 7),
        (pa.string(), None),
        (pa.list_(pa.int8()), None),
        (pa.dictionary(pa.int32(), pa.string()), None),
        (pa.struct([("a", pa.int8())]), None),
        (pa.map_(pa.int8(), pa.int8()), None),
    ],
)
def test_the_width_of_a_type(kind: pa.DataType, expected: float | None) -> None:
    assert batches._width(kind) == expected


def test_no_rows_have_no_size(tmp_path: Path) -> None:
    file, split = opened(tmp_path, pa.table({"f": pa.array([], pa.float32())}))
    assert batches.Sample(file, split, ["f"]).row_bytes() == 0


def test_text_that_repeats_is_known_from_a_sample(tmp_path: Path) -> None:
    high = [f"{i:09d}" for i in range(200_000)]
    table = pa.table({"low": ["Rome", None] * 100_000, "high": high, "n": [7] * 200_000})
    file, split = opened(tmp_path, table, 200_000)
    texts = batches.Sample(file, split, ["low", "high", "n"]).repeating(["low", "high", "n", "none"])
    assert texts == ["low"]
    assert batches.Sample(file, split, ["low", "high"]).repeating([]) == []


def test_row_groups_that_are_larger_than_the_first_count(tmp_path: Path) -> None:
    texts = ["x" * 10] * 3000 + [f"{i:010d}" * 100 for i in range(3000)]
    file, split = opened(tmp_path, pa.table({"t": texts}), 3000)
    assert batches.Sample(file, split, ["t"]).row_bytes() > 500


def test_dictionaries_are_not_counted_with_every_slice() -> None:
    coded = pa.DictionaryArray.from_arrays(pa.array([0] * 100, pa.int32()), pa.array(["x" * 10_000]))
    batch = pa.record_batch({"coded": coded, "struct": pa.StructArray.from_arrays([coded], ["t"])})
    assert data_bytes(batch) == 800
    assert data_bytes(batch.slice(10, 10)) == 80
