"""Predictions as Arrow columns: made from the model's outputs, and compared with other predictions.

Model outputs become columns whose types are fixed before the first prediction, without a copy of values. Two
predictions of one row are equal if they are no farther apart than a :class:`Tolerance`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray
from pyarrow import types

from job.binding import output_kinds
from job.binding.output_kinds import NUMPY_TYPES, Output, leaf_of
from job.errors import DataError, SchemaError
from job.model.signature import OutputSpec, shape_text


def prediction_fields(outputs: Sequence[OutputSpec], names: Sequence[str] = ()) -> tuple[Any, ...]:
    """Return one Arrow field per output, named after it or, in order, by ``names``.

    An output of shape ``()`` or ``(1,)`` becomes a plain column, ``(k,)`` a fixed-size list of
    k, further axes nested ones; an extent that is not known before the data a plain list.
    One output of shape ``(k,)`` with k names becomes k plain columns. Raises ``SchemaError``
    where names do not match the outputs or repeat, or a type has no Arrow column.
    """
    if len(names) > 1 and len(outputs) == 1 and outputs[0].shape == (len(names),):
        fields = [pa.field(name, _leaf(outputs[0])) for name in names]
    elif names and len(names) != len(outputs):
        given, made = ", ".join(names), ", ".join(_output_text(output) for output in outputs)
        raise SchemaError(
            f"--prediction_columns gives {len(names)} names ({given}) for {len(outputs)} model outputs "
            f"({made}): give one name for each, or k names for one output of shape (k,)"
        )
    else:
        chosen = names or [output.name for output in outputs]
        fields = [pa.field(name, _column_type(o)) for name, o in zip(chosen, outputs, strict=True)]
    listed = [field.name for field in fields]
    if twice := sorted({name for name in listed if listed.count(name) > 1}):
        raise SchemaError(
            f"prediction columns {', '.join(listed)} hold {', '.join(twice)} more than once: "
            "give other names with --prediction_columns"
        )
    return tuple(fields)


def check_names(fields: Sequence[Any], keys: Sequence[str]) -> None:
    """Raise ``SchemaError`` where a key column and a prediction column have one name."""
    for field in fields:
        if field.name in keys:
            raise SchemaError(
                f"column {field.name!r} is both a key (--keys) and a prediction: "
                "name the predictions with --prediction_columns, or leave the key out"
            )


def to_arrow(outputs: Sequence[Output], fields: Sequence[Any], rows: int) -> list[Any]:
    """Return one Arrow array of ``rows`` per field.

    ``outputs`` are the model's arrays, ``(rows, *shape)`` each, in the signature's order. The
    arrays share memory with contiguous outputs. Raises ``DataError`` where their number,
    rows, shapes or types are not what ``fields`` were made from, so that no row is lost or
    lands beside another row's key.
    """
    if len(outputs) == 1 and len(fields) > 1:
        wide = np.asarray(outputs[0])
        _check_rows(wide, rows, fields[0].name)
        if wide.shape != (rows, len(fields)):
            raise _shape_error(wide, fields[0].name, f"({rows}, {len(fields)})")
        return [_column(np.ascontiguousarray(wide[:, i]), f, rows) for i, f in enumerate(fields)]
    if len(outputs) != len(fields):
        named = ", ".join(field.name for field in fields)
        raise DataError(f"the model gave {len(outputs)} outputs where {len(fields)} were declared ({named})")
    return [_column(np.asarray(o), f, rows) for o, f in zip(outputs, fields, strict=True)]


def in_order(parts: Sequence[tuple[Sequence[int] | NDArray[np.int64], Sequence[Any]]]) -> list[Any]:
    """Return the columns of rows that were predicted in parts, in the order of their places.

    ``parts`` are, at least one, the places of a part's rows and its columns.
    """
    if len(parts) == 1:
        return list(parts[0][1])
    columns = [pa.concat_arrays(some) for some in zip(*(some for _, some in parts), strict=True)]
    places = np.concatenate([np.asarray(some) for some, _ in parts])
    if (places[1:] > places[:-1]).all():
        return columns
    order = pa.array(np.argsort(places, kind="stable"))
    return [column.take(order) for column in columns]


def cell_bytes(fields: Sequence[Any], lengths: Output) -> Output:
    """Return about how many bytes the predictions of rows take up, ``(rows,) float64``.

    ``lengths`` are ``(rows,)``: an axis that is not known before the data is taken to be so long.
    """
    found = np.zeros(len(lengths))
    for field in fields:
        size, leaf = np.ones(len(lengths)), field.type
        while types.is_list(leaf) or types.is_fixed_size_list(leaf):
            size *= leaf.list_size if types.is_fixed_size_list(leaf) else lengths
            leaf = leaf.value_type
        found += size * output_kinds.kind_of(leaf).value_bytes(leaf)
    return found


@dataclass(frozen=True)
class Tolerance:
    """How far two predictions may be apart: ``|published - again| <= atol·s + rtol·|again|``.

    How rows are cut into batches changes the last digits. ``s`` is the column's median magnitude among the
    rows compared, at least 1, since sums of large terms cancel to small ones. Types with fewer digits than
    float32 are given four of their own rounding steps.
    """

    rtol: float = 1e-5
    atol: float = 1e-6


def unequal(old: pa.Array, new: pa.Array) -> NDArray[np.bool_]:
    """Return which values differ, ``(rows,) bool``; a NaN is equal to a NaN."""
    return np.array(
        [a != b and not (a != a and b != b) for a, b in zip(old.to_pylist(), new.to_pylist(), strict=True)]
    )


def apart(old: pa.Array, new: pa.Array, tolerance: Tolerance) -> NDArray[np.bool_]:
    """Return which rows of a prediction differ, ``(rows,) bool``; lists of other lengths do."""
    leaf = leaf_of(old.type)
    if not pa.types.is_floating(leaf):
        return unequal(old, new)
    differ = ~_of_one_shape(old, new)
    alike = np.flatnonzero(~differ)
    (a, of), (b, _) = (_flat(column.take(pa.array(alike))) for column in (old, new))
    step = float(np.finfo(NUMPY_TYPES[leaf]).eps)
    coarse = 4 * step if step > np.finfo(np.float32).eps else 0.0
    finite = np.where(np.isfinite(b), np.abs(b), np.nan)
    with np.errstate(invalid="ignore"):
        scale = max(1.0, float(np.nanmedian(finite))) if np.isfinite(b).any() else 1.0
        limit = max(tolerance.atol, coarse) * scale + max(tolerance.rtol, coarse) * np.abs(b)
        same = (np.abs(a - b) <= limit) | (a == b) | (np.isnan(a) & np.isnan(b))
    differ[alike[of[~same]]] = True
    return differ


def _leaf(output: OutputSpec) -> Any:
    found = output_kinds.column_type(output.dtype)
    if found is None:
        raise SchemaError(f"model output {_output_text(output)} has no Arrow type: cast it in the model")
    return found


def _column_type(output: OutputSpec) -> Any:
    column_type = _leaf(output)
    for extent in reversed(output.shape if output.shape != (1,) else ()):
        column_type = pa.list_(column_type) if extent is None else pa.list_(column_type, extent)
    return column_type


def _column(output: Output, field: Any, rows: int) -> Any:
    _check_rows(output, rows, field.name)
    extents: list[int | None] = []
    leaf = field.type
    while types.is_list(leaf) or types.is_fixed_size_list(leaf):
        extents.append(leaf.list_size if types.is_fixed_size_list(leaf) else None)
        leaf = leaf.value_type
    shape = output.shape[1:]
    if not extents and shape == (1,):
        shape = ()
    agree = len(shape) == len(extents) and all(e in (None, s) for e, s in zip(extents, shape, strict=True))
    if not agree:
        declared = ", ".join("?" if extent is None else str(extent) for extent in (rows, *extents))
        raise _shape_error(output, field.name, f"({declared})")
    values = output_kinds.kind_of(leaf).values(np.ascontiguousarray(output).reshape(-1), leaf, field.name)
    slots = [rows]
    for size in shape:
        slots.append(slots[-1] * size)
    for extent, size, count in reversed(list(zip(extents, shape, slots[:-1], strict=True))):
        if extent is not None:
            values = pa.FixedSizeListArray.from_arrays(values, extent)
            continue
        if count * size > np.iinfo(np.int32).max:
            raise DataError(
                f"prediction {field.name!r} of shape {output.shape} has more values than a list column holds "
                f"({np.iinfo(np.int32).max}): lower --batch_size"
            )
        offsets = np.arange(count + 1, dtype=np.int32) * np.int32(size)
        values = pa.ListArray.from_arrays(offsets, values)
    return values


def _check_rows(output: Output, rows: int, name: str) -> None:
    if output.ndim == 0 or output.shape[0] != rows:
        raise DataError(
            f"the model gave shape {output.shape} for prediction {name!r} where a batch has {rows} rows: "
            "every output must have one item a row"
        )


def _shape_error(output: Output, name: str, declared: str) -> DataError:
    return DataError(
        f"the model gave shape {output.shape} for prediction {name!r} where {declared} was declared: "
        "the model and its signature differ"
    )


def _output_text(output: OutputSpec) -> str:
    return f"{output.name!r} {output.dtype} {shape_text(output.shape)}"


def _of_one_shape(old: pa.Array, new: pa.Array) -> NDArray[np.bool_]:
    """Return in which rows the lists of two columns have equal lengths, at each level; ``(rows,) bool``."""
    same = np.ones(len(old), np.bool_)
    owner = np.arange(len(old))
    while pa.types.is_nested(old.type):
        lengths, others = (
            pc.fill_null(pc.list_value_length(column), 0).to_numpy().astype(np.int64) for column in (old, new)
        )
        unlike = owner[lengths != others]
        same[unlike] = False
        # Those that differ are looked at no further: the lists that follow no longer stand beside each other.
        keep = same[owner]
        owner = np.repeat(owner[keep], lengths[keep])
        old, new = (column.filter(pa.array(keep)).flatten() for column in (old, new))
    return same


def _flat(column: pa.Array) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    """Return the numbers of a column, row by row, and the row of each; null is NaN."""
    owner = np.arange(len(column))
    while pa.types.is_nested(column.type):
        lengths = pc.fill_null(pc.list_value_length(column), 0).to_numpy().astype(np.int64)
        owner, column = np.repeat(owner, lengths), column.flatten()
    return column.to_numpy(zero_copy_only=False).astype(np.float64), owner
