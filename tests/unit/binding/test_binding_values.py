"""Record batch → tensors against one Python value at a time: ``struct``, ``Fraction``, lists."""

from __future__ import annotations

import math
import struct
from decimal import Decimal
from fractions import Fraction
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from job.binding.binding import Binding, to_tensors
from job.model.signature import CodedStrings, Feed, InputSpec

FLOATS = {"float16": "<e", "float32": "<f", "float64": "<d"}
INTEGERS = ["int8", "int32", "int64", "uint8", "uint64"]
Cell = tuple[str, Any]  # ("", value) or (fault code, None)


def expected(value: Any, dtype: str) -> Cell:
    """What one value becomes in a model input of ``dtype``."""
    if value is None:
        return "null", None
    if dtype == "string":
        return "", value if isinstance(value, bytes) else str(value).encode()
    if isinstance(value, float) and not math.isfinite(value):
        return ("", value) if dtype in FLOATS else ("range", None)
    exact = Fraction(value)
    if dtype in FLOATS:
        try:
            nearest = value if isinstance(value, float) else float(exact)
            rounded = struct.unpack(FLOATS[dtype], struct.pack(FLOATS[dtype], nearest))[0]
        except OverflowError:
            return "overflow", None
        lost = isinstance(value, int) and Fraction(rounded) != exact
        return ("inexact", None) if lost else ("", rounded)
    if dtype == "bool":
        return ("", exact == 1) if exact in (0, 1) else ("range", None)
    if exact.denominator != 1:
        return "inexact", None
    limits = np.iinfo(dtype)
    return ("", int(exact)) if limits.min <= exact <= limits.max else ("range", None)


INTEGER_VALUES = {
    dtype: st.one_of(
        st.integers(int(np.iinfo(dtype).min), int(np.iinfo(dtype).max)),
        st.sampled_from([np.iinfo(dtype).min, np.iinfo(dtype).max, 0, 1, 127]).map(int),
    )
    for dtype in ["int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64"]
}
EDGES = [
    0.0,
    -0.0,
    0.5,
    1.0,
    -1.0,
    65519.9,
    65520.0,
    3.4028235e38,
    3.4028236e38,
    2.0**63,
    -(2.0**63),
    2.0**64,
]
REALS = st.one_of(st.floats(), st.sampled_from(EDGES), st.integers(-300, 300).map(float))
COLUMNS: list[tuple[Any, st.SearchStrategy[Any]]] = [
    *((pa.type_for_alias(dtype), values) for dtype, values in INTEGER_VALUES.items()),
    (pa.int64(), st.integers(0, 62).flatmap(lambda bit: st.integers(2**bit - 1, 2**bit + 1))),
    (pa.float64(), REALS),
    (pa.float32(), st.floats(width=32)),
    (pa.float16(), st.floats(width=16)),
    (pa.bool_(), st.booleans()),
    (pa.decimal128(12, 2), st.decimals(-(10**9), 10**9, places=2)),
    (pa.decimal128(38, 18), st.decimals(-(10**19), 10**19, places=18)),
    (pa.decimal128(38, 0), st.integers(-(2**70), 2**70).map(Decimal)),
    (pa.decimal256(60, 3), st.decimals(-(10**30), 10**30, places=3)),
    (pa.decimal64(18, 4), st.decimals(-(10**13), 10**13, places=4)),
    (pa.decimal32(9, 4), st.decimals(-(10**4), 10**4, places=4)),
]

# Arrow does not dictionary-encode these.
NEVER_CODED = (pa.float16(), pa.decimal64(18, 4), pa.decimal32(9, 4))


def feed(name: str, shape: tuple[int | None, ...], dtype: str, *columns: str) -> Binding:
    return Binding((Feed(InputSpec(name, shape, dtype), columns or (name,)),))


def plain(tensor: Any) -> Any:
    """A tensor as NumPy holds it, strings decoded by index."""
    return tensor.values[tensor.codes] if isinstance(tensor, CodedStrings) else tensor


def check(batch: Any, binding: Binding, rows: list[list[Cell]], shape: tuple[int, ...]) -> None:
    """``rows`` hold the expected cell of every column in order, flattened."""
    wanted = binding.feeds[0].input
    (tensor,), faults = to_tensors(batch, binding)
    array = plain(tensor)
    assert array.shape == (len(rows), *shape)
    assert array.dtype == (np.dtype(object) if wanted.dtype == "string" else np.dtype(wanted.dtype))
    assert all(np.all(np.diff(fault.rows) > 0) for fault in faults)
    told = {(int(row), fault.code) for fault in faults for row in fault.rows}
    assert told == {(i, code) for i, row in enumerate(rows) for code, _ in row if code}
    filler: Any = b"" if wanted.dtype == "string" else 0
    for got, row in zip(array.reshape(len(rows), math.prod(shape)).tolist(), rows, strict=True):
        for one, (code, value) in zip(got, row, strict=True):
            same = one == (filler if code else value) or (not code and value != value and one != one)
            assert same, (one, code, value)


@st.composite
def scalar_cases(draw: st.DrawFn) -> tuple[Any, list[Any], str]:
    column_type, values = draw(st.sampled_from(COLUMNS))
    cells = draw(st.lists(st.none() | values, max_size=12))
    dtype = draw(st.sampled_from([*FLOATS, *INTEGERS, "bool"]))
    return column_type, cells, dtype


@pytest.mark.slow
@settings(max_examples=600, deadline=None, derandomize=True)
@given(case=scalar_cases(), cut=st.tuples(st.integers(0, 5), st.integers(0, 12)), coded=st.booleans())
def test_scalar_columns_value_by_value(
    case: tuple[Any, list[Any], str], cut: tuple[int, int], coded: bool
) -> None:
    column_type, cells, dtype = case
    column = pa.array(cells, column_type)
    if coded and column_type not in NEVER_CODED:
        column = column.dictionary_encode()
    batch = pa.RecordBatch.from_arrays([column], ["x"]).slice(*cut)
    values = cells[cut[0] :][: cut[1]]
    check(batch, feed("x", (1,), dtype), [[expected(v, dtype)] for v in values], (1,))
    check(batch, feed("x", (), dtype), [[expected(v, dtype)] for v in values], ())


TEXT = st.text(st.sampled_from("abé\x00"), max_size=3)
TEXT_TYPES = [pa.string(), pa.large_string(), pa.string_view()]
BYTE_TYPES = [pa.binary(), pa.large_binary(), pa.binary_view()]


@settings(max_examples=150, deadline=None, derandomize=True)
@given(
    cells=st.lists(st.none() | TEXT, max_size=10),
    column_type=st.sampled_from([*TEXT_TYPES, *BYTE_TYPES]),
    start=st.integers(0, 4),
    coded=st.booleans(),
)
def test_text_columns_value_by_value(
    cells: list[str | None], column_type: Any, start: int, coded: bool
) -> None:
    given_cells = [c.encode() if c is not None and column_type in BYTE_TYPES else c for c in cells]
    column = pa.array(given_cells, column_type)
    column = column.dictionary_encode() if coded else column
    batch = pa.RecordBatch.from_arrays([column], ["x"]).slice(start)
    rows = [[expected(cell, "string")] for cell in cells[start:]]
    check(batch, feed("x", (1,), "string"), rows, (1,))


@st.composite
def ragged_cases(draw: st.DrawFn) -> tuple[list[Any], tuple[int, ...]]:
    """Rows of mostly rectangular nested lists with holes at every level."""
    shape = draw(st.sampled_from([(3,), (2, 2), (1, 3), (2, 1, 2)]))

    def cell(levels: tuple[int, ...]) -> st.SearchStrategy[Any]:
        if not levels:
            return st.none() | REALS if draw(st.integers(0, 3)) == 0 else REALS
        size = levels[0] if draw(st.integers(0, 5)) else draw(st.integers(0, 4))
        return st.lists(cell(levels[1:]), min_size=size, max_size=size)

    holes = draw(st.booleans())
    rows = [
        draw(cell(shape)) if draw(st.integers(0, 6)) or not holes else None
        for _ in range(draw(st.integers(0, 6)))
    ]
    return rows, shape


def ragged_expected(row: Any, shape: tuple[int, ...], dtype: str) -> list[Cell]:
    """The cells of one row; a row that is no block of ``shape`` is at fault as a whole."""
    whole = level_fault([row], shape)
    if whole:
        return [(whole, None)] + [(whole, None)] * (math.prod(shape) - 1)
    flat = [row]
    for _ in shape:
        flat = [item for cell in flat for item in cell]
    return [expected(value, dtype) for value in flat]


def level_fault(slots: list[Any], shape: tuple[int, ...]) -> str:
    if not shape:
        return ""
    if any(slot is None for slot in slots):
        return "null"
    if any(len(slot) != shape[0] for slot in slots):
        return "shape"
    return level_fault([item for slot in slots for item in slot], shape[1:])


@pytest.mark.slow
@settings(max_examples=300, deadline=None, derandomize=True)
@given(case=ragged_cases(), start=st.integers(0, 3), large=st.booleans())
def test_nested_lists_value_by_value(
    case: tuple[list[Any], tuple[int, ...]], start: int, large: bool
) -> None:
    rows, shape = case
    column_type = pa.float64()
    for _ in shape:
        column_type = pa.large_list(column_type) if large else pa.list_(column_type)
    batch = pa.RecordBatch.from_arrays([pa.array(rows, column_type)], ["x"]).slice(start)
    expected_rows = [ragged_expected(row, shape, "float32") for row in rows[start:]]
    (tensor,), faults = to_tensors(batch, feed("x", shape, "float32"))
    told = {(int(row), fault.code) for fault in faults for row in fault.rows}
    assert told == {(i, code) for i, row in enumerate(expected_rows) for code, _ in row if code}
    assert plain(tensor).shape == (len(expected_rows), *shape)
    for got, row in zip(
        plain(tensor).reshape(len(rows[start:]), math.prod(shape)).tolist(), expected_rows, strict=True
    ):
        np.testing.assert_equal(got, [0.0 if code else value for code, value in row])


@settings(max_examples=150, deadline=None, derandomize=True)
@given(
    rows=st.lists(st.none() | st.lists(st.none() | REALS, min_size=3, max_size=3), max_size=8),
    cut=st.tuples(st.integers(0, 4), st.integers(0, 8)),
)
def test_fixed_size_lists_value_by_value(rows: list[Any], cut: tuple[int, int]) -> None:
    column = pa.array(rows, pa.list_(pa.float64(), 3))
    batch = pa.RecordBatch.from_arrays([column], ["x"]).slice(*cut)
    cells = [ragged_expected(row, (3,), "float32") for row in rows[cut[0] :][: cut[1]]]
    check(batch, feed("x", (3,), "float32"), cells, (3,))


@settings(max_examples=100, deadline=None, derandomize=True)
@given(
    table=st.lists(
        st.tuples(st.none() | REALS, st.none() | INTEGER_VALUES["int64"], st.booleans()), max_size=8
    ),
    start=st.integers(0, 3),
)
def test_columns_side_by_side_value_by_value(table: list[tuple[Any, ...]], start: int) -> None:
    columns = list(zip(*table, strict=True)) or [(), (), ()]
    kinds = (pa.float64(), pa.int64(), pa.bool_())
    arrays = [pa.array(list(column), kind) for column, kind in zip(columns, kinds, strict=True)]
    batch = pa.RecordBatch.from_arrays(arrays, ["a", "b", "c"]).slice(start)
    rows = [[expected(value, "float32") for value in row] for row in table[start:]]
    check(batch, feed("x", (3,), "float32", "a", "b", "c"), rows, (3,))


@pytest.mark.parametrize("rows", [1, 16_384, 16_385, 40_000])
def test_blocks_of_columns_keep_their_places(rows: int) -> None:
    columns = [np.arange(rows, dtype=np.float64) * 3 + shift for shift in range(3)]
    batch = pa.RecordBatch.from_arrays([pa.array(column) for column in columns], ["a", "b", "c"])
    (tensor,), faults = to_tensors(batch, feed("x", (3,), "float32", "a", "b", "c"))
    assert not faults
    np.testing.assert_array_equal(tensor, np.arange(rows * 3).reshape(rows, 3))
    assert isinstance(tensor, np.ndarray)
    assert tensor.flags.c_contiguous
