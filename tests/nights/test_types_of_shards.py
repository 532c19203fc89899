"""Types that real shards have: INT96 times, JSON and UUID, fields of structs, keys of several text types."""

from __future__ import annotations

import datetime
import json
import struct
import uuid
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from job.cli import main
from job.errors import SchemaError, ShardError
from tests.support.nights import Night, saved

FAR = datetime.datetime(9999, 12, 31)
NEAR = datetime.datetime(2024, 1, 2, 3, 4, 5, 678901)


def ones(width: int) -> Any:
    layer = keras.layers.Dense(1, use_bias=False, kernel_initializer="ones")
    return keras.Sequential([keras.Input((width,)), layer])


@pytest.fixture
def model(night: Night) -> Path:
    return saved(ones(1), night.folder / "m.keras")


def int96(night: Night, name: str, table: pa.Table) -> Path:
    path = night.input / f"{name}.parquet"
    path.parent.mkdir(parents=True, exist_ok=True)
    # As Spark writes it: Arrow's own schema would not be there either.
    pq.write_table(table, path, use_deprecated_int96_timestamps=True, store_schema=False)
    leaf = pq.ParquetFile(path).schema
    assert "INT96" in {leaf.column(i).physical_type for i in range(len(leaf))}
    return path


def micros(*values: datetime.datetime | None) -> pa.Array:
    return pa.array(values, pa.timestamp("us"))


def rejected(night: Night) -> list[pa.Table]:
    return [pq.ParquetFile(file).read() for file in sorted((night.output / "_rejected").rglob("*.rejected"))]


@pytest.mark.parametrize("value", [FAR, datetime.datetime(1, 1, 1), datetime.datetime(1677, 1, 1), NEAR])
def test_int96_keys_are_published_with_the_year_that_they_have(
    night: Night, model: Path, value: datetime.datetime
) -> None:
    int96(night, "a", pa.table({"t": micros(value, None, NEAR), "x": pa.array([1.0, 2.0, 3.0])}))
    night.score(model, "--keys=t", "--features=x")
    published = night.scored()
    assert published.column("t").type == pa.timestamp("us")
    assert published.column("t").to_pylist() == [value, None, NEAR]
    assert main.main(["verify", str(night.output), "--sample_rows=all"]) == 0


def test_int96_and_other_timestamps_of_microseconds_are_one_key(night: Night, model: Path) -> None:
    table = pa.table({"t": micros(FAR), "x": pa.array([1.0])})
    int96(night, "a", table)
    night.shard("b", table)
    night.score(model, "--keys=t", "--features=x")
    assert pq.read_table(night.output).column("t").to_pylist() == [FAR, FAR]


def test_int96_beside_timestamps_of_nanoseconds_is_refused(night: Night, model: Path) -> None:
    table = pa.table({"t": micros(NEAR), "x": pa.array([1.0])})
    int96(night, "a", table)
    night.shard("b", table.set_column(0, "t", table.column("t").cast(pa.timestamp("ns"))))
    with pytest.raises(SchemaError, match=r"key t: timestamp\[ns\], but timestamp\[us\] in the first shard"):
        night.score(model, "--keys=t", "--features=x")


def within(times: pa.Array) -> dict[str, pa.Array]:
    """Keys of several types, of which each holds these timestamps."""
    texts = pa.array(["a"] * len(times))
    return {
        "a struct": pa.StructArray.from_arrays([times, texts], ["at", "by"]),
        "a list": pa.ListArray.from_arrays(list(range(len(times) + 1)), times),
        "a struct of lists": pa.StructArray.from_arrays(
            [pa.ListArray.from_arrays(list(range(len(times) + 1)), times)], ["at"]
        ),
    }


@pytest.mark.parametrize("form", within(micros(NEAR)))
def test_int96_within_a_key_is_compared_as_it_is_published(night: Night, model: Path, form: str) -> None:
    """Microseconds: beside these it is one key, and beside nanoseconds there would be files of two types."""
    x = pa.array([1.0])
    int96(night, "a", pa.table({"t": within(micros(FAR))[form], "x": x}))
    night.shard("b", pa.table({"t": within(nanos(7))[form], "x": x}))
    with pytest.raises(
        SchemaError, match=r"key t: .*timestamp\[ns\].*, but .*timestamp\[us\].* in the first"
    ):
        night.score(model, "--keys=t", "--features=x")
    table = pa.table({"t": within(micros(FAR))[form], "x": x})
    night.shard("b", table)
    night.score(model, "--keys=t", "--features=x")
    one, other = (pq.read_table(path).column("t") for path in sorted(night.output.glob("*.parquet")))
    assert one.type == other.type
    assert one.to_pylist() == other.to_pylist() == table.column("t").to_pylist()


def nanos(*values: int) -> pa.Array:
    return pa.array(values, pa.timestamp("ns"))


def test_an_int96_key_with_finer_digits_is_refused_and_not_rounded(night: Night, model: Path) -> None:
    int96(night, "a", pa.table({"t": nanos(1_000_000_001), "x": pa.array([1.0])}))
    with pytest.raises(ShardError, match=r"column 't', row group 0: .*00:00:01.000000001 has digits below"):
        night.score(model, "--keys=t", "--features=x")


@pytest.mark.parametrize("day", [2**31 - 1, -1])
@pytest.mark.parametrize("flags", [("--keys=t",), ()], ids=["key", "rejected"])
def test_an_int96_day_that_no_unit_of_microseconds_reaches_is_never_another(
    night: Night, model: Path, day: int, flags: tuple[str, ...]
) -> None:
    path = night.input / "a.parquet"
    path.parent.mkdir(parents=True)
    table = pa.table({"t": micros(datetime.datetime(2024, 1, 2)), "x": pa.array([None], pa.float64())})
    plain = {"compression": "none", "use_dictionary": False, "store_schema": False, "write_statistics": False}
    pq.write_table(table, path, use_deprecated_int96_timestamps=True, **plain)
    julian = (datetime.date(2024, 1, 2) - datetime.date(1970, 1, 1)).days + 2_440_588
    content = path.read_bytes()
    assert content.count(struct.pack("<qi", 0, julian)) == 1
    path.write_bytes(content.replace(struct.pack("<qi", 0, julian), struct.pack("<qi", 0, day)))
    if flags:
        with pytest.raises(ShardError, match=r"column 't', row group 0: .* lies beyond the 290,000 years"):
            night.score(model, *flags, "--features=x", "--max_rejected=1")
        return
    night.score(model, "--features=x", "--max_rejected=1")
    (rest,) = rejected(night)
    assert "t" not in rest.column_names
    assert json.loads(rest.schema.metadata[b"scoring_job.left_out"]) == ["t"]


def test_int96_that_feeds_a_model_is_nanoseconds_or_refused(night: Night) -> None:
    whole = keras.Input((1,), dtype="int64", name="t")
    path = saved(keras.Model({"t": whole}, whole + 1), night.folder / "t.keras")
    int96(night, "a", pa.table({"id": [1, 2], "t": nanos(1_000_000_001, -5)}))
    night.score(path, "--keys=id", "--cast=t=int64")
    assert night.scored().column(1).to_pylist() == [1_000_000_002, -4]
    int96(night, "b", pa.table({"id": [3], "t": micros(FAR)}))
    with pytest.raises(
        ShardError, match=r"column 't', row group 0: .* 9999-12-31 .* lies beyond the years 1677"
    ):
        night.score(path, "--keys=id", "--cast=t=int64", "--if_exists=replace")


def test_int96_within_lists_and_structs_keeps_its_years_beside_a_rejected_row(
    night: Night, model: Path
) -> None:
    lists = pa.array([[FAR, None], []], pa.list_(pa.timestamp("us")))
    structs = pa.array([{"t": FAR}, None], pa.struct([("t", pa.timestamp("us"))]))
    x = pa.array([None, 1.0])
    int96(night, "a", pa.table({"id": [1, 2], "l": lists, "s": structs, "x": x}))
    night.score(model, "--keys=id", "--features=x", "--max_rejected=1")
    (table,) = rejected(night)
    assert table.column("l").to_pylist() == [[FAR, None]]
    assert table.column("s").to_pylist() == [{"t": FAR}]


def test_rejected_int96_keeps_finer_digits_where_all_are_near(night: Night, model: Path) -> None:
    int96(night, "a", pa.table({"t": nanos(1_000_000_001, 7), "x": pa.array([None, 1.0])}))
    night.score(model, "--features=x", "--max_rejected=1")
    (table,) = rejected(night)
    assert table.column("t").cast(pa.int64()).to_pylist() == [1_000_000_001]


def test_rejected_int96_of_no_one_unit_is_left_out_and_named(night: Night, model: Path) -> None:
    path = night.input / "a.parquet"
    path.parent.mkdir(parents=True)
    table = pa.table({"t": micros(FAR, NEAR), "u": micros(NEAR, FAR), "x": pa.array([None, 1.0])})
    plain = {"compression": "none", "use_dictionary": False, "store_schema": False}
    pq.write_table(table.select(["t", "u", "x"]), path, use_deprecated_int96_timestamps=True, **plain)
    # Arrow writes a column from one unit, others do not: the first 2024 is a nanosecond later now. INT96 is
    # the nanoseconds of the day and its Julian number: https://github.com/apache/parquet-format/pull/49
    day = (NEAR.date() - datetime.date(1970, 1, 1)).days + 2_440_588
    of_day = int((NEAR - datetime.datetime(2024, 1, 2)).total_seconds() * 1_000_000) * 1000
    content = path.read_bytes()
    assert content.count(struct.pack("<qi", of_day, day)) >= 2
    path.write_bytes(content.replace(struct.pack("<qi", of_day, day), struct.pack("<qi", of_day + 1, day), 1))
    night.score(model, "--features=x", "--max_rejected=1")
    (rest,) = rejected(night)
    assert "t" not in rest.column_names
    assert rest.column("u").to_pylist() == [NEAR]
    assert json.loads(rest.schema.metadata[b"scoring_job.left_out"]) == ["t"]
    with pytest.raises(ShardError, match=r"column 't', row group 0: .*678901001 has digits below"):
        night.score(model, "--keys=t", "--features=x", "--max_rejected=1", "--if_exists=replace")


def test_json_and_uuid_columns_feed_text(night: Night) -> None:
    ids = [uuid.UUID(int=i * 2**100 + 5) for i in range(3)]
    kinds = {
        "u": pa.ExtensionArray.from_storage(pa.uuid(), pa.array([i.bytes for i in ids], pa.binary(16))),
        "j": pa.ExtensionArray.from_storage(pa.json_(), pa.array(['{"a": 1}', "{}", None])),
    }
    inputs = {name: keras.Input((1,), dtype="string", name=name) for name in kinds}
    codes = [
        keras.layers.StringLookup(vocabulary=[str(i) for i in ids])(inputs["u"]),
        keras.layers.StringLookup(vocabulary=['{"a": 1}', "{}"])(inputs["j"]),
    ]
    path = saved(keras.Model(inputs, keras.layers.Concatenate()(codes)), night.folder / "m.keras")
    night.shard("a", pa.table({"u": kinds["u"], "j": kinds["j"]}))
    night.score(path, "--keys=u,j", "--on_null=fill={}")
    published = night.scored()
    assert published.column(2).to_pylist() == [[1, 1], [2, 2], [3, 2]]
    assert published.column("u").to_pylist() == ids


def test_fields_of_structs_are_features_by_their_dotted_names(night: Night) -> None:
    inner = pa.struct([("a", pa.float64()), ("deep", pa.struct([("b", pa.float32())]))])
    structs = [{"a": 1.0, "deep": {"b": 2.0}}, {"a": 3.0, "deep": None}, None, {"a": 5.0, "deep": {"b": 6.0}}]
    night.shard("a", pa.table({"id": range(4), "f": pa.array(structs, inner)}))
    path = saved(ones(2), night.folder / "m.keras")
    report = night.score(path, "--keys=id", "--features=f.a,f.deep.b", "--max_rejected=1")
    assert dict(zip(*night.scored().to_pydict().values(), strict=True)) == {0: 3.0, 3: 11.0}
    assert report.reject_reasons == (("null", 2),)
    (table,) = rejected(night)
    assert table.column("f").to_pylist() == structs[1:3]
    # The whole struct may be a key as well.
    night.score(path, "--keys=id,f", "--features=f.a,f.deep.b", "--on_null=fill=0", "--if_exists=replace")
    assert night.scored().column("f").to_pylist() == structs
    assert night.scored().column(2).to_pylist() == [3.0, 3.0, 0.0, 11.0]


def test_a_column_of_a_dotted_name_comes_before_a_field(night: Night, model: Path) -> None:
    structs = pa.array([{"a": 1.0}], pa.struct([("a", pa.float64())]))
    night.shard("a", pa.table({"f": structs, "f.a": pa.array([7.0])}))
    night.score(model, "--features=f.a")
    assert night.scored().column(0).to_pylist() == [7.0]


def test_a_field_that_is_none_is_told(night: Night, model: Path) -> None:
    night.shard("a", pa.table({"f": pa.array([{"a": 1.0}]), "g": pa.array([1.0])}))
    for name in ("f.b", "g.a", "f.a.b"):
        with pytest.raises(SchemaError, match=f"--features names '{name}', which is no column"):
            night.score(model, f"--features={name}")


TEXTS = [
    pa.string(),
    pa.large_string(),
    pa.string_view(),
    pa.dictionary(pa.int32(), pa.string()),
    pa.dictionary(pa.int8(), pa.large_string()),
]


def test_keys_of_several_text_types_are_one_in_the_night(night: Night, model: Path) -> None:
    for number, kind in enumerate(TEXTS):
        text = pa.array([f"k{number}", None])
        if pa.types.is_dictionary(kind):
            text = text.cast(kind.value_type).dictionary_encode().cast(kind)
        night.shard(f"s{number}", pa.table({"k": text.cast(kind), "x": pa.array([1.0, 2.0])}))
    night.shard("s9", pa.table({"k": pa.nulls(2), "x": pa.array([1.0, 2.0])}))
    night.score(model, "--keys=k", "--features=x")
    read = pq.read_table(night.output)
    assert read.column("k").type == pa.string()
    assert sorted(read.column("k").drop_null().to_pylist()) == ["k0", "k1", "k2", "k3", "k4"]
    assert main.main(["verify", str(night.output), "--sample_rows=all"]) == 0


def test_keys_of_one_type_stay_what_they_are(night: Night, model: Path) -> None:
    coded = pa.array(["a", "b", "a"]).dictionary_encode()
    night.shard("a", pa.table({"k": coded, "x": np.ones(3)}))
    night.shard("b", pa.table({"k": coded, "x": np.ones(3)}))
    night.score(model, "--keys=k", "--features=x")
    assert pq.read_schema(next(night.output.glob("a.parquet"))).field("k").type == coded.type


def test_a_number_key_that_is_null_in_a_shard_stays_a_number(night: Night, model: Path) -> None:
    night.shard("a", pa.table({"k": pa.nulls(1), "x": np.ones(1)}))
    night.shard("b", pa.table({"k": [7], "x": np.ones(1)}))
    night.score(model, "--keys=k", "--features=x")
    assert pq.read_table(night.output).column("k").to_pylist() == [None, 7]


def test_a_number_and_a_text_are_no_one_key(night: Night, model: Path) -> None:
    night.shard("a", pa.table({"k": [7], "x": np.ones(1)}))
    night.shard("b", pa.table({"k": ["7"], "x": np.ones(1)}))
    with pytest.raises(SchemaError, match="key k: string, but int64 in the first shard"):
        night.score(model, "--keys=k", "--features=x")


def test_views_as_polars_writes_them_are_features_and_keys_beside_bad_rows(night: Night) -> None:
    text = keras.Input((1,), dtype="string", name="t")
    path = saved(
        keras.Model({"t": text}, keras.layers.StringLookup(vocabulary=["x", "y"])(text)),
        night.folder / "m.keras",
    )
    view = pa.string_view()
    columns = {"k": ["a", "b", "c"], "t": ["x", None, "y"]}
    night.shard("a", pa.table({name: pa.array(values).cast(view) for name, values in columns.items()}))
    assert pq.read_schema(night.input / "a.parquet").field("k").type == view
    night.score(path, "--keys=k", "--max_rejected=1")
    assert night.scored().to_pydict() == {"k": ["a", "c"], night.scored().column_names[1]: [1, 2]}
    (table,) = rejected(night)
    assert table.select(["k", "t"]).to_pylist() == [{"k": "b", "t": None}]
    assert main.main(["verify", str(night.output), "--sample_rows=all"]) == 0
