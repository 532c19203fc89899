"""The pages of a Parquet file: how much memory a row of its lists would take, before it is read.

A few bytes can stand for as many equal values as a page may claim, all of them in one row, and a row is read
as a whole: 191 bytes took 14 GB. So before lists are read, the headers of their pages are, and where these
claim far more values than a page of that size has, the levels that say where a row begins are read too. They
tell whether a row is too large, and how many rows may be read at once.

The form of footers and headers is that of https://github.com/apache/parquet-format (Thrift's compact
protocol). They are read here because pyarrow shows no page headers, and because its metadata of a column ends
the whole process where a footer is damaged.
"""

from __future__ import annotations

import functools
import struct
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, BinaryIO, Final

import pyarrow as pa
import pyarrow.parquet as pq

from job.errors import ShardError

# The lists of a row may take up this many bytes of memory, however few bytes they are in the file …
MOST_ROW_BYTES: Final = 32 << 20
# … and a page's values this many times the page's own bytes, before the page is looked at more closely.
MOST_EXPANSION: Final = 100
# All rows that are read at once may take up this many bytes in those lists that were looked at.
MOST_READ_BYTES: Final = 128 << 20
# Writers end a page at about 1 MiB. What claims to be so large is no page of any.
_MOST_PAGE_BYTES: Final = 256 << 20
_HEADER_BYTES: Final = 512
# As many as Arrow takes.
_LONG_HEADER_BYTES: Final = 16 << 20
# Arrow looks for a last page behind the columns of old writers, which left out a header's length.
_BEHIND_BYTES: Final = 100
# A larger dictionary is not looked into: each of its texts counts as if it were all of it.
_MOST_DICTIONARY_BYTES: Final = 8 << 20

_DATA, _DICTIONARY, _DATA_V2 = 0, 2, 3
_RLE: Final = 3
_CODECS: Final = {0: None, 1: "snappy", 2: "gzip", 4: "brotli", 6: "zstd", 7: "lz4_raw"}
# Bytes of a value by Parquet's physical type; of text, what refers to it in memory.
_VALUE_BYTES: Final = {"INT32": 4, "FLOAT": 4, "INT64": 8, "DOUBLE": 8, "INT96": 8, "BYTE_ARRAY": 4}


@dataclass(frozen=True)
class _Leaf:
    """A column of values within lists: its number among the file's columns, and its levels."""

    number: int
    path: str
    value_bytes: int
    level_bits: int
    is_text: bool


@dataclass(frozen=True)
class _Page:
    """A data page as its header tells; ``start`` is where its bytes begin in the file."""

    kind: int
    values: int
    start: int
    file_bytes: int
    claimed_bytes: int
    level_bytes: int
    rle: bool


@dataclass(frozen=True)
class _Chunk:
    """The pages of one column in one row group; ``value_bytes`` are those of a value once it is read."""

    codec: int
    value_bytes: int
    pages: tuple[_Page, ...]

    @property
    def values(self) -> int:
        return sum(page.values for page in self.pages)

    @property
    def file_bytes(self) -> int:
        return sum(page.file_bytes for page in self.pages)

    @property
    def much_bytes(self) -> int:
        """Return what those pages claim that claim far more than they have; of others it is in the file."""
        claims = ((page.values * self.value_bytes, page.file_bytes) for page in self.pages)
        return sum(claimed for claimed, file_bytes in claims if claimed > MOST_EXPANSION * file_bytes)


def check_lists(
    path: str, metadata: pq.FileMetaData, file: BinaryIO, groups: Sequence[int], columns: Sequence[str]
) -> int:
    """Refuse lists of which a row would take up more memory than the file can have in it.

    Args:
        path: the shard, for messages.
        metadata: its footer.
        file: its content, which can be sought.
        groups: the row groups that are to be read.
        columns: the top-level columns that are to be read.

    Returns:
        How many rows may be read at once, 0 for any number.

    Raises:
        ShardError: there is such a row, or no telling.
    """
    leaves = list(_list_leaves(metadata.schema, columns))
    if not leaves:
        return 0
    told = _groups_of(path, metadata)
    walked: dict[tuple[int, ...], _Chunk] = {}
    largest_bytes = 0
    for group in groups:
        chunks = [(leaf, _chunk(path, file, told[group], group, leaf, walked)) for leaf in leaves]
        much = [(leaf, chunk) for leaf, chunk in chunks if chunk.much_bytes]
        # Columns are read side by side: what each claims counts together.
        if sum(chunk.much_bytes for _, chunk in much) > MOST_ROW_BYTES:
            largest_bytes = max(largest_bytes, _row_bytes(path, file, group, much))
    return max(1, MOST_READ_BYTES // largest_bytes) if largest_bytes else 0


def _list_leaves(schema: Any, columns: Sequence[str]) -> Iterator[_Leaf]:
    wanted = {*columns}
    for number in range(len(schema)):
        leaf = schema.column(number)
        if leaf.max_repetition_level and leaf.path.partition(".")[0] in wanted:
            width = _VALUE_BYTES.get(leaf.physical_type) or max(1, leaf.length)
            is_text = leaf.physical_type == "BYTE_ARRAY"
            yield _Leaf(number, leaf.path, width, leaf.max_repetition_level.bit_length(), is_text)


def _groups_of(path: str, metadata: pq.FileMetaData) -> list[dict[int, Any]]:
    written = pa.BufferOutputStream()
    metadata.write_metadata_file(written)
    # The same footer again, between the four letters at both ends and behind them its length.
    footer = written.getvalue().to_pybytes()[4:-8]
    try:
        groups = _footer(footer)[4]
    except (ValueError, LookupError, RecursionError) as e:
        raise ShardError(f"{path}: its footer cannot be made out; write the shard again") from e
    return [group if isinstance(group, dict) else {} for group in groups]


@functools.lru_cache(maxsize=1)
def _footer(content: bytes) -> dict[int, Any]:
    """Return a footer; the last one is kept, since all splits of a shard have it: 2,000 columns take 2 s."""
    return _struct(content, 0)[0]


def _chunk(
    path: str,
    file: BinaryIO,
    told: dict[int, Any],
    group: int,
    leaf: _Leaf,
    walked: dict[tuple[int, ...], _Chunk],
) -> _Chunk:
    try:
        column = told[1][leaf.number][3]
        start, size, codec, values = int(column[9]), int(column[7]), int(column[4]), int(column[5])
        if 0 < column.get(11, 0) < start:
            start = int(column[11])
    except (LookupError, TypeError, ValueError, AttributeError):
        # Arrow makes nothing of such a column either.
        return _Chunk(0, 0, ())
    # Many row groups may share the same pages in a file that no writer wrote.
    place = start, size, codec, values, leaf.value_bytes, int(leaf.is_text)
    if place not in walked:
        pages, width = [], leaf.value_bytes
        try:
            for header, position in _headers(file, start, start + size + _BEHIND_BYTES, values):
                if header.get(1) == _DICTIONARY and leaf.is_text:
                    width = max(width, _longest_text(file, header, position, codec))
                elif header.get(1) in (_DATA, _DATA_V2):
                    pages.append(_page(header, position))
        except (ValueError, TypeError, LookupError, RecursionError) as e:
            # Arrow might make something of what is not made out here.
            raise ShardError(
                f"{path}: column {leaf.path}, row group {group}: a page's header cannot be made out; write "
                f"the shard again"
            ) from e
        walked[place] = _Chunk(codec, width, tuple(pages))
    return walked[place]


def _headers(file: BinaryIO, start: int, end: int, values: int) -> Iterator[tuple[dict[int, Any], int]]:
    """Yield the headers that Arrow reads until it has as many ``values``, and where each page begins.

    Raises:
        ValueError: one cannot be made out; ``TypeError`` and ``LookupError`` say the same.
    """
    position, seen = start, 0
    while 0 <= position < end and seen < values:
        header, length = _header_at(file, position)
        size = int(header[3])
        if size < 0:
            raise ValueError(f"a page of {size} bytes")
        position += length
        yield header, position
        seen += _number(header, 5, 1) + _number(header, 8, 1)
        position += size


def _longest_text(file: BinaryIO, header: dict[int, Any], start: int, codec: int) -> int:
    """Return the bytes of a dictionary's longest text; of one that is not looked into, all of them."""
    file_bytes, claimed_bytes = _number(header, 3), _number(header, 2)
    if max(file_bytes, claimed_bytes) > _MOST_DICTIONARY_BYTES:
        return claimed_bytes
    file.seek(start)
    try:
        content = _decompressed(file.read(file_bytes), codec, claimed_bytes)
    except (pa.ArrowException, OSError, LookupError, ValueError):
        return claimed_bytes
    position = longest = 0
    while position + 4 <= len(content):
        length = int.from_bytes(content[position : position + 4], "little")
        longest = max(longest, length)
        position += 4 + length
    return min(longest, len(content))


def _decompressed(content: bytes, codec: int, size: int) -> bytes:
    name = _CODECS[codec]
    return content if name is None else bytes(pa.Codec(name).decompress(content, size, asbytes=True))


def _header_at(file: BinaryIO, position: int) -> tuple[dict[int, Any], int]:
    file.seek(position)
    content = file.read(_HEADER_BYTES)
    try:
        return _struct(content, 0)
    except LookupError:
        # Statistics may hold long texts.
        return _struct(content + file.read(_LONG_HEADER_BYTES), 0)


def _number(header: dict[int, Any], *keys: int) -> int:
    found: Any = header
    for key in keys:
        found = found.get(key, 0) if isinstance(found, dict) else 0
    return max(0, found) if isinstance(found, int) else 0


def _page(header: dict[int, Any], start: int) -> _Page:
    kind = header[1]
    of = 5 if kind == _DATA else 8
    return _Page(
        kind,
        values=_number(header, of, 1),
        start=start,
        file_bytes=_number(header, 3),
        claimed_bytes=_number(header, 2),
        level_bytes=_number(header, 8, 6),
        rle=kind == _DATA_V2 or _number(header, 5, 4) == _RLE,
    )


def _row_bytes(path: str, file: BinaryIO, group: int, much: Sequence[tuple[_Leaf, _Chunk]]) -> int:
    """Return what the largest row of these columns takes up, as if each had its largest in the same one."""
    row_bytes = 0
    largest: tuple[int, int, _Leaf] | None = None
    for leaf, chunk in much:
        longest = _longest_of(file, leaf, chunk)
        row_bytes += longest * chunk.value_bytes
        if largest is None or longest * chunk.value_bytes > largest[0]:
            largest = longest * chunk.value_bytes, longest, leaf
    if largest and row_bytes > MOST_ROW_BYTES:
        _, longest, leaf = largest
        others = f" with {len(much) - 1} more column(s)" if len(much) > 1 else ""
        file_bytes = sum(chunk.file_bytes for _, chunk in much)
        raise ShardError(
            f"{path}: column {leaf.path}, row group {group}: one row has {longest:,} values, "
            f"about {row_bytes / (1 << 20):,.0f} MiB{others}, of "
            f"{file_bytes:,} bytes in the file; what takes up {MOST_EXPANSION:,} times its bytes there may "
            f"take up {MOST_ROW_BYTES >> 20} MiB a row: write it in several rows"
        )
    return row_bytes


def _longest_of(file: BinaryIO, leaf: _Leaf, chunk: _Chunk) -> int:
    """Return how many values the longest row of a column has, a few more at most."""
    longest = last = 0
    for page in chunk.pages:
        levels = _levels(file, page, chunk.codec)
        try:
            found, last = _longest_row(levels, leaf.level_bits, page.values, last)
        except (LookupError, ValueError):
            # What cannot be looked at may be anything.
            found, last = last + page.values, last + page.values
        longest = max(longest, found)
    return longest


def _levels(file: BinaryIO, page: _Page, codec: int) -> bytes:
    """Return a page's repetition levels as encoded; none where they cannot be had."""
    if not page.rle or not 0 <= page.claimed_bytes <= _MOST_PAGE_BYTES or codec not in _CODECS:
        return b""
    file.seek(page.start)
    if page.kind == _DATA_V2:
        # A page of the second version leaves its levels uncompressed.
        return file.read(page.level_bytes)
    content = file.read(page.file_bytes)
    try:
        content = _decompressed(content, codec, page.claimed_bytes)
        (length,) = struct.unpack_from("<I", content)
    except (pa.ArrowException, OSError, ValueError, struct.error):
        return b""
    return content[4 : 4 + length]


def _longest_row(levels: bytes, bits: int, values: int, last: int) -> tuple[int, int]:
    """Return how many values the longest row of a page has, and its last one so far; a few more at most.

    The levels are runs of equal ones and runs of packed bits, each with its length in front. A row begins at
    level 0; the page's first values may belong to the row before, which has ``last`` values so far.
    """
    position, left, longest = 0, values, last
    while left > 0 and position < len(levels):
        header, position = _varint(levels, position)
        if header & 1:
            end = position + (header >> 1) * bits
            count = min((header >> 1) * 8, left)
            begins = _holds_zero(levels[position:end], bits, count)
        else:
            end = position + (bits + 7) // 8
            count = min(header >> 1, left)
            begins = count > 0 and not any(levels[position:end])
        if begins:
            # Somewhere in packed bits: nearly all of them may be of the row before, or of the one after.
            longest = max(longest, last + (count if header & 1 else 0))
            last = count if header & 1 else 1
        else:
            last += count
        position, left = end, left - count
    # What the levels do not tell is of the last row.
    return max(longest, last + left), last + left


def _holds_zero(packed: bytes, bits: int, count: int) -> bool:
    """Say whether one of ``count`` packed values is 0."""
    every = int.from_bytes(packed, "little")
    folded = 0
    for shift in range(bits):
        folded |= every >> shift
    ones = ((1 << count * bits) - 1) // ((1 << bits) - 1)
    return folded & ones != ones


def _varint(content: bytes, position: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        byte = content[position]
        position += 1
        value |= (byte & 127) << shift
        if byte < 128:
            return value, position
        shift += 7
        if shift > 63:
            raise ValueError("an integer of more than 64 bits")


def _struct(content: bytes, position: int) -> tuple[dict[int, Any], int]:
    """Return a Thrift struct by the ids of its fields, and where it ends.

    Raises:
        LookupError: the content ends within it.
        ValueError: it is none.
    """
    found: dict[int, Any] = {}
    number = 0
    while byte := content[position]:
        position += 1
        kind = byte & 15
        if byte >> 4:
            number += byte >> 4
        else:
            number, position = _integer(content, position)
        if kind in (1, 2):
            found[number] = kind == 1
        else:
            found[number], position = _value(content, position, kind)
    return found, position + 1


def _integer(content: bytes, position: int) -> tuple[int, int]:
    value, position = _varint(content, position)
    return value >> 1 ^ -(value & 1), position


def _value(content: bytes, position: int, kind: int) -> tuple[Any, int]:
    if kind in (4, 5, 6):
        return _integer(content, position)
    if kind == 8:
        length, position = _varint(content, position)
        if position + length > len(content):
            raise IndexError(position + length)
        return content[position : position + length], position + length
    if kind == 12:
        return _struct(content, position)
    if kind in (9, 10):
        return _list(content, position)
    if kind in (1, 2, 3):
        return content[position], position + 1
    if kind == 7:
        return content[position : position + 8], position + 8
    raise ValueError(f"type {kind} of Thrift's compact protocol")


def _list(content: bytes, position: int) -> tuple[list[Any], int]:
    length, kind = content[position] >> 4, content[position] & 15
    position += 1
    if length == 15:
        length, position = _varint(content, position)
    found = []
    for _ in range(length):
        value, position = _value(content, position, kind)
        found.append(value)
    return found, position
