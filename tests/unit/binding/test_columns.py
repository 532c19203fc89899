"""Type rules as literal tables: which pairs fit, which need a cast, which are refused."""

from __future__ import annotations

from typing import Any

import pyarrow as pa
import pytest

from job.binding.columns import Extents, align, cell_shape, kind, layout, leaf_misfit
from job.model.signature import shape_text

NUMBERS: list[Any] = [
    pa.bool_(), pa.int8(), pa.uint64(), pa.float16(), pa.float32(), pa.float64(),
    pa.decimal32(5, 2), pa.decimal64(10, 2), pa.decimal128(12, 2), pa.decimal256(50, 2),
]  # fmt: skip
TEXTS: list[Any] = [
    pa.string(), pa.large_string(), pa.string_view(),
    pa.binary(), pa.large_binary(), pa.binary_view(), pa.binary(4),
]  # fmt: skip
TIMES: list[Any] = [
    pa.date32(), pa.date64(), pa.time32("ms"), pa.time64("ns"), pa.timestamp("ns", "UTC"), pa.duration("s"),
]  # fmt: skip
OTHERS: list[Any] = [pa.struct([]), pa.map_(pa.string(), pa.int8()), pa.month_day_nano_interval(), pa.uuid()]


@pytest.mark.parametrize("leaf", NUMBERS + TEXTS + TIMES + OTHERS + [pa.null()], ids=str)
@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "int64", "uint8", "bool", "string"])
def test_pairs_of_types(leaf: Any, dtype: str) -> None:
    # Nothing but nulls is of no type.
    plain = leaf in (TEXTS if dtype == "string" else NUMBERS) or leaf == pa.null()
    assert (leaf_misfit(leaf, dtype, None) is None) == plain
    cast = "float32" if dtype == "bfloat16" else dtype
    asked = leaf not in OTHERS and not (leaf in TIMES and dtype == "bool")
    assert (leaf_misfit(leaf, dtype, cast) is None) == asked


def test_a_cast_must_end_where_the_input_begins() -> None:
    assert leaf_misfit(pa.int64(), "float32", "string") == "cast to string where float32 is wanted"
    assert leaf_misfit(pa.string(), "string", "int8") == "cast to int8 where string is wanted"
    assert leaf_misfit(pa.float32(), "complex64", None) == "float where complex64 is wanted"


@pytest.mark.parametrize(
    ("column_type", "extents", "leaf"),
    [
        (pa.float32(), (), pa.float32()),
        (pa.dictionary(pa.int8(), pa.string()), (), pa.string()),
        (pa.list_(pa.float32(), 3), (3,), pa.float32()),
        (pa.large_list(pa.list_(pa.list_(pa.int8(), 2))), (None, None, 2), pa.int8()),
        (pa.list_(pa.dictionary(pa.int8(), pa.int16())), (None,), pa.int16()),
        (pa.fixed_shape_tensor(pa.int8(), [2, 3]), (2, 3), pa.int8()),
        (pa.fixed_shape_tensor(pa.int8(), [2, 3, 4], permutation=[2, 0, 1]), (4, 2, 3), pa.int8()),
    ],
)
def test_cells_of_a_column(column_type: Any, extents: Extents, leaf: Any) -> None:
    cells = layout(column_type)
    assert (cells.extents, cells.leaf) == (extents, leaf)


def test_a_tensor_in_a_list_is_refused() -> None:
    assert kind(layout(pa.list_(pa.fixed_shape_tensor(pa.int8(), [2, 3]))).leaf) == "other"


# column's extents, input's shape, items at each level or None, shape once 7 stands for the unknown
ALIGNED: list[tuple[Extents, Extents, Extents | None, tuple[int, ...]]] = [
    ((), (), (), ()),
    ((), (1,), (), (1,)),
    ((), (1, 1), (), (1, 1)),
    ((), (None,), (), (1,)),
    ((), (2,), None, ()),
    ((3,), (3,), (3,), (3,)),
    ((3,), (4,), None, ()),
    ((3,), (None,), (3,), (3,)),
    ((None,), (3,), (3,), (3,)),
    ((None,), (None,), (None,), (7,)),
    ((None,), (1,), (1,), (1,)),
    ((None,), (), None, ()),
    ((1,), (), (1,), ()),
    ((6,), (2, 3), (6,), (2, 3)),
    ((None,), (2, 3), (6,), (2, 3)),
    ((5,), (2, 3), None, ()),
    ((6,), (None, 3), None, ()),
    ((2, 3), (6,), None, ()),
    ((3, 2), (2, 3), None, ()),
    ((2, 3), (2, 3, 1), (2, 3), (2, 3, 1)),
    ((2, 1, 3), (2, 3), (2, 1, 3), (2, 3)),
    ((None, 3), (2, 3, 1), (2, 3), (2, 3, 1)),
    ((None, None), (1, 5), (1, 5), (1, 5)),
    ((None, 3), (None, 3), (None, 3), (7, 3)),
    ((None,), (None, 1), (None,), (7, 1)),
    ((None, 1), (None,), (None, 1), (7,)),
]


@pytest.mark.parametrize(("extents", "shape", "counts", "whole"), ALIGNED)
def test_cells_against_shapes(
    extents: Extents, shape: Extents, counts: Extents | None, whole: tuple[int, ...]
) -> None:
    assert align(extents, shape) == counts
    if counts is not None:
        found = tuple(7 if count is None else count for count in counts)
        assert cell_shape(shape, extents, found) == whole


def test_shapes_read_as_people_write_them() -> None:
    assert [shape_text(shape) for shape in ((), (3,), (None, 2))] == ["()", "(3,)", "(?, 2)"]
