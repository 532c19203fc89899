"""What a model takes and gives, and the columns that feed it: values, without Keras or Arrow tables."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, Literal, TypeAlias

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

# What says which column is which: its name, ``--features``, or nothing but its place.
Way = Literal["name", "features", "position"]
_WAYS: Final = {"name": "by name", "features": "by --features", "position": "by position"}
_LISTED: Final = 12


@dataclass(frozen=True)
class InputSpec:
    """One model input. ``shape`` leaves the batch axis out; ``None`` is an unknown extent.

    ``dtype`` is Keras' name: ``float32``, ``bfloat16``, ``int64``, ``bool``, ``string`` …
    """

    name: str
    shape: tuple[int | None, ...]
    dtype: str


@dataclass(frozen=True)
class OutputSpec:
    """One model output; ``shape`` leaves the batch axis out."""

    name: str
    shape: tuple[int | None, ...]
    dtype: str


@dataclass(frozen=True)
class Signature:
    """What a model takes and gives.

    ``named`` says that the inputs carry names a person chose (a dict, or several
    inputs), so that columns may be matched by name alone. ``ordered`` says that a person chose their
    order as well (a list, or one input), so that columns may be matched by place. ``inputs`` is empty for a
    model that takes its shape from the first batch it sees, which then is fed as ``default_dtype``.
    ``serialized`` names the input that takes ``tf.Example`` messages, which are bytes, where there is one.
    ``columns`` are the names of the one input's columns, in its order, where the model's file keeps them.
    """

    inputs: tuple[InputSpec, ...]
    outputs: tuple[OutputSpec, ...]
    named: bool
    ordered: bool = True
    default_dtype: str = "float32"
    serialized: str = ""
    columns: tuple[str, ...] = ()


@dataclass(frozen=True)
class Feed:
    """One model input and the columns that feed it.

    One column (scalar, list or tensor) whose cells have the input's shape, or k scalar
    columns side by side for an input of width k.
    """

    input: InputSpec
    columns: tuple[str, ...]


def feeds_text(feeds: Sequence[Feed], by: str) -> str:
    """Return what feeds each model input, as in ``f0, f1 → 'x' float32 (2,) by position``.

    ``by`` is a :data:`Way`, empty where nobody noted it.
    """
    way = f" {_WAYS[by]}" if by in _WAYS else ""
    return "; ".join(f"{listed(feed.columns)} → {input_text(feed.input)}{way}" for feed in feeds)


def listed(names: Sequence[str]) -> str:
    """Return names with commas between them, of many the first ones and the last."""
    if len(names) <= _LISTED:
        return ", ".join(names)
    return f"{', '.join(names[: _LISTED - 2])}, … {names[-1]} ({len(names)} columns)"


def input_text(spec: InputSpec) -> str:
    """Return a model input as people read it: ``'x' float32 (2,)``."""
    return f"{spec.name!r} {spec.dtype} {shape_text(spec.shape)}"


def shape_text(shape: Sequence[int | None]) -> str:
    """Return a shape as people write it, with ``?`` for an unknown extent."""
    inner = ", ".join("?" if extent is None else str(extent) for extent in shape)
    return f"({inner},)" if len(shape) == 1 else f"({inner})"


@dataclass(frozen=True)
class CodedStrings:
    """A string tensor as Arrow's dictionary encoding has it: ``values[codes]``.

    ``values``: ``(distinct,) object`` of ``bytes``; ``codes``: ``(rows, …) int32``. Kept
    apart so that a batch costs one Python object per distinct value, not per row.
    """

    values: NDArray[np.object_]
    codes: NDArray[np.int32]


Tensor: TypeAlias = "NDArray[np.generic] | CodedStrings"


@dataclass(frozen=True, eq=False)
class RowFault:
    """Rows of one batch that cannot be fed to the model, and why.

    ``rows``: ``(faulty,) int64`` row numbers within the batch, ascending. ``code`` is one of
    ``null``, ``overflow``, ``inexact``, ``range``, ``parse``, ``shape``, ``nonfinite``; ``example`` is the
    first offending value as text.
    """

    rows: NDArray[np.int64]
    code: str
    column: str
    text: str
    example: str
