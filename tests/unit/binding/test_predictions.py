"""Model outputs → Arrow columns: literal shapes and types, and what must not be let through."""

from __future__ import annotations

import io
from typing import Any

import ml_dtypes
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from job.binding.predictions import check_names, prediction_fields, to_arrow
from job.errors import DataError, SchemaError
from job.model.signature import OutputSpec

F32 = pa.float32()

# shape, dtype, Arrow type
TYPES: list[tuple[tuple[int | None, ...], str, Any]] = [
    ((), "float32", F32),
    ((1,), "float32", F32),
    ((3,), "float32", pa.list_(F32, 3)),
    ((2, 3), "float64", pa.list_(pa.list_(pa.float64(), 3), 2)),
    ((2, 1, 3), "int32", pa.list_(pa.list_(pa.list_(pa.int32(), 3), 1), 2)),
    ((None,), "float32", pa.list_(F32)),
    ((None, 4), "float32", pa.list_(pa.list_(F32, 4))),
    ((4, None), "float32", pa.list_(pa.list_(F32), 4)),
    ((), "float16", pa.float16()),
    ((), "bfloat16", F32),
    ((2,), "float8_e4m3fn", pa.list_(F32, 2)),
    ((), "uint8", pa.uint8()),
    ((), "int64", pa.int64()),
    ((), "bool", pa.bool_()),
    ((1,), "string", pa.string()),
    ((2,), "string", pa.list_(pa.string(), 2)),
]


def output_of(shape: tuple[int | None, ...], dtype: str, rows: int) -> np.ndarray[Any, Any]:
    full = (rows, *(3 if extent is None else extent for extent in shape))
    count = np.arange(int(np.prod(full))) % 2 if dtype == "bool" else np.arange(int(np.prod(full)))
    if dtype == "string":
        return np.array([f"é{i}".encode() for i in count], object).reshape(full)
    return count.astype(getattr(ml_dtypes, dtype, None) or np.dtype(dtype)).reshape(full)


def python_of(output: np.ndarray[Any, Any], shape: tuple[int | None, ...]) -> list[Any]:
    array = output.reshape(len(output)) if shape == (1,) else output
    if array.dtype == object:
        return np.vectorize(bytes.decode, otypes=[object])(array).tolist() if array.size else array.tolist()
    return (array if array.dtype.kind in "biuf" else array.astype(np.float64)).tolist()


@pytest.mark.parametrize("rows", [0, 1, 5])
@pytest.mark.parametrize(("shape", "dtype", "wanted"), TYPES)
def test_outputs_become_columns_and_survive_parquet(
    shape: tuple[int | None, ...], dtype: str, wanted: Any, rows: int
) -> None:
    fields = prediction_fields([OutputSpec("score", shape, dtype)])
    assert fields == (pa.field("score", wanted),)
    output = output_of(shape, dtype, rows)
    (column,) = to_arrow([output], fields, rows)
    column.validate(full=True)
    assert column.type == wanted
    assert column.to_pylist() == python_of(output, shape)
    file = io.BytesIO()
    pq.write_table(pa.Table.from_arrays([column], schema=pa.schema(fields)), file, use_dictionary=False)
    table = pq.read_table(file)
    assert table.schema.field("score").type == wanted
    assert table.column("score").to_pylist() == column.to_pylist()


@settings(max_examples=60, deadline=None, derandomize=True)
@given(
    values=st.lists(st.lists(st.floats(width=32), min_size=4, max_size=4), max_size=6),
    order=st.sampled_from("CF"),
)
def test_bits_of_predictions_are_kept(values: list[list[float]], order: Any) -> None:
    output = np.array(values, np.float32, order=order).reshape(len(values), 4)
    (column,) = to_arrow([output], prediction_fields([OutputSpec("p", (4,), "float32")]), len(values))
    assert column.null_count == 0
    assert column.flatten().null_count == 0
    assert column.flatten().to_numpy().tobytes() == output.tobytes()


@pytest.mark.parametrize("shape", [(), (3,), (2, 3)])
def test_contiguous_outputs_are_not_copied(shape: tuple[int, ...]) -> None:
    output = np.ones((4, *shape), np.float32)
    (column,) = to_arrow([output], prediction_fields([OutputSpec("p", shape, "float32")]), 4)
    leaf = column
    for _ in shape:
        leaf = leaf.flatten()
    assert leaf.buffers()[1].address == output.ctypes.data


def test_names_go_by_output_or_by_class() -> None:
    two = [OutputSpec("a", (1,), "float32"), OutputSpec("b", (3,), "float32")]
    assert [f.name for f in prediction_fields(two)] == ["a", "b"]
    assert [f.name for f in prediction_fields(two, ["x", "y"])] == ["x", "y"]
    assert prediction_fields(two[1:], ["y"]) == (pa.field("y", pa.list_(F32, 3)),)
    assert prediction_fields(two[1:], ["p", "q", "r"]) == tuple(pa.field(name, F32) for name in "pqr")


def test_one_wide_output_becomes_named_columns() -> None:
    fields = prediction_fields([OutputSpec("b", (3,), "bfloat16")], ["p", "q", "r"])
    output = np.arange(6).reshape(2, 3).astype(ml_dtypes.bfloat16)
    assert [c.to_pylist() for c in to_arrow([output], fields, 2)] == [[0, 3], [1, 4], [2, 5]]
    for wrong in (output[:1], output[:, :2], output.reshape(3, 2), output.reshape(6)):
        with pytest.raises(DataError, match=r"2(, 3\)| rows)"):
            to_arrow([wrong], fields, 2)


@pytest.mark.parametrize(
    ("outputs", "names", "words"),
    [
        ([("a", (1,), "float32")], ["x", "y"], ["2 names (x, y)", "1 model outputs ('a' float32 (1,))"]),
        ([("a", (3,), "float32")], ["x", "y"], ["(3,)", "x, y"]),
        ([("a", (1,), "float32"), ("b", (1,), "float32")], ["x"], ["1 names", "2 model outputs"]),
        ([("a", (1,), "float32"), ("a", (1,), "float32")], [], ["a, a", "--prediction_columns"]),
        ([("a", (2,), "float32")], ["x", "x"], ["x, x"]),
        ([("a", (1,), "complex64")], [], ["'a' complex64", "no Arrow type"]),
    ],
)
def test_names_and_types_that_do_not_fit(outputs: Any, names: list[str], words: list[str]) -> None:
    with pytest.raises(SchemaError) as caught:
        prediction_fields([OutputSpec(*output) for output in outputs], names)
    assert "\n" not in str(caught.value)
    assert [word for word in words if word not in str(caught.value)] == []


SCALAR = prediction_fields([OutputSpec("p", (1,), "float32")])
WIDE = prediction_fields([OutputSpec("p", (3,), "float32")])
TEXT = prediction_fields([OutputSpec("p", (), "string")])


@pytest.mark.parametrize(
    ("outputs", "fields", "words"),
    [
        ([np.zeros((3, 1), np.float32)], SCALAR, ["(3, 1)", "4 rows"]),
        ([np.zeros((5, 1), np.float32)], SCALAR, ["(5, 1)", "4 rows"]),
        ([np.float32(1)], SCALAR, ["()", "4 rows"]),
        ([np.zeros((4, 2), np.float32)], SCALAR, ["(4, 2)", "'p'"]),
        ([np.zeros((4, 2), np.float32)], WIDE, ["(4, 2)", "(4, 3)"]),
        ([np.zeros((4,), np.float32)], WIDE, ["(4,)", "(4, 3)"]),
        ([np.zeros((4, 1), np.float64)], SCALAR, ["float64", "float", "'p'"]),
        ([np.zeros((4, 1), np.int32)], SCALAR, ["int32", "float"]),
        ([np.zeros((4, 1), np.float32)] * 2, SCALAR, ["2 outputs", "1 were declared"]),
        ([], SCALAR, ["0 outputs", "1 were declared"]),
        ([np.array([b"a", b"\xff", b"c", b"d"], object)], TEXT, ["'p'", "UTF-8"]),
        ([np.zeros(4, np.float32)], TEXT, ["float32", "string"]),
    ],
)
def test_outputs_other_than_declared_are_stopped(outputs: Any, fields: Any, words: list[str]) -> None:
    with pytest.raises(DataError) as caught:
        to_arrow(outputs, fields, 4)
    assert "\n" not in str(caught.value)
    assert [word for word in words if word not in str(caught.value)] == []


def test_a_key_and_a_prediction_cannot_share_a_name() -> None:
    check_names(SCALAR, ["id"])
    with pytest.raises(SchemaError, match=r"'p' .*--keys.*--prediction_columns"):
        check_names(SCALAR, ["id", "p"])
