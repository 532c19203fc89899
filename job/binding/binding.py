"""Which columns feed which model input, decided before the first prediction.

In this order: inputs by name where the model names them, and by ``--features`` of other names
only where it also has them in an order of its own; one input of width k and ``--features`` of k
columns; the columns whose names the model's file keeps; one input whose name is a column
of its shape; one input of width k where exactly k columns that it can take remain after ``--keys``
and ``--ignore``, or the one list column of its shape that remains. Anything else is an error that lists
both sides. Columns that are neither features nor keys are never read, and the model is fed its declared
inputs only.

The last two are **by position**: nothing but the order of the columns says which is which. So all shards
of a night must have that order (:func:`disagreement`), and it must be that of the last published night.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, Final

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from job.binding.columns import CAST_TYPES, Layout, align, is_null, layout, leaf_misfit, misfit
from job.binding.tensors import feed_tensor, open_extents
from job.errors import SchemaError, UsageError, as_flag
from job.model.signature import Feed, InputSpec, RowFault, Signature, Tensor, Way, input_text, shape_text

_LISTED_COLUMNS: Final = 40
_LISTED_MISFITS: Final = 5

# Where in a batch some rows are, ascending.
Places = range | NDArray[np.int64]


@dataclass(frozen=True)
class Binding:
    """The columns of each model input, in the signature's order, and ``--cast`` among them.

    The types in ``casts`` are Arrow's names without aliases (``float32``, not ``float``). ``by`` says how the
    columns were found.
    """

    feeds: tuple[Feed, ...]
    casts: tuple[tuple[str, str], ...] = ()
    by: Way = "name"

    @property
    def columns(self) -> tuple[str, ...]:
        """The distinct columns to read, in the order in which they feed the model."""
        return tuple(dict.fromkeys(name for feed in self.feeds for name in feed.columns))


def bind(
    schema: Any,
    signature: Signature,
    *,
    keys: Sequence[str] = (),
    features: Sequence[str] = (),
    casts: Sequence[tuple[str, str]] = (),
    spare_casts: bool = False,
    unasked: Sequence[str] = (),
) -> Binding:
    """Return the one way in which the columns of ``schema`` feed ``signature``.

    ``schema`` is Arrow's, Hive folder columns included. ``unasked`` are columns that feed the model
    only where something names them. Raises ``SchemaError`` where there is no such way, or more than one;
    ``UsageError`` where ``casts`` name an unknown column or type, or a column that feeds nothing, unless
    they are ``spare_casts``, which are left out.
    """
    asked = _cast_types(schema, casts)
    table = _Table(schema, frozenset(keys), asked, frozenset(unasked))
    inputs = signature.inputs
    table.check("--keys", keys, inputs)
    table.check("--features", features, inputs)
    chosen, by = tuple(features), _way(features, signature)
    if by == "name" and signature.columns:
        chosen = _kept_names(table, signature)
    if not inputs:
        feeds: tuple[Feed, ...] = (_first_batch(table, chosen, signature.default_dtype),)
    elif len(inputs) == 1:
        feeds, by = _one_input(table, inputs[0], chosen, by, named=signature.named)
    else:
        feeds = _several_inputs(table, inputs, chosen, ordered=signature.ordered)
    binding = Binding(feeds, tuple(asked.items()), by)
    fed = frozenset(binding.columns)
    if spare_casts:
        binding = replace(binding, casts=tuple(one for one in asked.items() if one[0] in fed))
    for name, _ in binding.casts:
        if name not in fed:
            reason = f"--cast names column {name!r}, which feeds no model input"
            raise UsageError(f"{reason}: leave it out, or name all that feed the model with --features")
    if reasons := mismatches(schema, binding):
        raise table.error("; ".join(reasons), inputs)
    return binding


def mismatches(schema: Any, binding: Binding, keys: Sequence[str] = ()) -> tuple[str, ...]:
    """Return why a shard of ``schema`` cannot be scored with ``binding``, one line a column.

    Empty when it fits. A column may be of another type than in the first shard as long as
    its type can feed the same input.
    """
    found = [line for feed in binding.feeds for line in _feed_mismatches(schema, feed, dict(binding.casts))]
    for key in keys:
        if times := _times(schema, key, "a key (--keys)"):
            found.append(times)
    return tuple(found)


def disagreement(schema: Any, binding: Binding, keys: Sequence[str] = (), unasked: Sequence[str] = ()) -> str:
    """Say how a shard of ``schema`` contradicts a binding by position; empty where it does not.

    It does where its columns have another order, or where more of them could feed the model: then nobody can
    tell which column is which. Columns that it lacks are told by :func:`mismatches`.
    """
    if binding.by != "position":
        return ""
    (feed,) = binding.feeds
    bound = set(feed.columns)
    here = [name for name in schema.names if name in bound]
    if len(here) == len(feed.columns) and here != list(feed.columns):
        return f"columns in the order {_short(here)}{_first_other(here, feed.columns)}"
    table = _Table(schema, frozenset(keys), dict(binding.casts), frozenset(unasked))
    scalars = table.scalars(feed.input.dtype)
    # By itself each shard must bind as all do: k numbers beside a list of k would feed the model alike.
    if table.is_nested(feed.columns[0]) and len(scalars) != _width(feed.input):
        scalars = ()
    rivals = (*scalars, *table.lists(feed.input))
    more = [name for name in rivals if name not in bound]
    return f"besides {_short(more)}, which could feed the model as well" if more else ""


def to_tensors(batch: Any, binding: Binding) -> tuple[tuple[Tensor, ...], tuple[RowFault, ...]]:
    """Return one tensor per model input, ``(rows, *shape)`` of its type, and the bad rows.

    ``batch`` is a record batch that holds at least ``binding.columns``, of rows of one shape (see
    ``by_shape``). Bad rows keep their slot, filled with zeros or empty strings; drop them before or after
    predicting. A tensor may share the batch's memory and be read-only. Raises ``SchemaError`` where a
    column is absent or of a type that cannot feed its input, which ``mismatches`` would have told.

    Measured on 2 busy cores, per million rows of 10 columns in batches of 16,384: float32
    15 ms (10 of them the copy), int32 26, float64 28, decimal 80; one list column of 10
    float32 2 ms; one string column 20 ms, 2 where it is dictionary-encoded.
    """
    casts = dict(binding.casts)
    pairs = [feed_tensor(batch, feed, casts) for feed in binding.feeds]
    return tuple(tensor for tensor, _ in pairs), tuple(fault for _, faults in pairs for fault in faults)


def open_axes(batch: Any, binding: Binding) -> NDArray[np.int64] | None:
    """Return how long each row is along all axes that the model's inputs leave open, ``(rows, axes) int64``.

    ``None`` where none is open, see ``tensors.open_extents``.
    """
    found = [axes for feed in binding.feeds if (axes := open_extents(batch, feed)) is not None]
    return np.concatenate(found, axis=1) if found else None


def by_shape(batch: Any, binding: Binding) -> Iterator[tuple[Places, Any]]:
    """Yield the rows of each shape together, and where in the batch they are; all at once if none is open.

    A model is given rows of one shape at a time, so that none is filled up, and none depends on the others.
    Which rows go together does not depend on how they were cut into batches.
    """
    axes = open_axes(batch, binding)
    if axes is None or (axes == axes[:1]).all():
        yield range(batch.num_rows), batch
        return
    _, shape, rows = np.unique(axes, axis=0, return_inverse=True, return_counts=True)
    for places in np.split(np.argsort(shape, kind="stable"), np.cumsum(rows)[:-1]):
        yield places, batch.take(pa.array(places))


def pieces(batch: Any, binding: Binding, rows_at_once: int) -> Iterator[tuple[Places, Any]]:
    """Yield a batch in pieces of one shape, and where in the batch their rows are."""
    for places, rows in by_shape(batch, binding):
        for start in range(0, rows.num_rows, rows_at_once):
            yield places[start : start + rows_at_once], rows.slice(start, rows_at_once)


@dataclass(frozen=True)
class _Table:
    """One side of the match: columns, which of them are keys, and the casts asked for.

    ``unasked`` are the columns that feed the model only where something names them.
    """

    schema: Any
    keys: frozenset[str]
    casts: Mapping[str, str]
    unasked: frozenset[str] = frozenset()

    @cached_property
    def others(self) -> tuple[tuple[str, Any], ...]:
        """Return names and types of the columns that may feed the model unasked."""
        aside = self.keys | self.unasked
        return tuple((field.name, field.type) for field in self.schema if field.name not in aside)

    def scalars(self, dtype: str) -> tuple[str, ...]:
        """Return the columns that are no keys and hold one value a row that ``dtype`` takes."""
        return tuple(name for name, cells in self._candidates(dtype) if not cells.extents)

    def lists(self, wanted: InputSpec) -> tuple[str, ...]:
        """Return the nested columns that are no keys and whose cells fit ``wanted``."""
        return tuple(
            name
            for name, cells in self._candidates(wanted.dtype)
            if cells.extents and align(cells.extents, wanted.shape) is not None
        )

    def blocks(self, dtype: str) -> tuple[str, ...]:
        """Return the columns that are no keys and hold cells of one fixed shape that ``dtype`` takes."""
        return tuple(
            name for name, cells in self._candidates(dtype) if cells.extents and None not in cells.extents
        )

    def is_nested(self, name: str) -> bool:
        """Say whether a column's cells are lists or tensors; not where there is none of that name."""
        return name in self.names and bool(self.cells(name).extents)

    def _candidates(self, dtype: str) -> list[tuple[str, Layout]]:
        # A type of nothing but nulls does not say that a column is a number.
        cells = [(name, layout(kind)) for name, kind in self.others]
        return [
            (name, c)
            for name, c in cells
            if not is_null(c.leaf) and leaf_misfit(c.leaf, dtype, self.casts.get(name)) is None
        ]

    def cells(self, name: str) -> Layout:
        """Return the layout of column ``name``."""
        return layout(self.schema.field(name).type)

    @cached_property
    def names(self) -> frozenset[str]:
        """Return the names of all columns."""
        return frozenset(self.schema.names)

    def check(self, flag: str, names: Sequence[str], inputs: Sequence[InputSpec]) -> None:
        """Raise ``SchemaError`` where ``names`` repeat or are no columns."""
        seen: set[str] = set()
        for name in names:
            if name in seen:
                raise SchemaError(f"{flag} names column {name!r} twice: leave one out")
            seen.add(name)
            if name not in self.names:
                reason = f"{flag} names {name!r}, which is no column{closest(name, self.schema.names)}"
                raise self.error(reason, inputs)
            if times := _times(self.schema, name, flag):
                raise self.error(times, inputs)

    def error(self, reason: str, inputs: Sequence[InputSpec]) -> SchemaError:
        """Return an error that lists both sides on one line."""
        takes = ", ".join(input_text(spec) for spec in inputs) or "not known before the first batch"
        aside = {**dict.fromkeys(self.unasked, " (left out)"), **dict.fromkeys(self.keys, " (key)")}
        listed = [
            f"{field.name} {field.type}{aside.get(field.name, '')}"
            for field in list(self.schema)[:_LISTED_COLUMNS]
        ]
        if len(self.schema) > _LISTED_COLUMNS:
            listed.append(f"and {len(self.schema) - _LISTED_COLUMNS} more")
        return SchemaError(f"{reason} | model inputs: {takes} | columns: {', '.join(listed)}")


def _way(features: Sequence[str], signature: Signature) -> Way:
    """Return how the columns are found, as far as that can be told before they are looked at."""
    if features:
        return "features"
    return "name" if signature.columns or len(signature.inputs) > 1 else "position"


def _kept_names(table: _Table, signature: Signature) -> tuple[str, ...]:
    """Return the columns whose names the model keeps, if they are there and as many as it takes."""
    names = signature.columns
    for name in names:
        if name not in table.names:
            reason = f"the model's file names column {name!r}, which is absent"
            raise table.error(f"{reason}{closest(name, table.schema.names)}", signature.inputs)
    return names


def _one_input(
    table: _Table, wanted: InputSpec, chosen: tuple[str, ...], by: Way, *, named: bool
) -> tuple[tuple[Feed, ...], Way]:
    long_axes = _long_axes(wanted)
    width = _width(wanted)
    if chosen:
        if len(chosen) > 1 and long_axes not in ([None], [len(chosen)]):
            who = "--features names" if by == "features" else "the model's file names"
            reason = f"{who} {len(chosen)} columns for model input {input_text(wanted)}"
            raise table.error(f"{reason}: name as many as it is wide", (wanted,))
        return (Feed(wanted, chosen),), by
    same_name = Feed(wanted, (wanted.name,))
    # A name the framework made up may be a column's by accident: then it must fit to count.
    fits = not any(_feed_mismatches(table.schema, same_name, table.casts))
    if wanted.name in table.names and (named or fits):
        return (same_name,), "name"
    scalars = table.scalars(wanted.dtype)
    ways: list[tuple[str, ...]] = [(name,) for name in table.lists(wanted)]
    if width is not None and len(scalars) == width:
        ways.insert(0, scalars)
    if len(ways) == 1:
        return (Feed(wanted, ways[0]),), "position"
    if ways:
        choices = " or ".join(_short(way) for way in ways)
        raise table.error(f"{choices} would feed the model alike: choose with --features", (wanted,))
    raise table.error(_why_none(table, wanted, width, scalars), (wanted,))


def _long_axes(wanted: InputSpec) -> list[int | None]:
    return [extent for extent in wanted.shape if extent != 1]


def _width(wanted: InputSpec) -> int | None:
    """Return how many columns of one value feed an input side by side; ``None`` for none, or any number."""
    long_axes = _long_axes(wanted)
    return 1 if not long_axes else long_axes[0] if len(long_axes) == 1 else None


def _why_none(table: _Table, wanted: InputSpec, width: int | None, scalars: tuple[str, ...]) -> str:
    """Say why no columns feed the one input by themselves: which are in the way, and what mends that."""
    names_them = "name the model's columns with --features=A,B,…"
    reason = (
        f"{len(scalars)} columns of one value that {wanted.dtype} takes remain after --keys, and none of "
    )
    reason += f"shape {shape_text(wanted.shape)}: "
    if width is not None and len(scalars) > width:
        example = as_flag("ignore", scalars[-1])
        return f"{reason}leave out those that are no features, as in {example}, or {names_them}"
    misfits = [
        f"column {name!r} does not fit ({why})"
        for name, kind in table.others
        if (why := _why_not(kind, wanted, table.casts.get(name)))
    ]
    if len(misfits) > _LISTED_MISFITS:
        misfits[_LISTED_MISFITS:] = [f"and {len(misfits) - _LISTED_MISFITS} more"]
    castable = [name for name, kind in table.others if _can_cast(kind, wanted)]
    if 0 < (width or 0) - len(scalars) == len(castable):
        cast = as_flag("cast", *(f"{name}={_cast_name(wanted.dtype)}" for name in castable))
        names_them = f"{cast} reads what is missing as numbers, or {names_them}"
    return f"{reason}{''.join(f'{one}; ' for one in misfits)}{names_them}"


def _why_not(kind: Any, wanted: InputSpec, cast: str | None) -> str | None:
    """Say why a column neither is one of several that feed an input side by side, nor feeds it alone."""
    cells = layout(kind)
    if is_null(cells.leaf):
        return "all its values are null, which says nothing of their type"
    if not cells.extents:
        return leaf_misfit(cells.leaf, wanted.dtype, cast)
    return misfit(kind, wanted, cast)


def _can_cast(kind: Any, wanted: InputSpec) -> bool:
    cell, cast = replace(wanted, shape=()), _cast_name(wanted.dtype)
    return misfit(kind, cell, None) is not None and cast in CAST_TYPES and misfit(kind, cell, cast) is None


def _cast_name(dtype: str) -> str:
    return "float32" if dtype == "bfloat16" else dtype


def _several_inputs(
    table: _Table, inputs: tuple[InputSpec, ...], features: tuple[str, ...], *, ordered: bool
) -> tuple[Feed, ...]:
    names = tuple(spec.name for spec in inputs)
    if not features:
        absent = [name for name in names if name not in table.names]
        if absent:
            hints = ", ".join(f"{name!r}{closest(name, table.schema.names)}" for name in absent)
            other = ", or give them with --features" if ordered else ""
            raise table.error(f"no column for model input {hints}: rename the columns{other}", inputs)
    if not features or set(features) == set(names):
        return tuple(Feed(spec, (spec.name,)) for spec in inputs)
    if not ordered:
        reason = f"--features names {', '.join(features)}, and the model's inputs, which have names and no "
        reason += f"order, are {', '.join(names)}: rename the columns as the inputs are called"
        raise table.error(reason, inputs)
    if len(features) != len(inputs):
        reason = f"--features names {len(features)} columns for {len(inputs)} model inputs: name one for each"
        raise table.error(reason, inputs)
    for spec, feature in zip(inputs, features, strict=True):
        if feature in names and feature != spec.name:
            reason = f"--features gives column {feature!r} to model input {spec.name!r}, but another input "
            reason += "has its name: put them in the model's order, or rename the column"
            raise table.error(reason, inputs)
    return tuple(Feed(spec, (name,)) for spec, name in zip(inputs, features, strict=True))


def _first_batch(table: _Table, features: tuple[str, ...], dtype: str) -> Feed:
    """Bind a model that takes its shape from the first batch: the columns decide it."""
    chosen: tuple[str, ...] = features
    if not features:
        scalars = table.scalars(dtype)
        ways = [scalars] if scalars else []
        ways += [(name,) for name in table.blocks(dtype)]
        if len(ways) != 1:
            choices = " or ".join(_short(way) for way in ways) or "no numeric column remains after --keys"
            reason = f"the model takes its shape from its first batch, which may hold {choices}"
            raise table.error(f"{reason}: name its columns with --features", ())
        chosen = ways[0]
    extents = table.cells(chosen[0]).extents if len(chosen) == 1 else ()
    return Feed(InputSpec("inputs", extents or (len(chosen),), dtype), chosen)


def _feed_mismatches(schema: Any, feed: Feed, casts: Mapping[str, str]) -> Iterator[str]:
    wanted = replace(feed.input, shape=()) if len(feed.columns) > 1 else feed.input
    for name in feed.columns:
        if times := _times(schema, name, f"model input {input_text(feed.input)}"):
            yield times
            continue
        column_type = schema.field(name).type
        reason = misfit(column_type, wanted, casts.get(name))
        if reason is not None:
            line = f"column {name!r} {column_type} cannot feed model input {input_text(feed.input)}: {reason}"
            cast = _cast_name(wanted.dtype)
            helps = cast in CAST_TYPES and misfit(column_type, wanted, cast) is None
            yield f"{line} ({as_flag('cast', f'{name}={cast}')} asks for it)" if helps else line


def _times(schema: Any, name: str, purpose: str) -> str:
    """Say that ``schema`` has no column ``name`` or more than one; empty for exactly one."""
    times = len(schema.get_all_field_indices(name))
    if times == 1:
        return ""
    if times > 1:
        return f"column {name!r} occurs {times} times, wanted once for {purpose}"
    return f"column {name!r} is absent, wanted for {purpose}{closest(name, schema.names)}"


def _cast_types(schema: Any, casts: Sequence[tuple[str, str]]) -> dict[str, str]:
    asked: dict[str, str] = {}
    known = frozenset(schema.names)
    for name, type_name in casts:
        if name not in known:
            raise UsageError(f"--cast names {name!r}, which is no column{closest(name, schema.names)}")
        if name in asked:
            raise UsageError(f"--cast names column {name!r} twice: leave one out")
        if type_name not in CAST_TYPES:
            hint = closest(type_name, CAST_TYPES) or f" (there are {', '.join(CAST_TYPES)})"
            raise UsageError(f"--cast {name}={type_name}: {type_name!r} is no type to cast to{hint}")
        asked[name] = CAST_TYPES[type_name]
    return asked


def closest(name: str, names: Iterable[str]) -> str:
    """Return which names are nearly this one, in brackets; empty where none is."""
    known = {other.lower(): other for other in names}
    close = difflib.get_close_matches(name.lower(), list(known), n=3)
    return f" (closest: {', '.join(repr(known[other]) for other in close)})" if close else ""


def _first_other(here: Sequence[str], there: Sequence[str]) -> str:
    """Say where two long orders part; nothing of short ones, which are seen whole."""
    if len(here) <= 5:
        return ""
    place = next(i for i, (one, other) in enumerate(zip(here, there, strict=True)) if one != other)
    return f", number {place + 1} is {here[place]!r} and not {there[place]!r}"


def _short(names: Sequence[str]) -> str:
    shown = ", ".join(names[:5])
    return f"[{shown}, … {len(names)} columns]" if len(names) > 5 else f"[{shown}]"
