"""Chunks of one split: their rows, their sizes, and columns that Arrow has trouble with."""

from __future__ import annotations

import os
import threading
from contextlib import closing
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from job import storage
from job.errors import ShardChangedError, ShardError, StorageError
from job.model.loading import LoadedModel
from job.scoring.batches import CHUNK_BYTES, data_bytes
from job.scoring.reader import SplitReader
from job.scoring.split import score_split
from job.shards import planner
from job.spec import Shard, Split
from tests.support.nights import Night, dense, features, saved

ROWS = 1000


def split_of(path: Path, table: pa.Table, group_rows: int) -> Split:
    pq.write_table(table, path, row_group_size=group_rows)
    found = storage.describe(str(path))
    assert found is not None
    groups = tuple(range(pq.ParquetFile(path).num_row_groups))
    return Split("a", Shard(str(path), found.size_bytes, found.stamp), groups, 0, table.num_rows)


def coded(words: list[str], rows: int = ROWS) -> Any:
    return pa.array([words[i % len(words)] for i in range(rows)]).dictionary_encode()


def listed(array: Any) -> Any:
    return pa.ListArray.from_arrays(pa.array(range(len(array) + 1), pa.int32()), array)


NESTED = {
    "list": listed(coded(["a", "b", "c"])),
    "struct": pa.StructArray.from_arrays([coded(["a", "b", "c"])], ["word"]),
    "list of struct": listed(pa.StructArray.from_arrays([coded(["a", "b", "c"])], ["word"])),
    "flat": coded(["a", "b", "c"]),
    "plain": pa.array(["a", "b", "c", "d"] * 250),
}


@pytest.mark.parametrize("kind", list(NESTED))
@pytest.mark.parametrize("role", ["feature", "key"])
def test_text_in_any_form_comes_in_chunks_of_one_size(tmp_path: Path, kind: str, role: str) -> None:
    table = pa.table({"word": NESTED[kind]})
    split = split_of(tmp_path / "a.parquet", table, 90)
    names = ([], ["word"]) if role == "key" else (["word"], [])
    with SplitReader(split) as reader:
        chunks = list(reader.chunks(*names, 64))
    assert [chunk.num_rows for chunk in chunks] == [64] * 15 + [40]
    assert [x for chunk in chunks for x in chunk.column("word").to_pylist()] == table["word"].to_pylist()


def test_a_nested_dictionary_feeds_and_is_a_key(night: Night) -> None:
    words = ["rome", "oslo", "bonn"]
    table = pa.table({"id": range(ROWS), "word": listed(coded(words)), "key": NESTED["struct"]})
    night.shard("a", table, group_rows=90)
    x = keras.Input((1,), name="word", dtype="string")
    model = keras.Model(x, keras.layers.StringLookup(vocabulary=words, output_mode="one_hot")(x))
    planned = night.planned(saved(model, night.folder / "m.keras"), "--keys=id,key", "--batch_size=64")
    receipt = score_split(planned.splits[0], planned.task, planned.loaded)
    part = pq.ParquetFile(receipt.attempt).read()
    assert part.column("id").to_pylist() == list(range(ROWS))
    assert part.column("key").to_pylist() == table.column("key").to_pylist()
    hot = np.array(part.column(2).to_pylist()).reshape(ROWS, 4)
    np.testing.assert_array_equal(hot.argmax(axis=1), np.arange(ROWS) % 3 + 1)
    assert receipt.batches == 16


def test_repeating_text_features_come_as_codes_and_are_rejected_as_the_shard_has_them(tmp_path: Path) -> None:
    table = pa.table({"word": ["Rome", None] * 500, "key": ["Rome", "Oslo"] * 500})
    split = split_of(tmp_path / "a.parquet", table, 300)
    with SplitReader(split) as reader:
        (chunk,) = reader.chunks(["word"], ["key"], ROWS)
        assert reader.schema.types == [pa.string(), pa.string()]
        everything = pa.Table.from_batches(reader.everything())
    assert pa.types.is_dictionary(chunk.column("word").type)
    assert chunk.column("key").type == pa.string()
    assert chunk.to_pydict() == table.to_pydict()
    assert everything.equals(table)


@pytest.mark.slow
@pytest.mark.parametrize("repeating", [False, True])
def test_long_keys_do_not_make_large_chunks(tmp_path: Path, repeating: bool) -> None:
    rows = 20_000
    keys = pa.array([f"{0 if repeating else i:08d}" * 512 for i in range(rows)])
    split = split_of(tmp_path / "a.parquet", pa.table({"f": np.zeros(rows), "key": keys}), 6000)
    with SplitReader(split) as reader:
        # As if the size had been guessed far too large: the bytes alone must hold it.
        for at_once in (reader.row_bytes(["f"], ["key"]) and CHUNK_BYTES // 4096, 6000):
            sizes = [data_bytes(chunk) for chunk in reader.chunks(["f"], ["key"], at_once)]
            assert max(sizes) <= 2 * CHUNK_BYTES
            assert sum(sizes) >= rows * 4096


def test_a_null_in_a_fixed_size_list_says_what_it_is(tmp_path: Path) -> None:
    column = pa.array([[1.0, 2.0], None] * 50, pa.list_(pa.float32(), 2))
    split = split_of(tmp_path / "a.parquet", pa.table({"x": column}), 100)
    message = r"fixed-size list column that holds a null list; write it as a list column of variable size"
    with SplitReader(split) as reader, pytest.raises(ShardError, match=message):
        list(reader.chunks(["x"], [], 64))


def test_a_nested_dictionary_that_overflows_within_its_row_group(tmp_path: Path) -> None:
    """Past a megabyte the writer goes on without the dictionary, in the middle of the row group."""
    words = [f"{i:06d}" * 20 for i in range(30_000)]
    table = pa.table({"x": listed(pa.array(words).dictionary_encode())})
    split = split_of(tmp_path / "a.parquet", table, 30_000)
    with SplitReader(split) as reader:
        found = [x for chunk in reader.chunks(["x"], [], 4096) for x in chunk.column("x").to_pylist()]
    assert found == [[word] for word in words]


def test_what_arrow_cannot_read_says_what_to_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    split = split_of(tmp_path / "a.parquet", pa.table({"x": NESTED["list"]}), 90)
    # As it was before row groups were read one by one.
    monkeypatch.setattr(SplitReader, "_read_at_once", lambda self, wanted: [list(split.row_groups)])
    message = r"row groups 0 to 11 cannot be read .*; Arrow cannot read this form of dictionary within a list"
    with SplitReader(split) as reader, pytest.raises(ShardError, match=message):
        list(reader.chunks(["x"], [], 64))


def test_the_thread_that_reads_ahead_ends_before_the_file_is_closed(tmp_path: Path) -> None:
    split = split_of(tmp_path / "a.parquet", features(ROWS), 100)
    threads_before = threading.active_count()
    with SplitReader(split) as reader:
        with closing(reader.chunks(["f0"], ["id"], 64)) as chunks:
            next(chunks)
            assert threading.active_count() == threads_before + 1
        assert threading.active_count() == threads_before


def test_an_error_while_scoring_leaves_no_reader_behind(
    night: Night, monkeypatch: pytest.MonkeyPatch
) -> None:
    night.shard("a", features(ROWS), group_rows=100)
    planned = night.planned(saved(dense(4), night.folder / "m.keras"), "--keys=id", "--batch_size=64")
    alive: list[bool] = []
    leave = SplitReader.__exit__

    def watched(self: SplitReader, *args: Any) -> None:
        alive.append(any(thread.name.startswith("read") for thread in threading.enumerate()))
        leave(self, *args)

    def fails(*args: Any) -> Any:
        raise ShardError("in the middle")

    monkeypatch.setattr("job.scoring.split.chunk_rows", lambda *args: 64)
    monkeypatch.setattr(SplitReader, "__exit__", watched)
    monkeypatch.setattr("job.scoring.split._Scoring._predict", fails)
    with pytest.raises(ShardError, match="in the middle"):
        score_split(planned.splits[0], planned.task, planned.loaded)
    assert alive == [False]


def test_a_device_that_fails_is_no_damaged_shard(tmp_path: Path) -> None:
    """A real EIO: the open file becomes this process's memory, which cannot be read at its start."""
    path = tmp_path / "a.parquet"
    split = split_of(path, pa.table({"x": np.arange(100_000)}), 100_000)
    with SplitReader(split) as reader:
        (descriptor,) = (
            int(name) for name in os.listdir("/proc/self/fd") if _leads_to(f"/proc/self/fd/{name}", path)
        )
        memory = os.open("/proc/self/mem", os.O_RDONLY)
        os.dup2(memory, descriptor)
        os.close(memory)
        with pytest.raises(StorageError, match=r"a\.parquet: cannot be read: Input/output error; run again$"):
            list(reader.everything())


def _leads_to(link: str, path: Path) -> bool:
    return os.path.islink(link) and os.readlink(link) == str(path)


def rewritten(path: Path, table: pa.Table) -> None:
    """Put other rows of as many bytes into the very file."""
    size = path.stat().st_size
    sink = pa.BufferOutputStream()
    pq.write_table(table, sink, row_group_size=100, compression="none", use_dictionary=False)
    content = sink.getvalue().to_pybytes()
    assert len(content) == size
    with path.open("r+b") as file:
        file.write(content)


@pytest.mark.parametrize("way", ["in its place", "by another file", "removed"])
@pytest.mark.parametrize("on_bad_shard", ["fail", "reject"])
def test_a_shard_that_is_written_again_while_it_is_read_has_no_receipt(
    night: Night, monkeypatch: pytest.MonkeyPatch, way: str, on_bad_shard: str
) -> None:
    """Half of its rows would be of one file and half of the other, and none need look damaged."""
    night.input.mkdir()
    path = night.input / "a.parquet"
    pq.write_table(features(3000), path, row_group_size=100, compression="none", use_dictionary=False)
    model = saved(dense(), night.folder / "m.keras")
    flags = (f"--on_bad_shard={on_bad_shard}", "--max_rejected=1", "--batch_size=100")
    planned = night.planned(model, "--keys=id", *flags)
    predict, times = LoadedModel.predict, [0]

    def predicting(self: LoadedModel, *given: Any, **more: Any) -> Any:
        times[0] += 1
        if times[0] == 2:
            if way == "in its place":
                rewritten(path, features(3000, seed=5, first_id=7000))
            else:
                path.unlink()
            if way == "by another file":
                pq.write_table(features(3000, seed=5), path)
        return predict(self, *given, **more)

    monkeypatch.setattr(LoadedModel, "predict", predicting)
    with pytest.raises(ShardChangedError, match=r"a\.parquet: it was written again or removed while it was"):
        score_split(planned.splits[0], planned.task, planned.loaded)
    assert times[0] >= 2


def test_a_shard_that_is_being_written_looks_damaged_and_is_not_rejected(tmp_path: Path) -> None:
    split = split_of(tmp_path / "a.parquet", features(500), 100)
    (tmp_path / "a.parquet").write_bytes(b"PAR1 and more to come")
    with pytest.raises(ShardChangedError, match="it was written again since it was listed"):
        planner.read_footer(split.shard)
    split = split_of(tmp_path / "a.parquet", features(500), 100)

    def read() -> None:
        with SplitReader(split) as reader:
            (tmp_path / "a.parquet").write_bytes(b"PAR1 and more to come")
            list(reader.chunks(["f0"], ["id"], 10))

    with pytest.raises(ShardChangedError, match="while it was read"):
        read()
