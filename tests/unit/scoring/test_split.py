"""One split, without an engine: rows, order, values, and what is said when it cannot be scored."""

from __future__ import annotations

import os
import sys
import tempfile
import threading
import tomllib
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import FrameType
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import job
from job.commit import protocol, reconciliation, staging
from job.errors import DataError, JobError, ModelError, ShardError
from job.model import loading
from job.scoring.split import score_split
from job.scoring.worker import ScoreSplits
from job.terminal import progress
from tests.support.nights import Night, dense, features, matrix, module, saved

SUM_BUILDER = """import keras
def build():
    x = keras.Input((4,), name="x")
    return keras.Model(x, keras.ops.sum(x, axis=1, keepdims=True))
def picky():
    import tensorflow as tf
    class Check(keras.layers.Layer):
        def call(self, x):
            with tf.control_dependencies([tf.debugging.assert_less(x, 1000.0)]):
                return tf.identity(x)
    x = keras.Input((4,), name="x")
    return keras.Model(x, Check()(x))
"""


@pytest.fixture(scope="module")
def plain() -> Any:
    return dense(4)


def test_a_split_is_its_own_rows_in_their_order(night: Night, plain: Any) -> None:
    table = features(1000)
    shard = night.shard("a", table, group_rows=90)
    planned = night.planned(
        saved(plain, night.folder / "m.keras"), "--keys=id", "--split_rows=300", "--batch_size=64"
    )
    names = [split.name for split in planned.splits]
    assert names == ["a-00000-00002", "a-00003-00005", "a-00006-00008", "a-00009-00011"]
    receipt = score_split(planned.splits[1], planned.task, planned.loaded)
    part = pq.read_table(receipt.attempt)
    assert part.column("id").to_pylist() == list(range(270, 540))
    expected = plain.predict(matrix(table)[270:540], batch_size=64, verbose=0)
    np.testing.assert_array_equal(part.column("prediction").to_numpy(), expected[:, 0])
    assert (receipt.rows_read, receipt.rows_scored, receipt.rows_rejected) == (270, 270, 0)
    assert (receipt.batch_rows, receipt.batches, receipt.traces) == (64, 5, 1)
    assert receipt.split.shard.path == str(shard)
    assert (receipt.file_bytes, receipt.load) == (os.path.getsize(receipt.attempt), planned.loaded.load)
    assert receipt.first_batch_unix_s > planned.task.run.started_unix_s
    assert min(receipt.read_s, receipt.bind_s, receipt.predict_s, receipt.write_s) > 0
    # Written, and yet not the one that counts: that is for the receipt to say.
    assert staging.read_receipt(planned.task.run.output, planned.task.run.run_id, planned.splits[1]) is None


@pytest.mark.slow
@settings(max_examples=25, deadline=None)
@given(
    shards=st.lists(st.tuples(st.integers(0, 400), st.integers(1, 150)), min_size=1, max_size=3),
    batch_rows=st.sampled_from(["auto", "1", "7", "64", "1000"]),
    split_rows=st.integers(1, 500),
    group_rows=st.integers(1, 300),
)
def test_rows_in_are_rows_out(
    plain: Any, shards: list[tuple[int, int]], batch_rows: str, split_rows: int, group_rows: int
) -> None:
    with tempfile.TemporaryDirectory() as folder:
        night = Night(Path(folder))
        tables: list[pa.Table] = []
        for i, (rows, rows_a_group) in enumerate(shards):
            first_id = sum(table.num_rows for table in tables)
            tables.append(features(rows, seed=i, first_id=first_id))
            night.shard(f"part-{i}", tables[-1], group_rows=rows_a_group)
        path = saved(plain, night.folder / "m.keras")
        flags = [f"--batch_size={batch_rows}", f"--split_rows={split_rows}", f"--row_group_rows={group_rows}"]
        planned = night.planned(path, "--keys=id", *flags)
        receipts = [score_split(split, planned.task, planned.loaded) for split in planned.splits]
        for receipt in receipts:
            staging.write_receipt(planned.task.run.output, receipt)
        protocol.publish(planned.task.run, receipts, clock=lambda: 1001.0)
        scored, table = night.scored(), pa.concat_tables(tables)
    assert scored.column("id").to_pylist() == list(range(table.num_rows))
    if table.num_rows:
        expected = plain.predict(matrix(table), batch_size=table.num_rows, verbose=0)[:, 0]
        np.testing.assert_allclose(scored.column("prediction").to_numpy(), expected, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("compression", ["dictionary", "plain"])
def test_row_groups_do_not_cut_batches(night: Night, compression: str) -> None:
    """Batches of 64 whatever the row groups, also for text, which Arrow hands over a row group at a time."""
    table = features(1000).append_column("city", pa.array(["Rome", "Oslo"] * 500))
    if compression == "dictionary":
        table = table.set_column(5, "city", table.column("city").dictionary_encode())
    night.shard("a", table, group_rows=10)
    path = saved(dense(4), night.folder / "m.keras")
    planned = night.planned(path, "--keys=id,city", "--batch_size=64", "--features=f0,f1,f2,f3")
    receipt = score_split(planned.splits[0], planned.task, planned.loaded)
    assert receipt.batches == 16
    assert pq.read_table(receipt.attempt).column("city").to_pylist() == table.column("city").to_pylist()


def test_no_rows_make_a_file_of_no_rows(night: Night, plain: Any) -> None:
    night.shard("a", features(0))
    planned = night.planned(saved(plain, night.folder / "m.keras"), "--keys=id")
    receipt = score_split(planned.splits[0], planned.task, planned.loaded)
    part = pq.read_table(receipt.attempt)
    assert part.num_rows == receipt.rows_read == receipt.batches == 0
    assert (part.schema.names, part.schema.types) == (["id", "prediction"], [pa.int64(), pa.float32()])
    assert receipt.first_batch_unix_s == 0


@pytest.mark.parametrize("rows", [100, 5000])
@pytest.mark.parametrize("batch_size", ["auto", "64"])
def test_a_row_that_cannot_be_fed_is_named(
    night: Night, monkeypatch: pytest.MonkeyPatch, rows: int, batch_size: str
) -> None:
    name = module(night.folder, "scoring_sum", SUM_BUILDER, monkeypatch)
    table = features(rows).select(["f0", "f1", "f2"])
    counts = np.arange(rows)
    counts[77] = 2**24 + 1
    counts[88] = 2**24 + 3
    night.shard("a", table.append_column("n", pa.array(counts)), group_rows=30)
    planned = night.planned(
        f"{name}:build", f"--batch_size={batch_size}", "--split_rows=60", "--on_bad_row=fail"
    )
    split = planned.splits[1]
    assert split.first_row == 60
    done = progress.rows_done.value
    with pytest.raises(DataError) as error:
        score_split(split, planned.task, planned.loaded)
    assert str(error.value).startswith(f"{night.input}/a.parquet: row 77: column n: ")
    assert "value 16777217 (inexact); 2 such row(s) in this batch" in str(error.value)
    assert progress.rows_done.value == done, "rows of a failed attempt do not count"


@pytest.mark.parametrize(("rows", "batch_size"), [(100, "auto"), (5000, "auto"), (5000, "1000")])
def test_a_row_that_the_model_fails_on_is_named(
    night: Night, monkeypatch: pytest.MonkeyPatch, rows: int, batch_size: str
) -> None:
    name = module(night.folder, "scoring_picky", SUM_BUILDER, monkeypatch)
    table = features(rows)
    values = table.column("f0").to_numpy().copy()
    values[70] = 2000.0
    night.shard("a", table.set_column(1, "f0", pa.array(values)))
    planned = night.planned(f"{name}:picky", "--keys=id", f"--batch_size={batch_size}", "--on_bad_row=fail")
    with pytest.raises(DataError) as error:
        score_split(planned.splits[0], planned.task, planned.loaded)
    text = str(error.value)
    assert text.startswith(f"{night.input}/a.parquet: row 70: InvalidArgument"), text
    assert "(model_error); 1 such row(s)" in text
    assert "\n" not in text


def test_only_the_declared_inputs_reach_keras(night: Night, monkeypatch: pytest.MonkeyPatch) -> None:
    import keras

    names = ("zeta", "alpha", "mu")
    inputs = {name: keras.Input((1,), name=name) for name in names}
    output = inputs["zeta"] * 100 + inputs["mu"] * 10 + inputs["alpha"]
    path = saved(keras.Model(inputs, output), night.folder / "m.keras")
    columns = {name: np.arange(5, dtype=np.float32) + i for i, name in enumerate(names)}
    # One that sorts before all features, one between them and one after.
    more = {extra: np.arange(5, dtype=np.float32) - 50 for extra in ("ID", "beta", "zz")}
    night.shard("a", pa.table({**more, **columns}))
    planned = night.planned(path, "--keys=ID,zz")
    fed: list[dict[str, Any]] = []
    real = keras.Model.predict_on_batch

    def watched(self: Any, x: Any) -> Any:
        fed.append(x)
        return real(self, x)

    monkeypatch.setattr(keras.Model, "predict_on_batch", watched)
    receipt = score_split(planned.splits[0], planned.task, planned.loaded)
    assert fed
    for x in fed:
        assert isinstance(x, dict)
        assert sorted(x) == ["alpha", "mu", "zeta"]
        # Some rows are predicted once more, beside others.
        places = np.reshape(x["zeta"], -1).astype(int)
        for name in names:
            np.testing.assert_array_equal(np.reshape(x[name], -1), columns[name][places])
    expected = columns["zeta"] * 100 + columns["mu"] * 10 + columns["alpha"]
    part = pq.read_table(receipt.attempt)
    np.testing.assert_array_equal(part.column(part.schema.names[-1]).to_numpy(), expected)


def test_a_shard_that_changed_since_it_was_planned_is_refused(night: Night, plain: Any) -> None:
    path = night.shard("a", features(100))
    planned = night.planned(saved(plain, night.folder / "m.keras"), "--keys=id")
    night.shard("a", features(101))
    with pytest.raises(ShardError, match=rf"{path}: it is not the file that was planned .*run again"):
        score_split(planned.splits[0], planned.task, planned.loaded)
    path.unlink()
    with pytest.raises(ShardError, match="it is not the file that was planned"):
        score_split(planned.splits[0], planned.task, planned.loaded)


def test_rows_that_are_not_those_of_the_plan_are_refused(night: Night, plain: Any) -> None:
    night.shard("a", features(100), group_rows=50)
    planned = night.planned(saved(plain, night.folder / "m.keras"), "--keys=id")
    short = replace(planned.splits[0], rows=101)
    with pytest.raises(ShardError, match="row groups 0 to 1 hold 100 rows, and the footer says 101"):
        score_split(short, planned.task, planned.loaded)


def test_damaged_pages_behind_a_good_footer_are_a_shard_error(night: Night, plain: Any) -> None:
    path = night.input / "a.parquet"
    path.parent.mkdir()
    pq.write_table(features(10_000), path, compression="zstd", row_group_size=2000)
    content = bytearray(path.read_bytes())
    middle = len(content) // 2
    content[middle : middle + 2000] = bytes(2000)
    path.write_bytes(content)
    planned = night.planned(saved(plain, night.folder / "m.keras"), "--keys=id", "--batch_size=500")
    with pytest.raises(ShardError, match=r"a\.parquet: row groups 0 to 4 cannot be read .*write the"):
        score_split(planned.splits[0], planned.task, planned.loaded)


class TestScoreSplits:
    """The DoFn, called as engines call theirs: too often, at once, or again."""

    def planned(self, night: Night, plain: Any, rows: int = 100) -> Any:
        night.shard("a", features(rows), group_rows=10)
        return night.planned(saved(plain, night.folder / "m.keras"), "--keys=id", "--split_rows=10")

    def test_a_split_with_a_receipt_is_not_scored_again(self, night: Night, plain: Any) -> None:
        planned = self.planned(night, plain)
        step = ScoreSplits(planned.task)
        step.setup()
        (first,) = step.process(planned.splits[0])
        attempts = sorted(Path(first.attempt).parent.iterdir())
        (again,) = step.process(planned.splits[0])
        assert again == replace(first, reused=True)
        assert sorted(Path(first.attempt).parent.iterdir()) == attempts
        Path(first.attempt).unlink()
        (anew,) = step.process(planned.splits[0])
        assert not anew.reused
        assert anew.attempt != first.attempt

    def test_setup_may_be_called_for_every_bundle_and_in_every_thread(self, night: Night, plain: Any) -> None:
        planned = self.planned(night, plain)
        receipts: list[Any] = []

        def bundle(i: int) -> None:
            step = ScoreSplits(planned.task)
            for split in planned.splits[i::2]:
                step.setup()
                receipts.extend(step.process(split))

        threads = [threading.Thread(target=bundle, args=(i,)) for i in range(2)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert len(receipts) == len(planned.splits) == 10
        assert {receipt.load for receipt in receipts} == {planned.loaded.load}
        assert {receipt.traces for receipt in receipts} == {1}
        reconciliation.reconcile(planned.task.run, receipts)

    def test_what_a_worker_raises_is_left_for_the_launcher(self, night: Night, plain: Any) -> None:
        planned = self.planned(night, plain)
        run = planned.task.run
        step = ScoreSplits(planned.task)
        step.setup()
        night.shard("a", features(7))
        with pytest.raises(ShardError) as raised:
            list(step.process(planned.splits[3]))
        left = staging.failure(run.output, run.run_id)
        assert isinstance(left, ShardError)
        assert str(left) == str(raised.value)

    def test_a_model_that_changed_is_left_for_the_launcher_too(
        self, night: Night, plain: Any, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        planned = self.planned(night, plain)
        run = planned.task.run

        def acquire(*args: Any, **kwargs: Any) -> Any:
            raise ModelError("another model")

        monkeypatch.setattr(loading, "acquire", acquire)
        with pytest.raises(ModelError):
            ScoreSplits(planned.task).setup()
        left: JobError | None = staging.failure(run.output, run.run_id)
        assert (type(left), str(left)) == (ModelError, "another model")


def calls_between_modules(action: Callable[[], object]) -> list[tuple[str, str]]:
    """Do something; return which module of the job called which other one, in all threads."""
    found: list[tuple[str, str]] = []
    top = f"{Path(job.__file__).parent}/"

    def module_of(frame: FrameType | None) -> str:
        while frame is not None:
            if frame.f_code.co_filename.startswith(top):
                return frame.f_code.co_filename.removeprefix(top).removesuffix(".py")
            frame = frame.f_back
        return ""

    def note(frame: FrameType, event: str, _: object) -> None:
        if event == "call" and frame.f_code.co_filename.startswith(top):
            caller, called = module_of(frame.f_back), module_of(frame)
            if caller != called:
                found.append((caller, called))

    threading.setprofile(note)
    sys.setprofile(note)
    try:
        action()
    finally:
        sys.setprofile(None)
        threading.setprofile(None)
    return found


def test_a_split_goes_through_the_packages_in_one_direction(night: Night, plain: Any) -> None:
    """Callers are above what they call, as imports are; nothing calls back into the split."""
    pyproject = tomllib.loads((Path(job.__file__).parents[1] / "pyproject.toml").read_text())
    layers: list[str] = pyproject["tool"]["importlinter"]["contracts"][0]["layers"]
    height = {
        name.strip().removeprefix("job."): -i for i, some in enumerate(layers) for name in some.split("|")
    }
    table = features(500)
    column = pa.array([None if i in (3, 300) else 1.0 for i in range(500)], pa.float32())
    night.shard("a", table.set_column(2, table.schema.names[2], column), group_rows=50)
    flags = ("--keys=id", "--batch_size=32", "--max_rejected=0.5")
    planned = night.planned(saved(plain, night.folder / "m.keras"), *flags)
    receipts = []
    calls = calls_between_modules(
        lambda: receipts.append(score_split(planned.splits[0], planned.task, planned.loaded))
    )
    assert (receipts[0].batches, receipts[0].rows_rejected) == (16, 2)
    assert [caller for caller, called in calls if called == "scoring/split"] == [""]
    packages = {(caller.partition("/")[0], called.partition("/")[0]) for caller, called in calls if caller}
    assert {("scoring", "model"), ("scoring", "binding"), ("scoring", "storage")} <= packages
    assert [pair for pair in packages if height[pair[0]] < height[pair[1]]] == []
