"""Each of the seven models, really trained and scored by the job, against plain ``Model.predict``."""

from __future__ import annotations

import datetime
import hashlib
import importlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.dataset as ds
import pyarrow.parquet as pq
import pytest

from job.binding import output_kinds
from job.binding.predictions import Tolerance
from job.compare.verify import ALL, verify
from job.errors import ModelError, OutputConflictError, SchemaError, UsageError
from job.model import artifact
from job.model.kind import Held, Kind, Step
from job.model.signature import InputSpec, OutputSpec, Signature, Tensor
from job.spec import ModelReference, Reads
from models import MODELS
from models.flights import tensors
from models.flights_data import write_features
from tests.support.nights import Night, dense, features, saved
from tests.unit.model.test_saved_model import of_examples, save, several

SIX = [name for name in MODELS if name != "flights"]
ROWS = 300


def shard(night: Night, width: int, start: int) -> np.ndarray[Any, np.dtype[np.float32]]:
    """Write a shard of ``ROWS`` rows; a wide model gets one list column, a narrow one scalar columns."""
    values = np.random.default_rng(start).random((ROWS, width), dtype=np.float32)
    ids = pa.array(np.arange(start, start + ROWS))
    if width > 10:
        pixels = pa.FixedSizeListArray.from_arrays(pa.array(values.reshape(-1)), width)
        table = pa.table({"id": ids, "pixels": pixels})
    else:
        table = pa.table({"id": ids, **{f"f{i}": values[:, i] for i in range(width)}})
    night.shard(f"part-{start:05d}", table, group_rows=128)
    return values


@pytest.mark.parametrize("name", SIX)
def test_the_models_are_scored_as_predict_scores_them(night: Night, name: str) -> None:
    import keras

    module = importlib.import_module(f"models.{name}")
    width, outputs = (784, 10) if name == "classifier" else (10, 1)
    features = np.concatenate([shard(night, width, start) for start in (0, ROWS)])
    if name == "custom_layer":
        path = night.folder / "m.weights.h5"
        module.train(path, epochs=1)
        night.score("models.custom_layer:build", f"--weights={path}", "--keys=id", "--split_rows=200")
        model = module.build()
        model(features[:1])
        model.load_weights(path)
    else:
        path = night.folder / "m.keras"
        module.train(path, epochs=1)
        night.score(path, "--keys=id", "--split_rows=200")
        model = keras.models.load_model(path, compile=False)
    wanted = model.predict(features, verbose=0)
    scored = night.scored()
    assert len(night.files()) == 4
    assert scored["id"].to_pylist() == list(range(2 * ROWS))
    column = scored.column(1).combine_chunks()
    got = column.flatten().to_numpy().reshape(-1, outputs) if outputs > 1 else column.to_numpy()[:, None]
    np.testing.assert_allclose(got, wanted, rtol=1e-6, atol=1e-7)
    assert len(np.unique(got)) > ROWS, "a constant would be no prediction"


@pytest.mark.slow
def test_flights_are_scored_as_predict_scores_them(night: Night) -> None:
    import keras

    from models import flights

    write_features(night.folder / "features")
    path = night.folder / "flights.keras"
    flights.train(path, features=night.folder / "features", epochs=1)
    for day in ("2013-12-01", "2013-12-24"):
        for source in (night.folder / "features" / f"ds={day}").glob("*.parquet"):
            night.shard(f"ds={day}/{source.stem}", pq.ParquetFile(source).read())
    report = night.score(path, "--keys=flight_id,ds")
    plain = ds.dataset(night.input, partitioning="hive").to_table()
    wanted = keras.models.load_model(path).predict(tensors(plain), verbose=0)[:, 0]
    published = ds.dataset(night.output, partitioning="hive").to_table()
    got = dict(
        zip(published["flight_id"].to_pylist(), published["predicted_arr_delay"].to_numpy(), strict=True)
    )
    assert report.rows_scored == len(got) == plain.num_rows > 1000
    np.testing.assert_allclose(
        [got[flight] for flight in plain["flight_id"].to_pylist()], wanted, rtol=1e-5, atol=1e-4
    )
    assert sorted(set(map(str, published["ds"].to_pylist()))) == ["2013-12-01", "2013-12-24"]


def test_there_are_seven() -> None:
    assert len(MODELS) == 7
    assert all((Path(__file__).parents[2] / "models" / f"{name}.py").exists() for name in MODELS)


def test_the_signature_that_is_asked_for_is_scored_verified_and_part_of_the_run(night: Night) -> None:
    path = several(night.folder / "m", with_default=True)
    night.shard("a", pa.table({"id": [7], **{f"f{i}": pa.array([5.0], pa.float32()) for i in range(4)}}))
    with pytest.raises(ModelError, match="no signature train; give --signature one of explain, pred"):
        night.score(path, "--keys=id", "--signature=train")
    run = night.score(path, "--keys=id", "--signature=explain").run_id
    assert night.scored()["score"].to_pylist() == [[0.0] * 4]
    assert night.manifest()["model"]["signature_name"] == "explain"
    assert verify(str(night.output), sample_rows=ALL, seed=0, tolerance=Tolerance()).is_right
    with pytest.raises(OutputConflictError, match=f"it holds run {run[:12]}"):
        night.score(path, "--keys=id", "--signature=predict")
    night.score(
        path, "--keys=id", f"--challenger={path}", "--challenger_signature=predict", "--if_exists=replace"
    )
    both = night.scored()
    assert (both["score"][0].as_py(), both["challenger_score"][0].as_py()) == ([10.0] * 4, [0.5] * 4)
    assert verify(str(night.output), sample_rows=ALL, seed=0, tolerance=Tolerance()).is_right


def test_only_a_saved_model_has_signatures(night: Night) -> None:
    path = saved(dense(), night.folder / "m.keras")
    night.shard("a", pa.table({"id": [0]}))
    with pytest.raises(
        UsageError, match=r"--signature=x goes only with a SavedModel folder, not with .*m\.keras"
    ):
        night.score(path, "--signature=x")
    with pytest.raises(
        UsageError, match=r"--challenger_signature=x goes only with .*--challenger=.*m\.keras"
    ):
        night.score(path, f"--challenger={path}", "--challenger_signature=x")


def test_a_model_of_serialized_examples_says_so_or_is_fed_them(night: Night) -> None:
    import tensorflow as tf

    path = save(night.folder / "m", of_examples, tf.TensorSpec((None,), tf.string, name="examples"))
    night.shard("a", pa.table({"id": [0], "x": [1.0], "name": ["a"]}))
    for flags in (["--keys=id"], ["--keys=id", "--features=name"]):
        with pytest.raises(
            SchemaError, match=r"input examples takes serialized tf\.Example messages: give a"
        ):
            night.score(path, *flags)
    values = [tf.train.Feature(float_list=tf.train.FloatList(value=[x])) for x in (4.0, 0.5)]
    messages = [
        tf.train.Example(features=tf.train.Features(feature={"x": value})).SerializeToString()
        for value in values
    ]
    night.shard("a", pa.table({"id": [0, 1], "row": pa.array(messages, pa.binary())}))
    night.score(path, "--keys=id", "--features=row")
    assert night.scored()["y"].to_pylist() == [8.0, 1.0]


class Line(Kind):
    """A kind of model that this job does not have: NumPy's arrays ``weights`` and ``bias``."""

    name = "line"
    form = "x.npz"
    suffixes = (".npz",)

    def load(self, reference: ModelReference, held: Held) -> Step:
        return LineStep(held.file)


class LineStep:
    recompiles = False

    def __init__(self, path: str) -> None:
        with np.load(path) as arrays:
            self._weights, self._bias = arrays["weights"], arrays["bias"]

    def signature(self) -> Signature:
        return Signature((InputSpec("rows", (len(self._weights),), "float32"),), (), named=False)

    def build(self, inputs: Sequence[InputSpec]) -> None:
        pass

    def outputs(self) -> tuple[OutputSpec, ...]:
        return (OutputSpec("y", (), "float32"),)

    def predict(self, tensors: Sequence[Tensor]) -> list[np.ndarray]:
        (rows,) = tensors
        assert isinstance(rows, np.ndarray)
        # Row by row, so that a row's prediction does not depend on its batch.
        return [(rows * self._weights).sum(axis=1) + self._bias]

    def predict_plain(self, tensors: Sequence[Tensor]) -> list[np.ndarray]:
        return self.predict(tensors)

    def traces(self) -> int:
        return 0

    def reads(self) -> Reads:
        return ()

    def weights_digest(self) -> str:
        return ""


def test_a_kind_of_model_is_one_class_and_one_entry(night: Night, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(artifact, "KINDS", (*artifact.KINDS, Line()))
    path = night.folder / "line.npz"
    weights = np.arange(4, dtype=np.float32)
    np.savez(path, weights=weights, bias=np.float32(0.5))
    night.shard("a", table := features(100), group_rows=10)
    night.score(path, "--keys=id", "--split_rows=30", "--features=f0,f1,f2,f3")
    scored = night.scored()
    expected = {row["id"]: sum(row[f"f{i}"] * i for i in range(4)) + 0.5 for row in table.to_pylist()}
    assert dict(zip(scored["id"].to_pylist(), scored["y"].to_pylist(), strict=True)) == pytest.approx(
        expected, rel=1e-5, abs=1e-6
    )
    assert night.manifest()["model"]["sha256"] == hashlib.sha256(path.read_bytes()).hexdigest()
    with pytest.raises(ModelError, match=r"give x\.keras, x\.h5, x\.npz, a folder"):
        artifact.resolve(str(night.folder / "nothing"), None, trusted=False, sha256=None)


class Days(output_kinds.OutputKind):
    """A kind of column that this job does not have: days since 1970."""

    def column_type(self, dtype: str) -> pa.DataType | None:
        return pa.date32() if dtype == "days" else None

    def has(self, column_type: pa.DataType) -> bool:
        return bool(column_type == pa.date32())

    def values(self, flat: np.ndarray, column_type: pa.DataType, name: str) -> pa.Array:
        return pa.array(flat.astype("datetime64[D]"), column_type)


class DaysKind(Line):
    def load(self, reference: ModelReference, held: Held) -> Step:
        return DaysStep(held.file)


class DaysStep(LineStep):
    def outputs(self) -> tuple[OutputSpec, ...]:
        return (OutputSpec("day", (), "days"), OutputSpec("pair", (2,), "days"))

    def predict(self, tensors: Sequence[Tensor]) -> list[np.ndarray]:
        (days,) = super().predict(tensors)
        return [days.astype(np.int64), np.stack([days, days + 1], axis=1).astype(np.int64)]


def test_a_kind_of_column_is_one_class_and_one_entry(night: Night, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(artifact, "KINDS", (DaysKind(), *artifact.KINDS))
    monkeypatch.setattr(output_kinds, "KINDS", (*output_kinds.KINDS, Days()))
    path = night.folder / "line.npz"
    np.savez(path, weights=np.array([1.0], np.float32), bias=np.float32(0))
    ids = pa.array(range(50))
    night.shard("a", pa.table({"id": ids, "f0": ids.cast(pa.float32())}), group_rows=10)
    report = night.score(path, "--keys=id", "--split_rows=30", "--features=f0")
    assert report.rows_scored == 50
    scored = night.scored().sort_by("id")
    days = [datetime.date(1970, 1, 1) + datetime.timedelta(days=i) for i in range(51)]
    assert scored.schema.field("pair").type == pa.list_(pa.date32(), 2)
    assert scored["day"].to_pylist() == days[:50]
    assert scored["pair"].to_pylist() == [[days[i], days[i + 1]] for i in range(50)]
