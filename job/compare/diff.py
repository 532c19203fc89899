"""Two published nights row by row, or two columns of one: how far did the predictions move, and which most?

Rows are matched by key columns, or, where nights carry none, by shard and row number: these are the same rows
if the shards are the same files. Then a row that only one side rejected is only in the other.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import pyarrow as pa

from job.compare.columns import CHALLENGER, Column, alike, apart, check_keys, columns, plain
from job.compare.movement import Numbers, Words
from job.compare.night_files import NightFiles
from job.compare.pairing import Pairs, Side, pairs
from job.errors import UsageError

VERSION: Final = 1
# What rows are matched by where no keys are.
_PLACE: Final = ("shard", "row")


@dataclass(frozen=True)
class Asked:
    """What is to be compared, and what counts as moved. Empty ``keys`` and ``columns`` are looked for."""

    keys: tuple[str, ...] = ()
    columns: tuple[str, ...] = ()
    threshold: float | None = None
    tolerance: float = 0.0
    top: int = 20


@dataclass(frozen=True)
class Difference:
    """What was found; ``fields`` is told in docs/diff.md. ``nights`` are two, or one with both columns."""

    nights: tuple[NightFiles, ...]
    matched_by: tuple[str, ...]
    asked: Asked
    rows: int
    only_a: int
    only_b: int
    moved: int
    columns: tuple[dict[str, Any], ...]

    @property
    def share_moved(self) -> float:
        """The share of the compared rows in which any column moved by more than is tolerated."""
        return self.moved / self.rows if self.rows else 0.0

    def fields(self) -> dict[str, Any]:
        """Return all of it as JSON's object."""
        return {
            "version": VERSION,
            "nights": [_night(night) for night in self.nights],
            "matched_by": list(self.matched_by),
            "rows": self.rows,
            "only_a": self.only_a,
            "only_b": self.only_b,
            "tolerance": self.asked.tolerance,
            "threshold": self.asked.threshold,
            "moved": self.moved,
            "share_moved": self.share_moved,
            "columns": list(self.columns),
        }


def _night(night: NightFiles) -> dict[str, Any]:
    return {
        "output": night.folder,
        "run_id": night.manifest["run_id"],
        "ds": night.manifest.get("ds") or None,
        "model_sha256": night.manifest["model"]["sha256"],
        "rows": night.rows,
        "rejected": night.manifest["rows_rejected"],
    }


def diff(folders: Sequence[str], asked: Asked) -> Difference:
    """Compare two nights, or two columns of one.

    Raises:
        UsageError: nothing is published, keys do not tell rows apart, or there is nothing to compare.
        StateUnknownError: a night was replaced while it was read.
    """
    nights = tuple(NightFiles.of(folder) for folder in folders)
    if len(nights) == 1:
        plan = _within(nights[0], asked)
        found = _side_by_side(nights[0], plan)
    else:
        a, b = nights
        plan = _between(a, b, asked)
        found = pairs(_side("A", a, plan), _side("B", b, plan), plan.matched_by)
    told = _added_up(found, plan, asked)
    for night in nights:
        night.check_same()
    if not told["rows"]:
        by = ", ".join(plan.matched_by)
        raise UsageError(f"no row of {folders[0]} is in {folders[-1]}, by {by}; choose other --keys")
    return Difference(nights=nights, matched_by=plan.matched_by, asked=asked, **told)


@dataclass(frozen=True)
class _Plan:
    """What is read: ``keys``, none for a row's place in its shard; and columns. ``shards`` have numbers."""

    keys: tuple[str, ...]
    columns: tuple[Column, ...]
    shards: tuple[str, ...]

    @property
    def matched_by(self) -> tuple[str, ...]:
        return self.keys or _PLACE


def _within(night: NightFiles, asked: Asked) -> _Plan:
    schema = night.schema()
    chosen = asked.columns
    if not chosen:
        chosen = tuple(
            one
            for name in schema.names
            if f"{CHALLENGER}{name}" in schema.names
            for one in (name, f"{CHALLENGER}{name}")
        )
    if not chosen or len(chosen) % 2:
        raise UsageError(
            f"{night.folder}: there are {', '.join(schema.names)}; give a second output, or pairs of columns "
            f"to compare by --columns=A,B"
        )
    both = columns(chosen[::2], chosen[1::2], schema, schema)
    keys = asked.keys or night.keys
    check_keys(keys, schema, schema)
    return _Plan(keys, both, _shards(night))


def _between(a: NightFiles, b: NightFiles, asked: Asked) -> _Plan:
    of_a, of_b = a.schema(), b.schema()
    names = asked.columns or tuple(name for name in a.predictions if name in b.predictions)
    if not names:
        raise UsageError(
            f"no prediction is in both: A has {', '.join(a.predictions)}, B has {', '.join(b.predictions)}; "
            f"compare outputs whose --prediction_columns are the same"
        )
    both = columns(names, names, of_a, of_b)
    keys = asked.keys or tuple(name for name in a.keys if name in b.keys)
    if keys:
        check_keys(keys, of_a, of_b)
    else:
        _check_shards(a, b)
    return _Plan(keys, both, _shards(a, b))


def _shards(*nights: NightFiles) -> tuple[str, ...]:
    return tuple(sorted({entry["shard"] for night in nights for entry in night.entries}))


def _check_shards(a: NightFiles, b: NightFiles) -> None:
    """Refuse to match rows by their number in shards that are not the same files."""
    first, second = (
        {entry["shard"]: (entry["shard_bytes"], entry["shard_stamp"]) for entry in night.entries}
        for night in (a, b)
    )
    common = first.keys() & second.keys()
    changed = sorted(shard for shard in common if first[shard] != second[shard])
    if changed or not common:
        why = f"{changed[0]} was written again in between" if changed else "they have no shard in common"
        raise UsageError(
            f"{a.folder} and {b.folder} carry no common keys, and rows cannot be matched by their place: "
            f"{why}; give --keys, and score with --keys"
        )


def _side(name: str, night: NightFiles, plan: _Plan) -> Side:
    """Return a night's rows: what they are matched by, then ``value 0`` and so on."""
    values = [column.a if name == "A" else column.b for column in plan.columns]

    def tables() -> Iterator[pa.Table]:
        for keys, table in _read(night, plan, values):
            yield pa.table({**keys, **_values(table, values)})

    return Side(f"{name} ({night.folder})", night.rows, tables)


def _side_by_side(night: NightFiles, plan: _Plan) -> Iterator[Pairs]:
    """Yield the rows of one night as both sides."""
    of_a, of_b = [column.a for column in plan.columns], [column.b for column in plan.columns]
    for keys, table in _read(night, plan, [*of_a, *of_b]):
        yield Pairs(pa.table({**keys, **_values(table, of_a)}), pa.table(_values(table, of_b)))


def _values(table: pa.Table, names: Sequence[str]) -> dict[str, Any]:
    return {f"value {i}": table[name] for i, name in enumerate(names)}


def _read(night: NightFiles, plan: _Plan, values: Sequence[str]) -> Iterator[tuple[dict[str, Any], pa.Table]]:
    """Yield what rows are matched by, and the columns, in few types."""
    number = {shard: i for i, shard in enumerate(plan.shards)}
    wanted = list(dict.fromkeys([*plan.keys, *values]))
    schema = night.schema()
    kinds = {name: plain(pa.array([], schema.field(name).type)).type for name in wanted}
    for entry, tables in night.ahead(wanted):
        places = None if plan.keys else night.shard_rows(entry)
        start = 0
        for read in tables:
            table = pa.table(
                {name: alike(read[name], kind, name, entry["path"]) for name, kind in kinds.items()}
            )
            if places is None:
                yield {key: table[key] for key in plan.keys}, table
                continue
            rows = places[start : start + table.num_rows]
            start += table.num_rows
            yield {"shard": np.full(len(rows), number[entry["shard"]]), "row": rows}, table


def _added_up(found: Iterator[Pairs], plan: _Plan, asked: Asked) -> dict[str, Any]:
    added = [[_added(name, column, asked) for name in column.names] for column in plan.columns]
    rows = only_a = only_b = moved = 0
    for pair in found:
        any_moved = np.zeros(pair.a.num_rows, bool)
        keys = pair.a.select(list(plan.matched_by))
        for i, (column, parts) in enumerate(zip(plan.columns, added, strict=True)):
            old, new = (apart(side[f"value {i}"], column.width) for side in (pair.a, pair.b))
            for one, x, y in zip(parts, old, new, strict=True):
                any_moved |= one.add(x, y, keys)
        rows, only_a, only_b = rows + pair.a.num_rows, only_a + pair.only_a, only_b + pair.only_b
        moved += int(any_moved.sum())
    told = tuple(one.told() for parts in added for one in parts)
    if not plan.keys:
        for mover in (mover for column in told for mover in column.get("movers", ())):
            mover["keys"]["shard"] = plan.shards[mover["keys"]["shard"]]
    return {"rows": rows, "only_a": only_a, "only_b": only_b, "moved": moved, "columns": told}


def _added(name: str, column: Column, asked: Asked) -> Numbers | Words:
    if not column.is_number:
        return Words(name, top=asked.top)
    return Numbers(name, tolerance=asked.tolerance, threshold=asked.threshold, top=asked.top)
