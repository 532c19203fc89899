"""Shards → splits: literal tables, and properties over any layout."""

from __future__ import annotations

import os
from itertools import pairwise
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from job.errors import ShardError, StorageError
from job.shards.planner import (
    HIVE_NULL,
    cut,
    hive_folders,
    output_stems,
    partition_scalar,
    plan,
    read_footer,
    with_partitions,
)
from job.spec import Shard


def shard(path: str) -> Shard:
    return Shard(path, 1, "1", hive_folders(path))


@pytest.mark.parametrize(
    ("group_rows", "split_rows", "expected"),
    [
        ([], 10, [(0, 0)]),
        ([0], 10, [(0, 1)]),
        ([5], 10, [(0, 1)]),
        ([50], 10, [(0, 1)]),
        ([5, 5], 10, [(0, 2)]),
        ([5, 6], 10, [(0, 1), (1, 2)]),
        ([40, 40, 40], 100, [(0, 2), (2, 3)]),
        ([1, 100, 1], 10, [(0, 1), (1, 2), (2, 3)]),
        ([3, 3, 3, 3], 1, [(0, 1), (1, 2), (2, 3), (3, 4)]),
    ],
)
def test_cut(group_rows: list[int], split_rows: int, expected: list[tuple[int, int]]) -> None:
    assert [(run.start, run.stop) for run in cut(group_rows, split_rows)] == expected


@given(
    st.lists(st.lists(st.integers(0, 50), max_size=12).map(tuple), min_size=1, max_size=8),
    st.integers(1, 120),
)
def test_every_row_group_is_in_exactly_one_split(layout: list[tuple[int, ...]], split_rows: int) -> None:
    shards = [shard(f"in/s{i}.parquet") for i in range(len(layout))]
    splits = plan(shards, layout, split_rows)
    for one, groups in zip(shards, layout, strict=True):
        mine = [split for split in splits if split.shard == one]
        assert [g for split in mine for g in split.row_groups] == list(range(len(groups)))
        assert [split.rows for split in mine] == [sum(groups[g] for g in split.row_groups) for split in mine]
        assert [split.first_row for split in mine] == [
            sum(groups[: split.row_groups[0]]) if split.row_groups else 0 for split in mine
        ]
        # Nothing is cut finer than asked: two neighbours together would be too large.
        for left, right in pairwise(mine):
            assert left.rows + groups[right.row_groups[0]] > split_rows
    assert len({split.name.casefold() for split in splits}) == len(splits)


def test_names_follow_the_shard_and_its_row_groups() -> None:
    shards = [shard("/in/ds=2013-12-01/a.parquet"), shard("/in/b.PQ")]
    splits = plan(shards, [(3, 3), (4,)], split_rows=3)
    assert [split.name for split in splits] == [
        "ds=2013-12-01/a-00000-00000",
        "ds=2013-12-01/a-00001-00001",
        "b",
    ]


def test_shards_of_one_name_get_different_files_that_depend_on_their_paths_alone() -> None:
    paths = ["/in/x/a.parquet", "/in/y/A.parquet", "/in/y/b.parquet"]
    stems = output_stems([shard(p) for p in paths])
    assert stems[0].startswith("a~")
    assert stems[1].startswith("A~")
    assert stems[0][2:] != stems[1][2:]
    assert stems[2] == "b"
    assert output_stems([shard(p) for p in reversed(paths)]) == stems[::-1]


@pytest.mark.parametrize(
    ("path", "stem"),
    [
        ("/in/_a.parquet", "a"),
        ("/in/.parquet", "parquet"),
        ("/in/__.parquet", "part"),
        ("/in/_x=1/.y=2/z=3/a.parquet", "z=3/a"),
        ("/in/ds=1/hour=2/ds=3/a.parquet", "hour=2/ds=3/a"),
    ],
)
def test_an_output_is_never_named_so_that_readers_skip_it(path: str, stem: str) -> None:
    assert output_stems([shard(path)]) == [stem]


@pytest.mark.parametrize("name", ["a" * 247, "ü" * 123, "a" + "語" * 82, "\udcff" * 240], ids=len)
def test_long_names_are_cut_so_that_attempts_fit_in_a_file_name(name: str) -> None:
    paths = [f"/in/ds=1/{name}.parquet", f"/in/ds=2/{name}.parquet", "/in/ds=2/b.parquet"]
    splits = plan([shard(path) for path in paths], [(1, 1), (1, 1), (1,)], 1)
    for split in splits[:4]:
        attempt = f"{split.name.rpartition('/')[2]}.{'0' * 16}.unreadable.rejected"
        assert len(os.fsencode(attempt)) <= 255
        assert split.name.partition("/")[2].startswith(name[:50].strip("\udcff"))
    assert len({split.name.partition("/")[2] for split in splits}) == 5
    assert splits[4].name == "ds=2/b"


@pytest.mark.parametrize(("length", "is_cut"), [(180, False), (181, True)])
def test_only_names_that_are_too_long_are_cut(length: int, is_cut: bool) -> None:
    (stem,) = output_stems([shard(f"/in/{'a' * length}.parquet")])
    assert len(stem) == 180
    assert ("~" in stem) == is_cut


@pytest.mark.parametrize(
    ("path", "expected"),
    [
        ("a.parquet", ()),
        ("/in/ds=2013-12-01/hour=07/a.parquet", (("ds", "2013-12-01"), ("hour", "07"))),
        ("/in/name=a%2Fb/a.parquet", (("name", "a/b"),)),
        ("/in/=x/a.parquet", ()),
        ("/in/x=a=b/c=d.parquet", (("x", "a=b"),)),
        ("/in/_tmp=1/.cache=2/x=3/a.parquet", (("x", "3"),)),
        ("/in/ds=1/hour=2/ds=3/a.parquet", (("hour", "2"), ("ds", "3"))),
        ("/in/a%20b=1/a b=2/a.parquet", (("a b", "2"),)),
    ],
)
def test_hive_folders(path: str, expected: tuple[tuple[str, str], ...]) -> None:
    assert hive_folders(path) == expected


@pytest.mark.parametrize("value", ["7", "07", "-3", "2013-12-01", ""])
def test_partition_values_are_text(value: str) -> None:
    assert partition_scalar(value) == pa.scalar(value, pa.string())


def test_the_null_of_hive_is_null() -> None:
    assert partition_scalar(HIVE_NULL) == pa.scalar(None, pa.string())


def test_a_files_own_column_wins_over_its_folder() -> None:
    schema = with_partitions(pa.schema([("ds", pa.date32())]), (("ds", "x"), ("hour", "1")))
    assert schema == pa.schema([("ds", pa.date32()), ("hour", pa.string())])


def test_a_footer_tells_rows_and_the_arrow_schema(tmp_path: Path) -> None:
    table = pa.table({"x": pa.array(["a", "b", "a"]).dictionary_encode(), "y": [1.0, 2.0, 3.0]})
    pq.write_table(table, tmp_path / "a.parquet", row_group_size=2)
    footer = read_footer(shard(str(tmp_path / "a.parquet")))
    assert footer.group_rows == (2, 1)
    assert footer.rows == 3
    assert footer.schema.field("x").type == pa.dictionary(pa.int32(), pa.string())


@pytest.mark.parametrize("content", [b"", b"PAR1", b"PAR1" + b"\0" * 40 + b"PAR1", b"not parquet at all"])
def test_what_is_no_parquet_is_named(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "a.parquet"
    path.write_bytes(content)
    with pytest.raises(ShardError, match=r"a\.parquet: no readable Parquet file \(.+\); write it again"):
        read_footer(Shard(str(path), len(content), str(path.stat().st_mtime_ns)))


def test_a_shard_that_went_away_is_named(tmp_path: Path) -> None:
    with pytest.raises(ShardError, match="was listed and is gone"):
        read_footer(shard(str(tmp_path / "gone.parquet")))


def test_what_the_system_refuses_is_no_bad_shard(tmp_path: Path) -> None:
    (tmp_path / "a.parquet").symlink_to("a.parquet")
    with pytest.raises(StorageError, match=r"a\.parquet: cannot be read: Too many levels .*; run again$"):
        read_footer(shard(f"{tmp_path}/a.parquet"))
