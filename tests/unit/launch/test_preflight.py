"""What is refused before the first prediction, and what is not: names, Hive folders, casts."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import keras
import numpy as np
import pyarrow as pa
import pytest

from job.errors import SchemaError
from tests.support.nights import Night, dense, features, matrix, saved


def price_and_age(as_dict: bool) -> Any:
    """Ten times the price plus the age, whichever of the two was declared first."""
    inputs = {name: keras.Input((1,), name=name) for name in ("price", "age")}
    total = keras.layers.Identity(name="total")(inputs["price"] * 10.0 + inputs["age"])
    return keras.Model(inputs if as_dict else list(inputs.values()), total)


COSTS = pa.table({"cost": [3.0, 4.0], "years": [50.0, 60.0]})


def test_features_by_place_do_not_feed_a_dict_by_the_alphabet(night: Night) -> None:
    night.shard("a", COSTS)
    path = saved(price_and_age(as_dict=True), night.folder / "m.keras")
    with pytest.raises(SchemaError, match=r"names cost, years, .* no order, are age, price: rename the col"):
        night.score(path, "--features=cost,years")
    night.shard("a", COSTS.rename_columns(["price", "age"]))
    night.score(path, "--features=price,age")
    assert night.scored().column("total").to_pylist() == [80.0, 100.0]


def test_features_by_place_feed_a_list_in_its_order(night: Night) -> None:
    night.shard("a", COSTS)
    night.score(saved(price_and_age(as_dict=False), night.folder / "m.keras"), "--features=cost,years")
    assert night.scored().column("total").to_pylist() == [80.0, 100.0]


def test_features_by_place_do_not_feed_a_saved_model_of_several_inputs(night: Night) -> None:
    night.shard("a", COSTS)
    folder = night.folder / "exported"
    price_and_age(as_dict=True).export(folder, verbose=False)
    with pytest.raises(SchemaError, match="no order, are age, price"):
        night.score(folder, "--features=cost,years")


@pytest.fixture
def four(night: Night) -> Path:
    return saved(dense(4), night.folder / "m.keras")


def test_hive_folders_that_nobody_named_do_not_feed_the_model(night: Night, four: Path) -> None:
    night.shard("hour=7/a", features(20))
    night.score(four, "--keys=id")
    assert night.scored().num_rows == 20


def test_hive_folders_do_not_fill_up_a_model_that_is_wider(night: Night, four: Path) -> None:
    night.shard("hour=7/a", features(20, 3))
    with pytest.raises(SchemaError, match=r"3 columns of one value .* hour string \(left out\)"):
        night.score(four, "--keys=id")


def test_a_model_of_text_is_not_fed_with_hive_folders(night: Night) -> None:
    x = keras.Input((1,), name="i", dtype="string")
    lookup = keras.layers.StringLookup(vocabulary=["Rome", "2013-12-01"], name="index")
    night.shard("ds=2013-12-01/a", pa.table({"city": ["Rome", "Oslo"]}))
    night.score(saved(keras.Model(x, lookup(x)), night.folder / "m.keras"))
    assert night.scored().column("index").to_pylist() == [1, 0]


@pytest.mark.parametrize("hours", [("07", "10"), ("10", "11"), ("07",)], ids=" ".join)
def test_a_hive_folder_that_is_named_is_text_that_a_cast_makes_a_number(
    night: Night, four: Path, hours: tuple[str, ...]
) -> None:
    for i, hour in enumerate(hours):
        night.shard(f"hour={hour}/part-{i}", features(20, 3, seed=i))
    named = ["--keys=id", "--features=f0,hour,f1,f2"]
    with pytest.raises(SchemaError, match=r"'hour' string cannot feed .* float32 is wanted"):
        night.score(four, *named)
    night.score(four, *named, "--cast=hour=int64", "--batch_size=64")
    expected = []
    for i, hour in enumerate(hours):
        rows = matrix(features(20, 3, seed=i), ("f0", "f1", "f2"))
        fed = np.insert(rows, 1, float(hour), axis=1).astype(np.float32)
        expected += dense(4).predict(fed, batch_size=64, verbose=0)[:, 0].tolist()
    assert night.scored().column("prediction").to_pylist() == expected


MOMENT = 1_386_000_000
ONE = pa.array([MOMENT], pa.int64())


@pytest.mark.parametrize("other", ["ms", "us"])
def test_a_cast_column_has_one_unit_in_all_shards(night: Night, other: str) -> None:
    x = keras.Input((1,), name="at", dtype="int64")
    path = saved(keras.Model(x, keras.layers.Identity(name="y", dtype="int64")(x)), night.folder / "m.keras")
    for i, unit in enumerate(("s", "s", other, other)):
        night.shard(f"part-{i}", pa.table({"at": ONE.cast(pa.timestamp("s")).cast(pa.timestamp(unit))}))
    message = rf"'at', .* timestamp\[{other}\], but timestamp\[ms\] in the first .* 2 of 4 .*part-2\.parquet"
    # Parquet has no seconds: Arrow reads them back as milliseconds.
    if other == "ms":
        night.score(path, "--cast=at=int64")
        assert night.scored().column("y").to_pylist() == [MOMENT * 1000] * 4
        return
    with pytest.raises(SchemaError, match=message):
        night.score(path, "--cast=at=int64")


def test_a_cast_column_may_be_dictionary_encoded_in_some_shards(night: Night) -> None:
    x = keras.Input((1,), name="n", dtype="int64")
    path = saved(keras.Model(x, keras.layers.Identity(name="y", dtype="int64")(x)), night.folder / "m.keras")
    night.shard("a", pa.table({"n": ["1", "2"]}))
    night.shard("b", pa.table({"n": pa.array(["3", "3"]).dictionary_encode()}))
    night.score(path, "--cast=n=int64")
    assert night.scored().column("y").to_pylist() == [1, 2, 3, 3]
