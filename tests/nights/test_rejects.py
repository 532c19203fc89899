"""Bad rows end to end: what is scored, what is set aside, and when nothing is published."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
from numpy.typing import NDArray

from job.binding.binding import Binding
from job.cli import options
from job.errors import DataError
from job.flags import declared
from job.forms import Choice
from job.model.loading import LoadedModel
from job.model.signature import Feed, RowFault, Tensor
from job.scoring import rejects
from job.scoring.policy import Policy
from job.spec import ScoringSpec
from tests.support.nights import Night, dense, features, matrix, saved, visible

ROWS = 400
BAD: dict[str, dict[int, float | None]] = {"a": {7: None, 8: None, 399: None}, "b": {0: 1e39}}


def with_bad_rows(name: str) -> pa.Table:
    table = features(ROWS, seed=len(name), first_id=1000 if name == "b" else 0)
    values = table["f1"].to_pylist()
    for row, value in BAD[name].items():
        values[row] = value
    column = pa.array(values, pa.float64())
    table = table.set_column(table.schema.get_field_index("f1"), "f1", column)
    return table.append_column("note", pa.array([f"{name}{i}" for i in range(ROWS)]))


@pytest.fixture
def model(tmp_path: Path) -> tuple[Path, Any]:
    built = dense()
    return saved(built, tmp_path / "m.keras"), built


def fill(night: Night) -> dict[str, pa.Table]:
    tables = {name: with_bad_rows(name) for name in BAD}
    for name, table in tables.items():
        night.shard(name, table, group_rows=150)
    return tables


FLAGS = ("--keys=id", "--features=f0,f1,f2,f3", "--split_rows=300", "--batch_size=64")


def rejected(night: Night) -> list[dict[str, Any]]:
    files = sorted((night.output / "_rejected").rglob("*.rejected"))
    return [row for file in files for row in pq.ParquetFile(file).read().to_pylist()]


def test_bad_rows_are_set_aside_and_all_others_scored(night: Night, model: tuple[Path, Any]) -> None:
    tables = fill(night)
    report = night.score(model[0], *FLAGS)
    assert (report.rows_read, report.rows_scored, report.rows_rejected) == (800, 796, 4)
    assert report.reject_reasons == (("null", 3), ("overflow", 1))
    good = pa.concat_tables(
        table.take([i for i in range(ROWS) if i not in BAD[name]]) for name, table in tables.items()
    )
    scored = night.scored()
    assert scored["id"].to_pylist() == good["id"].to_pylist()
    wanted = model[1].predict(matrix(good).astype(np.float32), verbose=0)[:, 0]
    np.testing.assert_allclose(scored["prediction"].to_numpy(), wanted, rtol=1e-6)
    found = rejected(night)
    assert [(row["note"], row["_row"], row["_reason"]) for row in found] == [
        *(("a7", 7, "null"), ("a8", 8, "null"), ("a399", 399, "null"), ("b0", 0, "overflow"))
    ]
    for row in found:
        original = tables[row["note"][0]].slice(row["_row"], 1).to_pylist()[0]
        assert {name: row[name] for name in original} == original
        assert row["_shard"] == str(night.input / f"{row['note'][0]}.parquet")
    # Readers that take every such file for one of predictions find those alone.
    assert sorted(night.output.rglob("*.parquet")) == night.files()
    manifest = night.manifest()
    assert (manifest["rows_read"], manifest["rows_rejected"]) == (800, 4)
    assert [(f["path"], f["rows"]) for f in manifest["rejected_files"]] == [
        ("_rejected/a-00000-00001.rejected", 2),
        ("_rejected/a-00002-00002.rejected", 1),
        ("_rejected/b-00000-00001.rejected", 1),
    ]


def test_too_many_rejects_publish_nothing_and_a_higher_limit_scores_nothing_again(
    night: Night, model: tuple[Path, Any]
) -> None:
    fill(night)
    flags = (*FLAGS, "--max_rejected=0.004")
    with pytest.raises(DataError, match=r"4 of 800 rows were rejected \(3 null, 1 overflow\)"):
        night.score(model[0], *flags)
    assert visible(night.output) == []
    assert not (night.output / "_SUCCESS").exists()
    kept = list((night.output / "_staging").rglob("*.rejected"))
    assert sum(pq.ParquetFile(path).metadata.num_rows for path in kept) == 4
    report = night.score(model[0], *FLAGS, "--max_rejected=0.005")
    assert (report.splits, report.splits_reused, report.rows_rejected) == (4, 4, 4)
    assert len(rejected(night)) == 4


def test_a_hopeless_split_stops_early(night: Night, model: tuple[Path, Any]) -> None:
    fill(night)
    with pytest.raises(DataError, match=r"a.parquet: 2 row\(s\) rejected \(2 null\), more than"):
        night.score(model[0], *FLAGS, "--max_rejected=0.001")
    assert visible(night.output) == []


def test_a_night_that_replaces_one_with_rejects_leaves_none_of_them(
    night: Night, model: tuple[Path, Any]
) -> None:
    fill(night)
    night.score(model[0], *FLAGS)
    report = night.score(model[0], *FLAGS, "--on_null=fill=0", "--if_exists=replace")
    assert report.rows_rejected == 1
    assert [row["note"] for row in rejected(night)] == ["b0"]
    night.score(model[0], *FLAGS, "--on_null=fill=1", "--on_bad_row=reject", "--if_exists=replace")
    assert len(rejected(night)) == 1


def test_every_row_of_a_shard_may_be_bad(night: Night, model: tuple[Path, Any]) -> None:
    table = features(5)
    nulls = pa.nulls(5, pa.float32())
    night.shard("all", table.set_column(1, "f0", nulls))
    night.shard("none", features(5, first_id=5))
    report = night.score(model[0], "--keys=id", "--max_rejected=0.5")
    assert (report.rows_scored, report.rows_rejected) == (5, 5)
    assert night.scored()["id"].to_pylist() == [5, 6, 7, 8, 9]


@keras.saving.register_keras_serializable("tests")
class Refuses(keras.layers.Layer):
    """Raises inside the graph for a batch that holds a value above 100."""

    def call(self, inputs: Any) -> Any:
        import tensorflow as tf

        with tf.control_dependencies([tf.debugging.assert_less(inputs, 100.0, message="too hot")]):
            return tf.identity(inputs)


def test_a_row_on_which_the_model_fails_costs_no_neighbour(night: Night) -> None:
    built = keras.Sequential([keras.Input((2,)), Refuses(), keras.layers.Dense(1)])
    path = saved(built, night.folder / "m.keras")
    table = features(3000, 2)
    values = table["f1"].to_numpy().copy()
    values[[5, 2999]] = 1000
    night.shard("a", table.set_column(2, "f1", pa.array(values)))
    report = night.score(path, "--keys=id")
    assert report.reject_reasons == (("model_error", 2),)
    assert [row["_row"] for row in rejected(night)] == [5, 2999]
    assert all("too hot" in row["_error"] for row in rejected(night))
    scored = night.scored()
    assert scored["id"].to_pylist() == [i for i in range(3000) if i not in (5, 2999)]
    good = matrix(table, ("f0", "f1"))[scored["id"].to_numpy()]
    np.testing.assert_allclose(
        scored["prediction"].to_numpy(), built.predict(good, verbose=0)[:, 0], rtol=1e-6, atol=1e-7
    )


@pytest.mark.parametrize(
    ("flag", "limit", "found", "message"),
    [
        ("--on_bad_row=reject", "0.01", 31, r"31 row\(s\) rejected \(31 model_error\), more than"),
        ("--on_bad_row=fail", "0.01", 0, r"row 0: .*too hot.*\(model_error\); 1 such row"),
        ("--on_bad_row=reject", "0", 1, r"1 row\(s\) rejected \(1 model_error\), more than"),
    ],
)
def test_a_model_that_fails_on_every_row_ends_soon_and_leaves_rejects(
    night: Night, monkeypatch: pytest.MonkeyPatch, flag: str, limit: str, found: int, message: str
) -> None:
    built = keras.Sequential([keras.Input((2,)), Refuses(), keras.layers.Dense(1)])
    table = features(3000, 2)
    night.shard("a", table.set_column(2, "f1", pa.array(np.full(3000, 1000.0))))
    path = saved(built, night.folder / "m.keras")
    real, calls = LoadedModel.predict, [0]

    def counted(*args: Any, **options: Any) -> Any:
        calls[0] += 1
        return real(*args, **options)

    monkeypatch.setattr(LoadedModel, "predict", counted)
    with pytest.raises(DataError, match=message):
        night.score(path, "--keys=id", "--batch_size=1024", flag, f"--max_rejected={limit}")
    assert calls[0] <= 2 * (found + 1) + 10
    kept = [pq.ParquetFile(path).read() for path in (night.output / "_staging").rglob("*.rejected")]
    assert sum(table.num_rows for table in kept) == found
    assert all("too hot" in error for table in kept for error in table["_error"].to_pylist())


class OnNegative(Policy):
    """A policy that this job does not have: about features, and predictions, below zero."""

    flag = "on_negative"
    reason = "negative"

    @classmethod
    def asked(cls, spec: ScoringSpec) -> str:
        return "reject"

    def mended(self, piece: pa.RecordBatch, binding: Binding, /) -> pa.RecordBatch:
        # A feature of -1 stands for 0.
        fed = [
            pc.if_else(pc.equal(column, -1.0), 0.0, column) if name in binding.columns else column
            for name, column in zip(piece.schema.names, piece.columns, strict=True)
        ]
        return pa.RecordBatch.from_arrays(fed, names=piece.schema.names)

    def feature_faults(self, tensors: Sequence[Tensor], feeds: Sequence[Feed], /) -> tuple[RowFault, ...]:
        (rows,) = (np.flatnonzero((np.asarray(tensor) < 0).any(axis=1)) for tensor in tensors)
        return (RowFault(rows, self.reason, "f0", "it is negative", "-2"),) if len(rows) else ()

    def prediction_faults(self, outputs: Sequence[NDArray[Any]], /) -> tuple[NDArray[np.int64], int]:
        return np.flatnonzero(outputs[0][:, 0] < 1), 0

    def prediction_error(self, outputs: Sequence[NDArray[Any]], row: int, /) -> str:
        return f"it is {outputs[0][row, 0]:g}, less than 1"


def test_a_policy_is_one_class_and_one_entry(night: Night, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rejects, "POLICIES", (OnNegative, *rejects.POLICIES))
    inputs = keras.Input((1,), name="x")
    path = saved(keras.Model(inputs, keras.layers.Rescaling(1.0)(inputs)), night.folder / "m.keras")
    night.shard("a", pa.table({"id": range(5), "f0": pa.array([-2.0, -1.0, 0.5, 1.0, 7.0], pa.float32())}))
    report = night.score(path, "--keys=id", "--max_rejected=0.9")
    assert night.scored()["id"].to_pylist() == [3, 4]
    assert report.reject_reasons == (("negative", 3),)
    told = {row["id"]: row["_error"] for row in rejected(night)}
    assert told == {
        0: "column f0: it is negative, first value -2",
        1: "it is 0, less than 1",
        2: "it is 0.5, less than 1",
    }
    assert night.manifest()["scoring"]["on_negative"] == "reject"


@pytest.mark.parametrize("policy", rejects.POLICIES)
def test_flags_are_declared_with_the_values_that_policies_obey(policy: type[Policy]) -> None:
    (flag,) = (one for one in declared(ScoringSpec) if one.name == policy.flag)
    assert isinstance(flag.form, Choice)
    other = (flag.form.other,) if flag.form.other else ()
    assert (*flag.form.words, *other) == policy.choices
    for choice in ("reject", "fail"):
        spec, _ = options.parse(["--input=a", "--model=m.keras", "--output=o", f"--{policy.flag}={choice}"])
        assert bool(rejects.RowPolicy.of(spec, 0).failing_flag(policy.reason)) == (choice == "fail")
    with pytest.raises(ValueError, match=f"--{policy.flag}=other: only"):
        policy("other")
