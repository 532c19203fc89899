"""Any layout of shards, row groups, batches and splits, any bad rows: rows in = rows out + rejects."""

from __future__ import annotations

import math
import shutil
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from job.commit import protocol, staging
from job.model import artifact
from job.model.loading import acquire
from job.scoring.split import score_split
from tests.support.nights import Night, module, saved

# A row on which the model itself fails, and how the others are spoilt.
POISON = -777.0
BUILDER = """import keras
import tensorflow as tf

class Picky(keras.layers.Layer):
    def call(self, x):
        with tf.control_dependencies([tf.debugging.assert_none_equal(x, -777.0)]):
            return tf.identity(x)
    def compute_output_shape(self, shape):
        return shape

def build():
    keras.utils.set_random_seed(3)
    x = keras.Input((2,), name="x")
    y = keras.layers.Dense(3, name="y")(Picky()(x))
    return keras.Model(x, y)
"""
CELLS = st.sampled_from([0.5, -1.25, 3.0, 1e6, 1e6, 2.0, None, math.nan, math.inf, 1e39, POISON])
PLAIN = st.floats(-100, 100, width=32)


@dataclass(frozen=True)
class Layout:
    """Shards as lists of rows of two features, and how they are cut."""

    shards: list[list[tuple[Any, Any]]]
    group_rows: int
    split_rows: int
    batch_rows: int
    on_null: str
    on_nonfinite: str


ROW = st.tuples(st.one_of(PLAIN, PLAIN, PLAIN, CELLS), st.one_of(PLAIN, PLAIN, PLAIN, CELLS))
LAYOUTS = st.builds(
    Layout,
    shards=st.lists(st.lists(ROW, max_size=50), min_size=1, max_size=3).filter(any),
    group_rows=st.integers(1, 30),
    split_rows=st.integers(1, 60),
    batch_rows=st.integers(1, 60),
    on_null=st.sampled_from(["reject", "fill=0.25", "nan"]),
    on_nonfinite=st.sampled_from(["reject", "keep"]),
).map(lambda layout: replace(layout, on_nonfinite="keep") if layout.on_null == "nan" else layout)


def expected(cell: Any, layout: Layout) -> tuple[float | None, str]:
    """What a cell becomes, or why its row is rejected: the rules of the README, cell by cell."""
    if cell is None:
        if layout.on_null == "reject":
            return None, "null"
        cell = math.nan if layout.on_null == "nan" else float(layout.on_null.partition("=")[2])
    if not math.isfinite(cell):
        return (cell, "") if layout.on_nonfinite == "keep" else (None, "nonfinite")
    if abs(cell) > float(np.finfo(np.float32).max):
        return None, "overflow"
    return cell, ""


def reasons(row: tuple[Any, Any], layout: Layout) -> set[str]:
    """Every reason for which a row may be rejected; empty for a good one."""
    cells = [expected(cell, layout) for cell in row]
    found = {reason for _, reason in cells} - {""}
    if not found and POISON in row:
        return {"model_error"}
    # What is kept of the features goes through the model, and no finite number comes out.
    if not found and not all(math.isfinite(value) for value, _ in cells if value is not None):
        return {"nonfinite_prediction"}
    return found


@pytest.fixture(scope="module")
def builder() -> Iterator[tuple[str, Any]]:
    folder = Path(tempfile.mkdtemp())
    with pytest.MonkeyPatch.context() as patch:
        name = module(folder, "picky_builder", BUILDER, patch)
        keras.utils.set_random_seed(3)
        x = keras.Input((2,), name="x")
        plain = keras.Model(x, keras.layers.Dense(3, name="y")(x))
        # Held, so that it is loaded once for all examples.
        held = acquire(artifact.resolve(f"{name}:build", None, trusted=False, sha256=None))
        yield f"{name}:build", plain
        del held
    shutil.rmtree(folder)


def write(night: Night, layout: Layout) -> None:
    for i, rows in enumerate(layout.shards):
        columns = {
            "id": pa.array([1000 * i + j for j in range(len(rows))], pa.int64()),
            "a": pa.array([row[0] for row in rows], pa.float64()),
            "b": pa.array([row[1] for row in rows], pa.float64()),
            "note": pa.array([f"{i}/{j}" for j in range(len(rows))]),
        }
        night.shard(f"part-{i}", pa.table(columns), group_rows=layout.group_rows)


def flags(layout: Layout) -> list[str]:
    cut = [f"--split_rows={layout.split_rows}", f"--batch_size={layout.batch_rows}"]
    policy = [f"--on_null={layout.on_null}"]
    # To make a NaN of a null is to keep it.
    if layout.on_null != "nan":
        policy.append(f"--on_nonfinite={layout.on_nonfinite}")
    return ["--keys=id", "--features=a,b", "--max_rejected=1", *policy, *cut]


def check(night: Night, layout: Layout, plain: Any) -> None:
    """Compare a published night with one ``Model.predict`` over the good rows."""
    every = {1000 * i + j: row for i, rows in enumerate(layout.shards) for j, row in enumerate(rows)}
    good = {key: row for key, row in every.items() if not reasons(row, layout)}
    scored = night.scored()
    assert scored["id"].to_pylist() == list(good)
    if good:
        cells = [[expected(cell, layout)[0] for cell in row] for row in good.values()]
        wanted = plain.predict(np.array(cells, np.float32), verbose=0)
        got = np.stack(scored["y"].to_numpy())
        # The sum of large terms may cancel: what counts is their size.
        scale = np.abs(np.array(cells, np.float32)).max(axis=1, keepdims=True)
        assert (np.abs(got - wanted) <= 1e-6 * (np.abs(wanted) + scale) + 1e-6).all()
    files = sorted((night.output / "_rejected").rglob("*.rejected"))
    rejected = [row for file in files for row in pq.ParquetFile(file).read().to_pylist()]
    assert [row["id"] for row in rejected] == [key for key in every if key not in good]
    for row in rejected:
        shard, number = divmod(row["id"], 1000)
        assert (row["_row"], row["note"]) == (number, f"{shard}/{number}")
        assert row["_shard"] == str(night.input / f"part-{shard}.parquet")
        assert row["_reason"] in reasons(every[row["id"]], layout)
        assert all(
            a == b or (a != a and b != b) for a, b in zip((row["a"], row["b"]), every[row["id"]], strict=True)
        )
    manifest = night.manifest()
    counts = (manifest["rows_read"], manifest["rows_scored"], manifest["rows_rejected"])
    assert counts == (len(every), len(good), len(rejected))


@settings(max_examples=80, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(layout=LAYOUTS)
def test_rows_in_are_rows_out_and_rejects(
    builder: tuple[str, Any], tmp_path_factory: pytest.TempPathFactory, layout: Layout
) -> None:
    night = Night(tmp_path_factory.mktemp("any"))
    write(night, layout)
    planned = night.planned(builder[0], *flags(layout))
    run = replace(planned.task.run, max_rejected=1.0)
    receipts = []
    for split in planned.splits:
        receipt = score_split(split, planned.task, planned.loaded)
        staging.write_receipt(run.output, receipt)
        assert staging.read_receipt(run.output, run.run_id, split) == receipt
        receipts.append(receipt)
    protocol.publish(run, receipts)
    check(night, layout, builder[1])
    shutil.rmtree(night.folder)


@pytest.mark.slow
@settings(max_examples=8, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(layout=LAYOUTS)
def test_the_same_through_the_engine(
    builder: tuple[str, Any], tmp_path_factory: pytest.TempPathFactory, layout: Layout
) -> None:
    night = Night(tmp_path_factory.mktemp("any"))
    write(night, layout)
    night.score(builder[0], *flags(layout))
    check(night, layout, builder[1])


def test_the_oracle_and_the_builder_have_the_same_weights(builder: tuple[str, Any], tmp_path: Path) -> None:
    from importlib import import_module

    built = import_module(builder[0].partition(":")[0]).build()
    x = np.array([[1.0, 2.0], [3.0, -4.0]], np.float32)
    np.testing.assert_array_equal(built.predict(x, verbose=0), builder[1].predict(x, verbose=0))
    with pytest.raises(Exception, match="assert"):
        built.predict(np.array([[POISON, 0.0]], np.float32), verbose=0)
    assert saved(builder[1], tmp_path / "m.keras").exists()
