"""Rows matched by keys, against a dictionary of Python's; at once, and by way of the disk."""

from __future__ import annotations

import datetime
import decimal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from job.compare import pairing
from job.compare.columns import plain
from job.compare.pairing import Pairs, Side, pairs
from job.errors import UsageError

VALUES: dict[str, tuple[pa.DataType, st.SearchStrategy[Any]]] = {
    "whole": (pa.int64(), st.integers(-(2**63), 2**63 - 1)),
    "small": (pa.int16(), st.integers(-3, 3)),
    "unsigned": (pa.uint64(), st.integers(0, 2**64 - 1)),
    "text": (pa.string(), st.text("aäb\0", max_size=4)),
    "bytes": (pa.binary(), st.binary(max_size=3)),
    "code": (pa.dictionary(pa.int32(), pa.string()), st.sampled_from(["x", "y", "z"])),
    "flag": (pa.bool_(), st.booleans()),
    "float": (pa.float32(), st.floats(width=32, allow_nan=False).map(lambda x: x + 0.0)),
    "day": (pa.date32(), st.dates(datetime.date(2020, 1, 1), datetime.date(2020, 1, 9))),
    "time": (pa.timestamp("us"), st.datetimes(datetime.datetime(2020, 1, 1), datetime.datetime(2021, 1, 1))),
    "money": (pa.decimal128(5, 2), st.integers(-99, 99).map(lambda i: decimal.Decimal(i) / 4)),
}


@st.composite
def two_sides(draw: st.DrawFn) -> tuple[list[str], list[tuple[Any, ...]], list[tuple[Any, ...]]]:
    """Names of key columns, and the distinct keys of either side, in any order."""
    names = draw(st.lists(st.sampled_from(sorted(VALUES)), min_size=1, max_size=3, unique=True))
    # 0.0 and -0.0 are one key for Python, and two for Arrow's dictionaries.
    one = st.tuples(*(st.none() | VALUES[name][1] for name in names))
    every = draw(st.lists(one, unique=True, max_size=30))
    on = [draw(st.sampled_from("ab*")) for _ in every]
    sides = [[key for key, where in zip(every, on, strict=True) if where in (side, "*")] for side in "ab"]
    return names, draw(st.permutations(sides[0])), draw(st.permutations(sides[1]))


def side(name: str, names: list[str], keys: list[tuple[Any, ...]], cut: int) -> Side:
    """Rows with these keys in tables of ``cut`` rows, and beside each its number."""
    columns = {key: plain(pa.array([one[i] for one in keys], VALUES[key][0])) for i, key in enumerate(names)}
    table = pa.table({**columns, "number": pa.array(range(len(keys)), pa.int64())})

    def tables() -> Iterator[pa.Table]:
        yield from (table.slice(i, cut) for i in range(0, max(1, len(keys)), cut))

    return Side(name, len(keys), tables)


def numbers(found: list[Pairs]) -> set[tuple[int, int]]:
    told = [pair for one in found for pair in zip(one.a["number"], one.b["number"], strict=True)]
    assert len(set(told)) == len(told)
    return {(a.as_py(), b.as_py()) for a, b in told}


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(two_sides(), st.integers(1, 9), st.booleans())
def test_every_row_is_beside_the_one_with_its_key(
    monkeypatch: pytest.MonkeyPatch,
    given_sides: tuple[list[str], list[tuple[Any, ...]], list[tuple[Any, ...]]],
    cut: int,
    spilled: bool,
) -> None:
    names, of_a, of_b = given_sides
    monkeypatch.setattr(pairing, "_ROWS_AT_ONCE", 0 if spilled else 1000)
    monkeypatch.setattr(pairing, "_PART_ROWS", 4)
    found = list(pairs(side("A", names, of_a, cut), side("B", names, of_b, cut), names))
    place = {key: i for i, key in enumerate(of_b)}
    assert numbers(found) == {(i, place[key]) for i, key in enumerate(of_a) if key in place}
    both = len(set(of_a) & set(of_b))
    assert sum(one.only_a for one in found) == len(of_a) - both
    assert sum(one.only_b for one in found) == len(of_b) - both
    for one in found:
        assert one.a.select(names).equals(one.b.select(names))


@pytest.mark.parametrize("at_once", [0, 1000])
def test_keys_that_do_not_tell_rows_apart_are_shown(monkeypatch: pytest.MonkeyPatch, at_once: int) -> None:
    monkeypatch.setattr(pairing, "_ROWS_AT_ONCE", at_once)
    monkeypatch.setattr(pairing, "_PART_ROWS", 2)
    good = side("A", ["whole", "text"], [(i, "x") for i in range(9)], 2)
    bad = side("B (/data/out)", ["whole", "text"], [(1, "x"), (7, None), (2, "y"), (7, None), (7, None)], 2)
    with pytest.raises(UsageError) as refused:
        list(pairs(good, bad, ["whole", "text"]))
    assert str(refused.value) == (
        "B (/data/out): 3 rows have the same key, whole=7, text=None; give the columns that tell rows apart "
        "by --keys"
    )


def test_parts_are_about_equal_and_nothing_is_left_on_the_disk(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    monkeypatch.setattr(pairing, "_ROWS_AT_ONCE", 1000)
    monkeypatch.setattr(pairing, "_PART_ROWS", 1000)
    # Keys that differ in a few places only, as those of a shop do.
    names, keys = ["text"], [(f"customer-{i:08}-de",) for i in range(20_000)]
    found = []
    for one in pairs(side("A", names, keys, 3000), side("B", names, keys[::-1], 3000), names):
        found.append(one.a.num_rows)
        assert list(tmp_path.iterdir())
    assert (len(found), sum(found)) == (20, 20_000)
    assert max(found) < 1500
    assert list(tmp_path.iterdir()) == []
