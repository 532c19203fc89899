"""``score`` with every kind of input, against the same model fed by hand."""

from __future__ import annotations

from datetime import UTC, date, datetime
from decimal import Decimal
from typing import Any

import keras
import numpy as np
import pyarrow as pa
import pytest

from tests.support.nights import Array, Night
from tests.support.oracle import BATCH, RNG, ROWS, WIDE, check, numbers, scalars, score

IMAGES = RNG.integers(0, 256, size=(ROWS, 4, 5, 3)).astype(np.uint8)
CITIES = np.array(["Rome", "Oslo", "", "São Paulo"] * 14)[:ROWS]
SMALL = RNG.integers(-100, 100, size=ROWS)
DAYS = [date(1969, 12, 31 - i % 20) for i in range(ROWS)]
TIMES = [datetime(2020, 1, 1, 0, i, tzinfo=UTC) for i in range(ROWS)]


def one_input(shape: tuple[int | None, ...], dtype: str = "float32") -> Any:
    """Some arithmetic on one input of any type and shape: ``(rows, …)`` to ``(rows, 2)``."""
    keras.utils.set_random_seed(1)
    x = keras.Input(shape, name="x", dtype=dtype)
    flat = keras.layers.Flatten()(keras.ops.cast(x, "float32") if dtype != "float32" else x)
    return keras.Model(x, keras.layers.Dense(2, name="y")(flat))


def lists(values: Array, kind: pa.DataType) -> pa.Array:
    return pa.array(values.tolist(), kind)


COLUMNS: dict[str, tuple[pa.Table, list[str]]] = {
    "side by side": (scalars(WIDE), []),
    "named by hand": (
        scalars(WIDE).append_column("more", pa.array(np.ones(ROWS))),
        ["--features=f0,f1,f2,f3"],
    ),
    "in another order": (
        scalars(WIDE).select(["f3", "f1", "f0", "f2"]),
        ["--features=f0,f1,f2,f3"],
    ),
    "fixed-size list": (pa.table({"v": lists(WIDE, pa.list_(pa.float32(), 4))}), []),
    "list": (pa.table({"v": lists(WIDE, pa.list_(pa.float32()))}), []),
    "large list of the input's name": (
        pa.table(
            {"x": lists(WIDE, pa.large_list(pa.float32())), "other": lists(WIDE, pa.list_(pa.float32(), 4))}
        ),
        [],
    ),
    "float64": (scalars(WIDE.astype(np.float64)), []),
    "dictionary-encoded": (
        pa.table({f"f{i}": pa.array(WIDE[:, i]).dictionary_encode() for i in range(4)}),
        [],
    ),
    "text with a cast": (
        pa.table({**{f"f{i}": WIDE[:, i] for i in range(3)}, "f3": [repr(float(v)) for v in WIDE[:, 3]]}),
        ["--cast=f3=float64"],
    ),
}


@pytest.mark.parametrize("case", COLUMNS)
def test_columns_of_many_forms_feed_one_input(night: Night, case: str) -> None:
    table, flags = COLUMNS[case]
    model = one_input((4,))
    check(score(night, model, table, *flags), model, WIDE)


TENSORS: dict[str, pa.Array] = {
    "fixed_shape_tensor": pa.FixedShapeTensorArray.from_numpy_ndarray(IMAGES),
    "nested fixed-size lists": lists(IMAGES, pa.list_(pa.list_(pa.list_(pa.uint8(), 3), 5), 4)),
    "nested lists": lists(IMAGES, pa.list_(pa.list_(pa.list_(pa.uint8())))),
    "one flat fixed-size list": lists(IMAGES.reshape(ROWS, -1), pa.list_(pa.uint8(), 60)),
    "one flat list": lists(IMAGES.reshape(ROWS, -1), pa.list_(pa.uint8())),
}


@pytest.mark.parametrize("dtype", ["uint8", "float32"])
@pytest.mark.parametrize("case", TENSORS)
def test_images_of_many_forms(night: Night, case: str, dtype: str) -> None:
    model = one_input((4, 5, 3), dtype)
    found = score(night, model, pa.table({"image": TENSORS[case]}))
    check(found, model, IMAGES.astype(dtype))


def named_inputs(as_dict: bool) -> Any:
    keras.utils.set_random_seed(2)
    inputs = {
        "zeta": keras.Input((4,), name="zeta"),
        "city": keras.Input((), name="city", dtype="string"),
        "count": keras.Input((1,), name="count", dtype="int32"),
        "flag": keras.Input((), name="flag", dtype="bool"),
    }
    city = keras.layers.StringLookup(vocabulary=["Rome", "Oslo", "São Paulo"], output_mode="one_hot")
    parts = [
        inputs["zeta"],
        city(inputs["city"]),
        keras.layers.Embedding(200, 3)(keras.ops.maximum(inputs["count"], 0))[:, 0],
        keras.ops.expand_dims(keras.ops.cast(inputs["flag"], "float32"), 1),
    ]
    joined = keras.layers.Concatenate()(parts)
    return keras.Model(inputs if as_dict else list(inputs.values()), keras.layers.Dense(1, name="y")(joined))


@pytest.mark.parametrize("as_dict", [True, False])
@pytest.mark.parametrize("encoded", [True, False])
def test_inputs_by_name_and_extra_columns_that_must_not_reach_the_model(
    night: Night, as_dict: bool, encoded: bool
) -> None:
    import tensorflow as tf

    model = named_inputs(as_dict)
    city = pa.array(CITIES.tolist())
    table = pa.table(
        {
            # Sorts before every input: Keras would take it for the first one.
            "ID": np.full(ROWS, 1e6, np.float32),
            "flag": SMALL > 0,
            "city": city.dictionary_encode() if encoded else city,
            "count": SMALL.astype(np.int64),
            "zeta": lists(WIDE, pa.list_(pa.float32(), 4)),
            "zz": np.ones(ROWS),
        }
    )
    fed: dict[str, Any] = {
        "zeta": WIDE,
        "city": tf.constant(CITIES.tolist()),
        "count": SMALL.astype(np.int32)[:, None],
        "flag": SMALL > 0,
    }
    found = score(night, model, table)
    dataset = tf.data.Dataset.from_tensor_slices((fed if as_dict else tuple(fed.values()),)).batch(BATCH)
    expected = model.predict(dataset, verbose=0)
    np.testing.assert_array_equal(numbers(found.column("y")), expected[:, 0])


def test_a_dict_of_two_inputs_with_an_extra_column_that_sorts_first(night: Night) -> None:
    inputs = {name: keras.Input((1,), name=name) for name in ("b", "a")}
    model = keras.Model(inputs, keras.layers.Identity(name="y")(inputs["a"] * 10.0 + inputs["b"]))
    found = score(night, model, pa.table({"ID": SMALL, "b": SMALL + 1.0, "a": SMALL + 2.0}))
    np.testing.assert_array_equal(numbers(found.column("y")), (SMALL + 2) * 10 + SMALL + 1)


SINGLE: dict[str, tuple[pa.Array, str, list[str], Array]] = {
    "int64 into int32": (pa.array(SMALL), "int32", [], SMALL.astype(np.int32)),
    "uint8 into int64": (pa.array(np.abs(SMALL).astype(np.uint8)), "int64", [], np.abs(SMALL)),
    "int64 into float32": (pa.array(SMALL), "float32", [], SMALL.astype(np.float32)),
    "bool": (pa.array(SMALL > 0), "bool", [], SMALL > 0),
    "bool into float32": (pa.array(SMALL > 0), "float32", [], (SMALL > 0).astype(np.float32)),
    "whole floats into int32": (pa.array(SMALL * 1.0), "int32", [], SMALL.astype(np.int32)),
    "decimals": (
        pa.array([Decimal(int(n)) / 8 for n in SMALL], pa.decimal128(12, 3)),
        "float32",
        [],
        (SMALL / 8).astype(np.float32),
    ),
    "days with a cast": (
        pa.array(DAYS),
        "float32",
        ["--cast=v=float32"],
        np.array([(day - date(1970, 1, 1)).days for day in DAYS], np.float32),
    ),
    "times with a cast": (
        pa.array(TIMES, pa.timestamp("ms", tz="Europe/Rome")),
        "int64",
        ["--cast=v=int64"],
        np.array([int(time.timestamp()) * 1000 for time in TIMES]),
    ),
    "dictionary-encoded integers": (pa.array(SMALL).dictionary_encode(), "int64", [], SMALL),
}


@pytest.mark.parametrize("case", SINGLE)
def test_values_of_many_types(night: Night, case: str) -> None:
    column, dtype, flags, fed = SINGLE[case]
    x = keras.Input((1,), name="v", dtype=dtype)
    model = keras.Model(x, keras.layers.Identity(name="y", dtype="float64")(keras.ops.cast(x, "float64")))
    found = score(night, model, pa.table({"v": column}), *flags)
    assert found.schema.field("y").type == pa.float64()
    check(found, model, fed[:, None])


def test_strings_through_a_lookup(night: Night) -> None:
    x = keras.Input((), name="city", dtype="string")
    model = keras.Model(x, keras.layers.StringLookup(vocabulary=["Rome", "Oslo"], name="y")(x))
    found = score(night, model, pa.table({"city": CITIES.tolist()}))
    known = {"Rome": 1, "Oslo": 2}
    assert found.column("y").to_pylist() == [known.get(city, 0) for city in CITIES.tolist()]
