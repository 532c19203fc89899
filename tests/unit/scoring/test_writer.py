"""Output files: row groups, encodings, metadata and digests, read back with plain pyarrow."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from job.errors import StorageError
from job.scoring import writer as scoring_writer
from job.scoring.writer import FileOptions, Part, PartWriter
from job.storage.sinks import HashingSink

SCHEMA = pa.schema([("id", pa.int64()), ("score", pa.float32())], metadata={"night": "first"})
METADATA = {"night": "first"}
OPTIONS = FileOptions(1000, "zstd", METADATA)


def batch(first: int, rows: int) -> list[Any]:
    ids = np.arange(first, first + rows)
    return [pa.array(ids), pa.array((ids / 7).astype(np.float32))]


def written(
    path: Path, batches: list[int], group_rows: int, *, overlap: bool = False, compression: str = "zstd"
) -> Part:
    """Write batches of these many rows; ids count up from 0."""
    bare = SCHEMA.remove_metadata()
    with PartWriter(
        str(path), bare, FileOptions(group_rows, compression, METADATA), overlap=overlap
    ) as writer:
        first = 0
        for rows in batches:
            writer.append(batch(first, rows))
            first += rows
        return writer.finish()


def groups(path: Path) -> list[int]:
    metadata = pq.read_metadata(path)
    return [metadata.row_group(i).num_rows for i in range(metadata.num_row_groups)]


@pytest.mark.parametrize("overlap", [False, True])
@pytest.mark.parametrize(
    ("batches", "group_rows", "expected"),
    [
        ([10, 10, 10], 100, [30]),
        ([10, 10, 10], 10, [10, 10, 10]),
        # Batches that do not divide the row group: what is left over waits for more rows.
        ([7] * 10, 20, [20, 20, 20, 10]),
        ([64] * 3, 50, [50, 50, 50, 42]),
        # A batch of many row groups.
        ([100], 30, [30, 30, 30, 10]),
        ([100, 1], 30, [30, 30, 30, 11]),
        ([1] * 5, 1, [1] * 5),
        ([], 10, []),
        ([0, 5, 0], 10, [5]),
    ],
)
def test_every_row_group_but_the_last_is_full(
    tmp_path: Path, batches: list[int], group_rows: int, expected: list[int], overlap: bool
) -> None:
    path = tmp_path / "a.parquet"
    part = written(path, batches, group_rows, overlap=overlap)
    assert groups(path) == expected
    rows = sum(batches)
    assert part.rows == rows
    assert pq.read_table(path).equals(pa.table(batch(0, rows), schema=SCHEMA))


def test_wide_rows_are_written_before_they_fill_the_memory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # A row is 12 bytes here: 100 rows reach the limit long before the row group is full.
    monkeypatch.setattr(scoring_writer, "ROW_GROUP_BYTES", 1200)
    written(tmp_path / "a.parquet", [50] * 5, 1000)
    assert groups(tmp_path / "a.parquet") == [100, 100, 50]


def test_wide_rows_leave_no_tiny_row_group_behind_each_batch(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(scoring_writer, "ROW_GROUP_BYTES", 1200)
    written(tmp_path / "a.parquet", [105] * 3, 50)
    assert groups(tmp_path / "a.parquet") == [50, 50, 50, 50, 50, 50, 15]


def test_the_part_is_what_lies_on_the_disk(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    part = written(path, [1000] * 3, 700)
    content = path.read_bytes()
    assert (part.size_bytes, part.sha256) == (len(content), hashlib.sha256(content).hexdigest())
    assert part.write_s > 0


def test_overlap_changes_nothing_but_the_time(tmp_path: Path) -> None:
    one = written(tmp_path / "a.parquet", [999] * 7, 1000)
    other = written(tmp_path / "b.parquet", [999] * 7, 1000, overlap=True)
    assert (one.rows, one.size_bytes, one.sha256) == (other.rows, other.size_bytes, other.sha256)


def test_metadata_and_schema_are_kept_even_without_rows(tmp_path: Path) -> None:
    written(tmp_path / "a.parquet", [], 10)
    assert pq.read_schema(tmp_path / "a.parquet").equals(SCHEMA, check_metadata=True)


def test_floats_are_not_dictionary_encoded_and_what_repeats_is(tmp_path: Path) -> None:
    kinds = [pa.float16(), pa.float32(), pa.float64(), pa.list_(pa.float32(), 2), pa.list_(pa.float64())]
    kinds += [pa.list_(pa.list_(pa.float32(), 1), 2), pa.string(), pa.int64(), pa.timestamp("us", tz="UTC")]
    schema = pa.schema([(f"c{i}", kind) for i, kind in enumerate(kinds)])
    # One value throughout, so that a dictionary would pay wherever it is allowed.
    cells = [1.5, 1.5, 1.5, [1.5, 1.5], [1.5], [[1.5], [1.5]], "x", 3, 3]
    columns = [pa.array([cell] * 500, kind) for cell, kind in zip(cells, kinds, strict=True)]
    with PartWriter(str(tmp_path / "a.parquet"), schema, OPTIONS, overlap=False) as writer:
        writer.append(columns)
        writer.finish()
    group = pq.read_metadata(tmp_path / "a.parquet").row_group(0)
    has_dictionary = [group.column(i).has_dictionary_page for i in range(group.num_columns)]
    assert has_dictionary == [False] * 6 + [True] * 3


@pytest.mark.parametrize(
    ("flag", "found"),
    [
        ("zstd", "ZSTD"),
        ("snappy", "SNAPPY"),
        ("gzip", "GZIP"),
        ("brotli", "BROTLI"),
        ("lz4", "LZ4"),
        ("none", "UNCOMPRESSED"),
    ],
)
def test_every_compression_that_the_flag_offers(tmp_path: Path, flag: str, found: str) -> None:
    written(tmp_path / "a.parquet", [100], 100, compression=flag)
    group = pq.read_metadata(tmp_path / "a.parquet").row_group(0)
    assert {group.column(i).compression for i in range(group.num_columns)} == {found}
    assert pq.read_table(tmp_path / "a.parquet").num_rows == 100


def test_an_attempt_that_fails_half_way_is_left_unfinished_and_silent(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    writer = PartWriter(str(path), SCHEMA, FileOptions(10, "zstd", METADATA), overlap=True)

    def fail() -> None:
        with writer:
            writer.append(batch(0, 25))
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail()
    with pytest.raises(pa.ArrowInvalid):
        pq.read_table(path)


@pytest.mark.parametrize("overlap", [False, True])
def test_a_disk_that_fails_is_a_storage_error_that_names_the_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, overlap: bool
) -> None:
    class FullDisk(HashingSink):
        def write(self, data: bytes | memoryview) -> int:
            if self.closed:
                return len(data)
            if self.bytes_written > 100:
                raise OSError(28, "No space left on device")
            return super().write(data)

    monkeypatch.setattr(scoring_writer, "HashingSink", FullDisk)
    with pytest.raises(StorageError, match=r"a\.parquet: cannot be written: .*No space left on device"):
        written(tmp_path / "a.parquet", [1000] * 5, 1000, overlap=overlap)


def test_a_file_that_cannot_be_made_is_a_storage_error(tmp_path: Path) -> None:
    with pytest.raises(StorageError, match="No such file or directory"):
        written(tmp_path / "absent" / "a.parquet", [1], 1)
    (tmp_path / "a.parquet").write_bytes(b"taken")
    with pytest.raises(StorageError, match="File exists"):
        written(tmp_path / "a.parquet", [1], 1)


def test_what_repeats_within_lists_structs_and_maps_is_dictionary_encoded(tmp_path: Path) -> None:
    text = pa.string()
    columns = {
        "list": pa.array([["x", "x"]] * 500),
        "large": pa.array([["x"]] * 500, pa.large_list(text)),
        "struct": pa.array([{"t": "x", "f": 1.5, "deep": [{"t": "x"}]}] * 500),
        "map": pa.array([[("k", 1.5)]] * 500, pa.map_(text, pa.float64())),
        "coded": pa.array(["x"] * 500).dictionary_encode(),
        "a.b": pa.array(["x"] * 500),
        "tensor": pa.ExtensionArray.from_storage(
            pa.fixed_shape_tensor(pa.float32(), (2,)), pa.array([[1.5, 1.5]] * 500, pa.list_(pa.float32(), 2))
        ),
    }
    table = pa.table(columns)
    with PartWriter(str(tmp_path / "a.parquet"), table.schema, OPTIONS, overlap=False) as writer:
        writer.append([column.chunk(0) for column in table.columns])
        writer.finish()
    group = pq.read_metadata(tmp_path / "a.parquet").row_group(0)
    leaves = [group.column(i) for i in range(group.num_columns)]
    plain = {leaf.path_in_schema for leaf in leaves if not leaf.has_dictionary_page}
    assert plain == {"struct.f", "map.key_value.value", "tensor.list.element"}


@pytest.mark.parametrize("nested", [False, True])
def test_a_large_dictionary_does_not_end_a_row_group_early(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, nested: bool
) -> None:
    monkeypatch.setattr(scoring_writer, "ROW_GROUP_BYTES", 20_000)
    column = pa.DictionaryArray.from_arrays(pa.array([0] * 1000, pa.int32()), pa.array(["x" * 30_000]))
    if nested:
        column = pa.ListArray.from_arrays(pa.array(range(1001), pa.int32()), column)
    schema = pa.schema([("key", column.type)])
    with PartWriter(str(tmp_path / "a.parquet"), schema, OPTIONS, overlap=False) as writer:
        for start in range(0, 1000, 100):
            writer.append([column.slice(start, 100)])
        writer.finish()
    assert groups(tmp_path / "a.parquet") == [1000]
