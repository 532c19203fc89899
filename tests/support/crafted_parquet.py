"""Parquet files that no writer writes: every field of the footer and of the page headers as a test says.

Thrift's compact protocol, and the ids of https://github.com/apache/parquet-format/blob/master/src/main/thrift/
parquet.thrift: a struct is a dict by field id, and an integer is an i64, or an i32 in ``I32``.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

INT32, INT64, FLOAT, BYTES = 1, 2, 4, 6
REQUIRED, OPTIONAL, REPEATED = 0, 1, 2
PLAIN, RLE, RLE_DICTIONARY = 0, 3, 8


class I32(int):
    """An integer of 32 bits."""


def _varint(value: int) -> bytes:
    found = bytearray()
    while value > 127:
        found.append(value & 127 | 128)
        value >>= 7
    return bytes([*found, value])


def _kind(value: Any) -> int:
    kinds = {I32: 5, int: 6, bytes: 8, list: 9, dict: 12}
    return kinds[type(value)]


def thrift(value: Any) -> bytes:
    if isinstance(value, int):
        return _varint(value << 1 if value >= 0 else (-value << 1) - 1)
    if isinstance(value, bytes):
        return _varint(len(value)) + value
    if isinstance(value, list):
        kind, length = _kind(value[0]), len(value)
        start = bytes([length << 4 | kind]) if length < 15 else bytes([0xF0 | kind]) + _varint(length)
        return start + b"".join(map(thrift, value))
    found, last = b"", 0
    for number, part in sorted(value.items()):
        found += bytes([number - last << 4 | _kind(part)]) + thrift(part)
        last = number
    return found + b"\0"


def element(
    name: str, repetition: int, kind: int | None = None, children: int | None = None
) -> dict[int, Any]:
    """A column, or a group of so many."""
    found = {3: I32(repetition), 4: name.encode()}
    found |= {} if kind is None else {1: I32(kind)}
    return found | ({} if children is None else {5: I32(children)})


def page(
    values: int, content: bytes, *, kind: int = 0, encoding: int = PLAIN, claims: int | None = None
) -> bytes:
    """A page that is not compressed, of data (kind 0) or a dictionary (2); it ``claims`` to be so large."""
    inner = {1: I32(values), 2: I32(encoding)}
    inner |= {3: I32(RLE), 4: I32(RLE)} if kind == 0 else {}
    size = len(content) if claims is None else claims
    header = {1: I32(kind), 2: I32(size), 3: I32(len(content)), (5 if kind == 0 else 7): inner}
    return thrift(header) + content


def floats(*values: float) -> bytes:
    return struct.pack(f"<{len(values)}f", *values)


@dataclass(frozen=True)
class Chunk:
    """A column's values; ``values`` is how many there are said to be."""

    path: Sequence[str]
    kind: int
    values: int
    pages: bytes
    codec: int = 0
    has_dictionary: bool = False
    claims_bytes: int | None = None
    encodings: Sequence[int] = field(default=(PLAIN, RLE, RLE_DICTIONARY))

    def metadata(self, offset: int, dictionary_bytes: int = 0) -> dict[int, Any]:
        size = len(self.pages)
        inner: dict[int, Any] = {
            1: I32(self.kind),
            2: [I32(one) for one in self.encodings],
            3: [name.encode() for name in self.path],
            4: I32(self.codec),
            5: self.values,
            6: size if self.claims_bytes is None else self.claims_bytes,
            7: size,
            9: offset,
        }
        if self.has_dictionary:
            inner |= {11: offset}
        return {2: offset, 3: inner}


def parquet(
    schema: Sequence[dict[int, Any]], chunks: Sequence[Chunk], *, rows: int, group_rows: int, groups: int = 1
) -> bytes:
    """A file of one row group, or of the same one several times."""
    content, columns = b"PAR1", []
    for chunk in chunks:
        columns.append(chunk.metadata(len(content)))
        content += chunk.pages
    group = {1: columns, 2: len(content) - 4, 3: group_rows}
    top = sum(1 for one in schema if one.get(9) != b"inner")
    root = element("schema", REQUIRED, children=top)
    every = [root, *({k: v for k, v in one.items() if k != 9} for one in schema)]
    footer = thrift({1: I32(1), 2: every, 3: rows, 4: [group] * groups})
    return content + footer + struct.pack("<I", len(footer)) + b"PAR1"


def run(value: int, count: int, width_bytes: int = 1) -> bytes:
    """So many equal values, run-length encoded."""
    return _varint(count << 1) + value.to_bytes(width_bytes, "little")


def levels(*runs: tuple[int, int]) -> bytes:
    """Levels of a data page: values and how many of each."""
    content = b"".join(run(value, count) for value, count in runs)
    return struct.pack("<I", len(content)) + content


def lists_of_ones(name: str, rows: int, values: int, told: int = 0) -> tuple[list[dict[int, Any]], Chunk]:
    """A list column of float32 in a few hundred bytes; the first row has nearly all of the values.

    ``told`` is how many the footer tells of, where these are others.
    """
    schema = [
        {**element(name, OPTIONAL, children=1), 6: I32(3)},
        {**element("list", REPEATED, children=1), 9: b"inner"},
        {**element("element", REQUIRED, FLOAT), 9: b"inner"},
    ]
    repetitions = levels((0, 1), (1, values - rows), (0, rows - 1))
    body = repetitions + levels((2, values)) + b"\1" + run(0, values)
    pages = page(1, floats(1.0), kind=2) + page(values, body, encoding=RLE_DICTIONARY)
    path = (name, "list", "element")
    return schema, Chunk(path, FLOAT, told or values, pages, has_dictionary=True)


def one_text(name: str, rows: int, size_bytes: int) -> tuple[list[dict[int, Any]], Chunk]:
    """A text column that has one value in every row, and holds it once."""
    pages = page(1, struct.pack("<I", size_bytes) + b"x" * size_bytes, kind=2)
    pages += page(rows, b"\1" + run(0, rows), encoding=RLE_DICTIONARY)
    return [element(name, REQUIRED, BYTES)], Chunk((name,), BYTES, rows, pages, has_dictionary=True)


# Parquet's FIXED_LEN_BYTE_ARRAY.
FIXED = 7


def list_column(name: str, kind: int, *, fixed_bytes: int = 0, within: str = "") -> list[dict[int, Any]]:
    """The schema of a list column, or of a struct's one field ``within``, which is a list."""
    inner = {**element("element", REQUIRED, kind), 9: b"inner"}
    inner |= {2: I32(fixed_bytes)} if fixed_bytes else {}
    lists = [
        {**element(within or name, OPTIONAL, children=1), 6: I32(3)},
        {**element("list", REPEATED, children=1), 9: b"inner"},
        inner,
    ]
    return [element(name, REQUIRED, children=1), {**lists[0], 9: b"inner"}, *lists[1:]] if within else lists


def repeated_value(
    path: Sequence[str],
    kind: int,
    lengths: Sequence[int],
    dictionary: bytes,
    *,
    entries: int = 1,
    padding: int = 0,
    version: int = 1,
) -> Chunk:
    """Lists of so many values each, all of them a dictionary's first; the page ends in ``padding`` zeros."""
    values = sum(lengths)
    repetitions = b"".join(run(0, 1) + (run(1, length - 1) if length > 1 else b"") for length in lengths)
    definitions, codes = run(2, values), b"\1" + run(0, values)
    if version == 2:
        body = repetitions + definitions + codes
        inner = {1: I32(values), 2: I32(0), 3: I32(len(lengths)), 4: I32(RLE_DICTIONARY)}
        inner |= {5: I32(len(definitions)), 6: I32(len(repetitions))}
        data = thrift({1: I32(3), 2: I32(len(body)), 3: I32(len(body)), 8: inner}) + body
    else:
        parts = (struct.pack("<I", len(repetitions)) + repetitions, levels((2, values)), codes)
        data = page(values, b"".join(parts) + bytes(padding), encoding=RLE_DICTIONARY)
    return Chunk(path, kind, values, page(entries, dictionary, kind=2) + data, has_dictionary=True)
