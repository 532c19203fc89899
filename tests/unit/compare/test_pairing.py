"""Rows matched by keys by DuckDB, against a dictionary of Python's."""

from __future__ import annotations

import datetime
import decimal
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from job.compare import pairing
from job.compare.diff import plain
from job.compare.pairing import Pairs, Side, pairs
from job.errors import DataError, UsageError

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
    "span": (pa.duration("ns"), st.timedeltas(datetime.timedelta(0), datetime.timedelta(days=9))),
    "instant": (pa.timestamp("ns", "Europe/Berlin"), st.integers(0, 10**18)),
    "wide": (pa.decimal256(60, 2), st.integers(-99, 99).map(lambda i: decimal.Decimal(i) / 4)),
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


@settings(max_examples=40, deadline=None)
@given(two_sides(), st.integers(1, 9))
def test_every_row_is_beside_the_one_with_its_key(
    given_sides: tuple[list[str], list[tuple[Any, ...]], list[tuple[Any, ...]]], cut: int
) -> None:
    names, of_a, of_b = given_sides
    found = list(pairs(side("A", names, of_a, cut), side("B", names, of_b, cut), names))
    place = {key: i for i, key in enumerate(of_b)}
    assert numbers(found) == {(i, place[key]) for i, key in enumerate(of_a) if key in place}
    both = len(set(of_a) & set(of_b))
    assert sum(one.only_a for one in found) == len(of_a) - both
    assert sum(one.only_b for one in found) == len(of_b) - both
    table = next(side("A", names, of_a, 10**6).tables())
    for one in found:
        assert one.a.select(names).equals(table.select(names).take(one.a["number"]))


def test_keys_that_do_not_tell_rows_apart_are_shown() -> None:
    good = side("A", ["whole", "text"], [(i, "x") for i in range(9)], 2)
    told = (
        "B (/data/out): 3 rows have the same key, whole={}, text={}; give the columns that tell rows apart "
        "by --keys"
    )
    # Rows that B alone has, and rows that both have.
    for twice in ((7, None), (3, "x")):
        keys = [(1, "x"), twice, (2, "y"), twice, twice]
        for sides in ((good, "B (/data/out)"), ("B (/data/out)", good)):
            a, b = (side(one, ["whole", "text"], keys, 2) if isinstance(one, str) else one for one in sides)
            with pytest.raises(UsageError) as refused:
                list(pairs(a, b, ["whole", "text"]))
            assert str(refused.value) == told.format(*twice)


def test_one_key_of_all_rows_is_told_before_every_row_meets_every_other() -> None:
    a, b = (side(name, ["small"], [(1,)] * 30_000, 10_000) for name in "AB")
    taken = iter(pairs(a, b, ["small"]))
    with pytest.raises(UsageError, match=r"^A: 30000 rows have the same key, small=1; give"):
        list(taken)


def test_what_goes_wrong_while_a_file_is_read_is_told_as_it_is() -> None:
    good = side("A", ["whole"], [(i,) for i in range(9)], 2)

    def tables() -> Iterator[pa.Table]:
        yield next(good.tables())
        raise DataError("/data/part: it lacks column id")

    for a, b in ((good, Side("B", 9, tables)), (Side("B", 9, tables), good)):
        with pytest.raises(DataError, match=r"^/data/part: it lacks column id$"):
            list(pairs(a, b, ["whole"]))


def test_without_duckdb_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "duckdb", None)
    good = side("A", ["whole"], [(1,)], 2)
    with pytest.raises(UsageError, match=r"not installed: pip install 'scoring-job\[diff\]'$"):
        next(pairs(good, good, ["whole"]))


def test_what_is_too_much_goes_to_the_disk_and_is_removed(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    monkeypatch.setattr(pairing, "_LEAST_MEMORY_BYTES", 60_000_000)
    numbers = np.arange(1_000_000)
    keys = pa.array([f"customer-{i:040}-de" for i in range(1000)]).take(pa.array(numbers % 1000))

    def night(name: str, order: np.ndarray[Any, Any]) -> Side:
        table = pa.table({"text": keys, "number": numbers, "value": numbers}).take(pa.array(order))
        return Side(
            name, len(order), lambda: iter([table.slice(i, 100_000) for i in range(0, len(order), 100_000)])
        )

    aside = rows = 0
    for one in pairs(night("A", numbers), night("B", numbers[::-1]), ["text", "number"]):
        assert one.a["value"].equals(one.b["value"])
        rows += one.a.num_rows
        aside = max(aside, sum(file.stat().st_size for file in tmp_path.rglob("*") if file.is_file()))
    assert rows == 1_000_000
    assert aside > 1_000_000
    assert list(tmp_path.iterdir()) == []
