"""What a model takes and gives, and the columns that feed it: values, without Keras or Arrow tables."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray


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
    """

    inputs: tuple[InputSpec, ...]
    outputs: tuple[OutputSpec, ...]
    named: bool
    ordered: bool = True
    default_dtype: str = "float32"
    serialized: str = ""


@dataclass(frozen=True)
class Feed:
    """One model input and the columns that feed it.

    One column (scalar, list or tensor) whose cells have the input's shape, or k scalar
    columns side by side for an input of width k.
    """

    input: InputSpec
    columns: tuple[str, ...]


@dataclass(frozen=True)
class CodedStrings:
    """A string tensor as Arrow's dictionary encoding has it: ``values[codes]``.

    ``values``: ``(distinct,) object`` of ``bytes``; ``codes``: ``(rows, …) int32``. Kept
    apart so that a batch costs one Python object per distinct value, not per row.
    """

    values: NDArray[np.object_]
    codes: NDArray[np.int32]


Tensor = NDArray[np.generic] | CodedStrings


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
