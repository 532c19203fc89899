"""Cells of every nesting form into tensors, and which rows are set aside."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from job.binding.tensors import feed_tensor, open_extents
from job.model.signature import CodedStrings, Feed, InputSpec

Shape = tuple[int | None, ...]
F32 = pa.float32()
CUBE = np.arange(24, dtype=np.float32).reshape(2, 3, 4)


def fed(
    column: Any, shape: Shape, dtype: str = "float32", cast: str | None = None
) -> tuple[Any, dict[str, list[int]]]:
    batch = pa.RecordBatch.from_arrays([column], ["x"])
    tensor, faults = feed_tensor(
        batch, Feed(InputSpec("i", shape, dtype), ("x",)), {"x": cast} if cast else {}
    )
    array = tensor.values[tensor.codes] if isinstance(tensor, CodedStrings) else tensor
    return array, {fault.code: fault.rows.tolist() for fault in faults}


FORMS: list[tuple[str, Any]] = [
    ("nested fixed-size lists", pa.array(CUBE.tolist(), pa.list_(pa.list_(F32, 4), 3))),
    ("nested lists", pa.array(CUBE.tolist(), pa.list_(pa.list_(F32)))),
    ("large lists of fixed-size lists", pa.array(CUBE.tolist(), pa.large_list(pa.list_(F32, 4)))),
    ("fixed-size lists of lists", pa.array(CUBE.tolist(), pa.list_(pa.list_(F32), 3))),
    ("flat fixed-size list", pa.array(CUBE.reshape(2, 12).tolist(), pa.list_(F32, 12))),
    ("flat list", pa.array(CUBE.reshape(2, 12).tolist(), pa.list_(pa.float64()))),
    ("tensor", pa.FixedShapeTensorArray.from_numpy_ndarray(CUBE)),
    ("dictionary leaf", pa.array(CUBE.tolist(), pa.list_(pa.list_(pa.dictionary(pa.int8(), pa.float64()))))),
]


@pytest.mark.parametrize("column", [form for _, form in FORMS], ids=[name for name, _ in FORMS])
@pytest.mark.parametrize("shape", [(3, 4), (3, 4, 1), (1, 3, 4)])
def test_every_form_of_the_same_cells(column: Any, shape: Shape) -> None:
    tensor, faults = fed(column, shape)
    assert not faults
    assert tensor.flags.c_contiguous
    np.testing.assert_array_equal(tensor, CUBE.reshape(2, *[extent or 0 for extent in shape]))
    sliced, _ = fed(column.slice(1), shape)
    np.testing.assert_array_equal(sliced, tensor[1:])
    assert len(fed(column.slice(2), shape)[0]) == 0


def test_a_permuted_tensor_column_reads_as_arrow_reads_it() -> None:
    turned = CUBE.transpose(0, 2, 1)
    column = pa.FixedShapeTensorArray.from_numpy_ndarray(turned)
    assert column.type.permutation == [1, 0]
    tensor, _ = fed(column, (4, 3))
    np.testing.assert_array_equal(tensor, column.to_numpy_ndarray())
    np.testing.assert_array_equal(tensor, turned)
    assert fed(column.slice(1), (4, None))[0].tolist() == turned[1:].tolist()
    assert tensor.flags.c_contiguous


RAGGED: list[Any] = [[1, 2], None, [3], [4, None], [5, 6, 7], [8, 9], [1e300, 2]]


@pytest.mark.parametrize("make", [pa.list_, pa.large_list])
def test_uneven_and_null_rows_are_set_aside(make: Any) -> None:
    column = pa.array(RAGGED, make(pa.float64()))
    tensor, faults = fed(column, (2,))
    assert tensor.tolist() == [[1, 2], [0, 0], [0, 0], [4, 0], [0, 0], [8, 9], [0, 2]]
    assert faults == {"null": [1, 3], "shape": [2, 4], "overflow": [6]}
    tensor, faults = fed(column.slice(2, 3), (2,))
    assert tensor.tolist() == [[0, 0], [4, 0], [0, 0]]
    assert faults == {"shape": [0, 2], "null": [1]}


def test_an_open_width_is_that_of_the_rows() -> None:
    column = pa.array([None, [1, 2, 3], [4, 5], [6, 7, 8]], pa.list_(F32))
    feed = Feed(InputSpec("i", (None,), "float32"), ("x",))
    extents = open_extents(pa.RecordBatch.from_arrays([column], ["x"]), feed)
    assert extents is not None
    assert extents.tolist() == [[0], [3], [2], [3]]
    assert fed(column.take([1, 3]), (None,))[0].tolist() == [[1, 2, 3], [6, 7, 8]]
    assert fed(column.take([1, 3]), (None, 1))[0].shape == (2, 3, 1)
    assert fed(column.slice(0, 1), (None,)) == (pytest.approx(np.empty((1, 0))), {"null": [0]})
    assert fed(pa.array([[1.0, 2.0]], pa.list_(F32, 2)), (None,))[0].tolist() == [[1, 2]]
    # No row is to be bad because of the row before it.
    with pytest.raises(ValueError, match="rows of several shapes in one tensor: 2 and 3"):
        fed(column.slice(1), (None,))


CELLS: list[Any] = [
    [[1, 2], [3, 4], [5, 6]],
    [[1, 2], [3]],
    None,
    [],
    [[], []],
    [[1], None],
    [[7, 8, 9]],
    [[1, 2], [3, 4], [5, 6]],
]


@pytest.mark.parametrize("make", [pa.list_, pa.large_list])
def test_open_extents_of_nested_lists(make: Any) -> None:
    batch = pa.RecordBatch.from_arrays([pa.array(CELLS, make(make(F32)))], ["x"])
    feed = Feed(InputSpec("i", (None, None), "float32"), ("x",))
    wanted = [[3, 2], [2, -1], [0, 0], [0, 0], [2, 0], [2, -1], [1, 3], [3, 2]]
    for start in (0, 3):
        found = open_extents(batch.slice(start), feed)
        assert found is not None
        assert found.tolist() == wanted[start:]
    inner = open_extents(batch, replace(feed, input=replace(feed.input, shape=(3, None))))
    assert inner is not None
    assert inner.tolist() == [extents[1:] for extents in wanted]
    for shape in ((3, 2), (2,)):
        assert open_extents(batch, replace(feed, input=replace(feed.input, shape=shape))) is None


@pytest.mark.parametrize("row", [1, 5])
def test_lists_of_several_lengths_in_one_cell_make_a_bad_row(row: int) -> None:
    column = pa.array(CELLS, pa.list_(pa.list_(F32))).take([row, row])
    _, faults = fed(column, (None, None))
    assert faults == {("shape" if row == 1 else "null"): [0, 1]}


def test_a_fault_names_its_column_and_first_example() -> None:
    batch = pa.RecordBatch.from_arrays([pa.array([1.0, 1e300]), pa.array([2**24 + 1, None])], ["a", "b"])
    _, faults = feed_tensor(batch, Feed(InputSpec("i", (2,), "float32"), ("a", "b")), {})
    told = [(fault.column, fault.code, fault.rows.tolist(), fault.example) for fault in faults]
    assert told == [
        ("a", "overflow", [1], "1e+300"),
        ("b", "null", [1], "None"),
        ("b", "inexact", [0], "16777217"),
    ]
    assert all(fault.rows.dtype == np.int64 for fault in faults)


def test_strings_side_by_side_share_one_vocabulary() -> None:
    columns = [
        pa.array(["x", None, "y"]),
        pa.array(["y", "x", "x"]).dictionary_encode(),
        pa.array([b"z"] * 3),
    ]
    batch = pa.RecordBatch.from_arrays(columns, ["a", "b", "c"])
    tensor, faults = feed_tensor(batch, Feed(InputSpec("i", (3,), "string"), ("a", "b", "c")), {})
    assert isinstance(tensor, CodedStrings)
    assert tensor.values[tensor.codes].tolist() == [[b"x", b"y", b"z"], [b"", b"x", b"z"], [b"y", b"x", b"z"]]
    assert [(fault.column, fault.rows.tolist()) for fault in faults] == [("a", [1])]


def test_lists_of_strings() -> None:
    column = pa.array([["a", "b"], ["a"], None, [None, "b"]], pa.list_(pa.string()))
    tensor, faults = fed(column, (2,), "string")
    assert tensor.tolist() == [[b"a", b"b"], [b"", b""], [b"", b""], [b"", b"b"]]
    assert faults == {"null": [2, 3], "shape": [1]}


def test_casts_reach_the_values_in_lists() -> None:
    column = pa.array([["1", "2"], ["3", "?"]], pa.list_(pa.string()))
    tensor, faults = fed(column, (2,), cast="float32")
    assert (tensor.tolist(), faults) == ([[1, 2], [3, 0]], {"parse": [1]})


def test_a_fixed_size_list_is_a_view_of_the_batch() -> None:
    column = pa.FixedSizeListArray.from_arrays(pa.array(np.arange(12, dtype=np.float32)), 3).slice(1)
    tensor, _ = fed(column, (3,))
    assert tensor.ctypes.data == column.values.buffers()[1].address + 3 * 4


def test_the_batch_axis_alone_for_inputs_without_shape() -> None:
    assert fed(pa.array([1.0, 2.0]), ())[0].shape == (2,)
    assert fed(pa.array([1.0, 2.0]), (1,))[0].shape == (2, 1)
    assert fed(pa.array([1.0, 2.0]), (1, 1))[0].shape == (2, 1, 1)
    assert fed(pa.array([1.0, 2.0]), (None,))[0].shape == (2, 1)
