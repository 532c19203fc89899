"""Rows whose predictions are known: checked after each loading of the model, in every process."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from job.cli import options
from job.scoring.golden import MOST_ROWS
from tests.support.nights import Night, dense, features, kept, matrix, put_back, run_cli, saved
from tests.support.worker_pool import ROOT, external, free_port, job_service, worker_pool

FLAGS = ("--keys=id", "--split_rows=100", "--batch_size=64")
# Adds a hundredth where a variable is set: as a machine that computes wrong, with the right weights.
BROKEN = """
import os
import keras

class Sometimes(keras.layers.Layer):
    def call(self, x):
        return x + (0.01 if "BROKEN" in os.environ else 0.0)

def build():
    seeded = keras.initializers.GlorotUniform(seed=1)
    given = keras.Input((4,), name="x")
    hidden = keras.layers.Dense(1, kernel_initializer=seeded)(given)
    return keras.Model(given, Sometimes(name="score")(hidden))
"""


@pytest.fixture(scope="module")
def published(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of a night of three shards, with golden rows that were made of it beside it."""
    night = Night(tmp_path_factory.mktemp("golden") / "night")
    for i in range(3):
        night.shard(f"hour=0{i}/a", features(200, seed=i, first_id=200 * i), group_rows=50)
    night.score(saved(dense(), night.folder / "m.keras"), *FLAGS)
    return kept(night)


@pytest.fixture
def night(published: Path, capfd: pytest.CaptureFixture[str]) -> Night:
    """The night, and its ``golden.parquet``."""
    night = put_back(published)
    args = (str(night.output), f"--to={night.folder / 'golden.parquet'}", "--rows=60", "--seed=1")
    code, out, err = run_cli(capfd, "golden", *args)
    assert code == 0, err
    assert out == f"60 rows in {night.folder / 'golden.parquet'}\n"
    return night


def golden(night: Night) -> pa.Table:
    return pq.read_table(night.folder / "golden.parquet")


def score(night: Night, capfd: pytest.CaptureFixture[str], *flags: str) -> tuple[int, str, str]:
    """Score again what is published there, in another output."""
    given = (f"--golden={night.folder / 'golden.parquet'}", f"--output={night.folder / 'again'}")
    model = night.folder / "m.keras"
    return run_cli(capfd, "score", f"--input={night.input}", f"--model={model}", *FLAGS, *given, *flags)


def spoil(night: Night, row: int, by: float) -> None:
    """Change one expected prediction."""
    table = golden(night)
    values = table["prediction"].to_pylist()
    values[row] += by
    place = table.column_names.index("prediction")
    table = table.set_column(place, "prediction", pa.array(values, pa.float32()))
    pq.write_table(table, night.folder / "golden.parquet")


def test_rows_of_a_night_are_its_features_and_predictions(night: Night) -> None:
    table = golden(night)
    assert len(set(table["id"].to_pylist())) == 60
    assert set(table.column_names) == {"id", "f0", "f1", "f2", "f3", "prediction"}
    expected = dense().predict(matrix(table), verbose=0)[:, 0]
    np.testing.assert_allclose(table["prediction"].to_numpy(), expected, rtol=1e-5, atol=1e-6)
    whole = pa.concat_tables([features(200, seed=i, first_id=200 * i) for i in range(3)])
    for row in table.select(["id", "f0", "f3"]).to_pylist():
        assert whole.slice(row["id"], 1).select(["id", "f0", "f3"]).to_pylist() == [row]


def test_a_model_that_is_right_scores_and_the_report_tells_how_often_it_was_checked(
    night: Night, capfd: pytest.CaptureFixture[str]
) -> None:
    code, out, err = score(night, capfd)
    assert code == 0, err
    assert re.search("golden rows +as expected after 1 of 1 load ", out)
    # It shapes no output, so it is the same run.
    assert (
        json.loads((night.folder / "again/_report.json").read_text())["run_id"] == night.manifest()["run_id"]
    )


def test_one_wrong_row_ends_the_night_before_it_begins(
    night: Night, capfd: pytest.CaptureFixture[str]
) -> None:
    assert score(night, capfd)[0] == 0
    # The model is loaded in this process, and was checked: but not by these rows.
    spoil(night, 17, 0.001)
    expected = golden(night)["prediction"].to_pylist()[17]
    output = night.folder / "other"
    args = [f"--input={night.input}", f"--model={night.folder / 'm.keras'}", *FLAGS, f"--output={output}"]
    wrong = [f"--golden={night.folder / 'golden.parquet'}", *args]
    code, _, err = run_cli(capfd, "score", *wrong)
    assert code == 5
    (line,) = [line for line in err.splitlines() if line.startswith("error: ")]
    assert "golden.parquet: row 17: prediction is " in line
    assert f"expected {expected}; 1 of 60 rows differ by more than --golden_rtol=1e-05" in line
    assert "keras" in line
    assert not list(output.rglob("receipts/*"))
    assert not (output / "_SUCCESS").exists()
    code, _, err = run_cli(capfd, "score", *wrong, "--golden_atol=0.01")
    assert code == 0, err


def test_a_model_that_was_exchanged_is_refused(night: Night, capfd: pytest.CaptureFixture[str]) -> None:
    saved(dense(seed=5), night.folder / "m.keras")
    code, _, err = score(night, capfd)
    assert (code, "of 60 rows differ" in err) == (5, True)


def without(table: pa.Table, name: str) -> pa.Table:
    return table.drop_columns(name)


def with_null(table: pa.Table, name: str) -> pa.Table:
    values = [None, *table[name].to_pylist()[1:]]
    return table.set_column(table.column_names.index(name), name, pa.array(values, pa.float32()))


def as_text(table: pa.Table, name: str) -> pa.Table:
    return table.set_column(table.column_names.index(name), name, pa.array(["x"] * len(table)))


WRONG: dict[str, tuple[Any, int, str]] = {
    "no prediction": (
        lambda t: without(t, "prediction"),
        2,
        "it lacks prediction of the predictions prediction",
    ),
    "no feature": (lambda t: without(t, "f2"), 2, "f2"),
    "a feature of text": (lambda t: as_text(t, "f2"), 2, "f2"),
    "a prediction of text": (lambda t: as_text(t, "prediction"), 2, "column prediction is no float"),
    "a null prediction": (lambda t: with_null(t, "prediction"), 2, "column prediction has nulls"),
    "a null feature": (lambda t: with_null(t, "f1"), 2, r"row 0 cannot be fed to the model \(1 null\)"),
    "no rows": (lambda t: t.slice(0, 0), 2, "it has 0 rows; from 1 to 10,000 are wanted"),
    "many rows": (lambda t: pa.concat_tables([t] * 167), 2, "it has 10,020 rows"),
}


@pytest.mark.parametrize("name", WRONG)
def test_rows_that_do_not_fit(name: str, night: Night, capfd: pytest.CaptureFixture[str]) -> None:
    change, exit_code, message = WRONG[name]
    pq.write_table(change(golden(night)), night.folder / "golden.parquet")
    code, _, err = score(night, capfd)
    assert code == exit_code, err
    assert "--golden=" in err
    assert re.search(message, err), err


def test_files_that_are_none(night: Night, capfd: pytest.CaptureFixture[str]) -> None:
    path = night.folder / "golden.parquet"
    for content, message in (
        (b"x" * 100, "cannot be read as Parquet"),
        (b"x" * (5 << 20), "it has 5,242,880 bytes, more than 4,194,304"),
        (None, "no such file"),
    ):
        path.unlink()
        if content is not None:
            path.write_bytes(content)
        code, _, err = score(night, capfd)
        assert (code, message in err) == (2, True), err
        path.touch()


def test_lists_text_and_nulls_that_are_filled(night: Night, capfd: pytest.CaptureFixture[str]) -> None:
    x = keras.Input((4,), name="x")
    word = keras.layers.StringLookup(vocabulary=["a", "b"], mask_token=None, invert=True, num_oov_indices=1)
    keras.utils.set_random_seed(3)
    code = keras.ops.cast(keras.layers.Dense(1)(x) > 0, "int64")
    model = keras.Model(x, {"three": keras.layers.Dense(3)(x), "word": word(code)})
    saved(model, night.folder / "m.keras")
    table = features(200)
    values = [None, *table["f1"].to_pylist()[1:]]
    night.shard("hour=00/a", table.set_column(2, "f1", pa.array(values, pa.float32())))
    flags = ("--features=f0,f1,f2,f3", "--on_null=fill=0.5")
    given = (f"--input={night.input}/hour=00", f"--model={night.folder / 'm.keras'}", "--keys=id", *flags)
    first = str(night.folder / "first")
    code_, _, err = run_cli(capfd, "score", *given, f"--output={first}")
    assert code_ == 0, err
    path = f"--to={night.folder / 'own.parquet'}"
    assert run_cli(capfd, "golden", first, path, "--rows=200")[0] == 0
    rows = pq.read_table(night.folder / "own.parquet")
    assert (rows.num_rows, rows["f1"].null_count) == (200, 1)
    again = (f"--output={night.folder / 'second'}", f"--golden={night.folder / 'own.parquet'}")
    code_, out, err = run_cli(capfd, "score", *given, *again)
    assert code_ == 0, err
    assert "as expected after 1 of 1 load" in out


def test_what_golden_refuses(night: Night, capfd: pytest.CaptureFixture[str]) -> None:
    folder, to = str(night.output), f"--to={night.folder / 'new.parquet'}"
    for args, message in (
        ([folder], "--to must be given"),
        ([folder, to, "--rows=0"], "must be a whole number of rows from 1"),
        ([folder, to, f"--rows={MOST_ROWS + 1}"], "must be a whole number of rows from 1 to 10000"),
        ([folder, f"--to={night.folder / 'golden.parquet'}"], "it is there already"),
        ([f"{folder}x", to], "it holds no published night"),
    ):
        code, _, err = run_cli(capfd, "golden", *args)
        assert (code, message in err) == (2, True), err


def test_its_path_may_hold_the_night() -> None:
    args = ["--input=a", "--model=m.keras", "--output=o", "--golden=g/{ds}.parquet", "--ds=2026-11-25"]
    assert options.parse(args)[0].golden == "g/2026-11-25.parquet"


@pytest.mark.slow
@pytest.mark.usefixtures("forks")
def test_every_process_checks_its_own_copy(night: Night, capfd: pytest.CaptureFixture[str]) -> None:
    processes = ("--direct_running_mode=multi_processing", "--direct_num_workers=2")
    code, _, err = score(night, capfd, *processes)
    assert code == 0, err
    told = json.loads((night.folder / "again/_report.json").read_text())
    assert told["golden_checks"] == len(told["loads"]) >= 1
    assert len(told["workers"]) == len(told["loads"])


@pytest.mark.slow
@pytest.mark.usefixtures("forks")
def test_a_worker_that_computes_wrong_is_stopped_before_its_first_split(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its weights are right, and so is the launcher."""
    (tmp_path / "library").mkdir()
    (tmp_path / "library/at_times_broken.py").write_text(BROKEN)
    monkeypatch.syspath_prepend(tmp_path / "library")
    night = Night(tmp_path)
    night.shard("a", features(400), group_rows=100)
    args = ["score", f"--input={night.input}", "--model=at_times_broken:build", *FLAGS]
    assert run_cli(capfd, *args, f"--output={tmp_path}/right")[0] == 0
    made = ("golden", f"{tmp_path}/right", f"--to={tmp_path}/golden.parquet")
    assert run_cli(capfd, *made)[0] == 0
    port = free_port()
    with job_service(tmp_path) as (service, _), monkeypatch.context() as broken:
        broken.setenv("BROKEN", "1")
        with worker_pool(tmp_path, port, path=[ROOT, tmp_path / "library"]):
            broken.undo()
            engine = external(service, port)
            given = (f"--golden={tmp_path}/golden.parquet", f"--output={night.output}", *engine)
            code, _, err = run_cli(capfd, *args, *given)
    assert code == 5, err
    assert re.search(r"golden.parquet: row 0: score is .* expected .*; 100 of 100 rows differ", err)
    assert not list(night.output.rglob("receipts/*.json"))
    assert not (night.output / "_SUCCESS").exists()
