"""Two published nights row by row, or two columns of one: how far did the predictions move, and which most?

First what is compared is settled and checked (columns, keys, types), then rows are joined
(``job.compare.pairing``), and what they show is added up (``job.compare.movement``).

Rows are matched by key columns, or, where nights carry none, by shard and row number: these are the same rows
if the shards are the same files. Then a row that only one side rejected is only in the other.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from job.compare.movement import Numbers, Words
from job.compare.night_files import NightFiles
from job.compare.pairing import Pairs, Side, pairs
from job.errors import DataError, UsageError

VERSION: Final = 1
CHALLENGER: Final = "challenger_"
# Numbers a row: each is a column of its own in what is told.
_MOST_NUMBERS: Final = 100
# From the coarsest to the finest.
_UNITS: Final = ("s", "ms", "us", "ns")
# What rows are matched by where no keys are.
_PLACE: Final = ("shard", "row")


@dataclass(frozen=True)
class Asked:
    """What to compare, and what counts as moved. Without ``keys`` or ``columns`` those of the nights are."""

    keys: tuple[str, ...] = ()
    columns: tuple[str, ...] = ()
    threshold: float | None = None
    tolerance: float = 0.0
    top: int = 20


@dataclass(frozen=True)
class Column:
    """A column of A and the one of B that it is compared with; a vector's numbers are compared one by one."""

    a: str
    b: str
    is_number: bool
    width: int

    @property
    def names(self) -> list[str]:
        """What it is called; ``name[0]`` and so on where it is a vector."""
        name = self.a if self.a == self.b else f"{self.a} → {self.b}"
        return [name] if self.width == 1 else [f"{name}[{i}]" for i in range(self.width)]


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
    """What is read: ``keys`` and their types, none for a row's place in its shard; and columns.

    ``shards`` have numbers.
    """

    keys: dict[str, pa.DataType]
    columns: tuple[Column, ...]
    shards: tuple[str, ...]

    @property
    def matched_by(self) -> tuple[str, ...]:
        return tuple(self.keys) or _PLACE


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
    keys = key_types(asked.keys or night.keys, schema, schema)
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
    keys = key_types(asked.keys or [name for name in a.keys if name in b.keys], of_a, of_b)
    if not keys:
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
            yield pa.table({**keys, **_values(table, values, plan)})

    return Side(f"{name} ({night.folder})", night.rows, tables)


def _side_by_side(night: NightFiles, plan: _Plan) -> Iterator[Pairs]:
    """Yield the rows of one night as both sides."""
    of_a, of_b = [column.a for column in plan.columns], [column.b for column in plan.columns]
    for keys, table in _read(night, plan, [*of_a, *of_b]):
        yield Pairs(pa.table({**keys, **_values(table, of_a, plan)}), pa.table(_values(table, of_b, plan)))


def _values(table: pa.Table, names: Sequence[str], plan: _Plan) -> dict[str, Any]:
    """Return all compared values, each number of a vector as a column of its own."""
    every = (
        part
        for name, column in zip(names, plan.columns, strict=True)
        for part in apart(table[name], name, column.width)
    )
    return {f"value {i}": part for i, part in enumerate(every)}


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
                keys = {
                    name: alike(table[name], kind, name, entry["path"]) for name, kind in plan.keys.items()
                }
                yield keys, table
                continue
            rows = places[start : start + table.num_rows]
            start += table.num_rows
            yield {"shard": np.full(len(rows), number[entry["shard"]]), "row": rows}, table


def _added_up(found: Iterator[Pairs], plan: _Plan, asked: Asked) -> dict[str, Any]:
    added = [_added(name, column, asked) for column in plan.columns for name in column.names]
    rows = only_a = only_b = moved = 0
    for pair in found:
        any_moved = np.zeros(pair.a.num_rows, bool)
        keys = pair.a.select(list(plan.matched_by))
        for i, one in enumerate(added):
            any_moved |= one.add(pair.a[f"value {i}"], pair.b[f"value {i}"], keys)
        rows, only_a, only_b = rows + pair.a.num_rows, only_a + pair.only_a, only_b + pair.only_b
        moved += int(any_moved.sum())
    told = tuple(one.told() for one in added)
    if not plan.keys:
        for mover in (mover for column in told for mover in column.get("movers", ())):
            mover["keys"]["shard"] = plan.shards[mover["keys"]["shard"]]
    return {"rows": rows, "only_a": only_a, "only_b": only_b, "moved": moved, "columns": told}


def _added(name: str, column: Column, asked: Asked) -> Numbers | Words:
    if not column.is_number:
        return Words(name, top=asked.top)
    return Numbers(name, tolerance=asked.tolerance, threshold=asked.threshold, top=asked.top)


def columns(a: Sequence[str], b: Sequence[str], of_a: pa.Schema, of_b: pa.Schema) -> tuple[Column, ...]:
    """Return columns of both sides, one by one, as they can be compared.

    Raises:
        UsageError: there is no such column, or two are not of one kind.
    """
    found = tuple(_column(x, y, of_a, of_b) for x, y in zip(a, b, strict=True))
    numbers = sum(column.width for column in found)
    if numbers > _MOST_NUMBERS:
        raise UsageError(
            f"{', '.join(a)}: {numbers} numbers a row, and no more than {_MOST_NUMBERS} are compared; choose "
            f"some by --columns"
        )
    return found


def _column(a: str, b: str, of_a: pa.Schema, of_b: pa.Schema) -> Column:
    one, other = _kind(a, of_a), _kind(b, of_b)
    if one != other:
        types = f"{of_a.field(a).type} in A and {of_b.field(b).type} in B"
        if a != b:
            types = f"{of_a.field(a).type}, and {b} is {of_b.field(b).type}"
        raise UsageError(f"column {a} is {types}; these cannot be compared: leave it out by --columns")
    return Column(a, b, *one)


def _kind(name: str, schema: pa.Schema) -> tuple[bool, int]:
    """Return whether a column holds numbers, and how many values a row."""
    if name not in schema.names:
        raise UsageError(
            f"there is no column {name}; there are {', '.join(schema.names)}; choose by --columns"
        )
    kind, width = schema.field(name).type, 1
    while pa.types.is_fixed_size_list(kind) or isinstance(kind, pa.FixedShapeTensorType):
        kind = kind.storage_type if isinstance(kind, pa.BaseExtensionType) else kind
        kind, width = kind.value_type, width * kind.list_size
    if _is_list(kind):
        # Of any length: equal or not, as a text is.
        return False, 1
    if pa.types.is_nested(kind):
        raise UsageError(f"column {name} is {kind}, which is not compared; choose others by --columns")
    return _is_number(kind), width


def _is_number(kind: pa.DataType) -> bool:
    return bool(pa.types.is_integer(kind) or pa.types.is_floating(kind) or pa.types.is_decimal(kind))


def key_types(keys: Sequence[str], of_a: pa.Schema, of_b: pa.Schema) -> dict[str, pa.DataType]:
    """Return the type in which the keys of both sides are compared: of two units of time the finer one.

    Raises:
        UsageError: a key is not on both sides, or of types that cannot be equal; the message tells both.
    """
    found = {}
    for key in keys:
        for name, schema in (("A", of_a), ("B", of_b)):
            if key not in schema.names:
                there = ", ".join(schema.names)
                raise UsageError(f"--keys: {name} has no column {key}, it has {there}; choose others")
        one, other = (plain(pa.array([], schema.field(key).type)).type for schema in (of_a, of_b))
        if _is_time_in_units(one) and type(one) is type(other) and _zoned(one) == _zoned(other):
            one = other = max(one, other, key=lambda kind: _UNITS.index(kind.unit))
        if one != other or pa.types.is_nested(one):
            raise UsageError(
                f"--keys: {key} is {of_a.field(key).type} in A and {of_b.field(key).type} in B; choose others"
            )
        found[key] = one
    return found


def _is_time_in_units(kind: pa.DataType) -> bool:
    return bool(pa.types.is_timestamp(kind) or pa.types.is_duration(kind))


def _zoned(kind: pa.DataType) -> bool:
    return getattr(kind, "tz", None) is not None


def _is_list(kind: pa.DataType) -> bool:
    """Say whether values are lists of any length, of texts, numbers, times or such lists."""
    if not pa.types.is_list(kind) and not pa.types.is_large_list(kind):
        return False
    leaf = kind.value_type
    return bool(_is_list(leaf) or not (pa.types.is_nested(leaf) or "binary" in str(leaf)))


def plain(column: Any) -> Any:
    """Return values in one of few types, so that nights agree that were written from other shards."""
    kind = column.type
    if pa.types.is_dictionary(kind):
        return plain(column.cast(kind.value_type))
    if isinstance(kind, pa.BaseExtensionType):
        return plain(column.cast(kind.storage_type))
    if pa.types.is_string(kind) or pa.types.is_string_view(kind) or pa.types.is_boolean(kind):
        return column.cast(pa.large_string())
    if pa.types.is_binary(kind) or pa.types.is_binary_view(kind):
        return column.cast(pa.large_binary())
    if _is_list(kind):
        return _written(column)
    if (pa.types.is_integer(kind) and not pa.types.is_uint64(kind)) or pa.types.is_null(kind):
        return column.cast(pa.int64())
    return column.cast(pa.float32()) if pa.types.is_float16(kind) else column


def _written(column: Any) -> Any:
    """Return lists as text, ``["a", null]``, in which different lists are different texts."""
    if isinstance(column, pa.ChunkedArray):
        return pa.chunked_array([_written(chunk) for chunk in column.chunks], pa.large_string())
    flat = plain(column.flatten())
    if not _is_list(column.type.value_type) and not _is_number(flat.type):
        flat = flat.cast(pa.large_string())
        for character in ("\\", '"'):
            flat = pc.replace_substring(flat, character, f"\\{character}")
        flat = _enclosed('"', flat, '"')
    ends = np.concatenate([[0], np.cumsum(pc.list_value_length(column).fill_null(0).to_numpy())])
    lists = pa.LargeListArray.from_arrays(
        pa.array(ends, pa.int64()), flat.cast(pa.large_string()).fill_null("null")
    )
    joined = _enclosed("[", pc.binary_join(lists, pa.scalar(", ", pa.large_string())), "]")
    return pc.if_else(column.is_null(), pa.scalar(None, pa.large_string()), joined)


def _enclosed(left: str, texts: Any, right: str) -> Any:
    before, behind, between = (pa.scalar(one, pa.large_string()) for one in (left, right, ""))
    return pc.binary_join_element_wise(before, texts, behind, between)


def alike(column: Any, kind: pa.DataType, name: str, where: str) -> Any:
    """Return values in the plain type that the night's first file has.

    Raises:
        DataError: they are of another.
    """
    found = plain(column)
    if found.type == kind:
        return found
    try:
        return found.cast(kind)
    except pa.ArrowException as e:
        raise DataError(f"{where}: column {name} is {column.type}, in the night's first file {kind}") from e


def apart(column: pa.ChunkedArray, name: str, width: int) -> Iterator[pa.ChunkedArray]:
    """Yield the columns that a vector consists of; a scalar column itself."""
    if not pa.types.is_nested(column.type):
        yield column
        return
    flat = column
    while pa.types.is_nested(flat.type):
        flat = pc.list_flatten(flat)
    if len(flat) != len(column) * width:
        raise DataError(
            f"{name}: a vector of {width} numbers is null in some rows; leave its column out by --columns"
        )
    flat = plain(flat)
    for i in range(width):
        yield flat.take(pa.array(np.arange(i, len(flat), width)))
