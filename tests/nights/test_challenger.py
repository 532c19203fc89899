"""Two models in one pass: each as if it had been alone, and the second never at the first one's expense."""

from __future__ import annotations

import json
from typing import Any

import keras
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from job.errors import SchemaError
from tests.support.nights import Night, dense, features, matrix, module, run_cli, saved

ALL = ("f0", "f1", "f2", "f3", "f4")
FLAGS = ("--keys=id", "--features=f0,f1,f2,f3", "--split_rows=100", "--batch_size=64")
# Fails on one row by its value, as a lookup that does not know a word would; gives no number for another.
PICKY = """
import keras
import tensorflow as tf

class Picky(keras.layers.Layer):
    def call(self, x):
        tf.debugging.assert_less(x, 900.0)
        return tf.math.log(tf.where(x > 800.0, -1.0, tf.abs(x) + 1.0))

def build():
    given = keras.Input((4,), name="x")
    seeded = keras.initializers.GlorotUniform(seed=7)
    return keras.Model(given, keras.layers.Dense(1, name="y", kernel_initializer=seeded)(Picky()(given)))
"""


def changed(table: pa.Table, name: str, **at: float | None) -> pa.Table:
    """Put values into a column: ``_7=None`` into its row 7."""
    values = table[name].to_pylist()
    for row, value in at.items():
        values[int(row[1:])] = value
    return table.set_column(table.column_names.index(name), name, pa.array(values, pa.float32()))


@pytest.fixture
def rows(night: Night) -> pa.Table:
    """600 rows: 5 is bad for the champion, 305 and 307 for the challenger alone, 11 for both."""
    table = features(600, width=5)
    table = changed(table, "f0", _5=None, _11=float("nan"))
    table = changed(table, "f4", _11=None, _305=None, _307=float("inf"))
    night.shard("hour=00/a", table.slice(0, 300), group_rows=50)
    night.shard("hour=01/b", table.slice(300), group_rows=50)
    saved(dense(), night.folder / "m.keras")
    # Of the first model's kind, and yet other columns: it takes f4 as well, and its output has another name.
    saved(dense(5, name="other", seed=3), night.folder / "c.keras")
    return table


def flags(night: Night, *more: str) -> tuple[str, ...]:
    return (
        *FLAGS,
        f"--challenger={night.folder / 'c.keras'}",
        f"--challenger_features={','.join(ALL)}",
        *more,
    )


def expected(model: Any, table: pa.Table, names: tuple[str, ...]) -> Any:
    return model.predict(matrix(table, names), verbose=0)[:, 0]


def check(night: Night, rows: pa.Table, scored: pa.Table) -> None:
    """Both columns by plain ``Model.predict``, nulls where only the challenger cannot take a row."""
    kept = np.delete(np.arange(600), [5, 11])
    assert scored["id"].to_pylist() == kept.tolist()
    table = rows.take(pa.array(kept))
    np.testing.assert_allclose(scored["prediction"], expected(dense(), table, ALL[:4]), rtol=1e-5, atol=1e-6)
    rival = scored["challenger_prediction"].to_pylist()
    assert [int(kept[i]) for i, value in enumerate(rival) if value is None] == [305, 307]
    well = np.isin(kept, [305, 307], invert=True)
    told = expected(dense(5, name="other", seed=3), table.filter(pa.array(well)), ALL)
    np.testing.assert_allclose(np.array(rival)[well].astype(np.float32), told, rtol=1e-5, atol=1e-6)


def rejected(night: Night) -> str:
    """As text, in which a NaN is equal to a NaN."""
    found = [
        pq.ParquetFile(path).read().to_pylist()
        for path in sorted(night.output.glob("_rejected/**/*.rejected"))
    ]
    assert sum(map(len, found)) == 2
    return str(found).replace(str(night.input), "in")


def test_both_score_every_row_and_the_champion_is_as_if_it_were_alone(night: Night, rows: pa.Table) -> None:
    alone = night.beside("alone")
    before = alone.score(night.folder / "m.keras", *FLAGS)
    report = night.score(night.folder / "m.keras", *flags(night))
    scored = night.scored()
    assert scored.column_names == ["id", "prediction", "challenger_prediction"]
    check(night, rows, scored)
    assert scored.drop_columns("challenger_prediction").equals(alone.scored())
    assert rejected(night) == rejected(alone)
    for name in ("rows_read", "rows_scored", "rows_rejected", "reject_reasons", "batches", "batch_rows"):
        assert getattr(report, name) == getattr(before, name), name
    assert (report.rows_rejected, len(report.loads)) == (2, 1)
    assert night.manifest()["histograms"] == alone.manifest()["histograms"]
    assert before.run_id != report.run_id


def test_report_and_manifest_tell_of_both(night: Night, rows: pa.Table) -> None:
    report = night.score(night.folder / "m.keras", *flags(night))
    told = report.challenger
    assert told is not None
    assert (told.rows, told.failed, dict(told.reasons), told.loads) == (
        598,
        2,
        {"null": 1, "nonfinite": 1},
        1,
    )
    assert told.columns == ("challenger_prediction",)
    assert min(told.work_s, told.load_s) > 0
    assert "column f4" in told.error
    assert type(report).from_json(report.to_json()) == report
    assert "2 (null): 1 null, 1 nonfinite" in report.lines()["challenger failed"]
    found = night.manifest()["challenger"]
    names = ("path", "sha256", "columns", "failed")
    sha = [told.model, told.sha256, ["challenger_prediction"], 2]
    assert [found[name] for name in names] == sha
    assert found["scoring"]["feeds"][0]["columns"] == list(ALL)
    metadata = pq.read_metadata(night.files()[0]).metadata
    assert metadata[b"scoring_job.challenger_sha256"].decode() == told.sha256


def test_the_two_are_compared_and_verified(
    night: Night, rows: pa.Table, capfd: pytest.CaptureFixture[str]
) -> None:
    night.score(night.folder / "m.keras", *flags(night))
    code, out, _ = run_cli(capfd, "diff", str(night.output), "--json")
    (column,) = json.loads(out)["columns"]
    assert (code, column["column"]) == (0, "prediction → challenger_prediction")
    assert (column["rows"], column["not_finite"]) == (598, 2)
    code, out, err = run_cli(capfd, "verify", str(night.output), "--sample_rows=all")
    assert code == 0, out + err
    # A value of the challenger that it does not give.
    manifest = night.manifest()
    manifest["challenger"]["scoring"]["feeds"][0]["columns"] = [*ALL[1:], "f0"]
    (night.output / "_manifest.json").write_text(json.dumps(manifest))
    code, out, _ = run_cli(capfd, "verify", str(night.output), "--sample_rows=all")
    assert (code, "challenger_prediction is" in out) == (5, True)
    saved(dense(5, seed=8), night.folder / "c.keras")
    code, out, _ = run_cli(capfd, "verify", str(night.output))
    assert (code, "the challenger is not to be had" in out) == (5, True)


def test_a_model_that_fails_on_rows_and_gives_no_number_for_others(
    night: Night, monkeypatch: pytest.MonkeyPatch
) -> None:
    name = module(night.folder, "picky_challenger", PICKY, monkeypatch)
    table = changed(features(300), "f3", _17=1000.0, _203=850.0)
    night.shard("a", table, group_rows=50)
    model = saved(dense(), night.folder / "m.keras")
    report = night.score(model, *FLAGS, f"--challenger={name}:build")
    told = report.challenger
    assert told is not None
    assert (report.rows_rejected, told.failed) == (0, 2)
    assert dict(told.reasons) == {"model_error": 1, "nonfinite_prediction": 1}
    values = night.scored()["challenger_prediction"].to_pylist()
    assert [row for row, value in enumerate(values) if value is None] == [17, 203]
    other = night.beside("kept")
    report = other.score(model, *FLAGS, f"--challenger={name}:build", "--on_nonfinite_prediction=keep")
    assert report.challenger is not None
    assert (report.challenger.failed, report.nonfinite_rows) == (1, 0)
    assert np.isnan(other.scored()["challenger_prediction"].to_pylist()[203])


def test_what_fails_the_champions_run_fails_none_for_the_challenger(night: Night, rows: pa.Table) -> None:
    good = night.beside("good")
    (good.folder / "in").unlink()
    good.shard("b", rows.slice(300), group_rows=50)
    fail = ("--on_null=fail", "--on_bad_row=fail", "--on_nonfinite=fail", "--on_nonfinite_prediction=fail")
    report = good.score(night.folder / "m.keras", *flags(night, *fail))
    assert report.challenger is not None
    assert (report.rows_rejected, report.challenger.failed) == (0, 2)


def test_vectors_can_be_read_back(night: Night) -> None:
    table = changed(features(150, width=5), "f4", _7=None)
    night.shard("a", table, group_rows=50)
    model = saved(dense(units=3), night.folder / "m.keras")
    saved(dense(5, units=3, seed=3), night.folder / "c.keras")
    night.score(model, *flags(night))
    column = night.scored()["challenger_prediction"]
    assert column.type == pa.list_(pa.float32(), 3)
    assert [row for row, value in enumerate(column.to_pylist()) if value == [None] * 3] == [7]
    columns = night.beside("columns")
    columns.score(model, *flags(night, "--prediction_columns=a,b,c"))
    scored = columns.scored()
    assert scored.column_names == ["id", "a", "b", "c", "challenger_a", "challenger_b", "challenger_c"]
    assert [scored[name].null_count for name in scored.column_names] == [0, 0, 0, 0, 1, 1, 1]


def heads(*names: str, seed: int) -> Any:
    keras.utils.set_random_seed(seed)
    given = keras.Input((4,), name="x")
    return keras.Model(given, {name: keras.layers.Dense(1)(given) for name in names})


def test_several_outputs_are_matched_by_name(night: Night) -> None:
    night.shard("a", features(50))
    model = saved(heads("late", "lost", seed=1), night.folder / "m.keras")
    path = saved(heads("lost", "late", seed=2), night.folder / "c.keras")
    night.score(model, *FLAGS, "--prediction_columns=delay,loss", f"--challenger={path}")
    x = matrix(features(50))
    told = heads("lost", "late", seed=2).predict(x, verbose=0)
    for column, output in (("challenger_delay", "late"), ("challenger_loss", "lost")):
        np.testing.assert_allclose(night.scored()[column], told[output][:, 0], rtol=1e-5, atol=1e-6)


WRONG: dict[str, tuple[tuple[str, ...], int, str]] = {
    "absent": (("--challenger={0}/x.keras",), 4, "--challenger={0}/x.keras: there is no such file"),
    "no columns": (("--challenger={0}/c.keras",), 4, "--challenger_features names 4 columns"),
    "other digest": (
        ("--challenger={0}/c.keras", f"--challenger_sha256={'0' * 64}"),
        4,
        "--challenger_sha256 wants 0000",
    ),
    "h5": (("--challenger={0}/c.h5",), 4, "--challenger={0}/c.h5: an .h5 model may carry code"),
    "taken": (
        ("--challenger={0}/m.keras", "--keys=id,challenger_prediction"),
        4,
        "--challenger={0}/m.keras: its column challenger_prediction is a key",
    ),
    "weights": (
        ("--challenger={0}/c.keras", "--challenger_weights=w.weights.h5"),
        2,
        "--challenger_weights=w.weights.h5 goes only with --challenger=package.module:function",
    ),
    "alias": (("--challenger={0}/@next",), 4, "--challenger={0}/@next: there is no such alias"),
}


@pytest.mark.parametrize("name", WRONG)
def test_a_challenger_that_cannot_be_had_is_told_before_anything_is_scored(
    name: str, night: Night, rows: pa.Table, capfd: pytest.CaptureFixture[str]
) -> None:
    given, exit_code, message = WRONG[name]
    night.shard(
        "hour=00/a", rows.slice(0, 300).append_column("challenger_prediction", rows["f0"].slice(0, 300))
    )
    night.shard("hour=01/b", rows.slice(300).append_column("challenger_prediction", rows["f0"].slice(300)))
    (night.folder / "c.h5").write_bytes(b"x")
    own = [one for one in FLAGS if not (one.startswith("--keys") and "--keys" in " ".join(given))]
    args = night.args(night.folder / "m.keras", *own, *(one.format(night.folder) for one in given))
    code, _, err = run_cli(capfd, "score", *args)
    assert code == exit_code, err
    assert message.format(night.folder) in err, err
    assert not list(night.output.rglob("receipts/*"))


def by_name(*names: str) -> keras.Model:
    """A model that adds up its named inputs, the second ten times, and so on."""
    inputs = {name: keras.Input((1,), name=name) for name in names}
    tens = keras.layers.Dense(1, use_bias=False)
    total = tens(keras.layers.Concatenate()(list(inputs.values())))
    made = keras.Model(inputs, total)
    tens.set_weights([np.array([[10.0**i] for i in range(len(names))], np.float32)])
    return made


@pytest.mark.parametrize("who", ["champion", "challenger"])
def test_what_is_ignored_is_given_to_the_one_that_names_it(night: Night, who: str) -> None:
    """The other takes four numbers by position, of which the label would be a fifth."""
    label = pa.array(np.arange(50, dtype=np.float32))
    table = features(50).append_column("label", label)
    night.shard("a", table)
    named = saved(by_name("f0", "label"), night.folder / "named.keras")
    wide = saved(dense(), night.folder / "wide.keras")
    first, second = (named, wide) if who == "champion" else (wide, named)
    night.score(first, "--keys=id", "--ignore=label", f"--challenger={second}")
    scored = night.scored()
    wanted = [
        dense().predict(matrix(table), verbose=0)[:, 0],
        table["f0"].to_numpy() + 10.0 * label.to_numpy(),
    ]
    for column, values in zip(
        scored.column_names[1:], wanted if who == "challenger" else wanted[::-1], strict=True
    ):
        np.testing.assert_allclose(scored[column].to_numpy(), values, rtol=1e-5, err_msg=column)


def test_what_both_name_is_not_to_be_ignored(night: Night) -> None:
    night.shard("a", features(10))
    model, other = (saved(by_name("f0", name), night.folder / f"{name}.keras") for name in ("f1", "f2"))
    told = r"--challenger=.*: --ignore names 'f0', which the champion and the challenger take by this name"
    with pytest.raises(SchemaError, match=told):
        night.score(model, "--keys=id", "--ignore=f0", f"--challenger={other}")
    with pytest.raises(SchemaError, match="'nosuch', which is no column"):
        night.score(model, "--keys=id", "--ignore=nosuch", f"--challenger={other}")
