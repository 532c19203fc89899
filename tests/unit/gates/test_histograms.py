"""Histograms of predictions and their distance, against NumPy on the raw values."""

from __future__ import annotations

import struct
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from job.gates.histograms import COARSEST_BITS, FINEST_BITS, MOST_BINS, Counting, Histogram, psi, summed

# A NaN has many patterns.
FLOATS = st.lists(st.floats(width=32, allow_nan=False) | st.just(float("nan")), max_size=60)


def text_of(values: Any, kind: pa.DataType | None = None, *, pieces: int = 1) -> str:
    """The histogram of a column, counted in so many pieces."""
    column = pa.array(values, kind or pa.float32())
    counting = Counting([pa.field("p", column.type)])
    size = -(-len(column) // pieces) or 1
    for start in range(0, len(column) or 1, size):
        counting.add(pa.table({"p": column.slice(start, size)}))
    ((name, packed),) = counting.packed()
    assert name == "p"
    return Histogram.of_packed(packed).text()


def of(values: Any, kind: pa.DataType | None = None) -> Histogram:
    return Histogram.of_text(text_of(values, kind))


def pattern(value: float, bits: int) -> int:
    """The upper bits of a float32, by the standard library."""
    return int(struct.unpack("<I", struct.pack("<f", value))[0] >> (32 - bits))


@settings(deadline=None, derandomize=True)
@given(FLOATS)
def test_each_value_is_in_the_bin_of_its_pattern(values: list[float]) -> None:
    histogram = of(values)
    bins = [pattern(value, histogram.bits) for value in values]
    assert dict(histogram.counts) == {one: bins.count(one) for one in bins}


@settings(deadline=None, derandomize=True)
@given(FLOATS)
def test_text_tells_all_of_it(values: list[float]) -> None:
    histogram = of(values)
    assert Histogram.of_text(histogram.text()) == histogram
    assert histogram.values == len(values)


def test_many_values_are_counted_as_few_are() -> None:
    values = np.random.default_rng(0).normal(size=20_000).astype(np.float32)
    assert text_of(values) == text_of(values, pieces=50)


@settings(deadline=None, derandomize=True)
@given(st.lists(FLOATS, min_size=1, max_size=5))
def test_parts_add_up_to_the_whole(parts: list[list[float]]) -> None:
    whole = of([value for part in parts for value in part])
    packed = [[("p", of(part).packed())] for part in parts]
    found = summed(packed)["p"]
    bits = min(whole.bits, found.bits)
    assert found.of_bits(bits) == whole.of_bits(bits)
    assert summed(reversed(packed)) == summed(packed)


@pytest.mark.parametrize(
    ("scale", "shift", "bits"),
    [(1.0, 0.0, COARSEST_BITS), (5.0, 1013.0, FINEST_BITS), (0.0, 3.0, FINEST_BITS)],
)
def test_bins_are_as_fine_as_their_number_allows(scale: float, shift: float, bits: int) -> None:
    values = shift + scale * np.random.default_rng(0).normal(size=100_000).astype(np.float32)
    histogram = of(values)
    assert histogram.bits == bits
    assert bits == COARSEST_BITS or len(histogram.counts) <= MOST_BINS
    # A receipt may have one for each prediction column.
    assert len(histogram.packed()) < 700


def test_a_name_that_one_part_lacks_is_left_out() -> None:
    one = of([1.0]).packed()
    assert set(summed([[("a", one), ("b", one)], [("a", one)]])) == {"a"}
    assert set(summed([[], [("a", one)]])) == set()
    assert summed([]) == {}


@pytest.mark.parametrize(
    ("values", "kind"),
    [
        ([True, False, True], pa.bool_()),
        ([3, -200, 2**40], pa.int64()),
        ([0.5, 1e300, -0.25], pa.float64()),
        (np.array([0.5, 3], np.float16), pa.float16()),
        ([[1.0, 2.0], [3.0, 4.0]], pa.list_(pa.float32(), 2)),
        ([[[1.0], [2.0]], [[3.0]]], pa.list_(pa.list_(pa.float32()))),
    ],
)
def test_all_numbers_of_all_columns_are_counted_as_float32(values: Any, kind: pa.DataType) -> None:
    flat = np.concatenate([np.ravel(value).astype(object) for row in values for value in _flat(row)])
    with np.errstate(over="ignore"):
        expected = of([float(np.float32(float(one))) for one in flat])
    assert of(values, kind) == expected


def _flat(row: Any) -> list[Any]:
    return [x for one in row for x in _flat(one)] if isinstance(row, list) else [row]


def test_text_has_no_histogram() -> None:
    counting = Counting([pa.field("word", pa.string()), pa.field("p", pa.float32())])
    counting.add(pa.table({"word": ["a"], "p": pa.array([1.0], pa.float32())}))
    assert [name for name, _ in counting.packed()] == ["p"]


@pytest.mark.parametrize("text", ["", "x", "12", "11:1", "17:1", "12:a", "12:4097+1", "12:1+1,4095+1,1"])
def test_what_is_no_histogram_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r"."):
        Histogram.of_text(text)


def textbook_psi(before: Any, now: Any, groups: int = 10) -> float:
    """As textbooks have it: quantiles of the raw values, shares, floored."""
    edges = np.quantile(before, np.linspace(0, 1, groups + 1))
    edges[0], edges[-1] = -np.inf, np.inf
    p, q = (np.maximum(np.histogram(values, edges)[0] / len(values), 1e-4) for values in (before, now))
    return float(np.sum((p - q) * np.log(p / q)))


RANDOM = np.random.default_rng(7)
NORMAL = RANDOM.normal(size=50_000)
SHIFTS = {
    "the same again": (NORMAL, RANDOM.normal(size=50_000)),
    "moved a little": (NORMAL, RANDOM.normal(0.2, 1, size=50_000)),
    "moved by one deviation": (NORMAL, RANDOM.normal(1, 1, size=50_000)),
    "twice as wide": (NORMAL, RANDOM.normal(0, 2, size=30_000)),
    "shares": (1 / (1 + np.exp(-NORMAL)), 1 / (1 + np.exp(-RANDOM.normal(0.5, 1, size=20_000)))),
    "far from zero": (1013 + 9 * NORMAL, 1018 + 9 * RANDOM.normal(size=50_000)),
    "small": (1e-9 * np.exp(NORMAL), 1.5e-9 * np.exp(RANDOM.normal(size=50_000))),
}


@pytest.mark.parametrize("name", SHIFTS)
def test_it_is_about_the_textbooks_number(name: str) -> None:
    before, now = (values.astype(np.float32) for values in SHIFTS[name])
    expected = textbook_psi(before, now)
    found = psi(of(before), of(now))
    assert found is not None
    assert found == pytest.approx(expected, rel=0.25, abs=0.005)
    assert (found > 0.25) == (expected > 0.25)


@settings(deadline=None, derandomize=True)
@given(FLOATS, FLOATS)
def test_it_is_no_distance_only_where_nothing_differs(before: list[float], now: list[float]) -> None:
    found = psi(of(before), of(now))
    assert (found is None) == (not before or not now)
    if found is not None:
        assert found >= 0
        assert psi(of(before), of(before)) == 0


def test_by_hand() -> None:
    # Two bins of half the values each; then a quarter and three quarters: 2 · 0.25 · ln(...).
    found = psi(of([1.0, 1.0, 4.0, 4.0]), of([1.0, 4.0, 4.0, 4.0]))
    assert found == pytest.approx(0.25 * np.log(0.5 / 0.25) + 0.25 * np.log(0.75 / 0.5))


def test_both_zeros_are_one_value_and_what_is_not_finite_is_a_group() -> None:
    assert psi(of([0.0] * 50), of([-0.0] * 50)) == 0
    whole = of(np.arange(1, 101))
    spoilt = psi(whole, of([*range(1, 91), *[float("nan")] * 10]))
    assert spoilt is not None
    assert spoilt > 0.25
    assert psi(of([float("inf")] * 9), of([float("nan"), float("-inf")])) == 0


def test_one_value_that_holds_half_of_all_is_no_drift() -> None:
    before, now = ([0.0] * 5000 + list(np.random.default_rng(seed).random(5000)) for seed in (1, 2))
    found = psi(of(before), of(now))
    assert found is not None
    assert found < 0.01
    constant = psi(of([1.0] * 1000), of([2.0] * 1000))
    assert constant is not None
    assert constant > 5
