"""NumPy values of one type → another, and which of them would change.

Rounding to the nearest float is no loss; any other change of a value is a fault of that
value, and a zero stands in its place.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from job.columns import FLOATS

Numbers = NDArray[Any]

# Bits of the significand with the hidden one: every integer up to 2**bits is exact.
SIGNIFICAND_BITS: Final = {"float16": 11, "bfloat16": 8, "float32": 24, "float64": 53}

_EXAMPLE_CHARACTERS = 80


@dataclass(frozen=True, eq=False)
class Fault:
    """Flat values that cannot be fed.

    ``positions``: ``(faulty,) int64``, ascending. ``code`` and ``example`` are
    ``RowFault``'s; ``text`` says what is wrong.
    """

    positions: NDArray[np.int64]
    code: str
    text: str
    example: str


Faults = tuple[Fault, ...]


def faults_at(bad: NDArray[np.bool_], code: str, text: str, values: Any) -> Faults:
    """Return one fault for the positions where ``bad`` is true, or none.

    ``values`` is indexed with the first of them for the example, and may be NumPy or Arrow.
    """
    positions = np.flatnonzero(bad).astype(np.int64, copy=False)
    if not len(positions):
        return ()
    example = values[int(positions[0])]
    example = example.as_py() if hasattr(example, "as_py") else example
    example = example.decode(errors="replace") if isinstance(example, bytes) else str(example)
    return (Fault(positions, code, text, example[:_EXAMPLE_CHARACTERS]),)


def numpy_type(dtype: str) -> np.dtype[Any]:
    """Return NumPy's type for a Keras name other than ``string``."""
    if dtype == "bfloat16":
        # Deferred: only a bfloat16 model needs the extension types.
        import ml_dtypes

        bfloat16: np.dtype[Any] = np.dtype(ml_dtypes.bfloat16)
        return bfloat16
    return np.dtype(dtype)


def convert(values: Numbers, dtype: str, *, round_integers: bool = False) -> tuple[Numbers, Faults]:
    """Return ``values`` as ``dtype`` and the values that ``dtype`` cannot hold.

    ``values``: ``(n,)`` of NumPy's booleans, integers or floats. Codes: ``overflow`` (finite
    to infinity), ``inexact`` (an integer between two floats, a fraction into an integer) and
    ``range``. ``round_integers`` lets integers round to the nearest float. NaN and infinity
    pass between floats and are out of every integer's range.
    """
    if values.dtype == np.dtype(bool) or values.dtype == numpy_type(dtype):
        return values.astype(numpy_type(dtype), copy=False), ()
    if dtype == "bool":
        bad = (values != 0) & (values != 1)
        text = f"a {values.dtype} other than 0 and 1 into a bool"
        return values == 1, faults_at(bad, "range", text, values)
    from_integer = values.dtype.kind in "iu"
    if dtype not in FLOATS:
        return _integers_to_integer(values, dtype) if from_integer else _floats_to_integer(values, dtype)
    if from_integer:
        return _integers_to_float(values, dtype, round_integers=round_integers)
    return _floats_to_float(values, dtype)


def _floats_to_float(values: Numbers, dtype: str) -> tuple[Numbers, Faults]:
    with np.errstate(over="ignore", invalid="ignore"):
        out = values.astype(numpy_type(dtype))
    if np.isfinite(out).all():
        return out, ()
    bad = np.isinf(out) & np.isfinite(values)
    out[bad] = 0
    return out, faults_at(bad, "overflow", f"a {values.dtype} beyond {dtype}", values)


def _integers_to_float(values: Numbers, dtype: str, *, round_integers: bool) -> tuple[Numbers, Faults]:
    with np.errstate(over="ignore"):
        out = values.astype(numpy_type(dtype))
    exact = 2 ** SIGNIFICAND_BITS[dtype]
    if not len(values) or (int(values.min()) >= -exact and int(values.max()) <= exact):
        return out, ()
    overflow = np.isinf(out)
    faults = faults_at(overflow, "overflow", f"a {values.dtype} beyond {dtype}", values)
    if not round_integers:
        bad = _between_floats(values, exact) & ~overflow
        text = f"a {values.dtype} that {dtype} cannot hold exactly (--cast to a float type rounds it)"
        faults += faults_at(bad, "inexact", text, values)
        overflow |= bad
    out[overflow] = 0
    return out, faults


def _between_floats(values: Numbers, exact: int) -> NDArray[np.bool_]:
    """Say which integers need more significant bits than ``log2(exact)``, for any 64-bit integer."""
    magnitude = values.astype(np.uint64)
    if values.dtype.kind == "i":
        # Two's complement negation is exact where abs() would overflow: at the lowest int64.
        magnitude = np.where(values < 0, ~magnitude + np.uint64(1), magnitude)
    lowest_bit = magnitude & (~magnitude + np.uint64(1))
    odd_part = magnitude // np.maximum(lowest_bit, np.uint64(1))
    between: NDArray[np.bool_] = odd_part >= np.uint64(exact)
    return between


def _integers_to_integer(values: Numbers, dtype: str) -> tuple[Numbers, Faults]:
    limits = np.iinfo(dtype)
    out = values.astype(dtype)
    if not len(values) or (int(values.min()) >= limits.min and int(values.max()) <= limits.max):
        return out, ()
    bad = (values < limits.min) | (values > limits.max)
    out[bad] = 0
    return out, faults_at(bad, "range", f"a {values.dtype} beyond {dtype}", values)


def _floats_to_integer(values: Numbers, dtype: str) -> tuple[Numbers, Faults]:
    limits = np.iinfo(dtype)
    wide = values.astype(np.float64)
    finite = np.isfinite(wide)
    fraction = finite & (np.trunc(wide) != wide)
    # The upper limit itself rounds up to 2**63 as a float64, so compare with the power of two.
    inside = (wide >= float(limits.min)) & (wide < float(int(limits.max) + 1))
    beyond = ~inside & ~fraction
    bad = fraction | beyond
    if not bad.any():
        return wide.astype(dtype), ()
    out = np.where(bad, 0.0, wide).astype(dtype)
    faults = faults_at(fraction, "inexact", f"a fraction into {dtype}", values)
    return out, faults + faults_at(beyond, "range", f"a {values.dtype} beyond {dtype}", values)
