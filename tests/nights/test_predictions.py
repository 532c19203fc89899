"""``score`` with every kind of output, against what ``Model.predict`` gives."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import keras
import numpy as np
import pyarrow as pa
import pytest

from tests.support.nights import Night, dense, features, matrix
from tests.support.oracle import BATCH, ROWS, WIDE, check, numbers, scalars, score


def test_strings_come_out_as_text(night: Night) -> None:
    x = keras.Input((1,), name="n", dtype="int64")
    lookup = keras.layers.StringLookup(vocabulary=["Rome", "São Paulo"], invert=True, name="city")
    found = score(night, keras.Model(x, lookup(x)), pa.table({"n": np.arange(ROWS) % 3}))
    assert found.schema.field("city").type == pa.string()
    assert found.column("city").to_pylist() == [["[UNK]", "Rome", "São Paulo"][i % 3] for i in range(ROWS)]


@pytest.mark.parametrize(
    ("policy", "column"),
    [
        ("float16", pa.float16()),
        ("mixed_float16", pa.float16()),
        # Arrow has no bfloat16; every value of it is a float32.
        ("bfloat16", pa.float32()),
        ("mixed_bfloat16", pa.float32()),
        ("float64", pa.float64()),
    ],
)
@pytest.mark.parametrize("also_input", [True, False])
def test_precision(night: Night, policy: str, column: pa.DataType, also_input: bool) -> None:
    dtype = policy.removeprefix("mixed_") if also_input else "float32"
    keras.utils.set_random_seed(4)
    x = keras.Input((4,), name="x", dtype=dtype)
    hidden = keras.layers.Dense(8, activation="relu", dtype=policy)(x)
    model = keras.Model(x, keras.layers.Dense(1, name="y", dtype=policy)(hidden))
    found = score(night, model, scalars(WIDE))
    assert found.schema.field("y").type == column
    check(found, model, keras.ops.convert_to_numpy(keras.ops.cast(WIDE, dtype)))


OUTPUTS: dict[str, tuple[Callable[[Any], Any], list[str], dict[str, pa.DataType]]] = {
    "a vector": (
        lambda x: keras.layers.Dense(3, name="p")(x),
        [],
        {"p": pa.list_(pa.float32(), 3)},
    ),
    "a vector with names": (
        lambda x: keras.layers.Dense(3, name="p")(x),
        ["--prediction_columns=low,mid,high"],
        {"low": pa.float32(), "mid": pa.float32(), "high": pa.float32()},
    ),
    "a matrix": (
        lambda x: keras.layers.Reshape((2, 3), name="p")(keras.layers.Dense(6)(x)),
        [],
        {"p": pa.list_(pa.list_(pa.float32(), 3), 2)},
    ),
    "no axis but the batch's": (
        lambda x: keras.layers.Identity(name="p")(keras.ops.sum(x, axis=1)),
        [],
        {"p": pa.float32()},
    ),
    "a list of outputs": (
        lambda x: [keras.layers.Dense(1, name="b")(x), keras.layers.Dense(2, name="a")(x)],
        [],
        {"b": pa.float32(), "a": pa.list_(pa.float32(), 2)},
    ),
    "a dict of outputs": (
        lambda x: {"b": keras.layers.Dense(1)(x), "a": keras.ops.argmax(x, axis=1)},
        [],
        {"a": pa.int32(), "b": pa.float32()},
    ),
    "a renamed dict of outputs": (
        lambda x: {"b": keras.layers.Dense(1)(x), "a": keras.layers.Dense(2)(x)},
        ["--prediction_columns=first,second"],
        {"first": pa.list_(pa.float32(), 2), "second": pa.float32()},
    ),
}


@pytest.mark.parametrize("case", OUTPUTS)
def test_outputs_of_many_shapes(night: Night, case: str) -> None:
    make, flags, columns = OUTPUTS[case]
    keras.utils.set_random_seed(5)
    x = keras.Input((4,), name="x")
    model = keras.Model(x, make(x))
    found = score(night, model, features(ROWS).drop_columns(["id"]), *flags)
    assert dict(zip(found.schema.names, found.schema.types, strict=True)) == columns
    expected = model.predict(matrix(features(ROWS)), batch_size=BATCH, verbose=0)
    if isinstance(expected, dict):
        expected = [expected[name] for name in sorted(expected)]
    if not isinstance(expected, list):
        expected = [expected]
    made = [numbers(column).reshape(ROWS, -1) for column in found.columns]
    if len(expected) == 1:
        made = [np.concatenate(made, axis=1)]
    for one, other in zip(made, expected, strict=True):
        np.testing.assert_array_equal(one, other.reshape(ROWS, -1))


def test_a_sequential_model_names_its_column_prediction(night: Night) -> None:
    found = score(night, dense(4), scalars(WIDE))
    assert found.column_names == ["prediction"]


WORDS = [["red green", "blue", "green green", ""][i % 4] for i in range(ROWS)]


@pytest.mark.parametrize("mode", ["multi_hot", "tf_idf", "one_hot"])
def test_encodings_that_declare_another_shape_than_they_give(night: Night, mode: str) -> None:
    if mode == "one_hot":
        x = keras.Input((), name="words", dtype="string")
        layer = keras.layers.Hashing(5, output_mode=mode, name="y")
    else:
        x = keras.Input((1,), name="words", dtype="string")
        weights = [1.0, 2.0, 3.0] if mode == "tf_idf" else None
        layer = keras.layers.TextVectorization(
            output_mode=mode, vocabulary=["red", "green", "blue"], idf_weights=weights, name="y"
        )
    model = keras.Model(x, layer(x))
    found = score(night, model, pa.table({"words": WORDS}))
    texts = np.array(WORDS).reshape(ROWS, *x.shape[1:])
    check(found, model, keras.ops.convert_to_tensor(texts))
    assert pa.types.is_fixed_size_list(found.schema.field("y").type)
