"""Which columns feed which input: literal schemas, and errors that list both sides."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from job.binding.binding import Binding, bind, mismatches, to_tensors
from job.errors import SchemaError, UsageError
from job.model.signature import CodedStrings, Feed, InputSpec, Signature

F32 = pa.float32()
ABC: list[tuple[str, Any]] = [("id", pa.int64()), ("a", F32), ("b", pa.float64()), ("c", pa.int16())]
Shape = tuple[int | None, ...]


def model(*inputs: tuple[str, Shape, str], named: bool | None = None, ordered: bool = True) -> Signature:
    chosen = len(inputs) > 1 if named is None else named
    return Signature(tuple(InputSpec(*spec) for spec in inputs), (), chosen, ordered)


def columns_of(binding: Binding) -> list[tuple[str, ...]]:
    return [feed.columns for feed in binding.feeds]


ONE = model(("input_layer", (3,), "float32"))
TWO = model(("a", (1,), "float32"), ("b", (), "float32"))
DICT = model(("a", (1,), "float32"), ("b", (), "float32"), ordered=False)

# schema, signature, arguments, columns of each feed
BOUND: list[tuple[Any, Signature, dict[str, Sequence[str]], list[tuple[str, ...]]]] = [
    (ABC, TWO, {}, [("a",), ("b",)]),
    (ABC, TWO, {"features": ["b", "a"]}, [("a",), ("b",)]),
    (ABC, TWO, {"features": ["c", "id"]}, [("c",), ("id",)]),
    (ABC, TWO, {"features": ["a", "c"]}, [("a",), ("c",)]),
    (ABC, DICT, {}, [("a",), ("b",)]),
    (ABC, DICT, {"features": ["b", "a"]}, [("a",), ("b",)]),
    (ABC, ONE, {"keys": ["id"]}, [("a", "b", "c")]),
    (ABC, ONE, {"keys": ["id"], "features": ["c", "a", "b"]}, [("c", "a", "b")]),
    (ABC, ONE, {"keys": ["a"], "features": ["a", "b", "c"]}, [("a", "b", "c")]),
    ([*ABC, ("day", pa.date32()), ("who", pa.string())], ONE, {"keys": ["id"]}, [("a", "b", "c")]),
    ([("x", pa.list_(F32, 3)), ("y", F32)], ONE, {}, [("x",)]),
    ([("x", pa.list_(F32)), ("y", F32)], ONE, {}, [("x",)]),
    ([("x", pa.list_(F32, 3)), ("y", pa.list_(F32, 4))], ONE, {}, [("x",)]),
    ([("x", pa.list_(F32, 3)), ("y", pa.list_(F32, 3))], ONE, {"features": ["y"]}, [("y",)]),
    ([("x", pa.list_(F32, 3)), ("y", pa.list_(F32, 3))], ONE, {"keys": ["x"]}, [("y",)]),
    ([("x", pa.list_(F32, 3)), ("y", pa.list_(F32, 3))], model(("y", (3,), "float32")), {}, [("y",)]),
    ([("input_layer", F32), ("x", pa.list_(F32, 3))], ONE, {}, [("x",)]),
    ([("x", F32)], model(("i", (), "float32")), {}, [("x",)]),
    ([("x", F32)], model(("i", (1,), "float32")), {}, [("x",)]),
    ([("x", F32), ("n", pa.string())], model(("i", (1,), "string")), {}, [("n",)]),
    ([("x", F32), ("y", F32)], model(("i", (None,), "float32")), {"features": ["y", "x"]}, [("y", "x")]),
    ([("x", F32), ("y", F32)], model(("i", (2, 1), "float32")), {}, [("x", "y")]),
    ([("x", pa.list_(pa.list_(F32, 2), 3))], model(("i", (3, 2), "float32")), {}, [("x",)]),
    ([("x", pa.list_(F32, 6))], model(("i", (3, 2), "float32")), {}, [("x",)]),
    ([("x", pa.list_(pa.list_(F32, 2), 3))], model(("i", (3, 2, 1), "float32")), {}, [("x",)]),
    ([("x", pa.fixed_shape_tensor(F32, [3, 2]))], model(("i", (3, 2), "float32")), {}, [("x",)]),
    (
        [("a", pa.dictionary(pa.int8(), F32)), ("s", pa.dictionary(pa.int8(), pa.string()))],
        model(("s", (1,), "string"), ("a", (1,), "float32")),
        {},
        [("s",), ("a",)],
    ),
]


@pytest.mark.parametrize(("columns", "signature", "flags", "wanted"), BOUND)
def test_columns_find_their_inputs(
    columns: Any, signature: Signature, flags: Any, wanted: list[tuple[str, ...]]
) -> None:
    schema = pa.schema(columns)
    binding = bind(schema, signature, **flags)
    assert columns_of(binding) == wanted
    assert [feed.input for feed in binding.feeds] == list(signature.inputs)
    assert mismatches(schema, binding, flags.get("keys", ())) == ()


# schema, signature, arguments, words of the error
REFUSED: list[tuple[Any, Signature, dict[str, Any], list[str]]] = [
    (ABC, ONE, {}, ["4 columns", "(3,)", "--features", "id int64"]),
    (ABC, ONE, {"keys": ["id", "a"]}, ["2 columns", "'input_layer' float32 (3,)", "a float (key)"]),
    (ABC, ONE, {"features": ["a", "b"]}, ["--features names 2 columns", "(3,)"]),
    (ABC, ONE, {"features": ["a", "b", "C"]}, ["'C'", "closest: 'c'"]),
    (ABC, ONE, {"features": ["a", "b", "b"]}, ["'b' twice"]),
    (ABC, ONE, {"keys": ["ID"]}, ["--keys names 'ID'", "closest: 'id'"]),
    (ABC, ONE, {"features": ["a"]}, ["column 'a' float", "cells of shape ()", "(3,)"]),
    (ABC, model(("i", (2, 3), "float32")), {"features": list("abc")}, ["3 columns", "(2, 3)"]),
    (ABC, model(("a", (1,), "float32"), ("A_", (1,), "float32")), {}, ["'A_'", "closest: 'a'", "a float"]),
    (ABC, TWO, {"features": ["a", "b", "c"]}, ["3 columns for 2 model inputs"]),
    (ABC, TWO, {"features": ["c", "a"]}, ["'a'", "'b'", "another input has its name"]),
    (ABC, DICT, {"features": ["c", "id"]}, ["c, id", "a, b", "no order", "rename the columns"]),
    (ABC, DICT, {"features": ["a", "c"]}, ["a, c", "a, b", "no order", "rename the columns"]),
    (ABC, DICT, {"features": ["a", "b", "c"]}, ["a, b, c", "a, b", "no order", "rename the columns"]),
    (ABC, model(("a", (3,), "float32"), named=True), {"keys": ["id"]}, ["'a'", "cells of shape ()"]),
    ([("x", pa.list_(F32, 3)), ("y", pa.list_(F32, 3))], ONE, {}, ["[x] or [y]", "--features"]),
    ([*ABC[1:], ("x", pa.list_(F32, 3))], ONE, {}, ["[a, b, c] or [x]", "--features"]),
    ([("a", pa.timestamp("us"))], model(("a", (1,), "float32")), {"features": ["a"]}, ["--cast=a=float32"]),
    ([("a", pa.string())], model(("a", (1,), "int32"), named=True), {}, ["string", "--cast=a=int32"]),
    ([("a", F32)], model(("a", (1,), "string"), named=True), {}, ["float", "--cast=a=string"]),
    ([("a", pa.string())], model(("a", (1,), "bfloat16"), named=True), {}, ["--cast=a=float32"]),
    ([("a", pa.struct([("z", F32)]))], model(("a", (1,), "float32"), named=True), {}, ["struct<z: float>"]),
    ([("a", F32), ("a", F32)], model(("a", (1,), "float32"), named=True), {}, ["'a' occurs 2 times"]),
    ([("a", F32)], model(("a", (1,), "complex64"), named=True), {}, ["complex64"]),
    ([("a", pa.list_(pa.string_view()))], model(("a", (3,), "string"), named=True), {}, ["string_view"]),
]


@pytest.mark.parametrize(("columns", "signature", "flags", "words"), REFUSED)
def test_what_does_not_fit_lists_both_sides(
    columns: Any, signature: Signature, flags: Any, words: list[str]
) -> None:
    with pytest.raises(SchemaError) as caught:
        bind(pa.schema(columns), signature, **flags)
    message = str(caught.value)
    assert "\n" not in message
    assert [word for word in words if word not in message] == []
    if "twice" not in message:
        assert signature.inputs[0].name in message
        assert columns[-1][0] in message


def test_a_cast_is_offered_only_where_it_helps() -> None:
    for column_type, dtype in ((F32, "complex64"), (pa.struct([]), "float32")):
        with pytest.raises(SchemaError) as caught:
            bind(pa.schema([("a", column_type)]), model(("a", (1,), dtype), named=True))
        assert "--cast" not in str(caught.value)


def test_hive_columns_remain_unless_they_are_keys() -> None:
    schema = pa.schema([("a", F32), ("b", F32), ("year", pa.int64())])
    with pytest.raises(SchemaError, match="year int64"):
        bind(schema, model(("i", (2,), "float32")))
    assert bind(schema, model(("i", (2,), "float32")), keys=["year"]).columns == ("a", "b")


def test_wide_schemas_are_cut_short_in_errors() -> None:
    schema = pa.schema([(f"c{i}", F32) for i in range(500)])
    with pytest.raises(SchemaError) as caught:
        bind(schema, ONE)
    assert "and 460 more" in str(caught.value)
    assert len(str(caught.value)) < 1500


LATE = model()


@pytest.mark.parametrize(
    ("columns", "flags", "shape", "wanted"),
    [
        (ABC, {"keys": ["id"]}, (3,), ("a", "b", "c")),
        (ABC, {"features": ["c", "b"]}, (2,), ("c", "b")),
        (ABC, {"features": ["c"]}, (1,), ("c",)),
        ([("k", pa.string()), ("x", pa.list_(F32, 5))], {}, (5,), ("x",)),
        ([("k", F32), ("x", pa.list_(pa.list_(F32, 5), 2))], {"features": ["x"]}, (2, 5), ("x",)),
        ([("x", pa.list_(F32))], {"features": ["x"]}, (None,), ("x",)),
    ],
)
def test_a_model_without_inputs_takes_its_shape_from_columns(
    columns: Any, flags: Any, shape: Shape, wanted: tuple[str, ...]
) -> None:
    assert bind(pa.schema(columns), LATE, **flags).feeds == (
        Feed(InputSpec("inputs", shape, "float32"), wanted),
    )


@pytest.mark.parametrize(
    "columns", [[("k", F32), ("x", pa.list_(F32, 5))], [("k", pa.string())], [("x", pa.list_(F32))]]
)
def test_a_model_without_inputs_is_not_guessed(columns: Any) -> None:
    with pytest.raises(SchemaError, match="--features"):
        bind(pa.schema(columns), LATE)


def test_names_without_an_order_are_not_offered_features() -> None:
    schema = pa.schema([("a", F32)])
    for signature, offered in ((TWO, True), (DICT, False)):
        with pytest.raises(SchemaError, match="rename the columns") as caught:
            bind(schema, signature)
        assert ("--features" in str(caught.value)) == offered


@pytest.mark.parametrize("dtype", ["float64", "float16", "bfloat16"])
def test_a_model_without_inputs_is_fed_its_own_type(dtype: str) -> None:
    binding = bind(pa.schema([("x", F32), ("y", F32)]), Signature((), (), False, default_dtype=dtype))
    assert binding.feeds == (Feed(InputSpec("inputs", (2,), dtype), ("x", "y")),)


def test_casts_lose_their_aliases_and_make_columns_count() -> None:
    schema = pa.schema([("ts", pa.timestamp("us")), ("a", F32)])
    signature = model(("i", (2,), "float64"))
    binding = bind(schema, signature, casts=[("ts", "double")])
    assert binding == Binding((Feed(signature.inputs[0], ("ts", "a")),), (("ts", "float64"),), "position")


@pytest.mark.parametrize(
    ("casts", "words"),
    [
        ([("A", "int8")], ["no column", "closest: 'a'"]),
        ([("a", "flaot32")], ["'flaot32'", "closest: 'float32'"]),
        ([("a", "timestamp[s]")], ["there are int8"]),
        ([("a", "int8"), ("a", "int16")], ["twice"]),
        ([("id", "int8")], ["feeds no model input"]),
    ],
)
def test_casts_that_cannot_be_meant(casts: list[tuple[str, str]], words: list[str]) -> None:
    with pytest.raises(UsageError) as caught:
        bind(pa.schema(ABC), ONE, keys=["id"], casts=casts)
    assert [word for word in words if word not in str(caught.value)] == []


def test_each_footer_is_held_against_the_binding() -> None:
    binding = bind(pa.schema(ABC), ONE, keys=["id"])
    drifted = pa.schema([("a", pa.float64()), ("b", pa.string()), ("c", pa.int64()), ("c", F32), ("d", F32)])
    assert mismatches(pa.schema(ABC), binding, ["id"]) == ()
    b, c, key = mismatches(drifted, binding, ["id"])
    assert "'b' string" in b
    assert "float32" in b
    assert "'c' occurs 2 times" in c
    assert "'id' is absent" in key
    assert not any("\n" in line for line in (b, c, key))


def test_batches_that_skipped_the_footer_check_are_refused() -> None:
    binding = bind(pa.schema(ABC), ONE, keys=["id"])
    with pytest.raises(SchemaError, match="'a'"):
        to_tensors(pa.RecordBatch.from_pydict({"b": [1.0]}), binding)
    with pytest.raises(SchemaError, match=r"'c'.*string"):
        to_tensors(pa.RecordBatch.from_pydict({"a": [1.0], "b": [1.0], "c": ["1"]}), binding)


def test_only_declared_inputs_are_read() -> None:
    binding = bind(pa.schema(ABC), TWO)
    batch = pa.RecordBatch.from_pydict({"ID": [767], "b": [2.0], "a": [1.0]})
    tensors, faults = to_tensors(batch, binding)
    assert not faults
    assert [np.asarray(t).tolist() for t in tensors if not isinstance(t, CodedStrings)] == [[[1.0]], [2.0]]
    assert binding.columns == ("a", "b")


def test_the_room_needs_no_engine_and_no_backend() -> None:
    imports = "import sys, job.binding.binding, job.binding.predictions"
    program = f"{imports}; print(sorted(m.split('.')[0] for m in sys.modules))"
    done = subprocess.run(
        [sys.executable, "-c", program],
        cwd=Path(__file__).parents[3],
        capture_output=True,
        text=True,
        check=True,
    )
    assert "pyarrow" in done.stdout
    assert [m for m in ("tensorflow", "keras", "apache_beam", "ml_dtypes") if f"'{m}'" in done.stdout] == []
