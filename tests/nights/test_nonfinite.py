"""Rows that are not finite: found one by one by the oracle, and end to end per policy."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import keras
import ml_dtypes
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from job.errors import DataError, UsageError
from job.model.signature import Feed, InputSpec
from job.scoring.nonfinite import feature_faults, nonfinite_rows, prediction_error
from tests.support.nights import Night, dense, features, matrix, saved

TYPES = [np.float16, np.float32, np.float64, ml_dtypes.bfloat16]
SPECIAL = st.sampled_from([0.0, 1.0, -1.0, 3e38, -3e38, math.nan, math.inf, -math.inf])


@given(
    st.sampled_from(TYPES),
    arrays.arrays(np.float64, arrays.array_shapes(min_dims=1, max_dims=3, min_side=0), elements=SPECIAL),
)
def test_rows_are_found_as_looking_at_each_value_finds_them(dtype: Any, values: Any) -> None:
    with np.errstate(over="ignore"):
        array = values.astype(dtype)
    expected = [
        i for i, row in enumerate(array) if not all(math.isfinite(float(v)) for v in np.ravel(row).tolist())
    ]
    assert nonfinite_rows(array).tolist() == expected


@pytest.mark.parametrize("array", [np.array([1, 2]), np.array([True]), np.array([b"nan"], object)])
def test_what_has_no_fractions_is_finite(array: Any) -> None:
    assert nonfinite_rows(array).tolist() == []


def test_faults_name_their_column() -> None:
    wide = Feed(InputSpec("x", (2,), "float32"), ("a", "b"))
    image = Feed(InputSpec("y", (2, 2), "float32"), ("pixels",))
    x = np.array([[1, 2], [np.nan, 2], [3, np.inf], [4, 4]], np.float32)
    y = np.zeros((4, 2, 2), np.float32)
    y[3, 1, 0] = -np.inf
    found = [(f.column, f.rows.tolist(), f.example) for f in feature_faults([x, y], [wide, image])]
    assert found == [("a", [1], "nan"), ("b", [2], "inf"), ("pixels", [3], "-inf")]


def test_an_error_tells_which_output() -> None:
    good, bad = np.ones((2, 1), np.float32), np.array([[1, 2], [3, np.nan]], np.float32)
    assert prediction_error([bad], 1) == "the prediction is nan"
    assert prediction_error([good, bad], 1) == "output 1 of 2 is nan"
    with pytest.raises(ValueError, match="row 0 is finite"):
        prediction_error([good, bad], 0)


ROWS = 300
NAMES = ("f0", "f1", "f2", "f3")
FLAGS = ("--keys=id", "--batch_size=64", "--max_rejected=0.1")


def not_finite(night: Night) -> pa.Table:
    table = features(ROWS)
    values = table["f2"].to_pylist()
    values[5], values[64], values[299] = math.nan, math.inf, -math.inf
    table = table.set_column(3, "f2", pa.array(values, pa.float32()))
    night.shard("a", table)
    return table


def rejected(night: Night) -> list[tuple[int, str, str]]:
    rows = pq.ParquetFile(night.output / "_rejected/a.rejected").read().to_pylist()
    return [(row["_row"], row["_reason"], row["_error"]) for row in rows]


def test_features_that_are_not_finite_are_set_aside(night: Night) -> None:
    table = not_finite(night)
    model = dense()
    report = night.score(saved(model, night.folder / "m.keras"), *FLAGS)
    assert report.reject_reasons == (("nonfinite", 3),)
    good = [i for i in range(ROWS) if i not in (5, 64, 299)]
    assert night.scored()["id"].to_pylist() == good
    wanted = model.predict(matrix(table.take(good)), batch_size=64, verbose=0)[:, 0]
    np.testing.assert_allclose(night.scored()["prediction"].to_numpy(), wanted, rtol=1e-6)
    text = "column f2: it is not finite, first value"
    assert rejected(night) == [
        (5, "nonfinite", f"{text} nan"),
        (64, "nonfinite", f"{text} inf"),
        (299, "nonfinite", f"{text} -inf"),
    ]


def test_kept_they_are_fed_and_their_predictions_set_aside(night: Night) -> None:
    not_finite(night)
    x = keras.Input((4,), name="x")
    model = keras.Model(x, keras.layers.Dense(1, kernel_initializer="ones", name="score")(x))
    report = night.score(saved(model, night.folder / "m.keras"), *FLAGS, "--on_nonfinite=keep")
    assert report.reject_reasons == (("nonfinite_prediction", 3),)
    assert [row for row, _, _ in rejected(night)] == [5, 64, 299]
    assert rejected(night)[0][2] == "the prediction is nan"
    assert night.scored()["id"].to_pylist() == [i for i in range(ROWS) if i not in (5, 64, 299)]


def test_kept_throughout_they_are_counted(night: Night) -> None:
    not_finite(night)
    x = keras.Input((4,), name="x")
    model = keras.Model(x, keras.layers.Dense(1, kernel_initializer="ones", name="score")(x))
    keep = ("--on_nonfinite=keep", "--on_nonfinite_prediction=keep")
    report = night.score(saved(model, night.folder / "m.keras"), *FLAGS, *keep)
    assert (report.rows_scored, report.rows_rejected, report.nonfinite_rows) == (ROWS, 0, 3)
    assert report.lines()["not finite"] == "3 rows kept with such a prediction"
    scored = night.scored()["score"].to_numpy()
    assert np.flatnonzero(~np.isfinite(scored)).tolist() == [5, 64, 299]


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (
            ["--on_nonfinite=fail"],
            r"row 5: column f2: .* first value nan \(nonfinite\).*--on_nonfinite=reject",
        ),
        (["--on_bad_row=fail"], r"row 5: .* \(nonfinite\); .*--on_bad_row=reject"),
        (
            ["--on_nonfinite=keep", "--on_nonfinite_prediction=fail"],
            r"row 5: the prediction is nan \(nonfinite_prediction\); .*--on_nonfinite_prediction=reject",
        ),
    ],
)
def test_they_fail_the_run_where_that_is_asked_for(night: Night, flags: list[str], message: str) -> None:
    not_finite(night)
    x = keras.Input((4,), name="x")
    model = keras.Model(x, keras.layers.Dense(1, kernel_initializer="ones", name="score")(x))
    with pytest.raises(DataError, match=message):
        night.score(saved(model, night.folder / "m.keras"), *FLAGS, *flags)
    assert night.files() == []


def test_a_night_of_nothing_but_nan_is_no_night(night: Night) -> None:
    night.shard("a", features(ROWS))
    x = keras.Input((4,), name="x")
    model = keras.Model(x, keras.layers.Dense(1, kernel_initializer=keras.initializers.Constant(math.nan))(x))
    path = saved(model, night.folder / "m.keras")
    with pytest.raises(DataError, match=r"300 row\(s\) rejected \(300 nonfinite_prediction\)|nonfinite_pred"):
        night.score(path, "--keys=id")
    assert not (night.output / "_SUCCESS").exists()
    assert rejected_in_staging(night) > 0


def rejected_in_staging(night: Night) -> int:
    files: list[Path] = list((night.output / "_staging").rglob("*.rejected"))
    return sum(pq.ParquetFile(file).metadata.num_rows for file in files)


def test_who_makes_nan_of_nulls_keeps_them(night: Night) -> None:
    table = features(100)
    values = [None if i == 3 else v for i, v in enumerate(table["f2"].to_pylist())]
    night.shard("a", table.set_column(3, "f2", pa.array(values, pa.float32())))
    path = saved(dense(), night.folder / "m.keras")
    keep = ("--on_null=nan", "--on_nonfinite_prediction=keep")
    assert night.score(path, *FLAGS, *keep).rows_scored == 100
    with pytest.raises(UsageError, match="--on_nonfinite=reject: --on_null=nan makes values that are not fi"):
        night.score(path, *FLAGS, *keep, "--on_nonfinite=reject")
