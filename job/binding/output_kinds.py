"""Kinds of prediction columns: which outputs of a model become which Arrow values.

A kind says what one value becomes. Vectors and matrices of values become lists of them in ``predictions``,
whatever the kind. A kind is one subclass of :class:`OutputKind`, listed in ``KINDS``.
"""

from __future__ import annotations

from typing import Any, Final

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from pyarrow import types

from job.binding.columns import INTEGERS
from job.errors import DataError

Output = NDArray[Any]

_NUMBERS: Final = ("float16", "float32", "float64", *INTEGERS, "bool")

# Types Arrow has no column for, every value of which is a float32.
_NARROW_PREFIXES: Final = ("bfloat16", "float8_", "float4_", "float6_")

# What a text is taken for before it is there.
_TEXT_BYTES: Final = 32

# Arrow's own way to say so, ``to_pandas_dtype``, asks for pandas, which a worker need not have.
NUMPY_TYPES: Final = {pa.type_for_alias(name): np.dtype(name) for name in _NUMBERS}


class OutputKind:
    """One kind of values that a model gives."""

    def column_type(self, dtype: str) -> pa.DataType | None:
        """Return the Arrow type for values of Keras' ``dtype``, ``None`` where they are of another kind."""
        raise NotImplementedError

    def has(self, column_type: pa.DataType) -> bool:
        """Say whether a column of this type is of this kind."""
        raise NotImplementedError

    def values(self, flat: Output, column_type: pa.DataType, name: str) -> pa.Array:
        """Return ``(values,)`` of a model as an array, which shares their memory if it can.

        Raises:
            DataError: they are not what the column of that ``name`` was made for.
        """
        raise NotImplementedError

    def value_bytes(self, column_type: pa.DataType) -> int:
        """Return about how many bytes a value takes up."""
        return max(1, int(column_type.bit_width) // 8)


class Numbers(OutputKind):
    """Numbers and booleans, as they are; what is narrower than Arrow's columns as float32."""

    def column_type(self, dtype: str) -> pa.DataType | None:
        """Return the type of the same name."""
        if dtype.startswith(_NARROW_PREFIXES):
            return pa.float32()
        return pa.from_numpy_dtype(np.dtype(dtype)) if dtype in _NUMBERS else None

    def has(self, column_type: pa.DataType) -> bool:
        """Say whether it is a number or a boolean."""
        return column_type in NUMPY_TYPES

    def values(self, flat: Output, column_type: pa.DataType, name: str) -> pa.Array:
        """Return the numbers, without a copy where they are as wide as the column."""
        wanted = NUMPY_TYPES[column_type]
        if flat.dtype != wanted and wanted == np.float32 and str(flat.dtype).startswith(_NARROW_PREFIXES):
            flat = flat.astype(np.float32)
        if flat.dtype != wanted:
            raise DataError(
                f"the model gave {flat.dtype} for prediction {name!r} where {column_type} was declared"
            )
        return pa.array(flat, column_type)


class Text(OutputKind):
    """Strings, which must be UTF-8."""

    def column_type(self, dtype: str) -> pa.DataType | None:
        """Return the type of text."""
        return pa.string() if dtype == "string" else None

    def has(self, column_type: pa.DataType) -> bool:
        """Say whether it is text."""
        return bool(types.is_string(column_type))

    def values(self, flat: Output, column_type: pa.DataType, name: str) -> pa.Array:
        """Return the texts."""
        if flat.dtype.kind not in "OSU":
            raise DataError(f"the model gave {flat.dtype} for prediction {name!r} where string was declared")
        try:
            return pa.array(flat.tolist(), column_type)
        except (pa.ArrowInvalid, UnicodeDecodeError) as error:
            reason = f"prediction {name!r} has a value that is not UTF-8 text ({error})"
            raise DataError(f"{reason}: have the model give text or numbers") from error

    def value_bytes(self, _column_type: pa.DataType, /) -> int:
        """Return what a text is taken for before it is there."""
        return _TEXT_BYTES


# All kinds; an output is of the first that takes it.
KINDS: Final[tuple[OutputKind, ...]] = (Numbers(), Text())


def column_type(dtype: str) -> pa.DataType | None:
    """Return the Arrow type for a model's values, ``None`` where no kind takes them."""
    found = (kind.column_type(dtype) for kind in KINDS)
    return next((one for one in found if one is not None), None)


def kind_of(column_type: pa.DataType) -> OutputKind:
    """Return the kind of a column's values."""
    return next(kind for kind in KINDS if kind.has(column_type))


def leaf_of(column_type: pa.DataType) -> pa.DataType:
    """Return the type of the values in lists, however deep; any other type as it is."""
    while types.is_list(column_type) or types.is_fixed_size_list(column_type):
        column_type = column_type.value_type
    return column_type
