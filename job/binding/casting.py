"""Flat Arrow values → flat NumPy values of a model's type, and which of them are at fault.

The first part turns Arrow values into NumPy values, by what the column holds (text, times, numbers).
The second part turns NumPy values of one type into another and finds those that would change.

Nothing here knows rows or nesting: a position is an index into the flat values. A value at
fault (null, unreadable text, a number that would change) has a zero or an empty string in
its place. The good path makes no Python object per value: strings stay dictionary-encoded,
and only decimals of more than 64 bits that go into integers are taken one by one.
"""

from __future__ import annotations

from dataclasses import dataclass
from decimal import Decimal
from fractions import Fraction
from typing import Any, Final

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray
from pyarrow import types

from job.binding.columns import FLOATS, INTEGERS, kind, stored
from job.model.signature import CodedStrings

# Up to here both the digits and the power of ten are exact float64s, so that one division
# rounds once, which Arrow's own decimal cast does not (it was one unit off in 3 of 10 values).
_EXACT_DIGITS = 2**53
_EXACT_FLOAT_SCALE = 22
_INT64_SCALE = 18

_FLOAT_TEXT = r"(?i)^[+-]?((\d+\.?\d*|\.\d+)(e[+-]?\d+)?|nan(\([0-9a-z_]*\))?|inf(inity)?)$"
_READABLE = {
    "bool": r"(?i)^(0|1|true|false)$",
    "int64": r"^-?0*\d{1,19}$",
    "uint64": r"^0*\d{1,20}$",
}

# Arrow does not fail to write such a time, it writes this.
_BEYOND_CALENDAR = "<value out of range"


def numbers(values: Any, dtype: str, cast: str | None = None) -> tuple[Numbers, Faults]:
    """Return Arrow ``values`` as ``(n,) dtype`` and the faults among them.

    ``cast`` is what ``--cast`` asks for: the values become that type first, and integers may
    then round to its nearest float. The result may share memory with ``values``.
    """
    values = stored(values)
    if types.is_dictionary(values.type):
        if len(values.dictionary) <= len(values) and not values.indices.null_count:
            distinct, faults = numbers(values.dictionary, dtype, cast)
            if not faults:
                return distinct[values.indices.to_numpy()], ()
        # A fault of a dictionary value counts only where a row uses it.
        values = _decoded(values)
    first = cast or dtype
    values, faults = _without_nulls(values)
    array, more = _natural(values, first)
    array, rounded = convert(array, first, round_integers=cast is not None)
    array, changed = convert(array, dtype)
    return array, faults + more + rounded + changed


def strings(values: Any) -> tuple[CodedStrings, Faults]:
    """Return Arrow ``values`` as ``(n,)`` coded strings and the faults among them.

    Null is the empty string, a number or a time what Arrow writes for it. A dictionary
    column keeps its dictionary unless that is longer than the column.
    """
    faults: Faults = ()
    values = stored(values)
    if types.is_dictionary(values.type):
        if len(values.dictionary) > len(values) or values.dictionary.null_count:
            values = _decoded(values)
        elif kind(values.type.value_type) != "text":
            written, more = _written(values.dictionary)
            plain = more or written.null_count
            values = _decoded(values) if plain else _dictionary(values.indices, written)
    if kind(values.type) != "text" and not types.is_dictionary(values.type):
        values, faults = _written(values)
    if not types.is_dictionary(values.type):
        values = values.dictionary_encode()
    distinct = pc.cast(values.dictionary, pa.large_binary()).to_numpy(zero_copy_only=False)
    codes = values.indices
    if codes.null_count:
        absent = codes.is_null().to_numpy(zero_copy_only=False)
        already = np.zeros(len(absent), np.bool_)
        for fault in faults:
            already[fault.positions] = True
        faults += faults_at(absent & ~already, "null", "null in a model input", values)
        codes = codes.cast(pa.int64()).fill_null(len(distinct))
        distinct = np.append(distinct, np.array([b""], object))
    return CodedStrings(distinct, codes.to_numpy().astype(np.int32, copy=False)), faults


def _decoded(values: Any) -> Any:
    if kind(values.type.value_type) == "text":
        # Arrow decodes dictionaries of plain strings, not of string views.
        values = _dictionary(values.indices, values.dictionary.cast(pa.large_binary()))
    return values.dictionary_decode()


def _dictionary(indices: Any, dictionary: Any) -> Any:
    return pa.DictionaryArray.from_arrays(indices, dictionary)


def _without_nulls(values: Any) -> tuple[Any, Faults]:
    offered = kind(values.type)
    if not values.null_count and offered != "null":
        return values, ()
    absent = values.is_null().to_numpy(zero_copy_only=False)
    faults = faults_at(absent, "null", "null in a model input", values)
    if offered == "null":
        return pa.array(np.zeros(len(values), np.int8)), faults
    if offered == "text":
        # "0" is readable as every type that text is cast to.
        return pc.cast(values, pa.large_binary()).fill_null(b"0"), faults
    if offered == "time":
        values = _raw_time(values)
    zero = Decimal(0) if offered == "decimal" else 0 if offered != "bool" else False
    return values.fill_null(pa.scalar(zero, values.type)), faults


def _natural(values: Any, dtype: str) -> tuple[Numbers, Faults]:
    """Return values without nulls as NumPy has them, on the way to ``dtype``."""
    offered = kind(values.type)
    if offered == "bool":
        return values.cast(pa.uint8()).to_numpy().view(np.bool_), ()
    if offered == "decimal":
        return _decimals(values, dtype)
    if offered == "text":
        return _parsed(pc.cast(values, pa.large_binary()), dtype)
    array: Numbers = (_raw_time(values) if offered == "time" else values).to_numpy()
    return array, ()


def _raw_time(values: Any) -> Any:
    return values.view(pa.int32() if values.type.bit_width == 32 else pa.int64())


def _decimals(values: Any, dtype: str) -> tuple[Numbers, Faults]:
    """Return decimals as the nearest float64 on the way to a float, else as integers."""
    scale = values.type.scale
    digits = _int64_digits(values)
    if dtype in FLOATS:
        if digits is not None and 0 <= scale <= _EXACT_FLOAT_SCALE and _short(digits):
            return digits / float(10**scale), ()
        array: Numbers = values.cast(pa.string()).cast(pa.float64()).to_numpy()
        return array, ()
    if digits is None or not 0 <= scale <= _INT64_SCALE:
        return _wide_decimals(values, dtype)
    whole = digits // 10**scale
    return _whole(whole, digits != whole * 10**scale, values, dtype)


def _short(digits: NDArray[np.int64]) -> bool:
    return bool(digits.min(initial=0) >= -_EXACT_DIGITS and digits.max(initial=0) <= _EXACT_DIGITS)


def _whole(whole: Numbers, fraction: NDArray[np.bool_], values: Any, dtype: str) -> tuple[Numbers, Faults]:
    code, text = ("range", "a decimal other than 0 and 1 into a bool")
    if dtype != "bool":
        code, text = ("inexact", f"a fraction into {dtype}")
    whole[fraction] = 0
    return whole, faults_at(fraction, code, text, values)


def _wide_decimals(values: Any, dtype: str) -> tuple[Numbers, Faults]:
    exact = [Fraction(value) for value in values.to_pylist()]
    limits = np.iinfo(np.int8 if dtype == "bool" else dtype)
    fraction = np.array([value.denominator != 1 for value in exact], np.bool_)
    beyond = np.array([not limits.min <= value <= limits.max for value in exact], np.bool_) & ~fraction
    whole = [0 if b else int(value) for value, b in zip(exact, beyond | fraction, strict=True)]
    array, faults = _whole(np.array(whole, limits.dtype), fraction, values, dtype)
    text = f"a decimal beyond {dtype}"
    return array, faults + faults_at(beyond, "range", text, values)


def _int64_digits(values: Any) -> NDArray[np.int64] | None:
    """Return decimals' digits without their point, or ``None`` where one needs more than 64 bits."""
    words = values.type.bit_width // 64
    stop = values.offset + len(values)
    if not len(values):
        return np.zeros(0, np.int64)
    if words == 0:
        return np.frombuffer(values.buffers()[1], np.int32)[values.offset : stop].astype(np.int64)
    raw = np.frombuffer(values.buffers()[1], np.int64)[: stop * words].reshape(-1, words)[values.offset :]
    low: NDArray[np.int64] = raw[:, 0]
    sign = low >> 63
    return low if all(bool((raw[:, word] == sign).all()) for word in range(1, words)) else None


def _parsed(raw: Any, dtype: str) -> tuple[Numbers, Faults]:
    """Read ``raw`` (binary, no nulls) as ``dtype``, integers as the widest of their sign.

    Hexadecimal is refused: Arrow would wrap it around.
    """
    if dtype in INTEGERS:
        dtype = "uint64" if dtype.startswith("u") else "int64"
    wanted = pa.bool_() if dtype == "bool" else pa.from_numpy_dtype(numpy_type(dtype))
    bad = np.zeros(len(raw), np.bool_)
    try:
        if dtype in INTEGERS and pc.any(pc.match_substring(raw, "x", ignore_case=True)).as_py():
            raise pa.ArrowInvalid("hexadecimal")
        parsed = raw.cast(wanted)
    except pa.ArrowInvalid:
        readable = pc.match_substring_regex(raw, _READABLE.get(dtype, _FLOAT_TEXT))
        usable = pc.if_else(readable, raw, pa.scalar(b"0", raw.type))
        parsed, bad = _cast_bisecting(usable, wanted)
        bad |= ~readable.to_numpy(zero_copy_only=False)
    faults = faults_at(bad, "parse", f"text that cannot be read as {dtype}", raw)
    if dtype == "bool":
        return parsed.cast(pa.uint8()).to_numpy().view(np.bool_), faults
    array: Numbers = parsed.to_numpy()
    if dtype in FLOATS and np.isinf(array).any():
        spelled = pc.match_substring(raw, "inf", ignore_case=True).to_numpy(zero_copy_only=False)
        beyond = np.isinf(array) & ~spelled
        array = np.where(beyond, array.dtype.type(0), array)
        faults += faults_at(beyond, "overflow", f"text of a number beyond {dtype}", raw)
    return array, faults


def _written(values: Any) -> tuple[Any, Faults]:
    """Return values as Arrow writes them, null where it writes that it cannot."""
    array = values.cast(pa.string())
    if kind(values.type) != "time":
        return array, ()
    beyond = pc.starts_with(array, _BEYOND_CALENDAR).fill_null(False)
    bad = beyond.to_numpy(zero_copy_only=False)
    if not bad.any():
        return array, ()
    array = pc.if_else(beyond, pa.scalar(None, pa.string()), array)
    return array, faults_at(bad, "range", "a time that no calendar has into text", _raw_time(values))


def _cast_bisecting(values: Any, wanted: Any) -> tuple[Any, NDArray[np.bool_]]:
    """Cast text, where what cannot be read becomes zero and is marked."""
    bad = np.zeros(len(values), np.bool_)
    spans = [(0, len(values))]
    while spans:
        start, stop = spans.pop()
        try:
            values.slice(start, stop - start).cast(wanted)
        except pa.ArrowInvalid:
            middle = (start + stop) // 2
            if middle == start:
                bad[start] = True
            else:
                spans += [(start, middle), (middle, stop)]
    if bad.any():
        values = pc.if_else(pa.array(bad), pa.scalar(b"0", values.type), values)
    return values.cast(wanted), bad


# NumPy values of one type → another, and which of them would change.
#
# Rounding to the nearest float is no loss; any other change of a value is a fault of that
# value, and a zero stands in its place.

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
