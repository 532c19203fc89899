"""``RunInference`` on record batches, against plain ``Model.predict``."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import apache_beam as beam
import keras
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from apache_beam.ml.inference.base import RunInference

from job.errors import DataError, ModelError, SchemaError, UsageError
from job.handler import KerasModelHandler
from tests.support.nights import module


@pytest.fixture
def saved(tmp_path: Path) -> tuple[str, Any]:
    keras.utils.set_random_seed(1)
    model = keras.Sequential([keras.Input((2,)), keras.layers.Dense(3, activation="tanh")])
    path = str(tmp_path / "m.keras")
    model.save(path)
    return path, model


def records(rows: int, seed: int = 0) -> pa.RecordBatch:
    values = np.random.default_rng(seed).random((rows, 2), dtype=np.float32)
    return pa.record_batch({"id": np.arange(rows), "a": values[:, 0], "b": values[:, 1]})


def oracle(model: Any, batch: pa.RecordBatch) -> np.ndarray:
    features = np.stack([batch["a"].to_numpy(), batch["b"].to_numpy()], axis=1)
    return np.asarray(model.predict(features, verbose=0))


def test_each_batch_is_predicted(saved: tuple[str, Any]) -> None:
    path, model = saved
    batches = [records(rows, seed=rows) for rows in (1, 7, 40)]
    handler = KerasModelHandler(path, keys=["id"], batch_size=16)
    results = list(handler.run_inference(batches, handler.load_model()))
    for batch, result in zip(batches, results, strict=True):
        assert result.example is batch
        assert result.model_id == hashlib.sha256(Path(path).read_bytes()).hexdigest()
        predicted = np.stack(result.inference.column(0).to_pylist())
        np.testing.assert_allclose(predicted, oracle(model, batch), rtol=1e-6)
    assert handler.get_num_bytes(batches) == sum(batch.nbytes for batch in batches)


def test_in_a_pipeline(saved: tuple[str, Any], tmp_path: Path) -> None:
    path, model = saved
    batches = [records(rows, seed=rows) for rows in (1, 7, 40)]
    with beam.Pipeline("FnApiRunner") as pipeline:
        _ = (
            pipeline
            | beam.Create(batches)
            | RunInference(KerasModelHandler(path, keys=["id"], prediction_columns=["x", "y", "z"]))
            | beam.Map(lambda result: result.inference.to_pydict())
            | beam.combiners.ToList()
            | beam.Map(lambda found: (tmp_path / "found.json").write_text(json.dumps(found)))
        )
    found = json.loads((tmp_path / "found.json").read_text())
    assert sorted(len(one["x"]) for one in found) == [1, 7, 40]
    for batch in batches:
        (one,) = [one for one in found if len(one["x"]) == batch.num_rows]
        predicted = np.stack([one["x"], one["y"], one["z"]], axis=1)
        np.testing.assert_allclose(predicted, oracle(model, batch), rtol=1e-6)


def test_no_rows_give_no_rows_of_the_same_columns(saved: tuple[str, Any]) -> None:
    handler = KerasModelHandler(saved[0], keys=["id"], prediction_columns=["x", "y", "z"])
    (result,) = handler.run_inference([records(0)], handler.load_model())
    assert result.inference.schema.names == ["x", "y", "z"]
    assert result.inference.num_rows == 0


def test_a_bad_row_is_named(saved: tuple[str, Any]) -> None:
    handler = KerasModelHandler(saved[0])
    batch = pa.record_batch({"a": [1.0, None], "b": [1.0, 2.0]})
    with pytest.raises(DataError, match=r"column a.*null.*1 row"):
        list(handler.run_inference([batch], handler.load_model()))


@pytest.mark.slow
def test_paths_may_be_urls_of_files(saved: tuple[str, Any], tmp_path: Path) -> None:
    path, model = saved
    model.export(tmp_path / "exported", verbose=False)
    for plain in (path, str(tmp_path / "exported")):
        urls = KerasModelHandler(f"file://{plain}", keys=["id"])
        paths = KerasModelHandler(plain, keys=["id"])
        found, expected = (h.run_inference([records(5)], h.load_model()) for h in (urls, paths))
        for one, other in zip(found, expected, strict=True):
            assert one.model_id == other.model_id
            assert one.inference.equals(other.inference)
    with pytest.raises(UsageError, match="hdfs://"):
        KerasModelHandler("hdfs://host/m.keras")


def test_a_model_without_an_input_shape_is_fed_its_own_type(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = """import keras
class Own(keras.Model):
    def call(self, x):
        return x[:, :1] * 1.0
def own():
    return Own(dtype="float64")
"""
    name = module(tmp_path, "handler_float64", source, monkeypatch)
    handler = KerasModelHandler(f"{name}:own")
    values = [0.1, 1e300, 2.0**24 + 1]
    (result,) = handler.run_inference([pa.record_batch({"a": values, "b": values})], handler.load_model())
    assert result.inference.column(0).to_pylist() == values


def test_nothing_is_read_before_the_model_is_wanted() -> None:
    handler = KerasModelHandler("/nowhere.keras")
    with pytest.raises(ModelError, match=r"/nowhere\.keras"):
        handler.load_model()


def test_batches_in_two_orders_are_not_fed_by_position(saved: tuple[str, Any]) -> None:
    path, model = saved
    one, other = records(5), records(5).select(["id", "b", "a"])
    handler = KerasModelHandler(path, keys=["id"])
    with pytest.raises(
        SchemaError, match=r"b, a in a record batch, and in the first one these did: a, b; give"
    ):
        list(handler.run_inference([one, other], handler.load_model()))
    stated = KerasModelHandler(path, features=["a", "b"])
    for result in stated.run_inference([other, one], stated.load_model()):
        predicted = np.stack(result.inference.column(0).to_pylist())
        np.testing.assert_allclose(predicted, oracle(model, one), rtol=1e-6)


def test_an_index_of_pandas_and_what_is_ignored_feed_no_model(saved: tuple[str, Any]) -> None:
    path, model = saved
    frame = records(5).to_pandas().drop(columns="id").iloc[[4, 1, 0]].assign(label=1.0)
    batch = pa.RecordBatch.from_pandas(frame)
    assert "__index_level_0__" in batch.schema.names
    handler = KerasModelHandler(path, ignore=["label"])
    (result,) = handler.run_inference([batch], handler.load_model())
    expected = oracle(model, records(5))[[4, 1, 0]]
    np.testing.assert_allclose(np.stack(result.inference.column(0).to_pylist()), expected, rtol=1e-6)


def test_tables_are_predicted_as_their_rows_are(saved: tuple[str, Any], tmp_path: Path) -> None:
    path, model = saved
    handler = KerasModelHandler(path, keys=["id"])
    whole = records(50)
    table = pa.Table.from_batches([whole.slice(0, 7), whole.slice(7, 20), whole.slice(27)])
    (result,) = handler.run_inference([table], handler.load_model())
    assert result.example is table
    np.testing.assert_allclose(
        np.stack(result.inference.column(0).to_pylist()), oracle(model, whole), rtol=1e-6
    )
    assert handler.get_num_bytes([table]) == whole.nbytes
    (nothing,) = handler.run_inference([table.schema.empty_table()], handler.load_model())
    assert (nothing.inference.num_rows, nothing.inference.schema) == (0, result.inference.schema)
    pq.write_table(table, tmp_path / "x.parquet")
    with beam.Pipeline("FnApiRunner") as pipeline:
        _ = (
            pipeline
            | beam.io.ReadFromParquetBatched(str(tmp_path / "x.parquet"))
            | RunInference(handler)
            | beam.Map(lambda found: (tmp_path / "rows").write_text(str(found.inference.num_rows)))
        )
    assert (tmp_path / "rows").read_text() == "50"


ROWS = [{"id": 1, "a": 0.5, "b": 1.5}, {"id": 2, "a": 2.5, "b": 3.5}]


@pytest.mark.parametrize(
    "given", [ROWS[0], ROWS, np.zeros((2, 2), np.float32)], ids=["dict", "list", "array"]
)
def test_rows_are_refused_with_the_lines_that_batch_them(saved: tuple[str, Any], given: Any) -> None:
    handler = KerasModelHandler(saved[0], keys=["id"])
    told = (
        rf"takes pyarrow\.RecordBatch or pyarrow\.Table, many rows in each, and was given "
        rf"{type(given).__name__}; .* beam\.BatchElements"
    )
    with pytest.raises(UsageError, match=told):
        list(handler.run_inference([given], handler.load_model()))
    with pytest.raises(UsageError, match=told):
        handler.get_num_bytes([given])


def test_the_lines_of_the_error_batch_rows(saved: tuple[str, Any], tmp_path: Path) -> None:
    path, model = saved
    handler = KerasModelHandler(path, keys=["id"])
    with pytest.raises(UsageError) as refused:
        handler.get_num_bytes([ROWS[0]])
    step = str(refused.value).partition("before RunInference: ")[2]
    batching = eval(step, {"beam": beam, "pa": pa})
    with beam.Pipeline("FnApiRunner") as pipeline:
        _ = (
            pipeline
            | beam.Create(ROWS)
            | batching
            | RunInference(handler)
            | beam.Map(lambda found: found.inference.column(0).to_pylist())
            | beam.combiners.ToList()
            | beam.Map(lambda found: (tmp_path / "found.json").write_text(json.dumps(found)))
        )
    found = sorted(row for part in json.loads((tmp_path / "found.json").read_text()) for row in part)
    expected = oracle(model, pa.RecordBatch.from_pylist(ROWS))
    np.testing.assert_allclose(found, sorted(expected.tolist()), rtol=1e-6)
