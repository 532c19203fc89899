"""Counts, means and quantiles against numpy on the raw values, however they are cut into parts."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from job.compare import movement
from job.compare.movement import Moments, Numbers, Sketch, Words

Array = np.ndarray[Any, np.dtype[Any]]

POSITIVE = st.floats(1e-300, 1e300)
USUAL = st.floats(-1e6, 1e6, width=32)


def numbers(a: Any, b: Any, parts: int = 1, kind: pa.DataType | None = None, **more: Any) -> dict[str, Any]:
    """What is told of two columns that come in parts; keys are the row numbers."""
    asked = {"tolerance": 0.0, "threshold": None, "top": 3, **more}
    one = Numbers("p", **asked)
    x, y = (pa.chunked_array([pa.array(values, kind or pa.float64())]) for values in (a, b))
    moved = [
        one.add(x.take(rows), y.take(rows), pa.table({"id": rows}))
        for rows in map(pa.array, np.array_split(np.arange(len(a)), parts))
    ]
    told = one.told()
    assert told["moved"] == sum(int(mask.sum()) for mask in moved)
    return told


@settings(max_examples=100, deadline=None)
@given(st.lists(POSITIVE, max_size=60), st.integers(0, 20), st.floats(0, 1), st.integers(1, 5))
def test_a_quantile_is_within_a_thousandth_of_the_number_of_its_rank(
    values: list[float], zeros: int, share: float, parts: int
) -> None:
    whole = Sketch()
    for part in np.array_split(np.array(values), parts):
        one = Sketch()
        one.add(part)
        whole = whole.plus(one)
    every = np.sort([*values, *[0.0] * zeros])
    if len(every):
        wanted = every[max(1, math.ceil(share * len(every))) - 1]
        assert whole.quantile(share, zeros) == pytest.approx(wanted, rel=movement.ACCURACY * 1.001, abs=0)


@settings(max_examples=100, deadline=None)
@given(st.lists(st.tuples(USUAL, USUAL), min_size=2, max_size=50), st.integers(1, 6))
def test_moments_are_those_of_all_rows(rows: list[tuple[float, float]], parts: int) -> None:
    a, b = np.array(rows).T
    moments = Moments()
    for x, y in zip(np.array_split(a, parts), np.array_split(b, parts), strict=True):
        moments.add(x, y)
    assert moments.rows == len(rows)
    np.testing.assert_allclose(moments.mean, [a.mean(), b.mean()], rtol=1e-9, atol=1e-6)
    covariance = np.cov(a, b, bias=True) * len(rows)
    np.testing.assert_allclose(moments.scatter, covariance, rtol=1e-6, atol=1e-9 * max(1, covariance.max()))


def test_a_correlation_far_from_zero_keeps_its_digits() -> None:
    random = np.random.default_rng(0)
    a = 1e9 + random.normal(size=10_000)
    b = a + random.normal(size=10_000)
    told = numbers(a, b, parts=7)
    assert told["correlation"] == pytest.approx(np.corrcoef(a, b)[0, 1], abs=1e-9)
    assert numbers([1.0, 1.0], [1.0, 2.0])["correlation"] is None


@settings(max_examples=100, deadline=None)
@given(
    st.lists(st.tuples(st.none() | st.floats(width=32), st.none() | st.floats(width=32)), min_size=1),
    st.integers(1, 4),
    st.sampled_from([0.0, 0.5]),
)
def test_every_count_is_python_s(
    rows: list[tuple[float | None, float | None]], parts: int, tolerance: float
) -> None:
    a, b = ([pair[i] for pair in rows] for i in (0, 1))
    told = numbers(a, b, parts, pa.float32(), tolerance=tolerance, threshold=0.5)
    plain = [tuple(math.nan if v is None else v for v in pair) for pair in rows]
    equal = [x == y or (math.isnan(x) and math.isnan(y)) for x, y in plain]
    finite = [math.isfinite(x) and math.isfinite(y) for x, y in plain]
    moved = [
        abs(y - x) > tolerance if f else not e for (x, y), e, f in zip(plain, equal, finite, strict=True)
    ]
    assert (told["rows"], told["equal"], told["moved"]) == (len(rows), sum(equal), sum(moved))
    assert told["not_finite"] == sum(not e and not f for e, f in zip(equal, finite, strict=True))
    # A value that is none is on neither side: it is not at or above the threshold.
    assert told["flips_up"] == sum(not x >= 0.5 and y >= 0.5 for x, y in plain)
    assert told["flips_down"] == sum(x >= 0.5 and not y >= 0.5 for x, y in plain)
    sizes = [abs(y - x) for (x, y), f in zip(plain, finite, strict=True) if f]
    if sizes:
        assert told["max_abs"] == max(sizes)
        assert told["mean_abs"] == pytest.approx(math.fsum(sizes) / len(sizes), rel=1e-9, abs=1e-30)
        assert sum(bar["rows"] for bar in told["histogram"]) == len(sizes)
    ranked = sorted((s for s in sizes if s), reverse=True)[:3]
    infinite = min(3, told["not_finite"])
    shown = [abs(one["difference"]) for one in told["movers"] if one["difference"] is not None]
    assert shown == ranked[: 3 - infinite]
    assert sum(one["difference"] is None for one in told["movers"]) == infinite


def test_movers_come_with_their_keys_and_both_values() -> None:
    a = np.zeros(1000)
    b = a.copy()
    b[[7, 500, 999, 3]] = [5.0, -9.0, 2.0, 1.0]
    told = numbers(a, b, parts=10)
    assert told["movers"] == [
        {"keys": {"id": 500}, "a": 0.0, "b": -9.0, "difference": -9.0},
        {"keys": {"id": 7}, "a": 0.0, "b": 5.0, "difference": 5.0},
        {"keys": {"id": 999}, "a": 0.0, "b": 2.0, "difference": 2.0},
    ]
    assert numbers(a, b, top=0)["movers"] == []


def test_what_no_number_can_hold_is_not_told() -> None:
    told = numbers([-1e308, 1.0], [1e308, math.inf])
    assert (told["rows"], told["not_finite"], told["mean_abs"], told["correlation"]) == (2, 2, None, None)
    told = numbers([1e308, 1e308], [0.0, 0.0])
    assert (told["max_abs"], told["mean_abs"], told["mean"], told["mean_a"]) == (1e308, None, None, None)
    nothing = numbers([math.nan], [1.0])
    assert (nothing["mean"], nothing["psi"], nothing["max_abs"], nothing["histogram"]) == (
        None,
        None,
        None,
        [],
    )
    assert nothing["movers"] == [{"keys": {"id": 0}, "a": None, "b": 1.0, "difference": None}]


def test_large_integers_are_not_rounded() -> None:
    told = numbers([2**60, 2**60, 5], [2**60 + 1, 2**60, 5], kind=pa.int64())
    assert (told["equal"], told["max_abs"], told["movers"][0]["difference"]) == (2, 1.0, 1.0)


def test_bars_are_powers_of_ten_and_the_smallest_are_put_together() -> None:
    told = numbers([0.0] * 6, [0.0, 5.0, -0.05, 2e-9, 3e-12, -40.0])
    bars = {(bar["from"], bar["to"]): bar["rows"] for bar in told["histogram"] if bar["rows"]}
    assert bars == {(-100.0, -10.0): 1, (-0.1, -0.01): 1, (0.0, 0.0): 1, (0.0, 1e-5): 2, (1.0, 10.0): 1}
    assert numbers([1.0], [1.0])["histogram"] == [{"from": 0.0, "to": 0.0, "rows": 1}]


def test_the_psi_of_a_shift_is_the_one_worked_out_by_hand() -> None:
    old = np.arange(100.0)
    assert numbers(old, old)["psi"] == 0.0
    # Groups of ten: 0–9 … 90–99. Ten rows leave the first for the last.
    new = np.where(old < 10, 95.0, old)
    by_hand = (0.005 - 0.1) * math.log(0.005 / 0.1) + (0.2 - 0.1) * math.log(0.2 / 0.1)
    assert numbers(old, new)["psi"] == pytest.approx(by_hand)
    assert numbers(np.zeros(10), np.zeros(10))["psi"] == 0.0
    assert numbers(np.zeros(10), np.ones(10))["psi"] > 1


def words(a: list[Any], b: list[Any], top: int = 2) -> dict[str, Any]:
    one = Words("label", top=top)
    for x, y in zip(a, b, strict=True):
        one.add(pa.chunked_array([pa.array(x)]), pa.chunked_array([pa.array(y)]), pa.table({}))
    return one.told()


def test_texts_are_equal_or_changed_into_what() -> None:
    told = words([["x", "y", "x", None], ["x", None]], [["y", "y", "y", None], ["z", "x"]])
    assert told == {
        "column": "label",
        "kind": "text",
        "rows": 6,
        "equal": 2,
        "moved": 4,
        "changes": [{"a": "x", "b": "y", "rows": 2}, {"a": "x", "b": "z", "rows": 1}],
        "changes_are_exact": True,
    }


def test_of_too_many_changes_the_commonest_stay(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(movement, "_MOST_PAIRS", 10)
    rare = [f"rare-{i}" for i in range(30)]
    told = words([["x"] * 20, rare[:15], rare[15:]], [["y"] * 20, ["z"] * 15, ["z"] * 15], top=1)
    assert told["changes"] == [{"a": "x", "b": "y", "rows": 20}]
    assert (told["moved"], told["changes_are_exact"]) == (50, False)
