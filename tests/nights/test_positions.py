"""Columns that feed a model by nothing but their place, and what takes that doubt away: end to end.

The model adds up 1, 10, 100 and 1,000 times its four columns, so every other order gives another number.
"""

from __future__ import annotations

import json
import re
import zipfile
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from job.cli import main
from job.errors import DataError, GateError, ModelError, SchemaError, UsageError
from tests.support.nights import Night, saved

NAMES = ("f0", "f1", "f2", "f3")
# One row, 1 2 3 4 in the model's order.
RIGHT = 4321.0


def powers(width: int = 4) -> Any:
    model = keras.Sequential([keras.Input((width,)), keras.layers.Dense(1, use_bias=False)])
    model.set_weights([10.0 ** np.arange(width).reshape(-1, 1)])
    return model


def rows(*order: str, **more: Any) -> pa.Table:
    columns = {name: pa.array([float(NAMES.index(name) + 1)], pa.float32()) for name in order}
    return pa.table({"id": [7], **columns, **more})


@pytest.fixture
def model(night: Night) -> Path:
    return saved(powers(), night.folder / "m.keras")


def predictions(folder: Path) -> list[float]:
    files = [path for path in sorted(folder.rglob("*.parquet")) if "/_" not in str(path)]
    return [value for path in files for value in pq.read_table(path).column(-1).to_pylist()]


@pytest.mark.parametrize("policy", ["fail", "reject"])
@pytest.mark.parametrize("reversed_shard", [0, 2])
def test_shards_in_two_orders_are_refused_whichever_comes_first(
    night: Night, model: Path, policy: str, reversed_shard: int
) -> None:
    for number in range(3):
        night.shard(f"s{number}", rows(*(NAMES[::-1] if number == reversed_shard else NAMES)))
    with pytest.raises(SchemaError) as caught:
        night.score(model, "--keys=id", f"--on_bad_shard={policy}", "--max_rejected=1")
    text = str(caught.value)
    assert "f0, f1, f2, f3" in text
    assert "f3, f2, f1, f0" in text
    assert re.search(r"--features=(f0,f1,f2,f3|f3,f2,f1,f0)$", text)
    assert not night.output.exists() or not (night.output / "_SUCCESS").exists()
    # Said once, the order of the files is of no matter.
    night.score(model, "--keys=id", "--features=f0,f1,f2,f3")
    assert predictions(night.output) == [RIGHT] * 3


def test_where_long_orders_part_is_told(night: Night) -> None:
    names = [f"c{i}" for i in range(30)]
    table = {name: pa.array([1.0], pa.float32()) for name in names}
    night.shard("a", pa.table(table))
    swapped = [*names[:20], names[21], names[20], *names[22:]]
    night.shard("b", pa.table({name: table[name] for name in swapped}))
    with pytest.raises(SchemaError, match=r"number 21 is 'c21' and not 'c20'"):
        night.score(saved(powers(30), night.folder / "m.keras"))


def test_one_more_number_in_a_later_shard_is_refused(night: Night, model: Path) -> None:
    night.shard("a", rows(*NAMES))
    night.shard("b", rows(*NAMES, label=pa.array([1.0])))
    with pytest.raises(SchemaError, match=r"besides \[label\], which could feed the model as well in 1 of 2"):
        night.score(model, "--keys=id")
    night.score(model, "--keys=id", "--ignore=label")
    assert predictions(night.output) == [RIGHT] * 2


def of_night(night: Night, model: Path, ds: str, *flags: str) -> Any:
    shards, output = f"--input={night.folder}/in/ds={{ds}}", f"--output={night.folder}/out/ds={{ds}}"
    return main.main(["score", shards, f"--model={model}", output, "--keys=id", f"--ds={ds}", *flags])


@pytest.mark.parametrize(
    "second",
    [
        rows(*NAMES[::-1]),
        # One dropped, and another that has nothing to do with it: as many as before.
        rows("f0", "f1", "f2", unrelated=pa.array([9.0], pa.float32())),
    ],
    ids=["reversed", "another_column"],
)
def test_another_order_than_last_night_is_refused_like_a_gate(
    night: Night, model: Path, second: pa.Table, capfd: pytest.CaptureFixture[str]
) -> None:
    night.shard("ds=2026-01-01/a", rows(*NAMES))
    night.shard("ds=2026-01-03/a", second)
    assert of_night(night, model, "2026-01-01") == 0
    assert "model inputs: f0, f1, f2, f3 → " in capfd.readouterr().err
    # The 2nd is missing: the last published night is the 1st.
    assert of_night(night, model, "2026-01-03") == 5
    err = capfd.readouterr().err
    assert "these did: f0, f1, f2, f3" in err
    assert f"{night.folder}/out/ds=2026-01-01" in err
    assert f"--features={','.join(second.column_names[1:])}" in err
    assert not (night.folder / "out" / "ds=2026-01-03" / "_SUCCESS").exists()
    assert of_night(night, model, "2026-01-03", f"--features={','.join(second.column_names[1:])}") == 0


def test_the_same_order_as_last_night_is_published(night: Night, model: Path) -> None:
    for day in ("2026-01-01", "2026-01-02"):
        night.shard(f"ds={day}/a", rows(*NAMES))
        assert of_night(night, model, day) == 0
    assert predictions(night.folder / "out") == [RIGHT] * 2


def test_a_night_that_takes_the_place_of_another_is_compared_with_that(night: Night, model: Path) -> None:
    night.shard("a", rows(*NAMES))
    night.score(model, "--keys=id")
    before = (night.output / "_manifest.json").read_bytes()
    night.shard("a", rows(*NAMES[::-1]))
    with pytest.raises(GateError, match="these did: f0, f1, f2, f3"):
        night.score(model, "--keys=id", "--if_exists=replace")
    assert (night.output / "_manifest.json").read_bytes() == before
    night.score(model, "--keys=id", "--if_exists=replace", "--features=f0,f1,f2,f3")
    assert predictions(night.output) == [RIGHT]


def test_a_manifest_of_before_says_nothing_of_columns(night: Night, model: Path) -> None:
    night.shard("a", rows(*NAMES))
    night.score(model, "--keys=id")
    manifest = night.output / "_manifest.json"
    told = json.loads(manifest.read_text())
    assert told["scoring"]["feeds"][0]["columns"] == list(NAMES)
    assert told["scoring"]["fed_by"] == "position"
    del told["scoring"]["fed_by"]
    manifest.write_text(json.dumps(told))
    night.shard("a", rows(*NAMES, x=pa.array(["text"])))
    night.score(model, "--keys=id", "--if_exists=replace")
    assert predictions(night.output) == [RIGHT]


def test_what_fed_the_model_stands_in_report_and_page(night: Night, model: Path) -> None:
    night.shard("a", rows(*NAMES))
    report = night.score(model, "--keys=id")
    told = json.loads((night.output / "_report.json").read_text())
    assert told["fed_by"] == "position"
    assert told["feeds"][0]["columns"] == list(NAMES)
    assert "f0, f1, f2, f3 → " in report.lines()["model inputs"]
    assert report.lines()["model inputs"].endswith("float32 (4,) by position")
    page = (night.output / "_report.html").read_text()
    assert "f0, f1, f2, f3 → " in page


def keep_names(model: Path, names: Any) -> None:
    """As docs/binding.md says."""
    with zipfile.ZipFile(model, "a") as archive:
        archive.writestr("assets/feature_names.json", json.dumps(names))


def test_names_in_the_model_win_over_places(night: Night, model: Path) -> None:
    keep_names(model, NAMES)
    night.shard("a", rows(*NAMES[::-1], label=pa.array([1.0])))
    night.shard("b", rows(*NAMES))
    report = night.score(model, "--keys=id")
    assert predictions(night.output) == [RIGHT] * 2
    assert report.fed_by == "name"


def test_a_column_that_the_model_names_must_be_there(night: Night, model: Path) -> None:
    keep_names(model, ["f0", "f1", "f2", "F3"])
    night.shard("a", rows(*NAMES))
    with pytest.raises(SchemaError, match=r"the model's file names column 'F3', which is absent .*'f3'"):
        night.score(model, "--keys=id")
    night.score(model, "--keys=id", "--features=f0,f1,f2,f3")
    assert predictions(night.output) == [RIGHT]


@pytest.mark.parametrize(
    ("names", "told"),
    [
        ({"f0": 1}, "no list of names"),
        (["f0", "f0", "f1", "f2"], "holds a name twice"),
        (["f0", 1], "no list of names"),
    ],
)
def test_names_in_the_model_that_are_none(night: Night, model: Path, names: Any, told: str) -> None:
    keep_names(model, names)
    night.shard("a", rows(*NAMES))
    with pytest.raises(ModelError, match=told):
        night.score(model, "--keys=id")


def test_too_few_names_in_the_model(night: Night, model: Path) -> None:
    keep_names(model, ["f0", "f1"])
    night.shard("a", rows(*NAMES))
    with pytest.raises(SchemaError, match="the model's file names 2 columns for model input"):
        night.score(model, "--keys=id")


def test_names_beside_a_saved_model(night: Night) -> None:
    folder = night.folder / "exported"
    powers().export(folder, verbose=False)
    (folder / "assets.extra").mkdir()
    (folder / "assets.extra" / "feature_names.json").write_text(json.dumps(NAMES))
    night.shard("a", rows(*NAMES[::-1]))
    night.score(folder, "--keys=id")
    assert predictions(night.output) == [RIGHT]


def test_names_that_a_builder_sets(night: Night, monkeypatch: pytest.MonkeyPatch) -> None:
    program = (
        "import keras, numpy as np\n"
        "def build():\n"
        "    m = keras.Sequential([keras.Input((4,)), keras.layers.Dense(1, use_bias=False)])\n"
        "    m.set_weights([10.0 ** np.arange(4).reshape(-1, 1)])\n"
        f"    m.feature_names = {list(NAMES)}\n"
        "    return m\n"
    )
    (night.folder / "positions_builder.py").write_text(program)
    monkeypatch.syspath_prepend(str(night.folder))
    night.shard("a", rows(*NAMES[::-1]))
    night.score("positions_builder:build", "--keys=id")
    assert predictions(night.output) == [RIGHT]


def test_an_index_of_pandas_is_no_feature_unless_it_is_named(night: Night) -> None:
    frame = pd.DataFrame({name: np.ones(10) for name in ("a", "b", "c")}).iloc[[0, 1, 4, 7, 9]]
    (night.folder / "in").mkdir(exist_ok=True)
    frame.to_parquet(night.folder / "in" / "a.parquet")
    frame.rename_axis("row").to_parquet(night.folder / "in" / "b.parquet")
    assert {"__index_level_0__", "row"} <= {
        name for path in (night.folder / "in").iterdir() for name in pq.read_schema(path).names
    }
    ones = keras.Sequential(
        [keras.Input((3,)), keras.layers.Dense(1, use_bias=False, kernel_initializer="ones")]
    )
    path = saved(ones, night.folder / "ones.keras")
    night.score(path)
    assert set(predictions(night.output)) == {3.0}
    (night.folder / "in" / "b.parquet").unlink()
    night.score(path, "--features=__index_level_0__,a,b", "--if_exists=replace")
    assert predictions(night.output) == [2.0, 3.0, 6.0, 9.0, 11.0]


def test_what_is_ignored_must_be_there_and_of_no_other_use(night: Night, model: Path) -> None:
    night.shard("a", rows(*NAMES, label=pa.array([1.0])))
    with pytest.raises(SchemaError, match=r"--ignore names 'Label', which is no column .*'label'"):
        night.score(model, "--keys=id", "--ignore=Label")
    for flag in ("--keys=id,label", "--features=f0,f1,f2,label", "--cast=label=int64"):
        with pytest.raises(UsageError, match=r"--ignore=label: also in --"):
            night.score(model, flag, "--ignore=label")
    named = keras.Input((1,), name="label")
    takes_label = saved(keras.Model({"label": named}, named * 1.0), night.folder / "n.keras")
    with pytest.raises(SchemaError, match="which the model takes by this name"):
        night.score(takes_label, "--ignore=label")


def test_what_is_ignored_is_part_of_the_run_and_its_absence_is_not(night: Night, model: Path) -> None:
    night.shard("a", rows(*NAMES, label=pa.array(["x"])))
    one = night.score(model, "--keys=id")
    assert night.score(model, "--keys=id", "--ignore=label", "--if_exists=replace").run_id != one.run_id


@pytest.mark.parametrize(
    ("columns", "told"),
    [
        # The label is one too many.
        (
            {"my label": pa.array([1.0])},
            r"5 columns of one value .*leave out those that are no features, as in --ignore='my label'",
        ),
        # A text is in the way of three numbers.
        (
            {"f3": pa.array(["4"])},
            r"column 'f3' does not fit \(string where float32 is wanted\); --cast=f3=float32 reads",
        ),
        # A list is, and no cast makes a number of it.
        (
            {"f3": pa.array([[1.0, 2.0]], pa.list_(pa.float32(), 2))},
            r"column 'f3' does not fit \(cells of shape \(2,\) where \(4,\) is wanted\); name the model's",
        ),
    ],
    ids=["label", "text", "list"],
)
def test_the_one_column_in_the_way_is_named_with_what_mends_it(
    night: Night, model: Path, columns: dict[str, Any], told: str
) -> None:
    table = {**dict(zip(rows(*NAMES).column_names, rows(*NAMES).columns, strict=True)), **columns}
    night.shard("a", pa.table(table))
    with pytest.raises(SchemaError, match=told):
        night.score(model, "--keys=id")


def test_a_flag_from_a_message_can_be_pasted(night: Night, model: Path) -> None:
    table = rows(*NAMES).rename_columns(["id", "f0", "f 1", 'f,"2', "it's"])
    night.shard("a", table)
    night.shard("b", table.select(["id", "it's", 'f,"2', "f 1", "f0"]))
    with pytest.raises(SchemaError) as caught:
        night.score(model, "--keys=id")
    import shlex

    flag = str(caught.value)[str(caught.value).index("--features=") :]
    (word,) = shlex.split(flag)
    night.score(model, "--keys=id", word)
    assert set(predictions(night.output)) <= {RIGHT, 1234.0}
    assert len(set(predictions(night.output))) == 1


@pytest.mark.parametrize("split_alone", [True, False], ids=["one_split", "all_together"])
def test_too_many_rejected_rows_show_the_first_and_how_nulls_are_filled(
    night: Night, model: Path, split_alone: bool
) -> None:
    values = [None if i in (3, 5) else float(i) for i in range(40)]
    columns = {name: pa.array(np.arange(40), pa.float32()) for name in NAMES[:3]}
    night.shard("a", pa.table({"id": range(40), **columns, "f3": pa.array(np.arange(40), pa.float32())}))
    night.shard("b", pa.table({"id": range(40), **columns, "f3": pa.array(values, pa.float32())}))
    night.shard("c", pa.table({"id": range(40), **columns, "f3": pa.array(values, pa.float32())}))
    # Two of 120 rows are more than 1 %; four are more than 3 %, but no shard alone has them.
    limit = "0.01" if split_alone else "0.03"
    with pytest.raises(DataError) as caught:
        night.score(model, "--keys=id", f"--max_rejected={limit}")
    text = str(caught.value)
    assert f"{night.folder}/in/b.parquet" in text
    assert re.search(r"first (\S+: )?row 3: column f3: null in a model input", text)
    assert "--on_null=fill=0" in text
    night.score(model, "--keys=id", "--on_null=fill=0")
    assert len(predictions(night.output)) == 120


def test_nights_of_one_backfill_are_compared_with_each_other(
    night: Night, model: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """They are prepared together, when the first of them is not published yet."""
    for number, order in enumerate((NAMES, NAMES[::-1], NAMES)):
        night.shard(f"ds=2026-01-0{number + 1}/a", rows(*order))
    paths = [f"--input={night.folder}/in/ds={{ds}}", f"--output={night.folder}/out/ds={{ds}}"]
    nights = ["--keys=id", "--start=2026-01-01", "--end=2026-01-03"]
    assert main.main(["backfill", *paths, f"--model={model}", *nights]) == 5
    told = " ".join("".join(capfd.readouterr()).split())
    assert "these did: f0, f1, f2, f3" in told
    assert predictions(night.folder / "out") == [RIGHT] * 2
    assert not (night.folder / "out" / "ds=2026-01-02" / "_SUCCESS").exists()
    assert of_night(night, model, "2026-01-02", "--features=f0,f1,f2,f3") == 0
    assert predictions(night.folder / "out") == [RIGHT] * 3


def test_so_are_their_challengers(night: Night, model: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """The champion's columns are told by name; those of its challenger are not."""
    for number, order in enumerate((NAMES, NAMES[::-1], NAMES)):
        night.shard(f"ds=2026-01-0{number + 1}/a", rows(*order))
    named = saved(powers(), night.folder / "named.keras")
    keep_names(named, NAMES)
    paths = [f"--input={night.folder}/in/ds={{ds}}", f"--output={night.folder}/out/ds={{ds}}"]
    nights = ["--keys=id", "--start=2026-01-01", "--end=2026-01-03"]
    models = [f"--model={named}", f"--challenger={model}"]
    assert main.main(["backfill", *paths, *models, *nights]) == 5
    # In a table, whose cells break anywhere.
    told = "".join("".join(capfd.readouterr()).split())
    assert re.search(r"--challenger=\S*m\.keras:columnsfeed.*thesedid:f0,f1,f2,f3", told)
    assert "give--challenger_features" in told
    assert not (night.folder / "out" / "ds=2026-01-02" / "_SUCCESS").exists()
    # The last column is the challenger's.
    assert predictions(night.folder / "out") == [RIGHT] * 2


def test_the_first_night_of_all_is_compared_with_the_one_that_it_replaces(
    night: Night, model: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    night.shard("ds=2026-01-01/a", rows(*NAMES))
    assert of_night(night, model, "2026-01-01") == 0
    night.shard("ds=2026-01-01/a", rows(*NAMES[::-1]))
    assert of_night(night, model, "2026-01-01", "--if_exists=replace") == 5
    assert f"in the last published night, {night.folder}/out/ds=2026-01-01," in capfd.readouterr().err
    assert predictions(night.folder / "out") == [RIGHT]


def test_where_many_columns_part_from_last_nights_is_told(night: Night) -> None:
    names = [f"c{i}" for i in range(30)]
    path = saved(powers(30), night.folder / "wide.keras")
    night.shard("a", pa.table({name: pa.array([1.0], pa.float32()) for name in names}))
    night.score(path)
    names[20:22] = names[21], names[20]
    night.shard("a", pa.table({name: pa.array([1.0], pa.float32()) for name in names}))
    with pytest.raises(GateError, match=r"number 21 is 'c21' and was 'c20'"):
        night.score(path, "--if_exists=replace")


def test_a_challenger_by_position_is_compared_with_last_nights(
    night: Night, model: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    keep_names(model, NAMES)
    challenger = saved(powers(), night.folder / "c.keras")
    for number, order in enumerate((NAMES, NAMES[::-1])):
        night.shard(f"ds=2026-01-0{number + 1}/a", rows(*order))
    assert of_night(night, model, "2026-01-01", f"--challenger={challenger}") == 0
    assert "challenger inputs: f0, f1, f2, f3 → " in capfd.readouterr().err
    assert of_night(night, model, "2026-01-02", f"--challenger={challenger}") == 5
    assert "--challenger_features=f3,f2,f1,f0" in capfd.readouterr().err
    right = f"--challenger_features={','.join(NAMES)}"
    assert of_night(night, model, "2026-01-02", f"--challenger={challenger}", right) == 0
    assert predictions(night.folder / "out") == [RIGHT] * 2


@pytest.mark.parametrize("list_first", [True, False])
def test_a_list_beside_numbers_that_would_do_as_well_is_refused(
    night: Night, model: Path, list_first: bool
) -> None:
    vector = pa.array([[9.0] * 4], pa.list_(pa.float32(), 4))
    alone = pa.table({"id": [7], "v": vector}) if list_first else rows(*NAMES)
    night.shard("a", alone)
    night.shard("b", rows(*NAMES, v=vector))
    with pytest.raises(SchemaError, match=r"besides \[.*\], which could feed the model as well in 1 of 2"):
        night.score(model, "--keys=id")


@pytest.mark.parametrize(
    "content",
    [
        b'{"index_columns": 5}',
        b'{"index_columns": [["a"]]}',
        b'{"index_columns": null}',
        b"[" * 200_000,
        b"\xff",
    ],
    ids=["number", "lists", "null", "deep", "no_text"],
)
def test_whatever_stands_where_pandas_writes_is_no_error_of_the_rows(
    night: Night, model: Path, content: bytes
) -> None:
    night.shard("a", rows(*NAMES).replace_schema_metadata({b"pandas": content}))
    night.score(model, "--keys=id")
    assert predictions(night.output) == [RIGHT]


def test_names_in_the_model_that_are_nested_without_end(night: Night, model: Path) -> None:
    with zipfile.ZipFile(model, "a") as archive:
        archive.writestr("assets/feature_names.json", "[" * 200_000)
    night.shard("a", rows(*NAMES))
    with pytest.raises(ModelError, match="no JSON"):
        night.score(model, "--keys=id")


def test_filling_is_offered_only_where_it_helps(night: Night, model: Path) -> None:
    """Of a list that is null nobody knows the values: ``--on_null=fill`` leaves it rejected."""
    vectors = pa.array([[1.0, 2.0, 3.0, 4.0], None], pa.list_(pa.float32()))
    night.shard("a", pa.table({"id": [1, 2], "v": vectors}))
    for policy in ("--on_null=reject", "--on_null=fill=0"):
        with pytest.raises(DataError, match=r"row 1: column v: .*null") as caught:
            night.score(model, "--keys=id", policy)
        assert "fill=0 would" not in str(caught.value)


def test_a_null_that_fails_the_night_tells_how_it_is_filled(night: Night, model: Path) -> None:
    table = rows(*NAMES).set_column(1, "f0", pa.nulls(1, pa.float32()))
    night.shard("a", table)
    with pytest.raises(DataError, match=r"row 0: column f0: null .*--on_null=fill=0 would"):
        night.score(model, "--keys=id", "--on_null=fail")


def test_a_column_that_is_called_as_keras_calls_the_input_is_ignored_or_told(night: Night) -> None:
    """Keras gives an input the name ``x`` here; nobody asked for the column."""
    lists = pa.array([[1.0, 2.0, 3.0, 4.0]], pa.list_(pa.float32(), 4))
    night.shard("a", pa.table({"id": pa.array([1]), "x": lists, "y": lists}))
    unnamed = saved(
        keras.Sequential([keras.Input((4,), name="x"), keras.layers.Dense(1)]), night.folder / "m.keras"
    )
    with pytest.raises(SchemaError, match="--ignore names 'x', which the model takes by this name"):
        night.score(unnamed, "--keys=id", "--ignore=x")
    night.score(unnamed, "--keys=id", "--ignore=x", "--features=y")
