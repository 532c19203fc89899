"""How long the rows of lists are, by pages alone; the right lengths are those that pyarrow reads."""

from __future__ import annotations

import contextlib
import struct
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from job.errors import ShardError
from job.scoring.reader import SplitReader
from job.shards import pages, planner
from job.spec import Shard
from tests.support.crafted_parquet import (
    BYTES,
    FIXED,
    FLOAT,
    Chunk,
    floats,
    list_column,
    parquet,
    repeated_value,
)

MIB = 1 << 20
FLOATS = pa.list_(pa.float32())
FORMS = [
    {"data_page_version": version, "compression": compression, "use_dictionary": coded}
    for version in ("1.0", "2.0")
    for compression in ("none", "snappy", "gzip", "brotli", "zstd", "lz4")
    for coded in (True, False)
]


def check(path: Path, columns: tuple[str, ...] = ("x",)) -> int:
    metadata = pq.read_metadata(path)
    with path.open("rb") as file:
        return pages.check_lists(str(path), metadata, file, range(metadata.num_row_groups), columns)


def longest(path: Path) -> int:
    """The longest row of the one column of lists, as the pages say."""
    metadata = pq.read_metadata(path)
    (leaf,) = pages._list_leaves(metadata.schema, ("x",))
    found = last = 0
    with path.open("rb") as file:
        (told,) = pages._groups_of(str(path), metadata)
        chunk = pages._chunk(str(path), file, told, 0, leaf, {})
        assert chunk.values == metadata.row_group(0).column(0).num_values
        for page in chunk.pages:
            levels = pages._levels(file, page, chunk.codec)
            assert levels
            one, last = pages._longest_row(levels, leaf.level_bits, page.values, last)
            found = max(found, one)
    return found


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("pages")


# Values that one row takes from a run of packed ones, and of which it may have none.
PACKED = 2 * 504


@settings(deadline=None, max_examples=60)
@given(
    lengths=st.lists(st.integers(0, 40) | st.integers(0, 30_000), min_size=1, max_size=30),
    form=st.sampled_from(FORMS),
    seed=st.integers(0, 9),
)
def test_the_longest_row_is_that_which_pyarrow_reads(
    folder: Path, lengths: list[int], form: dict[str, Any], seed: int
) -> None:
    values = np.random.default_rng(seed).integers(0, 3, sum(lengths)).astype(np.float32)
    offsets = np.cumsum([0, *lengths]).astype(np.int32)
    path = folder / "x.parquet"
    table = pa.table({"x": pa.ListArray.from_arrays(offsets, values)})
    pq.write_table(table, path, data_page_size=4096, row_group_size=len(lengths), **form)
    wanted = max(1, pc.max(pc.list_value_length(pq.read_table(path)["x"])).as_py())
    assert wanted <= longest(path) <= wanted + PACKED


def test_rows_within_rows_are_one_row(folder: Path) -> None:
    path = folder / "nested.parquet"
    inner = [[1.0] * 50] * 40
    pq.write_table(pa.table({"x": pa.array([[[1.0]], inner, None, []], pa.list_(FLOATS))}), path)
    assert 2000 <= longest(path) <= 2000 + PACKED


@pytest.mark.parametrize("form", [one for one in FORMS if one["compression"] in ("none", "zstd")], ids=str)
def test_a_row_that_is_far_larger_than_its_bytes_is_refused(folder: Path, form: dict[str, Any]) -> None:
    """Ten million equal values, 40 MB, in some hundred bytes; but for plain values that nobody packed."""
    path = folder / "large.parquet"
    large = pa.array([np.ones(10_000_000, np.float32), np.ones(3, np.float32)], FLOATS)
    pq.write_table(pa.table({"x": large, "y": pa.array([1, 2])}), path, **form)
    check(path, ("y",))
    if path.stat().st_size * pages.MOST_EXPANSION > 40_000_000 + pages.MOST_ROW_BYTES:
        check(path)
        return
    with pytest.raises(ShardError, match=r"x\.list\.element, row group 0: one row has 10,000,0.* 38 MiB"):
        check(path)


def test_the_same_values_in_many_rows_are_taken(folder: Path) -> None:
    path = folder / "many.parquet"
    many = pa.array([np.ones(5000, np.float32)] * 4000, FLOATS)
    pq.write_table(pa.table({"x": many}), path, compression="zstd")
    assert path.stat().st_size * pages.MOST_EXPANSION < 4 * 5000 * 4000
    check(path)


@pytest.mark.slow
def test_values_that_take_up_their_bytes_are_taken_however_long_a_row_is(folder: Path) -> None:
    path = folder / "honest.parquet"
    values = np.random.default_rng(0).random(10_000_000, np.float32)
    pq.write_table(pa.table({"x": pa.array([values], FLOATS)}), path)
    check(path)


def test_a_text_that_a_row_repeats_counts_as_often(folder: Path) -> None:
    path = folder / "text.parquet"
    pq.write_table(pa.table({"x": pa.array([["x" * MIB] * 100], pa.list_(pa.string()))}), path)
    with pytest.raises(ShardError, match="one row has 100 values, about 100 MiB"):
        check(path)
    pq.write_table(pa.table({"x": pa.array([["x" * MIB]] * 100, pa.list_(pa.string()))}), path)
    check(path)


def test_lists_in_structs_and_maps_are_looked_at(folder: Path) -> None:
    path = folder / "struct.parquet"
    large = np.ones(10_000_000, np.float32)
    rows = [{"a": 1, "b": large}]
    pq.write_table(pa.table({"x": pa.array(rows, pa.struct([("a", pa.int8()), ("b", FLOATS)]))}), path)
    with pytest.raises(ShardError, match=r"x\.b\.list\.element"):
        check(path)


PATH = ("x", "list", "element")
ONE = floats(1.0)
# 1 MiB of text, and two hundred empty ones that make the average a small one.
TEXTS = struct.pack("<I", MIB) + b"x" * MIB + struct.pack("<I", 0) * 200
# What each stands for takes up 100 MiB to 4 GiB.
HOSTILE = {
    "version 2": (list_column("x", FLOAT), [repeated_value(PATH, FLOAT, [10**9], ONE, version=2)]),
    "one long text among short ones": (
        list_column("x", BYTES),
        [repeated_value(PATH, BYTES, [3000], TEXTS, entries=201)],
    ),
    "long values of fixed size": (
        list_column("x", FIXED, fixed_bytes=MIB),
        [repeated_value(PATH, FIXED, [4000], b"x" * MIB)],
    ),
    "a page that is filled up": (
        list_column("x", FLOAT),
        [repeated_value(PATH, FLOAT, [10**8], ONE, padding=400_000)],
    ),
    "a list in a struct": (
        list_column("x", FLOAT, within="b"),
        [repeated_value(("x", "b", "list", "element"), FLOAT, [10**8], ONE)],
    ),
}


def crafted(path: Path, schema: list[dict[int, Any]], chunks: list[Chunk], rows: int = 1) -> Path:
    path.write_bytes(parquet(schema, chunks, rows=rows, group_rows=rows))
    return path


@pytest.mark.parametrize("name", HOSTILE)
def test_whatever_form_a_large_row_has_it_is_refused(folder: Path, name: str) -> None:
    with pytest.raises(ShardError, match=r"one row has [\d,]+ values, about [\d,]+ MiB"):
        check(crafted(folder / "hostile.parquet", *HOSTILE[name]))


def test_columns_count_together(folder: Path) -> None:
    """Of twelve with 31 MiB each none is too large alone."""
    names = [f"x{i}" for i in range(12)]
    schema = [one for name in names for one in list_column(name, FLOAT)]
    chunks = [repeated_value((n, "list", "element"), FLOAT, [31 * MIB // 4], ONE) for n in names]
    path = crafted(folder / "together.parquet", schema, chunks)
    assert check(path, ("x0",)) == 0
    with pytest.raises(ShardError, match="about 372 MiB with 11 more column"):
        check(path, tuple(names))


def test_rows_that_grow_behind_the_sample_are_read_a_few_at_a_time(folder: Path) -> None:
    """1,100 rows of one value, and 12 of 28 MB, which no row may not have: 336 MB."""
    lengths = [1] * 1100 + [7_000_000] * 12
    chunk = repeated_value(PATH, FLOAT, lengths, ONE)
    path = crafted(folder / "late.parquet", list_column("x", FLOAT), [chunk], len(lengths))
    assert check(path) == 4
    found = path.stat()
    shard = Shard(str(path), found.st_size, str(found.st_mtime_ns))
    (split,) = planner.splits_of(shard, "late", (len(lengths),), 10_000)
    with SplitReader(split) as reader:
        batches = [(batch.num_rows, batch.nbytes) for batch in reader.everything()]
    assert sum(rows for rows, _ in batches) == len(lengths)
    assert max(size_bytes for _, size_bytes in batches) <= pages.MOST_READ_BYTES + MIB


def test_a_header_that_only_arrow_could_make_out_is_refused(folder: Path) -> None:
    """A field of a type that is not known here stands before the page that claims 10^9 values."""
    whole = repeated_value(PATH, FLOAT, [10**9], ONE)
    unknown = bytes([0x15, 18, 0x15, 0, 0x15, 0, 0x0E, 18, 0, 0])
    chunk = replace(whole, pages=unknown + whole.pages)
    with pytest.raises(
        ShardError, match=r"x\.list\.element, row group 0: a page's header cannot be made out"
    ):
        check(crafted(folder / "header.parquet", list_column("x", FLOAT), [chunk]))


@settings(deadline=None, max_examples=200)
@given(damage=st.lists(st.tuples(st.integers(0, 10**6), st.integers(0, 255)), min_size=1, max_size=4))
def test_damaged_files_are_refused_as_shards_or_let_through(
    folder: Path, damage: list[tuple[int, int]]
) -> None:
    """What Arrow says of them is another matter."""
    whole = folder / "whole.parquet"
    if not whole.exists():
        pq.write_table(pa.table({"x": pa.array([[1.0, 2.0], [3.0]] * 50, FLOATS)}), whole)
    metadata = pq.read_metadata(whole)
    content = bytearray(whole.read_bytes())
    pages_end = 4 + metadata.row_group(0).column(0).total_compressed_size
    for place, byte in damage:
        # The footer is as it was: the pages end before it.
        content[place % pages_end] = byte
    path = folder / "damaged.parquet"
    path.write_bytes(content)
    with path.open("rb") as file, contextlib.suppress(ShardError):
        pages.check_lists(str(path), metadata, file, [0], ["x"])
