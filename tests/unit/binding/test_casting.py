"""Flat Arrow values through ``--cast``, parsing and dictionaries: literal tables and fuzzed text."""

from __future__ import annotations

import datetime as dt
from decimal import Decimal
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from job.binding.casting import Faults, numbers, strings
from job.binding.columns import castable

NAN, INF = float("nan"), float("inf")
NOON = dt.datetime(2013, 1, 1, 12, 0, 1, tzinfo=dt.UTC)
DAY = dt.date(1970, 1, 11)


def codes_of(faults: Faults) -> dict[int, str]:
    return {int(position): fault.code for fault in faults for position in fault.positions}


# values, Arrow type, --cast, input type, what comes out, {position: code}
CASTS: list[tuple[list[Any], Any, str | None, str, list[Any], dict[int, str]]] = [
    (["1.5", "-2", "n/a", None, "", "1e3"], pa.string(), "float32", "float32",
     [1.5, -2.0, 0, 0, 0, 1000.0], {2: "parse", 3: "null", 4: "parse"}),
    (["inf", "-Infinity", "nan", "1e999", "1e39"], pa.string(), "float64", "float32",
     [INF, -INF, NAN, 0, 0], {3: "overflow", 4: "overflow"}),
    (["1", "1.0", "300", "-1"], pa.string(), "int8", "int8", [1, 0, 0, -1], {1: "parse", 2: "range"}),
    (["1", "0xFF", "-1"], pa.string(), "uint8", "float32", [1, 0, 0], {1: "parse", 2: "parse"}),
    (["9" * 19, "0" * 30 + "7", "9223372036854775807"], pa.string(), "int64", "int64",
     [0, 7, 2**63 - 1], {0: "parse"}),
    (["0xFFFFFFFFFFFFFFFF", "7"], pa.string(), "int64", "int64", [0, 7], {0: "parse"}),
    (["true", "FALSE", "1", "yes"], pa.string(), "bool", "float32", [1, 0, 1, 0], {3: "parse"}),
    ([b"1.5", b"\xff"], pa.binary(), "float32", "float32", [1.5, 0], {1: "parse"}),
    ([b"1.5", None], pa.binary(3), "float32", "float32", [1.5, 0], {1: "null"}),
    (["2.5", "x", None], pa.string_view(), "float16", "float16", [2.5, 0, 0], {1: "parse", 2: "null"}),
    ([NOON, None], pa.timestamp("us"), "int64", "float64", [1357041601000000.0, 0], {1: "null"}),
    ([NOON], pa.timestamp("us"), "int64", "float32", [0], {0: "inexact"}),
    ([NOON], pa.timestamp("us"), "float32", "float32", [float(np.float32(1357041601000000))], {}),
    ([NOON], pa.timestamp("s", "UTC"), "int64", "int64", [1357041601], {}),
    ([DAY, None], pa.date32(), "int64", "float32", [10, 0], {1: "null"}),
    ([DAY], pa.date64(), "int64", "float64", [864000000.0], {}),
    ([dt.time(0, 1)], pa.time32("s"), "int16", "float32", [60], {}),
    ([dt.timedelta(seconds=3)], pa.duration("ms"), "int64", "float32", [3000], {}),
    ([2**53 + 1, 3], pa.int64(), "float64", "float32", [2.0**53, 3], {}),
    ([2**53 + 1, 3], pa.int64(), None, "float32", [0, 3], {0: "inexact"}),
    ([1.5, 2.0], pa.float64(), "int32", "float32", [0, 2], {0: "inexact"}),
    ([None, None], pa.null(), "float32", "float32", [0, 0], {0: "null", 1: "null"}),
    ([Decimal("0.5"), Decimal("1.0"), Decimal("2.0")], pa.decimal128(3, 1), None, "bool",
     [False, True, False], {0: "range", 2: "range"}),
    ([Decimal("0.3"), None], pa.decimal128(1, 1), None, "float64", [0.3, 0], {1: "null"}),
    ([Decimal(300), Decimal(-100)], pa.decimal128(5, -2), None, "int16", [300, -100], {}),
    ([Decimal(2**64 - 1), Decimal(2**64)], pa.decimal128(38, 0), None, "uint64",
     [2**64 - 1, 0], {1: "range"}),
]  # fmt: skip


@pytest.mark.parametrize("start", [0, 1])
@pytest.mark.parametrize(("values", "source", "cast", "dtype", "out", "codes"), CASTS)
def test_values_through_casts(
    values: list[Any],
    source: Any,
    cast: str | None,
    dtype: str,
    out: list[Any],
    codes: dict[int, str],
    start: int,
) -> None:
    assert cast is None or castable(source, cast)
    got, faults = numbers(pa.array(values, source).slice(start), dtype, cast)
    assert got.dtype == np.dtype(dtype)
    np.testing.assert_array_equal(got, np.array(out[start:], dtype))
    assert codes_of(faults) == {
        position - start: code for position, code in codes.items() if position >= start
    }


def test_decimals_round_once_where_arrow_does_not() -> None:
    cents = [Decimal(value).scaleb(-4) for value in range(10**13 + 1, 10**13 + 2000)]
    column = pa.array(cents, pa.decimal128(20, 4))
    assert numbers(column, "float64")[0].tolist() == [float(value) for value in cents]
    assert column.cast(pa.float64()).to_pylist() != [float(value) for value in cents]


@settings(max_examples=300, deadline=None, derandomize=True)
@given(
    texts=st.lists(st.text("0123456789+-.eEnaifty()xX _", max_size=8), max_size=6),
    cast=st.sampled_from(["float32", "float64", "int8", "int64", "uint32", "bool"]),
)
def test_a_bad_text_does_not_change_how_its_neighbours_are_read(texts: list[str], cast: str) -> None:
    alone = [numbers(pa.array([text]), cast, cast) for text in texts]
    for neighbours in ([], ["certainly not"]):
        together, faults = numbers(pa.array(texts + neighbours, pa.string()), cast, cast)
        for position, (one, fault) in enumerate(alone):
            np.testing.assert_array_equal(together[position], one[0])
            assert codes_of(faults).get(position) == codes_of(fault).get(0)
    for text, (_, fault) in zip(texts, alone, strict=True):
        try:
            pa.array([text]).cast(pa.type_for_alias(cast))
        except pa.ArrowInvalid:
            assert codes_of(fault) in ({0: "parse"}, {0: "range"})
        else:
            assert "parse" not in codes_of(fault).values() or "x" in text.lower()


def test_an_unused_bad_dictionary_value_costs_no_row() -> None:
    indices = pa.array([0, 2, 0, 2], pa.int8())
    column = pa.DictionaryArray.from_arrays(indices, pa.array([1.0, 1e300, 2.0]))
    got, faults = numbers(column, "float32")
    assert (got.tolist(), faults) == ([1, 2, 1, 2], ())
    used = pa.DictionaryArray.from_arrays(pa.array([0, 1, None, 1]), pa.array([1.0, 1e300, None]))
    got, faults = numbers(used, "float32")
    assert got.tolist() == [1, 0, 0, 0]
    assert codes_of(faults) == {1: "overflow", 2: "null", 3: "overflow"}


def test_nulls_in_a_dictionary_or_its_indices_are_null() -> None:
    column = pa.DictionaryArray.from_arrays(pa.array([0, 1, None, 0]), pa.array(["a", None]))
    coded, faults = strings(column)
    assert coded.values[coded.codes].tolist() == [b"a", b"", b"", b"a"]
    assert codes_of(faults) == {1: "null", 2: "null"}
    empty = pa.DictionaryArray.from_arrays(pa.array([None], pa.int8()), pa.array([], pa.string()))
    coded, faults = strings(empty)
    assert coded.values[coded.codes].tolist() == [b""]
    assert codes_of(faults) == {0: "null"}


def test_a_string_dictionary_is_kept_and_a_long_one_is_not() -> None:
    short = pa.array(["b", "a", "b", "b"]).dictionary_encode()
    coded, _ = strings(short)
    assert (coded.values.tolist(), coded.codes.tolist()) == ([b"b", b"a"], [0, 1, 0, 0])
    assert coded.codes.dtype == np.int32
    long = pa.DictionaryArray.from_arrays(pa.array([90, 7]), pa.array([str(i) for i in range(100)]))
    coded, _ = strings(long)
    assert coded.values[coded.codes].tolist() == [b"90", b"7"]
    assert len(coded.values) == 2


@pytest.mark.parametrize(
    ("values", "source", "out"),
    [
        ([1, -2], pa.int64(), [b"1", b"-2"]),
        ([True, False], pa.bool_(), [b"true", b"false"]),
        ([DAY], pa.date32(), [b"1970-01-11"]),
        ([Decimal("1.50")], pa.decimal128(5, 2), [b"1.50"]),
        ([b"\xff\x00"], pa.binary(), [b"\xff\x00"]),
    ],
)
def test_anything_can_be_written_as_text(values: list[Any], source: Any, out: list[bytes]) -> None:
    for column in (pa.array(values, source), pa.array(values, source).dictionary_encode()):
        coded, faults = strings(column)
        assert coded.values[coded.codes].tolist() == out
        assert not faults


def test_a_time_beyond_every_calendar_is_one_bad_row() -> None:
    column = pa.array([0, 2**62, None, 86_400], pa.int64()).view(pa.timestamp("s"))
    coded, faults = strings(column)
    assert coded.values[coded.codes].tolist() == [b"1970-01-01 00:00:00", b"", b"", b"1970-01-02 00:00:00"]
    assert codes_of(faults) == {1: "range", 2: "null"}
    assert [fault.example for fault in faults if fault.code == "range"] == [str(2**62)]


def test_numbers_of_the_same_type_share_memory() -> None:
    column = pa.array(np.arange(5, dtype=np.float32)).slice(2)
    got, _ = numbers(column, "float32")
    assert got.ctypes.data == column.buffers()[1].address + 8
