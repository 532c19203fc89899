"""Rows of two nights, each beside the other night's row with the same key; in bounded memory.

Nights of up to :data:`_ROWS_AT_ONCE` rows are joined at once. Of larger ones each row goes, by a hash of its
key, to one of many files on the local disk, so that rows with one key are in the same one; then these
are joined one after the other. A join numbers the distinct keys of both sides, as Arrow's dictionaries do, so
it is exact: the hash only says where to look. A key that is null matches a null.

Memory: both sides of one part, about 2 × :data:`_PART_ROWS` rows, and a few times their keys. Disk: the keys
and the compared columns of all rows, uncompressed.
"""

from __future__ import annotations

import contextlib
import os
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from job.errors import StorageError, UsageError, one_line

_ROWS_AT_ONCE: Final = 2_000_000
_PART_ROWS: Final = 500_000
# Each is two open files.
_MOST_PARTS: Final = 200
_GOLDEN: Final = np.uint64(0x9E3779B97F4A7C15)  # 2^64 / the golden ratio: spreads what is near

Codes = NDArray[np.int64]


@dataclass(frozen=True)
class Side:
    """One of two nights: what it is called in messages, how many rows it has, and these, in tables.

    The tables hold the key columns in front, the same on both sides.
    """

    name: str
    rows: int
    tables: Callable[[], Iterator[pa.Table]]


@dataclass(frozen=True)
class Pairs:
    """Rows that both have, in the same order: ``a`` and ``b``; and how many more each had here."""

    a: pa.Table
    b: pa.Table
    only_a: int = 0
    only_b: int = 0


def pairs(a: Side, b: Side, keys: Sequence[str]) -> Iterator[Pairs]:
    """Yield the rows of both nights side by side.

    Raises:
        UsageError: two rows of one night have the same key; the message shows one.
        StorageError: the local disk is full.
    """
    rows = max(a.rows, b.rows)
    if rows <= _ROWS_AT_ONCE:
        yield _joined(a, _whole(a), b, _whole(b), keys)
        return
    parts = min(_MOST_PARTS, -(-rows // _PART_ROWS))
    with tempfile.TemporaryDirectory(prefix="scoring-job-diff-") as folder:
        try:
            read_a = _spilled(a, keys, parts, os.path.join(folder, "a"))
            read_b = _spilled(b, keys, parts, os.path.join(folder, "b"))
        except OSError as e:
            raise StorageError(
                f"{folder}: rows cannot be put aside: {one_line(e)}; point TMPDIR to a disk with more room"
            ) from e
        for part in range(parts):
            yield _joined(a, read_a(part), b, read_b(part), keys)


def _whole(side: Side) -> pa.Table:
    return pa.concat_tables(side.tables())


def _joined(a: Side, rows_a: pa.Table, b: Side, rows_b: pa.Table, keys: Sequence[str]) -> Pairs:
    codes_a, codes_b, distinct = _codes(rows_a, rows_b, keys)
    for side, rows, codes in ((a, rows_a, codes_a), (b, rows_b, codes_b)):
        _check_once(side, rows, codes, distinct, keys)
    row_of = np.full(distinct, -1, np.int64)
    row_of[codes_b] = np.arange(len(codes_b))
    row_b = row_of[codes_a]
    row_a = np.flatnonzero(row_b >= 0)
    taken_b = row_b[row_a]
    return Pairs(
        _take(rows_a, row_a),
        _take(rows_b, taken_b),
        only_a=len(codes_a) - len(row_a),
        only_b=len(codes_b) - len(row_a),
    )


def _take(table: pa.Table, rows: Codes) -> pa.Table:
    if len(rows) == table.num_rows and np.array_equal(rows, np.arange(len(rows))):
        return table
    return table.take(pa.array(rows))


def _codes(a: pa.Table, b: pa.Table, keys: Sequence[str]) -> tuple[Codes, Codes, int]:
    """Return a number for each row of either side, equal where the keys are, and how many there are."""
    codes: Codes | None = None
    distinct = 1
    for key in keys:
        both = pa.chunked_array([*a[key].chunks, *b[key].chunks], a[key].type)
        more, values = _numbered(both)
        if codes is not None:
            # Numbered again, or the product of many keys would not fit.
            more, values = _numbered(pa.chunked_array([pa.array(codes * values + more)]))
        codes, distinct = more, values
    if codes is None:
        raise ValueError("no keys to match rows by")
    return codes[: a.num_rows], codes[a.num_rows :], distinct


def _numbered(column: pa.ChunkedArray) -> tuple[Codes, int]:
    encoded = column.combine_chunks().dictionary_encode(null_encoding="encode")
    if isinstance(encoded, pa.ChunkedArray):
        encoded = encoded.unify_dictionaries().combine_chunks()
    return encoded.indices.to_numpy(zero_copy_only=False).astype(np.int64), len(encoded.dictionary)


def _check_once(side: Side, rows: pa.Table, codes: Codes, distinct: int, keys: Sequence[str]) -> None:
    times = np.bincount(codes, minlength=distinct)
    if not len(times) or times.max() <= 1:
        return
    code = int(np.argmax(times > 1))
    first = rows.select(list(keys)).slice(int(np.flatnonzero(codes == code)[0]), 1).to_pylist()[0]
    example = ", ".join(f"{name}={value}" for name, value in first.items())
    raise UsageError(
        f"{side.name}: {int(times[code])} rows have the same key, {example}; give the columns that tell rows "
        f"apart by --keys"
    )


def _spilled(side: Side, keys: Sequence[str], parts: int, stem: str) -> Callable[[int], pa.Table]:
    """Put rows into files by their keys; return what reads one of these, and removes it."""
    schema: pa.Schema | None = None
    with contextlib.ExitStack() as opened:
        writers: list[Any] = []
        for table in side.tables():
            if schema is None:
                schema = table.schema
                writers += [
                    opened.enter_context(pa.ipc.new_stream(f"{stem}.{part}", schema)) for part in range(parts)
                ]
            part_of = _parts(table.select(list(keys)), parts)
            order = np.argsort(part_of, kind="stable")
            sorted_rows = table.take(pa.array(order)).combine_chunks()
            ends = np.searchsorted(part_of[order], np.arange(parts + 1))
            for part, writer in enumerate(writers):
                if ends[part + 1] > ends[part]:
                    writer.write_table(sorted_rows.slice(ends[part], ends[part + 1] - ends[part]))

    def read(part: int) -> pa.Table:
        path = f"{stem}.{part}"
        with pa.memory_map(path) as file, pa.ipc.open_stream(file) as reader:
            rows = reader.read_all()
        os.remove(path)
        return rows

    return read


def _parts(keys: pa.Table, parts: int) -> NDArray[np.uint16]:
    hashed = np.zeros(keys.num_rows, np.uint64)
    for column in keys.columns:
        hashed = (hashed ^ _hash(column.combine_chunks())) * _GOLDEN
        hashed ^= hashed >> np.uint64(32)
    return (hashed % np.uint64(parts)).astype(np.uint16)


def _hash(column: pa.Array) -> NDArray[np.uint64]:
    """Return a number for each value, the same for equal ones: of texts a polynomial of their bytes."""
    if isinstance(column, pa.ChunkedArray):
        column = pa.concat_arrays(column.chunks)
    kind = column.type
    if pa.types.is_floating(kind):
        # 0.0 and -0.0 are one.
        plain = pc.fill_null(column.cast(pa.float64()), 0.0).to_numpy() + 0.0
        return np.asarray(plain.view(np.uint64) * _GOLDEN)
    if pa.types.is_integer(kind) or pa.types.is_boolean(kind) or pa.types.is_temporal(kind):
        whole = column.cast(pa.int32()) if kind.bit_width == 32 and pa.types.is_temporal(kind) else column
        numbers = pc.fill_null(whole.cast(pa.int64(), safe=False), 0).to_numpy(zero_copy_only=False)
        return np.asarray(numbers.view(np.uint64) * _GOLDEN)
    if pa.types.is_decimal(kind):
        column = column.cast(pa.large_string())
    texts = pc.fill_null(column.cast(pa.large_binary()), b"")
    _, offsets, data = texts.buffers()
    ends = np.frombuffer(offsets, np.int64)[texts.offset : texts.offset + len(texts) + 1]
    content = np.frombuffer(data or b"", np.uint8)[ends[0] : ends[-1]]
    lengths = np.diff(ends)
    place = np.arange(len(content)) - np.repeat(ends[:-1] - ends[0], lengths)
    powers = np.cumprod(np.full(max(1, lengths.max(initial=0)), _GOLDEN))
    # Sums wrap around, and so do their differences.
    sums = np.concatenate([np.zeros(1, np.uint64), np.cumsum((content + np.uint64(1)) * powers[place])])
    return np.asarray(sums[ends[1:] - ends[0]] - sums[ends[:-1] - ends[0]])
