"""Nulls in features: ``--on_null`` rejects the row, fails the run, or feeds a value instead."""

from __future__ import annotations

from typing import ClassVar, Final

import pyarrow as pa
import pyarrow.compute as pc

from job.binding.binding import Binding
from job.binding.columns import is_null, plain_type, stored
from job.errors import DataError, one_line
from job.scoring.policy import FAIL, REJECT, Policy

HINT: Final = "pandas writes NaN as null; --on_null=fill=0 would feed a value instead"


class OnNull(Policy):
    """``--on_null``: ``reject``, ``fail``, ``nan`` or ``fill=VALUE``."""

    flag: ClassVar[str] = "on_null"
    reason: ClassVar[str] = "null"
    choices: ClassVar[tuple[str, ...]] = (REJECT, FAIL, "nan", "fill=VALUE")

    def misfits(self, schema: pa.Schema, binding: Binding, /) -> tuple[str, ...]:
        """Return one line for each column that cannot hold the value of ``fill=VALUE``."""
        lines = []
        types = {field.name: field.type for field in schema}
        for name, fed in _types_fed(binding).items() if self.choice.startswith("fill=") else ():
            if name not in types or _has_cells_of_many(types[name]):
                continue
            kind = fed if is_null(types[name]) else plain_type(types[name])
            try:
                _filling(self.choice, kind.value_type if pa.types.is_dictionary(kind) else kind)
            except (pa.ArrowException, ValueError) as e:
                lines.append(_cannot_hold(self.choice, name, kind, e))
        return tuple(lines)

    def mended(self, piece: pa.RecordBatch, binding: Binding, /) -> pa.RecordBatch:
        """Return the batch with each null that stands for one value replaced, if the flag gives a value."""
        if self.choice in (REJECT, FAIL):
            return piece
        fed = _types_fed(binding)
        # All at once: each new batch of many columns costs as much as all of them.
        columns = [
            _filled(name, column, self.choice, fed[name]) if name in fed else column
            for name, column in zip(piece.schema.names, piece.columns, strict=True)
        ]
        return pa.RecordBatch.from_arrays(columns, names=piece.schema.names)

    def hint(self, column: pa.Field, /) -> str:
        """Return that ``fill=VALUE`` would feed the row; empty for a null list, which no flag fills."""
        return "" if _has_cells_of_many(column.type) else HINT


def _types_fed(binding: Binding) -> dict[str, pa.DataType]:
    """Return the type in which each column feeds the model: that of ``--cast``, or else the input's."""
    dtypes = {name: feed.input.dtype for feed in binding.feeds for name in feed.columns}
    return {
        name: pa.type_for_alias("float32" if dtype == "bfloat16" else dtype)
        for name, dtype in {**dtypes, **dict(binding.casts)}.items()
    }


def _filled(name: str, column: pa.Array, on_null: str, fed: pa.DataType) -> pa.Array:
    """Return a column with its nulls replaced by a value; ``fed`` is the type in which it feeds the model."""
    if not column.null_count or _has_cells_of_many(column.type):
        return column
    filled = stored(column)
    if pa.types.is_dictionary(filled.type):
        filled = filled.cast(filled.type.value_type)
    try:
        if is_null(filled.type):
            filled = filled.cast(fed)
        if on_null == "nan" and not pa.types.is_floating(filled.type):
            filled = filled.cast(pa.float64(), safe=False)
        return pc.fill_null(filled, _filling(on_null, filled.type))
    except (pa.ArrowException, ValueError) as e:
        raise DataError(_cannot_hold(on_null, name, column.type, e)) from e


def _has_cells_of_many(kind: pa.DataType) -> bool:
    """Return whether a null of such a column stands for several values. It is rejected, and never filled."""
    return bool(pa.types.is_nested(kind.storage_type if isinstance(kind, pa.BaseExtensionType) else kind))


def _filling(on_null: str, kind: pa.DataType) -> pa.Scalar:
    return pa.scalar(on_null.removeprefix("fill=")).cast(kind)


def _cannot_hold(on_null: str, name: str, kind: pa.DataType, error: Exception) -> str:
    return (
        f"--on_null={on_null}: column {name} is {kind}, which cannot hold it: {one_line(error)}; give "
        f"another value, or --on_null=reject"
    )
