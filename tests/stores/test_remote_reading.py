"""What is fetched of a shard in a bucket: hardly more than its footer says must be, in few requests."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from job.scoring import reader
from tests.support.nights import features
from tests.support.parquet_bytes import Needed, Placed, joined, length, overlaps, place, read, within
from tests.support.remote_store import Remote

ROWS = 60_000
MORE = 1.05
PIECE_BYTES = 8 << 20
FOOTER_BYTES = 16 << 10


def numbers(rows: int = ROWS, width: int = 12) -> pa.Table:
    return features(rows, width)


def repeating(rows: int = ROWS) -> pa.Table:
    """Columns of a hundred values each, which are written with dictionaries."""
    drawn = np.random.default_rng(0).integers(0, 100, size=(8, rows)) * 1_000_003
    return pa.table({f"f{i}": drawn[i] for i in range(8)})


def wide(rows: int = 20_000, width: int = 128) -> pa.Table:
    flat = pa.array(np.random.default_rng(0).normal(size=rows * width).astype(np.float32))
    return pa.table({"id": np.arange(rows), "x": pa.FixedSizeListArray.from_arrays(flat, width)})


@dataclass(frozen=True)
class Layout:
    """A shard, and what is read of it."""

    table: pa.Table
    columns: tuple[str, ...]
    groups: tuple[int, ...] | None = None
    group_rows: int = ROWS // 4
    options: tuple[tuple[str, Any], ...] = ()


EVERY = ("id", *(f"f{i}" for i in range(12)))
PLAIN = (("compression", "none"), ("use_dictionary", False))
LAYOUTS = {
    "every column": Layout(numbers(), EVERY),
    "columns apart": Layout(numbers(), ("f9", "f1", "f5")),
    "columns side by side": Layout(numbers(), ("f3", "f4", "f5")),
    "one column": Layout(numbers(), ("id",)),
    "columns with dictionaries": Layout(repeating(8 * ROWS), ("f0", "f1", "f6"), None, 2 * ROWS),
    "without compression": Layout(numbers(), ("f1", "f2", "f8"), options=PLAIN),
    "well compressed": Layout(
        pa.table({f"f{i}": np.arange(8 * ROWS) // 3 + i for i in range(4)}),
        ("f0", "f3"),
        None,
        4 * ROWS,
        (("compression", "zstd"), ("use_dictionary", False)),
    ),
    "some row groups": Layout(numbers(2 * ROWS), ("f0", "f1", "f7"), (3, 4)),
    "one row group": Layout(numbers(2 * ROWS), EVERY, (7,)),
    "one wide column": Layout(wide(), ("x",), None, 20_000, PLAIN),
    "one wide column of many row groups": Layout(wide(), ("x",), None, 1000, PLAIN),
    "a large footer": Layout(numbers(width=40), ("f7", "f30", "f31"), None, ROWS // 8),
}


@pytest.mark.parametrize("name", LAYOUTS)
def test_of_a_shard_hardly_more_is_fetched_than_must_be_and_the_values_are_pyarrows(
    bucket: Remote, tmp_path: Path, name: str
) -> None:
    layout = LAYOUTS[name]
    placed = place(bucket, tmp_path, layout.table, row_group_size=layout.group_rows, **dict(layout.options))
    split = placed.split(layout.groups)
    needed = placed.needed(split.row_groups, layout.columns)
    assert read(split, layout.columns).equals(placed.values(split.row_groups, layout.columns))
    check_fetched(placed, needed)
    assert length(placed.asked) <= MORE * (needed.data_bytes + needed.footer_bytes)


def check_fetched(placed: Placed, needed: Needed) -> None:
    """Each byte that is needed was fetched once, and beside it only what the documentation says."""
    size_bytes = placed.shard.size_bytes
    footer_at = size_bytes - max(min(FOOTER_BYTES, size_bytes), needed.footer_bytes)
    footer = [
        one for one in placed.asked if one[0] >= footer_at and one[1] > size_bytes - needed.footer_bytes
    ]
    data = [one for one in placed.asked if one not in footer]
    assert joined(footer) == [(footer_at, size_bytes)]
    assert overlaps(data) == 0
    assert within(needed.ranges, joined(data))
    assert within(data, needed.allowed)
    assert all(stop - start <= PIECE_BYTES for start, stop in data)
    # One for each stretch of a row group; for each piece of what is longer.
    groups = [placed.needed([group], tuple(needed.columns)).allowed for group in needed.groups]
    most = sum(1 + (stop - start) // PIECE_BYTES for group in groups for start, stop in group)
    assert len(data) <= most


def test_the_layouts_are_what_they_are_called(bucket: Remote, tmp_path: Path) -> None:
    def metadata(name: str) -> Any:
        layout = LAYOUTS[name]
        path = tmp_path / "a.parquet"
        pq.write_table(layout.table, path, row_group_size=layout.group_rows, **dict(layout.options))
        return pq.read_metadata(path)

    assert metadata("columns with dictionaries").row_group(0).column(0).dictionary_page_offset
    assert metadata("a large footer").serialized_size > FOOTER_BYTES
    assert metadata("every column").serialized_size < FOOTER_BYTES
    assert metadata("one wide column").row_group(0).total_byte_size > PIECE_BYTES
    assert metadata("without compression").row_group(0).column(0).compression == "UNCOMPRESSED"
    column = metadata("well compressed").row_group(0).column(0)
    assert 2 * column.total_compressed_size < column.total_uncompressed_size


@pytest.mark.parametrize("rows", [1, 100, 1000])
def test_of_a_tiny_shard_no_more_is_fetched_than_one_footer_request_beside_the_columns(
    bucket: Remote, tmp_path: Path, rows: int
) -> None:
    """That request may hold the whole shard: less than 5 % beside the data cannot be."""
    placed = place(bucket, tmp_path, numbers(rows, width=4))
    needed = placed.needed([0], ("id", "f2"))
    assert read(placed.split(), ("id", "f2")).equals(placed.values([0], ("id", "f2")))
    check_fetched(placed, needed)
    assert length(placed.asked) <= min(FOOTER_BYTES, placed.shard.size_bytes) + length(needed.allowed)
    assert len(placed.asked) <= 3


def test_a_row_group_larger_than_is_held_at_once_comes_in_pieces(
    bucket: Remote, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of each column so much at a time, whatever the size of the row group."""
    piece_bytes, page_bytes = 64 << 10, 16 << 10
    monkeypatch.setattr(reader, "MOST_FETCHED_BYTES", 1 << 20)
    monkeypatch.setattr(reader, "FETCHED_COLUMN_BYTES", piece_bytes)
    columns = ("f0", "f1", "f9")
    layout = {"row_group_size": ROWS, "data_page_size": page_bytes, **dict(PLAIN)}
    placed = place(bucket, tmp_path, numbers(2 * ROWS), **layout)
    needed = placed.needed([0, 1], columns)
    assert needed.metadata.row_group(0).total_byte_size > reader.MOST_FETCHED_BYTES
    assert read(placed.split(), columns).equals(placed.values([0, 1], columns))
    data = placed.asked[1:]
    assert overlaps(data) == 0
    assert joined(data) == needed.ranges
    assert max(stop - start for start, stop in data) <= piece_bytes + page_bytes
    # Two for each piece: Arrow asks by itself for what is missing of the piece's last page.
    chunks = [needed.metadata.row_group(0).column(i).total_compressed_size for i in (1, 2, 10)]
    assert len(data) <= 2 * sum(2 * -(-size_bytes // piece_bytes) for size_bytes in chunks)
    assert length(placed.asked) <= MORE * (needed.data_bytes + needed.footer_bytes)


TEXT = {
    "repeating text": [f"word {i % 200}" for i in range(ROWS)],
    "text that never repeats": [f"{i:032d}" for i in range(ROWS)],
    "lists": [[float(i), float(-i)] for i in range(ROWS)],
}


@pytest.mark.parametrize("name", TEXT)
@pytest.mark.parametrize("role", ["feature", "key"])
def test_what_is_read_to_see_how_wide_columns_are_is_not_fetched_again(
    bucket: Remote, tmp_path: Path, name: str, role: str
) -> None:
    """How much their rows take up is not known before some of them have been read."""
    table = features(ROWS, 2).append_column("x", pa.array(TEXT[name]))
    placed = place(bucket, tmp_path, table, row_group_size=ROWS // 8)
    split = placed.split()
    columns = (("f0", "x"), ()) if role == "feature" else (("f0",), ("x",))
    wanted = placed.values(split.row_groups, ("f0", "x"))
    found = read(split, *columns)
    assert found.cast(wanted.schema).equals(wanted)
    needed = placed.needed(split.row_groups, ("f0", "x"))
    assert within(needed.ranges, joined(placed.asked))
    assert overlaps(placed.asked[1:]) == 0
    assert length(placed.asked[1:]) <= MORE * needed.data_bytes


def test_a_split_of_64_mb_takes_few_requests(bucket: Remote, tmp_path: Path) -> None:
    """Of row groups side by side two at most for every 8 MiB, of which the second is never much smaller."""
    rows, columns = 1 << 20, [f"f{i}" for i in range(16)]
    drawn = np.random.default_rng(0).random((16, rows), dtype=np.float32)
    table = pa.table(dict(zip(columns, drawn, strict=True)))
    placed = place(bucket, tmp_path, table, row_group_size=50_000, **dict(PLAIN))
    split = placed.split()
    needed = placed.needed(split.row_groups, columns)
    assert 64e6 < needed.data_bytes < 68e6
    assert read(split, columns, chunk_rows=1 << 16).equals(table)
    check_fetched(placed, needed)
    assert length(placed.asked) <= MORE * (needed.data_bytes + needed.footer_bytes)
    assert len(placed.asked) <= 2 + 2 * needed.data_bytes / PIECE_BYTES
