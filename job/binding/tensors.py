"""Record batch → one tensor per model input, and the rows that cannot be fed.

Nested columns are taken apart level by level without a copy. A row whose cell is null or
has the wrong number of items is set aside first, so that the rest is one rectangular block;
its slot in the tensor is zero (or the empty string).

A model may leave axes open. Then a tensor holds rows of one shape only: ``open_extents`` tells which rows
go together, and no row is bad because of the row before it.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from job.binding.casting import Fault, Faults, Numbers, faults_at, numbers, numpy_type, strings
from job.binding.columns import align, cell_shape, layout, misfit
from job.errors import SchemaError
from job.model.signature import CodedStrings, Feed, InputSpec, RowFault, Tensor

# Rows copied per column before the next column, so that a block of the target stays in the
# cache: a million rows of 10 float32 columns in one batch took 19 to 21 ms, unblocked 24.
_BLOCK_ROWS: Final = 16_384


def feed_tensor(batch: Any, feed: Feed, casts: Mapping[str, str]) -> tuple[Tensor, tuple[RowFault, ...]]:
    """Return the tensor for one model input, ``(rows, *shape)`` of the input's type, and bad rows.

    ``batch`` is a record batch that holds the feed's columns; ``casts`` maps columns to
    ``--cast`` types. The tensor may share the batch's memory and be read-only. Raises
    ``SchemaError`` where a column is absent or of a type that cannot feed the input.
    """
    cell = replace(feed.input, shape=()) if len(feed.columns) > 1 else feed.input
    columns = [_column(batch, name, cell, casts.get(name)) for name in feed.columns]
    if len(columns) == 1:
        tensor, faults = _cells(columns[0], feed.input, casts.get(feed.columns[0]))
        return tensor, _row_faults(feed.columns[0], faults)
    if feed.input.dtype == "string":
        return _strings_side_by_side(columns, feed)
    return _numbers_side_by_side(columns, feed, casts)


def open_extents(batch: Any, feed: Feed) -> NDArray[np.int64] | None:
    """Return how long each row is along the axes that an input and its column leave open.

    Returns:
        ``(rows, axes) int64``, ``None`` where no axis is open. Within a row -1 stands for lists of several
        lengths: no tensor holds that row. A null counts as an empty list.

    Raises:
        SchemaError: the column is absent, or of a type that cannot feed the input.
    """
    if None not in feed.input.shape or len(feed.columns) > 1:
        return None
    column = _column(batch, feed.columns[0], feed.input, None, check=False)
    counts = align(layout(column.type).extents, feed.input.shape) or ()
    if None not in counts:
        return None
    found: list[NDArray[np.int64]] = []
    # The row that each list of a level belongs to.
    owner = np.arange(len(column))
    last = len(counts) - 1 - counts[::-1].index(None)
    for level in range(last + 1):
        lengths = pc.fill_null(pc.list_value_length(column), 0).to_numpy().astype(np.int64)
        extents = np.zeros(len(batch), np.int64)
        # From behind, so that the first list of each row stays.
        extents[owner[::-1]] = lengths[::-1]
        extents[owner[lengths != extents[owner]]] = -1
        if counts[level] is None:
            found.append(extents)
        if level < last:
            owner, column = np.repeat(owner, lengths), column.flatten()
    return np.stack(found, axis=1)


def _column(batch: Any, name: str, wanted: InputSpec, cast: str | None, *, check: bool = True) -> Any:
    index = batch.schema.get_field_index(name)
    if index < 0:
        raise SchemaError(f"column {name!r} of model input {wanted.name!r} is absent from a batch")
    column = batch.column(index)
    if check and (reason := misfit(column.type, wanted, cast)):
        raise SchemaError(f"column {name!r} cannot feed model input {wanted.name!r}: {reason}")
    return column


def _row_faults(column: str, faults: Faults) -> tuple[RowFault, ...]:
    return tuple(RowFault(f.positions, f.code, column, f.text, f.example) for f in _merged(faults))


def _numbers_side_by_side(
    columns: list[Any], feed: Feed, casts: Mapping[str, str]
) -> tuple[Numbers, tuple[RowFault, ...]]:
    parts: list[Numbers] = []
    faults: list[RowFault] = []
    for name, column in zip(feed.columns, columns, strict=True):
        part, bad = numbers(column, feed.input.dtype, casts.get(name))
        parts.append(part)
        faults += _row_faults(name, bad)
    rows = len(columns[0])
    tensor = np.empty((rows, len(parts)), numpy_type(feed.input.dtype))
    _fill(tensor, parts)
    return tensor.reshape(rows, *_wide_shape(feed)), tuple(faults)


def _strings_side_by_side(columns: list[Any], feed: Feed) -> tuple[CodedStrings, tuple[RowFault, ...]]:
    values, codes = [], []
    faults: list[RowFault] = []
    known = 0
    for name, column in zip(feed.columns, columns, strict=True):
        part, bad = strings(column)
        codes.append(part.codes + np.int32(known))
        values.append(part.values)
        known += len(part.values)
        faults += _row_faults(name, bad)
    rows = len(columns[0])
    merged = np.empty((rows, len(codes)), np.int32)
    _fill(merged, codes)
    merged = merged.reshape(rows, *_wide_shape(feed))
    return CodedStrings(np.concatenate(values), merged), tuple(faults)


def _fill(target: Numbers, parts: list[Numbers]) -> None:
    for start in range(0, len(target), _BLOCK_ROWS):
        block = target[start : start + _BLOCK_ROWS]
        for position, part in enumerate(parts):
            block[:, position] = part[start : start + _BLOCK_ROWS]


def _wide_shape(feed: Feed) -> tuple[int, ...]:
    """Return the input's shape, its one unknown extent being the number of columns."""
    return tuple(len(feed.columns) if extent is None else extent for extent in feed.input.shape)


@dataclass(frozen=True, eq=False)
class _Block:
    """The flat leaf values of a column's good rows.

    ``kept``: ``(good,) int64`` row numbers, or ``None`` for all. ``counts`` are the items of
    each level of nesting. ``faults`` are about the other rows.
    """

    leaf: Any
    counts: tuple[int, ...]
    kept: NDArray[np.int64] | None
    faults: Faults


def _cells(column: Any, wanted: InputSpec, cast: str | None) -> tuple[Tensor, Faults]:
    rows, cells = len(column), layout(column.type)
    counts = align(cells.extents, wanted.shape) or ()
    if isinstance(column.type, pa.FixedShapeTensorType):
        column = column.storage
    block = _take_apart(column, (math.prod(cells.tensor),) if cells.tensor else counts)
    seen = tuple(cells.tensor[axis] for axis in cells.order)
    shape = cell_shape(wanted.shape, cells.extents, seen or block.counts)
    good = rows if block.kept is None else len(block.kept)
    if wanted.dtype == "string":
        coded, faults = strings(block.leaf)
        flat: Numbers = coded.codes
    else:
        flat, faults = numbers(block.leaf, wanted.dtype, cast)
    if cells.tensor and cells.order != tuple(range(len(cells.order))):
        flat = flat.reshape(good, *cells.tensor).transpose(0, *(axis + 1 for axis in cells.order))
    tensor = np.ascontiguousarray(flat).reshape(good, *shape)
    faults = block.faults + _by_row(faults, math.prod(shape), block.kept)
    if wanted.dtype != "string":
        return _spread(tensor, block.kept, rows, 0), faults
    values = coded.values
    if block.kept is not None:
        values = np.append(values, np.array([b""], object))
    return CodedStrings(values, _spread(tensor, block.kept, rows, len(values) - 1)), faults


def _take_apart(column: Any, counts: Sequence[int | None]) -> _Block:
    """Flatten nested lists, setting rows aside until the rest is rectangular."""
    resolved = list(counts)
    kept: NDArray[np.int64] | None = None
    faults: Faults = ()
    while True:
        leaf, fault = _descend(column, resolved)
        if not fault:
            return _Block(leaf, tuple(count or 0 for count in resolved), kept, faults)
        faults += _by_row(fault, 1, kept)
        good = np.delete(np.arange(len(column), dtype=np.int64), fault[0].positions)
        kept = good if kept is None else kept[good]
        column = column.take(pa.array(good))


def _descend(column: Any, counts: list[int | None]) -> tuple[Any, Faults]:
    """Return the leaf values, or the rows at which the first uneven level is at fault.

    Sets what ``counts`` leaves open to the length of the first list at that level. Rows have one shape, see
    ``open_extents``: where lengths differ at such a level, they differ within a row.
    """
    slots_a_row = 1
    for level, count in enumerate(counts):
        if column.null_count:
            absent = column.is_null().to_numpy(zero_copy_only=False)
            fault = faults_at(absent, "null", "null in a model input", column)
            return column, _by_row(fault, slots_a_row, None)
        if not isinstance(column.type, pa.FixedSizeListType):
            lengths = np.diff(column.offsets.to_numpy())
            is_open = count is None
            if count is None:
                counts[level] = count = int(lengths[0]) if len(lengths) else 0
            if (uneven := lengths != count).any():
                if is_open and not level:
                    raise ValueError(
                        f"rows of several shapes in one tensor: {lengths[uneven][0]} and {count}"
                    )
                told = (
                    "lists of several lengths in one cell"
                    if is_open
                    else f"a list of another length than {count}"
                )
                return column, _by_row(faults_at(uneven, "shape", told, lengths), slots_a_row, None)
        column = column.flatten()
        slots_a_row *= count or 0
    return column, ()


def _by_row(faults: Faults, values_a_row: int, kept: NDArray[np.int64] | None) -> Faults:
    """Turn positions of flat values into row numbers of the batch."""
    mapped = []
    for fault in faults:
        rows = np.unique(fault.positions // values_a_row) if values_a_row != 1 else fault.positions
        mapped.append(replace(fault, positions=rows if kept is None else kept[rows]))
    return tuple(mapped)


def _spread(tensor: Numbers, kept: NDArray[np.int64] | None, rows: int, filler: int) -> Numbers:
    if kept is None:
        return tensor
    whole = np.full((rows, *tensor.shape[1:]), filler, tensor.dtype)
    whole[kept] = tensor
    return whole


def _merged(faults: Faults) -> Faults:
    """Join faults of one code, with the text and example of the one that comes first."""
    by_code: dict[str, Fault] = {}
    for fault in faults:
        other = by_code.setdefault(fault.code, fault)
        if other is not fault:
            first = min(other, fault, key=lambda f: int(f.positions[0]))
            by_code[fault.code] = replace(first, positions=np.union1d(other.positions, fault.positions))
    return tuple(by_code.values())
