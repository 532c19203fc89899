"""Which columns of two nights are compared, and their values in the few types that comparing needs."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from job.errors import DataError, UsageError

CHALLENGER: Final = "challenger_"
# Numbers a row: each is a column of its own in what is told.
_MOST_NUMBERS: Final = 100


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
    if pa.types.is_nested(kind):
        raise UsageError(f"column {name} is {kind}, which is not compared; choose others by --columns")
    is_number = pa.types.is_integer(kind) or pa.types.is_floating(kind) or pa.types.is_decimal(kind)
    return is_number, width


def check_keys(keys: Sequence[str], of_a: pa.Schema, of_b: pa.Schema) -> None:
    """Refuse keys that are not on both sides, or of types that cannot be equal.

    Raises:
        UsageError: such a key; the message tells both sides.
    """
    for key in keys:
        for name, schema in (("A", of_a), ("B", of_b)):
            if key not in schema.names:
                there = ", ".join(schema.names)
                raise UsageError(f"--keys: {name} has no column {key}, it has {there}; choose others")
        one, other = (plain(pa.array([], schema.field(key).type)).type for schema in (of_a, of_b))
        if one != other:
            raise UsageError(
                f"--keys: {key} is {of_a.field(key).type} in A and {of_b.field(key).type} in B; choose others"
            )


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
    if pa.types.is_integer(kind) and not pa.types.is_uint64(kind):
        return column.cast(pa.int64())
    return column.cast(pa.float32()) if pa.types.is_float16(kind) else column


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


def apart(column: pa.ChunkedArray, width: int) -> Iterator[pa.ChunkedArray]:
    """Yield the columns that a vector consists of; a scalar column itself."""
    if width == 1 and not pa.types.is_nested(column.type):
        yield column
        return
    flat = column
    while pa.types.is_nested(flat.type):
        flat = pc.list_flatten(flat)
    if len(flat) != len(column) * width:
        raise DataError(
            f"a vector of {width} numbers is null in some rows; leave its column out by --columns"
        )
    flat = plain(flat)
    for i in range(width):
        yield flat.take(pa.array(np.arange(i, len(flat), width)))
