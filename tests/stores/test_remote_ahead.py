"""How a shard in a bucket is read: ahead, in one state, in any layout; and what a whole night fetches."""

from __future__ import annotations

import itertools
import tempfile
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path
from typing import cast

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from job.cli import options
from job.errors import ShardChangedError
from job.launch import score
from job.scoring import reader as scoring_reader
from job.scoring.reader import SplitReader
from job.spec import Shard, Split
from job.storage import buckets, objects
from job.storage.buckets import Client
from tests.support.nights import dense, features, saved
from tests.support.parquet_bytes import Needed, Placed, joined, length, overlaps, place, read, within
from tests.support.remote_store import Remote
from tests.support.servers.proxy import Fault
from tests.support.store_nights import until

GROUPS, GROUP_ROWS = 10, 20_000
AHEAD, MOST_AHEAD = 4, 16
COLUMNS = ("f0", "f1", "f2", "f3")


@pytest.fixture
def bucket(bucket: Remote, monkeypatch: pytest.MonkeyPatch) -> Remote:
    """A store of whose row groups each is fetched by itself, and which is asked again at once."""
    monkeypatch.setattr(scoring_reader, "FETCHED_BYTES", 64 << 10)
    monkeypatch.setattr(buckets, "FIRST_PAUSE_S", 0.01)
    return bucket


@pytest.fixture
def placed(bucket: Remote, tmp_path: Path) -> Placed:
    """Row groups whose columns lie side by side, so that each is one request."""
    table = features(GROUPS * GROUP_ROWS)
    return place(bucket, tmp_path, table, row_group_size=GROUP_ROWS, use_dictionary=False)


def test_the_next_requests_are_sent_while_the_first_waits_for_its_answer(placed: Placed) -> None:
    """As many as are to be ahead, and no more: they are held in memory."""
    split, proxy = placed.split(), placed.bucket.way.proxy
    with SplitReader(split) as reader, closing(reader.chunks(COLUMNS, (), 4096)) as chunks:
        proxy.reset()
        proxy.set(faults=[Fault("hold", "^GET ", times=-1)])
        with ThreadPoolExecutor(1) as pool:
            table = pool.submit(lambda: pa.Table.from_batches(list(chunks)))
            try:
                until(lambda: len(proxy.counts().held) == AHEAD)
                wanted = [placed.needed([group], COLUMNS).ranges[0] for group in range(AHEAD)]
                assert sorted(ranges_of(placed)) == wanted
                assert not table.done()
            finally:
                proxy.set(faults=[])
                proxy.release()
            assert table.result(60).equals(placed.values(split.row_groups, COLUMNS))
    # Those that were cut off were sent again.
    assert len(proxy.counts().requests) == GROUPS + AHEAD


def test_of_small_row_groups_many_are_asked_for_at_once(
    bucket: Remote, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Columns that lie apart are requests of their own, which would take a second for every fifty."""
    monkeypatch.setattr(scoring_reader, "FETCHED_BYTES", 8 << 20)
    table = features(40 * 2000, 8)
    placed = place(bucket, tmp_path, table, row_group_size=2000, use_dictionary=False)
    split, proxy, columns = placed.split(), placed.bucket.way.proxy, ("f1", "f5")
    with SplitReader(split) as reader, closing(reader.chunks(columns, (), 4096)) as chunks:
        proxy.reset()
        proxy.set(faults=[Fault("hold", "^GET ", times=-1)])
        with ThreadPoolExecutor(1) as pool:
            found = pool.submit(lambda: pa.Table.from_batches(list(chunks)))
            try:
                until(lambda: len(proxy.counts().held) == MOST_AHEAD)
            finally:
                proxy.set(faults=[])
                proxy.release()
            assert found.result(60).equals(placed.values(split.row_groups, columns))


def ranges_of(placed: Placed) -> list[tuple[int, int]]:
    """What was asked for, answered or not."""
    found = [one.range.removeprefix("bytes=").split("-") for one in placed.bucket.requests()]
    return [(int(start), int(stop) + 1) for start, stop in found]


def test_what_is_fetched_stays_as_far_ahead_to_the_end(placed: Placed) -> None:
    split, proxy = placed.split(), placed.bucket.way.proxy

    def asked() -> int:
        return len(proxy.counts().requests)

    with SplitReader(split) as reader, closing(reader.chunks(COLUMNS, (), GROUP_ROWS)) as chunks:
        proxy.reset()
        for taken, chunk in enumerate(chunks, 1):
            assert pa.Table.from_batches([chunk]).equals(placed.values([taken - 1], COLUMNS))
            until(lambda taken=taken: asked() >= min(GROUPS, taken + AHEAD))  # type: ignore[misc]
            # One that is being decoded, beside those that are ahead of it.
            assert asked() <= taken + 1 + AHEAD
    assert asked() == GROUPS


def test_a_reader_that_is_left_early_fetches_no_more(placed: Placed) -> None:
    with SplitReader(placed.split()) as reader, closing(reader.chunks(COLUMNS, (), 4096)) as chunks:
        next(chunks)
    # The threads have ended that fetch ahead and read ahead; those that all share may be there.
    names = [thread.name for thread in threading.enumerate()]
    assert [name for name in names if name.startswith(("fetch", "read"))] == []
    assert len(placed.asked) <= 2 + AHEAD


@pytest.mark.parametrize("gone", [False, True])
def test_a_shard_that_is_replaced_while_it_is_read_is_told_and_never_mixed(
    placed: Placed, tmp_path: Path, gone: bool
) -> None:
    """Every request says which state it means: rows of both would be rows of no night."""
    bucket, name = placed.bucket, placed.path.name
    with SplitReader(placed.split()) as reader, closing(reader.chunks(COLUMNS, (), GROUP_ROWS)) as chunks:
        first = next(chunks)
        assert pa.Table.from_batches([first]).equals(placed.values([0], COLUMNS))
        if gone:
            bucket.store.remove([bucket.path(name)])
        else:
            other = features(GROUPS * GROUP_ROWS, seed=1)
            pq.write_table(other, tmp_path / "b", row_group_size=GROUP_ROWS, use_dictionary=False)
            bucket.bucket.put(name, (tmp_path / "b").read_bytes())
            assert (tmp_path / "b").stat().st_size == placed.shard.size_bytes
        with pytest.raises(ShardChangedError, match=rf"^{bucket.path(name)}: it was replaced or removed"):
            check_same_night(placed, chunks)


def check_same_night(placed: Placed, chunks: Iterator[pa.RecordBatch]) -> None:
    """Whatever still comes is the shard as it was planned."""
    for group, chunk in enumerate(chunks, 1):
        assert pa.Table.from_batches([chunk]).equals(placed.values([group], COLUMNS))


def test_a_whole_night_fetches_hardly_more_than_it_needs(bucket: Remote, tmp_path: Path) -> None:
    """Each column that is needed, each footer, which launcher and workers share here, and the model: once."""
    rows, shards, splits = 150_000, 2, 2
    every = []
    for number in range(shards):
        table = features(rows, 12, seed=number, first_id=number * rows)
        path = tmp_path / f"part-{number}.parquet"
        pq.write_table(table, path, row_group_size=rows // 6)
        bucket.bucket.put(f"in/{path.name}", path.read_bytes())
        every.append(Needed(path, tuple(range(6)), frozenset(("id", *COLUMNS))))
    model = saved(dense(), tmp_path / "m.keras").read_bytes()
    bucket.bucket.put("m.keras", model)
    bucket.way.proxy.reset()
    flags = (
        "--keys=id",
        f"--features={','.join(COLUMNS)}",
        f"--split_rows={rows // splits}",
        "--batch_size=8192",
    )
    paths = (f"--input={bucket.path('in')}", f"--model={bucket.path('m.keras')}")
    spec, beam_args = options.parse([*paths, f"--output={bucket.path('out')}", *flags])
    outcome = score.score(spec, beam_args, announce=lambda line: None)
    assert outcome.report.rows_scored == rows * shards
    asked = [one for one in bucket.settled() if one.key.startswith("bucket/in/") or "m.keras" in one.key]
    needed = len(model) + sum(one.footer_bytes + one.data_bytes for one in every)
    fetched = sum(one.response_bytes for one in asked)
    assert needed <= fetched <= 1.05 * needed
    assert all(one.status in (200, 206) for one in asked)


_stamps = itertools.count()


class Kept:
    """A store of one object, which knows what was fetched of it."""

    keeps_uploads = False

    def __init__(self, content: bytes) -> None:
        self._content, self.asked = content, list[tuple[int, int]]()
        # A stamp is that of one content.
        self.stamp = str(next(_stamps))
        self._lock = threading.Lock()

    def get(self, bucket: str, key: str, start: int, stop: int, stamp: str) -> bytes:
        assert (bucket, key, stamp) == ("b", "x.parquet", self.stamp)
        assert 0 <= start < stop <= len(self._content)
        with self._lock:
            self.asked.append((start, stop))
        return self._content[start:stop]


def mixed(rows: int, drawn: np.random.Generator) -> pa.Table:
    few = drawn.integers(0, 5, rows)
    lists = pa.FixedSizeListArray.from_arrays(pa.array(drawn.normal(size=3 * rows)), 3)
    return pa.table(
        {
            "id": drawn.integers(0, 1 << 62, rows),
            "few": few,
            "flag": few > 2,
            "lists": lists,
            "null": pa.array(drawn.normal(size=rows), mask=few == 0),
        }
    )


@settings(max_examples=60, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow])
@given(
    group_rows=st.lists(st.integers(1, 3000), min_size=1, max_size=6),
    ends=st.tuples(st.integers(0, 5), st.integers(1, 6)),
    columns=st.sets(st.sampled_from(["id", "few", "flag", "lists", "null"]), min_size=1),
    fetched_bytes=st.sampled_from([1, 20_000, 8 << 20]),
    most_bytes=st.sampled_from([1, 40_000, 96 << 20]),
    chunk_rows=st.sampled_from([100, 4096]),
)
def test_of_any_layout_the_values_are_right_and_each_byte_comes_once(
    group_rows: list[int],
    ends: tuple[int, int],
    columns: set[str],
    fetched_bytes: int,
    most_bytes: int,
    chunk_rows: int,
) -> None:
    """With limits that a few rows reach: many runs, pieces of columns, or all at once."""
    drawn, names = np.random.default_rng(0), sorted(columns)
    tables = [mixed(rows, drawn) for rows in group_rows]
    groups = list(range(len(tables)))[min(ends) : max(ends)] or [0]
    with tempfile.TemporaryDirectory() as folder, pytest.MonkeyPatch.context() as patch:
        path = Path(folder, "x.parquet")
        with pq.ParquetWriter(path, tables[0].schema) as writer:
            for table in tables:
                writer.write_table(table)
        kept = Kept(path.read_bytes())
        patch.setattr(objects, "_stores", {"s3": objects.ObjectStore("s3", cast(Client, kept))})
        patch.setattr(scoring_reader, "FETCHED_BYTES", fetched_bytes)
        patch.setattr(scoring_reader, "MOST_FETCHED_BYTES", most_bytes)
        patch.setattr(scoring_reader, "FETCHED_COLUMN_BYTES", 4096)
        needed = Needed(path, tuple(groups), frozenset(names))
        shard = Shard("s3://b/x.parquet", path.stat().st_size, kept.stamp)
        found = read(Split("a", shard, needed.groups, 0, needed.rows), names, (), chunk_rows)
        wanted = pa.concat_tables(tables[group] for group in groups).select(found.column_names)
        assert found.equals(wanted)
        data = kept.asked[1:]
        assert overlaps(data) == 0
        assert within(needed.ranges, joined(data))
        assert within(data, needed.allowed)
        assert length(data) <= length(needed.allowed)
