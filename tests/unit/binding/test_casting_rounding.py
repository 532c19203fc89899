"""Literal values from one NumPy type to another, and the faults among them."""

from __future__ import annotations

from typing import Any

import ml_dtypes
import numpy as np
import pytest

from job.binding.casting import convert, faults_at, numpy_type

INF, NAN = float("inf"), float("nan")

# values, their type, wanted type, what comes out, {position: code}
TABLE: list[tuple[list[Any], str, str, list[Any], dict[int, str]]] = [
    ([1.0, 0.1, INF, NAN, -INF], "float64", "float32", [1.0, 0.10000000149011612, INF, NAN, -INF], {}),
    ([1e39, -1e39, 3.4028235e38, 3.40282356e38], "float64", "float32",
     [0, 0, 3.4028234663852886e38, 3.4028234663852886e38], {0: "overflow", 1: "overflow"}),
    ([65504.0, 65519.0, 65520.0, INF], "float32", "float16", [65504, 65504, 0, INF], {2: "overflow"}),
    ([1e-50], "float64", "float32", [0.0], {}),
    ([2**24, 2**24 + 1, 2**24 + 2, -(2**24) - 1], "int32", "float32",
     [2**24, 0, 2**24 + 2, 0], {1: "inexact", 3: "inexact"}),
    ([2**53, 2**53 + 1, 2**63 - 1, -(2**63)], "int64", "float64",
     [2**53, 0, 0, -(2.0**63)], {1: "inexact", 2: "inexact"}),
    ([2**64 - 1, 2**63, 2**64 - 2**11], "uint64", "float64", [0, 2**63, 2**64 - 2**11], {0: "inexact"}),
    ([2048, 2049, 65504, 65519, 65520], "uint16", "float16",
     [2048, 0, 65504, 0, 0], {1: "inexact", 3: "inexact", 4: "overflow"}),
    ([256, 257, 258], "int16", "bfloat16", [256, 0, 258], {1: "inexact"}),
    ([-128, 127, 128, -129], "int64", "int8", [-128, 127, 0, 0], {2: "range", 3: "range"}),
    ([-1, 255, 256], "int32", "uint8", [0, 255, 0], {0: "range", 2: "range"}),
    ([2**64 - 1, 1], "uint64", "int64", [0, 1], {0: "range"}),
    ([1.0, 1.5, -0.0, 300.0, 300.5, NAN, INF], "float64", "int8",
     [1, 0, 0, 0, 0, 0, 0], {1: "inexact", 3: "range", 4: "inexact", 5: "range", 6: "range"}),
    ([2.0**63, -(2.0**63), 2.0**62], "float64", "int64", [0, -(2**63), 2**62], {0: "range"}),
    ([2.0**64, 2.0**63], "float64", "uint64", [0, 2**63], {0: "range"}),
    ([0, 1, 2, -1], "int8", "bool", [False, True, False, False], {2: "range", 3: "range"}),
    ([0.0, 1.0, 0.5, NAN], "float32", "bool", [False, True, False, False], {2: "range", 3: "range"}),
    ([True, False], "bool", "float32", [1.0, 0.0], {}),
    ([True, False], "bool", "int64", [1, 0], {}),
]  # fmt: skip


@pytest.mark.parametrize(("values", "source", "wanted", "out", "codes"), TABLE)
def test_values_round_or_are_at_fault(
    values: list[Any], source: str, wanted: str, out: list[Any], codes: dict[int, str]
) -> None:
    got, faults = convert(np.array(values, source), wanted)
    assert got.dtype == numpy_type(wanted)
    np.testing.assert_array_equal(got.astype(object).tolist(), out)
    assert {int(p): fault.code for fault in faults for p in fault.positions} == codes
    empty, none = convert(np.array([], source), wanted)
    assert (empty.dtype, len(empty), none) == (numpy_type(wanted), 0, ())


def test_a_cast_rounds_integers_but_not_to_infinity() -> None:
    got, faults = convert(np.array([2**24 + 1, 7]), "float32", round_integers=True)
    assert (got.tolist(), faults) == ([2**24, 7], ())
    got, (fault,) = convert(np.array([2049, 65520]), "float16", round_integers=True)
    assert (got.tolist(), fault.code, fault.positions.tolist()) == ([2048, 0], "overflow", [1])


def test_a_fault_shows_its_first_value_cut_short() -> None:
    _, (fault,) = convert(np.array([1.0, 1e300, 2e300]), "float32")
    assert fault.example == "1e+300"
    assert fault.text == "a float64 beyond float32"
    (long,) = faults_at(np.array([False, True]), "parse", "text", ["", "x" * 500])
    assert long.example == "x" * 80


def test_bfloat16_is_the_type_that_keras_uses() -> None:
    got, faults = convert(np.array([1.0, 3.1415927, 3.4e38], np.float32), "bfloat16")
    assert got.dtype == np.dtype(ml_dtypes.bfloat16)
    assert got.astype(np.float64).tolist() == [1.0, 3.140625, 0.0]
    assert [fault.code for fault in faults] == ["overflow"]


def test_the_same_type_is_not_copied() -> None:
    values = np.arange(4, dtype=np.float32)
    assert convert(values, "float32")[0] is values
