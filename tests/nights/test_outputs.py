"""What ``score`` publishes: keys as they were, Hive folders, names, metadata, row groups."""

from __future__ import annotations

import hashlib
from datetime import date, datetime, time, timedelta
from decimal import Decimal
from typing import Any
from urllib.parse import quote

import keras
import numpy as np
import pyarrow as pa
import pyarrow.dataset
import pyarrow.parquet as pq
import pytest

from tests.support.nights import Night, dense, features, matrix, saved

MOMENT = datetime(2013, 12, 1, 23, 59, 59, 123456)

# Type and two values each; a third is null wherever the type may be.
KEYS: dict[str, tuple[pa.DataType, list[Any]]] = {
    "int8": (pa.int8(), [-128, 127]),
    "uint64": (pa.uint64(), [0, 2**64 - 1]),
    "float16": (pa.float16(), [np.float16(0.5), np.float16(-2)]),
    "float64": (pa.float64(), [0.1, float("inf")]),
    "bool": (pa.bool_(), [True, False]),
    "string": (pa.string(), ["São Paulo", ""]),
    "large_string": (pa.large_string(), ["a", "b" * 300]),
    "string_view": (pa.string_view(), ["a", "b" * 300]),
    "binary": (pa.binary(), [b"\x00\xff", b""]),
    "fixed_binary": (pa.binary(3), [b"abc", b"\x00\x00\x00"]),
    "date": (pa.date32(), [date(1, 1, 1), date(9999, 12, 31)]),
    "time": (pa.time64("us"), [time(0), time(23, 59, 59, 999999)]),
    "timestamp": (pa.timestamp("us"), [MOMENT, datetime(1900, 1, 1)]),
    "timestamp_tz": (pa.timestamp("ns", tz="Europe/Rome"), [MOMENT, datetime(1970, 1, 1)]),
    "duration": (pa.duration("ms"), [timedelta(days=3), timedelta(seconds=-1)]),
    "decimal": (pa.decimal128(38, 10), [Decimal("-12345678901234567890.5"), Decimal(0)]),
    "decimal256": (pa.decimal256(60, 2), [Decimal("1e40"), Decimal("-0.01")]),
    "dictionary": (pa.dictionary(pa.int32(), pa.string()), ["x", "y"]),
    "ordered": (pa.dictionary(pa.int8(), pa.string(), ordered=True), ["x", "y"]),
    "list": (pa.list_(pa.int64()), [[1, None], []]),
    "large_list": (pa.large_list(pa.string()), [["a"], [None]]),
    "fixed_list": (pa.list_(pa.float32(), 2), [[1, 2], [3, 4]]),
    "struct": (
        pa.struct([("a", pa.int64()), ("b", pa.string())]),
        [{"a": 1, "b": None}, {"a": None, "b": "x"}],
    ),
    "map": (pa.map_(pa.string(), pa.int64()), [[("a", 1)], []]),
}


def keyed(rows: int = 100) -> pa.Table:
    table = features(rows)
    for name, (kind, values) in KEYS.items():
        # Arrow writes nulls among fixed-size lists and cannot read them back.
        cells = (values if name == "fixed_list" else [*values, None]) * rows
        table = table.append_column(name, pa.array(cells[:rows], kind))
    table = table.append_column(pa.field("required", pa.int64(), nullable=False), pa.array(range(rows)))
    tensors = pa.FixedShapeTensorArray.from_numpy_ndarray(np.arange(rows * 6.0).reshape(rows, 2, 3))
    described = pa.field("described", pa.string(), metadata={"unit": "m"})
    return table.append_column("tensor", tensors).append_column(described, pa.array(["a"] * rows))


def test_keys_of_every_type_are_carried_unchanged(night: Night) -> None:
    shard = night.shard("a", keyed(), group_rows=7)
    keys = [*KEYS, "required", "tensor", "described"]
    path = saved(dense(), night.folder / "m.keras")
    flags = ["--features=f0,f1,f2,f3", f"--keys={','.join(keys)}", "--batch_size=16", "--row_group_rows=30"]
    night.score(path, *flags)
    expected = pq.ParquetFile(shard).read().select(keys)
    (part,) = night.files()
    found = pq.ParquetFile(part).read().select(keys)
    for name in keys:
        assert found.schema.field(name).equals(expected.schema.field(name), check_metadata=False), name
        assert found.column(name).to_pylist() == expected.column(name).to_pylist(), name
    assert found.schema.field("described").metadata[b"unit"] == b"m"


def test_no_keys_leave_the_predictions_alone(night: Night) -> None:
    night.shard("a", features(10).drop_columns(["id"]))
    night.score(saved(dense(), night.folder / "m.keras"))
    assert night.scored().column_names == ["prediction"]


def test_a_feature_may_be_a_key_as_well(night: Night) -> None:
    table = features(10)
    night.shard("a", table)
    night.score(saved(dense(), night.folder / "m.keras"), "--keys=f2,id", "--features=f0,f1,f2,f3")
    scored = night.scored()
    assert scored.column_names == ["f2", "id", "prediction"]
    assert scored.column("f2").equals(table.column("f2"))


def hive(night: Night) -> tuple[list[pa.Table], Any]:
    """Three shards of one name in folders by day and hour; the hour is a feature."""
    tables = []
    for i, (day, hour) in enumerate((("2013-12-01", 7), ("2013-12-01", 23), ("2013-12-02", 7))):
        tables.append(features(40 + i, 3, seed=i, first_id=1000 * i))
        night.shard(f"ds={day}/hour={hour}/part", tables[-1])
    keras.utils.set_random_seed(0)
    inputs = [keras.Input((1,), name=name) for name in ("f0", "f1", "f2", "hour")]
    score = keras.layers.Dense(1, name="score")(keras.layers.Concatenate()(inputs))
    return tables, keras.Model(inputs, score)


def test_hive_folders_are_features_and_keys(night: Night) -> None:
    tables, plain = hive(night)
    flags = ["--keys=ds,id", "--cast=hour=int64", "--batch_size=64"]
    night.score(saved(plain, night.folder / "m.keras"), *flags)
    names = [str(file.relative_to(night.output)) for file in night.files()]
    assert names == [
        "ds=2013-12-01/hour=23/part.parquet",
        "ds=2013-12-01/hour=7/part.parquet",
        "ds=2013-12-02/hour=7/part.parquet",
    ]
    for file, i, hour in zip(night.files(), (1, 0, 2), (23, 7, 7), strict=True):
        part = pq.ParquetFile(file).read()
        # The day is in the path, where every reader finds it: a second one in the file would clash.
        assert part.column_names == ["id", "score"]
        assert part.column("id").equals(tables[i].column("id"))
        rows = matrix(tables[i], ("f0", "f1", "f2"))
        fed = [*(rows[:, [j]] for j in range(3)), np.full((len(rows), 1), hour, np.float32)]
        expected = plain.predict(fed, batch_size=64, verbose=0)
        np.testing.assert_array_equal(part.column("score").to_numpy(), expected[:, 0])


def test_other_readers_see_the_night_with_its_folders_and_nothing_else(night: Night) -> None:
    tables, plain = hive(night)
    night.score(saved(plain, night.folder / "m.keras"), "--keys=ds,id", "--cast=hour=int64")
    ids = sorted(pa.concat_tables(tables).column("id").to_pylist())
    whole = pq.read_table(night.output)
    dataset = pyarrow.dataset.dataset(night.output, partitioning="hive", format="parquet").to_table()
    for read in (whole, dataset):
        assert sorted(read.column("id").to_pylist()) == ids
        assert sorted(read.column_names) == ["ds", "hour", "id", "score"]
        assert sorted(set(map(str, read.column("ds").to_pylist()))) == ["2013-12-01", "2013-12-02"]


def test_folders_with_odd_characters_are_kept_as_they_are_written(night: Night) -> None:
    folder = f"city={quote('São Paulo/Süd', safe='')}"
    city = keras.Input((), name="city", dtype="string")
    vocabulary = ["São Paulo/Süd", "__other__"]
    lookup = keras.layers.StringLookup(vocabulary=vocabulary, name="index")
    night.shard(f"{folder}/part", pa.table({"id": [1, 2]}))
    night.score(saved(keras.Model(city, lookup(city)), night.folder / "m.keras"), "--keys=id")
    (file,) = night.files()
    assert str(file.relative_to(night.output)) == f"{folder}/part.parquet"
    assert night.scored().column("index").to_pylist() == [1, 1]


def test_a_shard_with_a_name_as_long_as_names_may_be(night: Night) -> None:
    table = features(30)
    bad = table.column("f0").to_pylist()[:29]
    night.shard("x" * 247, table.set_column(1, "f0", pa.array([*bad, None], pa.float32())), group_rows=10)
    path = saved(dense(), night.folder / "m.keras")
    night.score(path, "--keys=id", "--split_rows=10", "--max_rejected=0.5")
    assert [len(file.name) for file in night.files()] == [180 + len("-00000-00000.parquet")] * 3
    assert night.scored().column("id").to_pylist() == list(range(29))
    (rejected,) = (night.output / "_rejected").iterdir()
    assert pq.read_table(rejected).column("id").to_pylist() == [29]


def test_shards_without_rows_are_files_without_rows(night: Night) -> None:
    night.shard("a", features(0))
    night.shard("b", features(5))
    night.shard("c", features(0))
    report = night.score(saved(dense(), night.folder / "m.keras"), "--keys=id")
    assert [pq.read_metadata(file).num_rows for file in night.files()] == [0, 5, 0]
    schemas = {str(pq.read_schema(file).remove_metadata()) for file in night.files()}
    assert schemas == {"id: int64\nprediction: float"}
    assert (report.splits, report.rows_scored) == (3, 5)


def test_a_night_without_any_row_is_published(night: Night) -> None:
    night.shard("a", features(0))
    assert night.score(saved(dense(), night.folder / "m.keras"), "--keys=id").rows_scored == 0
    assert (night.output / "_SUCCESS").exists()
    assert night.scored().num_rows == 0


def test_files_tell_which_run_and_model_made_them(night: Night) -> None:
    night.shard("a", features(10))
    path = saved(dense(), night.folder / "m.keras")
    report = night.score(path, "--keys=id")
    (file,) = night.files()
    metadata = pq.read_metadata(file).metadata
    assert metadata[b"scoring_job.run_id"].decode() == report.run_id
    assert metadata[b"scoring_job.model_sha256"].decode() == hashlib.sha256(path.read_bytes()).hexdigest()
    assert metadata[b"scoring_job.signature"].decode().endswith("→ prediction float32[1]")
    (entry,) = night.manifest()["files"]
    content = file.read_bytes()
    assert (entry["path"], entry["rows"], entry["bytes"]) == ("a.parquet", 10, len(content))
    assert entry["sha256"] == hashlib.sha256(content).hexdigest()
    assert entry["shard"] == str(night.input / "a.parquet")


@pytest.mark.parametrize("compression", ["zstd", "snappy", "none"])
def test_row_groups_compression_and_encoding_are_as_asked(night: Night, compression: str) -> None:
    night.shard("a", features(1050), group_rows=100)
    path = saved(dense(), night.folder / "m.keras")
    flags = ["--batch_size=64", "--row_group_rows=200", f"--compression={compression}"]
    night.score(path, "--keys=id", *flags)
    (file,) = night.files()
    metadata = pq.read_metadata(file)
    groups = [metadata.row_group(i) for i in range(metadata.num_row_groups)]
    assert [group.num_rows for group in groups] == [200] * 5 + [50]
    columns = [group.column(i) for group in groups for i in range(group.num_columns)]
    assert {c.compression for c in columns} == {
        "UNCOMPRESSED" if compression == "none" else compression.upper()
    }
    predictions = [c for c in columns if c.path_in_schema == "prediction"]
    assert len(predictions) == 6
    for column in predictions:
        assert not column.has_dictionary_page
        assert not any("DICTIONARY" in encoding for encoding in column.encodings)


def test_small_batches_still_make_one_row_group(night: Night) -> None:
    night.shard("a", features(1050), group_rows=100)
    night.score(saved(dense(), night.folder / "m.keras"), "--keys=id", "--batch_size=10")
    (file,) = night.files()
    assert pq.read_metadata(file).num_row_groups == 1


def test_a_shard_that_is_named_twice_is_scored_once(night: Night) -> None:
    shard = night.shard("a", features(10))
    listed = night.folder / "list.txt"
    listed.write_text(f"{shard}\n{night.input}\n")
    path = saved(dense(), night.folder / "m.keras")
    report = night.score(path, "--keys=id", f"--input=@{listed}", f"--input={night.input}/*.parquet")
    assert (report.shards, report.rows_scored) == (1, 10)
