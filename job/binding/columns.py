"""What an Arrow column offers and what a model input takes: types only, no values.

A column is seen as cells: one cell a row, each cell of some *extents* (``()`` for a number,
``(3,)`` for a list of three, ``None`` for an extent that differs from row to row) over a
*leaf* type. Dictionary encoding is a matter of storage and is looked through.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from pyarrow import types

from job.model.signature import InputSpec, shape_text

Kind = Literal["bool", "int", "float", "decimal", "text", "time", "null", "other"]
Extents = tuple[int | None, ...]

FLOATS = ("float16", "bfloat16", "float32", "float64")
INTEGERS = ("int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64")
NUMERIC: tuple[Kind, ...] = ("bool", "int", "float", "decimal")

# What --cast may name: Arrow's names and the aliases Arrow itself understands.
CAST_TYPES: dict[str, str] = {
    **{name: name for name in (*INTEGERS, "bool", "float16", "float32", "float64", "string")},
    "half": "float16",
    "halffloat": "float16",
    "float": "float32",
    "double": "float64",
    "utf8": "string",
    "large_string": "string",
}

_EXAMPLES: tuple[tuple[Kind, tuple[Any, ...]], ...] = (
    ("bool", (pa.bool_(),)),
    ("int", tuple(pa.type_for_alias(name) for name in INTEGERS)),
    ("float", (pa.float16(), pa.float32(), pa.float64())),
    ("decimal", (pa.decimal32(1), pa.decimal64(1), pa.decimal128(1), pa.decimal256(1))),
    ("text", (pa.string(), pa.large_string(), pa.string_view(), pa.binary(1))),
    ("text", (pa.binary(), pa.large_binary(), pa.binary_view())),
    ("time", (pa.date32(), pa.date64(), pa.time32("s"), pa.time64("us"))),
    ("time", (pa.timestamp("us"), pa.duration("us"))),
    ("null", (pa.null(),)),
)

# By Arrow's type number: a batch asks for the kind of every column.
_KINDS: dict[int, Kind] = {example.id: offered for offered, examples in _EXAMPLES for example in examples}


@dataclass(frozen=True)
class Layout:
    """Extents of a column's cells and the type of what fills them.

    ``tensor`` is the shape in memory of a ``fixed_shape_tensor`` column, which is stored as
    one flat list a row, and ``order`` the axes in the order people see; both else empty.
    """

    extents: Extents
    leaf: Any
    tensor: tuple[int, ...] = ()
    order: tuple[int, ...] = ()


def layout(column_type: Any) -> Layout:
    """Return the cells of a column of ``column_type``.

    Other extension types are what they store, and a UUID is text. Those that store lists, and a tensor inside
    a list, are left as the leaf, which then is of kind ``other``: what they mean, or their order of axes,
    would be lost.
    """
    if isinstance(column_type, pa.FixedShapeTensorType):
        stored = tuple(column_type.shape)
        order = tuple(column_type.permutation or range(len(stored)))
        leaf = plain_type(column_type.value_type)
        return Layout(tuple(stored[axis] for axis in order), leaf, stored, order)
    extents: list[int | None] = []
    while True:
        if types.is_fixed_size_list(column_type):
            extents.append(column_type.list_size)
        elif types.is_list(column_type) or types.is_large_list(column_type):
            extents.append(None)
        else:
            return Layout(tuple(extents), plain_type(column_type))
        column_type = column_type.value_type


def plain_type(leaf: Any) -> Any:
    """Return a dictionary's value type, an extension type's storage type, else the type; a UUID is text."""
    if types.is_dictionary(leaf):
        return plain_type(leaf.value_type)
    if isinstance(leaf, pa.UuidType):
        # Its storage is 16 bytes, which people know as text.
        return pa.string()
    if isinstance(leaf, pa.BaseExtensionType) and not types.is_nested(leaf.storage_type):
        return leaf.storage_type
    return leaf


def empty_table(schema: Any) -> Any:
    """Return a table without rows, also of types of which Arrow itself makes none."""
    arrays = [
        pa.ExtensionArray.from_storage(field.type, pa.array([], field.type.storage_type))
        if isinstance(field.type, pa.BaseExtensionType)
        else pa.array([], field.type)
        for field in schema
    ]
    return pa.Table.from_arrays(arrays, schema=schema)


def without_views(kind: Any) -> Any:
    """Return ``string`` for ``string_view``, ``binary`` for ``binary_view``; Arrow cannot ``take`` views."""
    return pa.string() if types.is_string_view(kind) else pa.binary() if types.is_binary_view(kind) else kind


def cast_views(batch: Any) -> Any:
    """Return a record batch with its views cast (:func:`without_views`), so that Arrow can ``take`` rows."""
    kinds = [without_views(kind) for kind in batch.schema.types]
    if kinds == batch.schema.types:
        return batch
    columns = [column.cast(kind) for column, kind in zip(batch.columns, kinds, strict=True)]
    return pa.RecordBatch.from_arrays(columns, names=batch.schema.names)


def stored(values: Any) -> Any:
    """Return the storage of an array of an extension type, a UUID's as its usual text; others unchanged."""
    if not isinstance(values, pa.ExtensionArray) or types.is_nested(values.type.storage_type):
        return values
    return _uuid_text(values.storage) if isinstance(values.type, pa.UuidType) else values.storage


def as_type(values: Any, kind: Any) -> Any:
    """Return Arrow ``values`` of any form of text, or of a dictionary, as ``kind``; raises as Arrow does."""
    if values.type == kind:
        return values
    values = stored(values)
    return (values.cast(values.type.value_type) if types.is_dictionary(values.type) else values).cast(kind)


def _uuid_text(values: Any) -> Any:
    """Return 16 bytes a value as text of 8, 4, 4, 4 and 12 digits (RFC 9562, section 4)."""
    plain = values.fill_null(bytes(16)) if values.null_count else values
    start, stop = 16 * plain.offset, 16 * (plain.offset + len(plain))
    digits = np.frombuffer(plain.buffers()[1], np.uint8)[start:stop].reshape(-1, 16)
    text = np.full((len(plain), 36), ord("-"), np.uint8)
    places = [i for i in range(36) if i not in (8, 13, 18, 23)]
    hexadecimal = np.frombuffer(b"0123456789abcdef", np.uint8)
    text[:, places] = hexadecimal[np.stack([digits >> 4, digits & 15], axis=2).reshape(-1, 32)]
    offsets = np.arange(0, 36 * len(plain) + 1, 36, dtype=np.int32)
    valid = pc.is_valid(values).buffers()[1] if values.null_count else None
    return pa.StringArray.from_buffers(len(plain), pa.py_buffer(offsets), pa.py_buffer(text), valid)


def nested_type(schema: Any, name: str) -> Any | None:
    """Return the type of a struct's field, as ``address.city`` names it; ``None`` where there is none.

    A column that has this very name comes first, and is no field.
    """
    first, *rest = name.split(".")
    if not rest or name in schema.names or len(schema.get_all_field_indices(first)) != 1:
        return None
    found = schema.field(first).type
    for step in rest:
        if not types.is_struct(found) or found.get_field_index(step) < 0:
            return None
        found = found.field(found.get_field_index(step)).type
    return found


def nested_values(column: Any, name: str) -> Any:
    """Return the values of a struct's field, null where the struct is; ``column`` is the whole one."""
    return pc.struct_field(column, name.split(".")[1:])


def kind(leaf: Any) -> Kind:
    """Return the family of a leaf type; ``other`` is what no model input can take."""
    return _KINDS.get(leaf.id, "other")


def is_null(leaf: Any) -> bool:
    """Say whether a leaf type is the one of nothing but nulls."""
    return kind(leaf) == "null"


def takes(dtype: str, offered: Kind) -> bool:
    """Say whether an input of ``dtype`` takes a leaf of kind ``offered`` without ``--cast``."""
    if dtype == "string":
        return offered == "text"
    return offered in NUMERIC and dtype in (*FLOATS, *INTEGERS, "bool")


def castable(leaf: Any, cast: str) -> bool:
    """Say whether ``--cast`` can turn a leaf type into ``cast`` (a value of ``CAST_TYPES``)."""
    offered = kind(leaf)
    if offered == "other":
        return False
    if cast == "string" and offered != "text":
        try:
            pc.cast(pa.array([], leaf), pa.string())
        except pa.ArrowNotImplementedError:
            return False
    return not (offered == "time" and cast == "bool")


def align(extents: Extents, shape: Extents) -> Extents | None:
    """Return how many items each level of a column must hold to fill cells of ``shape``.

    ``None`` within the answer is an extent that only the data can tell; ``None`` as the
    answer says that the column does not fit. Besides equal extents these fit: the same
    extents with axes of one left out or put in, and one flat list of the product's width.
    """
    if len(extents) == len(shape) and all(map(_agree, extents, shape)):
        return tuple(e if s is None else s for e, s in zip(extents, shape, strict=True))
    known = [extent for extent in shape if extent is not None]
    if len(extents) == 1 and shape and len(known) == len(shape):
        width = math.prod(known)
        if _agree(extents[0], width):
            return (width,)
    long_shape = [extent for extent in shape if extent != 1]
    long_extents = [extent for extent in extents if extent != 1]
    if len(long_extents) == len(long_shape) and all(map(_agree, long_extents, long_shape)):
        wanted: Iterator[int | None] = iter(long_shape)
        filled = ((e if (s := next(wanted)) is None else s) if e != 1 else 1 for e in extents)
        return tuple(filled)
    return () if not extents and all(extent in (None, 1) for extent in shape) else None


def _agree(extent: int | None, wanted: int | None) -> bool:
    return extent is None or wanted is None or extent == wanted


def cell_shape(shape: Extents, extents: Extents, counts: tuple[int, ...]) -> tuple[int, ...]:
    """Return ``shape`` with its unknown extents filled from a column's ``counts``.

    ``counts`` are the resolved ``align(extents, shape)``.
    """
    if len(shape) == len(extents):
        return tuple(c if s is None else s for s, c in zip(shape, counts, strict=True))
    long_counts = iter([c for e, c in zip(extents, counts, strict=True) if e != 1])
    filled = []
    for extent in shape:
        count = 1 if extent == 1 else next(long_counts, 1)
        filled.append(count if extent is None else extent)
    return tuple(filled)


def misfit(column_type: Any, wanted: InputSpec, cast: str | None) -> str | None:
    """Say in a few words why a column cannot feed ``wanted``, or return ``None`` when it can."""
    if not wanted.shape and column_type.id in _KINDS:
        return leaf_misfit(column_type, wanted.dtype, cast)
    cells = layout(column_type)
    if align(cells.extents, wanted.shape) is None:
        return f"cells of shape {shape_text(cells.extents)} where {shape_text(wanted.shape)} is wanted"
    if cells.extents and (types.is_string_view(cells.leaf) or types.is_binary_view(cells.leaf)):
        # Arrow cannot take rows out of these, so one null list could not be set aside.
        return f"lists of {cells.leaf}, which Arrow cannot take apart: store them as lists of string"
    return leaf_misfit(cells.leaf, wanted.dtype, cast)


def leaf_misfit(leaf: Any, dtype: str, cast: str | None) -> str | None:
    """Say in a few words why values of type ``leaf`` cannot feed ``dtype``, or return ``None``.

    Where all values are null, pandas and Arrow write a type of its own, which fits whatever is wanted.
    """
    if is_null(leaf):
        return None
    if cast is None:
        return None if takes(dtype, kind(leaf)) else f"{leaf} where {dtype} is wanted"
    if not castable(leaf, cast):
        return f"Arrow cannot cast {leaf} to {cast}"
    if (cast == "string") != (dtype == "string"):
        return f"cast to {cast} where {dtype} is wanted"
    return None
