"""Columns that real shards have: many of them, two of one name, and some that hold nothing but nulls."""

from __future__ import annotations

import cProfile
import pstats
from typing import Any

import keras
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from job.errors import SchemaError
from job.scoring.split import score_split
from tests.support.nights import Night, saved


def ones(width: int) -> Any:
    layer = keras.layers.Dense(1, use_bias=False, kernel_initializer="ones")
    return keras.Sequential([keras.Input((width,)), layer])


def predictions(night: Night) -> list[float]:
    files = [path for path in sorted(night.output.rglob("*.parquet")) if "/_" not in str(path)]
    return [value for path in files for value in pq.read_table(path).column(-1).to_pylist()]


def rejected(night: Night) -> list[pa.Table]:
    return [pq.ParquetFile(file).read() for file in sorted((night.output / "_rejected").rglob("*.rejected"))]


def twice(ids: list[int], values: list[float | None]) -> pa.Table:
    text = pa.array([f"a{i}" for i in ids])
    columns = [pa.array(ids), pa.array(values, pa.float32()), text, pa.array([7 * i for i in ids])]
    return pa.Table.from_arrays(columns, names=["id", "x", "n", "n"])


def test_two_columns_of_one_name_are_both_kept_beside_a_rejected_row(night: Night) -> None:
    night.shard("a", twice(list(range(300)), [None, *[1.5] * 299]))
    night.score(saved(ones(1), night.folder / "m.keras"), "--keys=id", "--features=x")
    assert predictions(night) == [1.5] * 299
    (table,) = rejected(night)
    assert table.column_names[:4] == ["id", "x", "n", "n.2"]
    assert table.select(["id", "n", "n.2"]).to_pylist() == [{"id": 0, "n": "a0", "n.2": 0}]


def test_two_columns_of_one_name_in_a_shard_that_is_rejected_whole(night: Night) -> None:
    night.shard("a", twice([1, 2], [1.0, 2.0]))
    text = pa.array(["one", "two"])
    both = [pa.array([3, 4]), text, text, pa.array(["n.2", "n.2"]), pa.array([1, 2])]
    night.shard("b", pa.Table.from_arrays(both, names=["id", "x", "n", "n.2", "n"]))
    path = saved(ones(1), night.folder / "m.keras")
    night.score(path, "--keys=id", "--features=x", "--on_bad_shard=reject", "--max_rejected=1")
    assert predictions(night) == [1.0, 2.0]
    (table,) = rejected(night)
    # A name that is there already is nobody else's.
    assert table.column_names[:5] == ["id", "x", "n", "n.2", "n.3"]
    assert table.column("n.3").to_pylist() == [1, 2]


def test_a_feature_that_is_there_twice_is_refused(night: Night) -> None:
    night.shard("a", twice([1], [1.0]))
    with pytest.raises(SchemaError, match="column 'n' occurs 2 times"):
        night.score(saved(ones(1), night.folder / "m.keras"), "--keys=id", "--features=n")


NOTHING = pa.nulls(3)
AS_CODES = pa.DictionaryArray.from_arrays(pa.array([None] * 3, pa.int32()), pa.array(["9"]))


@pytest.mark.parametrize("first", ["a", "z"], ids=["nulls_first", "nulls_last"])
@pytest.mark.parametrize(
    ("flag", "expected"),
    [
        ("--on_null=fill=5", [3.0] * 3 + [6.0] * 3),
        ("--on_null=reject", [3.0] * 3),
        ("--cast=b=float64", [3.0] * 3),
    ],
)
def test_a_column_of_nothing_but_nulls_fits_and_its_values_are_nulls(
    night: Night, first: str, flag: str, expected: list[float]
) -> None:
    one = pa.array([1.0] * 3)
    night.shard("m", pa.table({"id": range(3), "a": one, "b": pa.array([2.0] * 3)}))
    night.shard(first, pa.table({"id": range(3), "a": one, "b": NOTHING}))
    path = saved(ones(2), night.folder / "m.keras")
    night.score(path, "--keys=id", flag, "--max_rejected=1")
    assert sorted(predictions(night)) == expected


def test_a_column_of_nothing_but_nulls_is_not_taken_for_a_number(night: Night) -> None:
    night.shard("a", pa.table({"id": range(3), "a": pa.array([1.0] * 3), "b": NOTHING}))
    told = r"column 'b' does not fit \(all its values are null, which says nothing of their type\)"
    path = saved(ones(2), night.folder / "m.keras")
    with pytest.raises(SchemaError, match=told):
        night.score(path, "--keys=id")
    # Beside the columns that feed the model it is no rival of theirs.
    night.score(saved(ones(1), night.folder / "n.keras"), "--keys=id")
    assert predictions(night) == [1.0] * 3


def test_lists_of_nothing_but_nulls_are_rejected_as_nulls(night: Night) -> None:
    lists = pa.array([[1.0, 2.0]] * 3, pa.list_(pa.float32()))
    night.shard("a", pa.table({"id": range(3), "s": lists}))
    night.shard("b", pa.table({"id": range(3), "s": pa.array([[None, None]] * 3, pa.list_(pa.null()))}))
    report = night.score(saved(ones(2), night.folder / "m.keras"), "--keys=id", "--max_rejected=1")
    assert predictions(night) == [3.0] * 3
    assert report.reject_reasons == (("null", 3),)


def test_a_text_column_of_nothing_but_nulls_is_filled_with_text(night: Night) -> None:
    text = keras.Input((1,), dtype="string", name="t")
    lookup = keras.layers.StringLookup(vocabulary=["x", "y"])(text)
    path = saved(keras.Model({"t": text}, lookup), night.folder / "m.keras")
    night.shard("a", pa.table({"id": [0], "t": ["y"]}))
    night.shard("b", pa.table({"id": [1], "t": pa.nulls(1)}))
    night.score(path, "--keys=id", "--on_null=fill=x")
    assert predictions(night) == [2, 1]


def wide(columns: int, null: bool) -> pa.Table:
    values = np.ones(20, np.float32)
    table = {f"f{i}": pa.array(values) for i in range(columns)}
    if null:
        table["f3"] = pa.array([None, *values[1:]], pa.float32())
    return pa.table({"id": range(20), **table})


def calls_and_schemas(
    night: Night, columns: int, monkeypatch: pytest.MonkeyPatch, *, null: bool
) -> tuple[int, int]:
    """Return how many functions are called to score a split, and how often its file's schema is made."""
    night.shard("a", wide(columns, null), group_rows=5)
    names = ",".join(f"f{i}" for i in range(columns))
    path = saved(ones(columns), night.folder / f"m{columns}.keras")
    flags = ["--keys=id", f"--features={names}", "--max_rejected=1", "--batch_size=20"]
    planned = night.planned(path, *flags)
    made = []
    real = pq.ParquetFile.schema_arrow

    def counted(file: pq.ParquetFile) -> Any:
        made.append(file)
        return real.fget(file)

    with monkeypatch.context() as patch:
        patch.setattr(pq.ParquetFile, "schema_arrow", property(counted))
        # What is done once for a model is done.
        score_split(planned.splits[0], planned.task, planned.loaded)
        made.clear()
        with cProfile.Profile() as profile:
            receipt = score_split(planned.splits[0], planned.task, planned.loaded)
    assert (receipt.rows_scored, receipt.rows_rejected) == (20 - null, null)
    return pstats.Stats(profile).total_calls, len(made)  # type: ignore[attr-defined]


@pytest.mark.parametrize("null", [False, True], ids=["good", "with_a_bad_row"])
def test_twice_the_columns_are_twice_the_work(
    night: Night, monkeypatch: pytest.MonkeyPatch, null: bool
) -> None:
    few_calls, few_schemas = calls_and_schemas(night, 150, monkeypatch, null=null)
    calls, schemas = calls_and_schemas(night, 300, monkeypatch, null=null)
    assert calls <= 2.1 * few_calls
    # Each is as large as the file is wide.
    assert schemas == few_schemas <= 6
