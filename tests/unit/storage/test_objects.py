"""An object is read as a file, every byte that was asked for, once, in order; it is written in parts."""

from __future__ import annotations

import io
import itertools
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import cast

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from job.errors import StorageError
from job.storage import objects
from job.storage.buckets import Client
from job.storage.objects import ObjectSink, RangeFile

PIECE_BYTES = 7
FOOTER_BYTES = 64
END_BYTES = 8  # The footer's length and PAR1.
ANY = settings(max_examples=200, deadline=None, derandomize=True)

# A step is a seek, by what it is counted from and where to as a part of the file, or else a read.
WHENCE = st.sampled_from([io.SEEK_SET, io.SEEK_CUR, io.SEEK_END])
SEEK = st.tuples(WHENCE, st.integers(0, 60))
STEPS = st.lists(st.one_of(SEEK, st.integers(-1, 60)), min_size=1, max_size=8)


class Asked:
    """Content that is asked for by ranges, each of which is noted."""

    def __init__(self, content: bytes) -> None:
        self.content, self.ranges = content, list[tuple[int, int]]()
        self._lock = threading.Lock()

    def __call__(self, start: int, stop: int) -> bytes:
        # What a store would refuse (416), or answer with less than was asked for.
        assert 0 <= start < stop <= len(self.content)
        with self._lock:
            self.ranges.append((start, stop))
        return self.content[start:stop]


@contextmanager
def small() -> Iterator[None]:
    """Limits that are reached by a few bytes."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(objects, "PIECE_BYTES", PIECE_BYTES)
        patch.setattr(objects, "FOOTER_BYTES", FOOTER_BYTES)
        yield


def moved(file: io.BytesIO, whence: int, by: int) -> int:
    """Return an offset that leads to no byte before the first."""
    if whence == io.SEEK_SET:
        return by
    at = file.tell() if whence == io.SEEK_CUR else len(file.getvalue())
    # As often back as forth; to behind the end as well.
    return max(by - 30, -at)


@ANY
@given(content=st.binary(max_size=50), steps=STEPS)
@example(content=bytes(3 * PIECE_BYTES), steps=[-1])
@example(content=bytes(3 * PIECE_BYTES), steps=[PIECE_BYTES, 2 * PIECE_BYTES])
@example(content=bytes(3 * PIECE_BYTES + 1), steps=[PIECE_BYTES + 1, -1])
def test_any_seeks_and_reads_give_what_a_file_in_memory_gives(
    content: bytes, steps: list[tuple[int, int] | int]
) -> None:
    plain, get = io.BytesIO(content), Asked(content)
    file = RangeFile(get, len(content))
    assert (file.readable(), file.seekable(), file.size()) == (True, True, len(content))
    with small():
        for step in steps:
            if isinstance(step, tuple):
                whence, offset = step[0], moved(plain, *step)
                assert file.seek(offset, whence) == plain.seek(offset, whence)
            else:
                get.ranges.clear()
                at = plain.tell()
                assert file.read(step) == plain.read(step)
                check_asked_once(get.ranges, at, plain.tell())
            assert file.tell() == plain.tell()


def check_asked_once(asked: list[tuple[int, int]], start: int, stop: int) -> None:
    """These bytes were asked for, and no others, none twice and not too many at a time."""
    edges = sorted(asked)
    assert [byte for first, last in edges for byte in range(first, last)] == list(range(start, stop))
    assert all(last - first <= PIECE_BYTES for first, last in edges)
    assert len(edges) == -(-(stop - start) // PIECE_BYTES)


def test_pieces_are_fetched_side_by_side_and_put_in_order() -> None:
    content, last = bytes(range(3 * PIECE_BYTES + 1)), threading.Event()

    def get(start: int, stop: int) -> bytes:
        if stop == len(content):
            last.set()
        # Nobody has the first before the last has been asked for.
        assert last.wait(30)
        return content[start:stop]

    with small():
        assert RangeFile(get, len(content)).read() == content


@pytest.mark.parametrize("failing", range(3))
def test_a_piece_that_fails_fails_the_read_with_its_own_error(failing: int) -> None:
    def get(start: int, stop: int) -> bytes:
        if start == failing * PIECE_BYTES:
            raise StorageError(f"piece {failing}")
        return bytes(stop - start)

    with small(), pytest.raises(StorageError, match=f"^piece {failing}$"):
        RangeFile(get, 3 * PIECE_BYTES).read()


def test_as_many_threads_read_long_as_there_are_and_none_waits_for_itself() -> None:
    """All share one pool, in which no read waits that is a part of another."""
    content = bytes(range(256)) * 4
    with small():
        got: list[bytes] = []
        threads = [
            threading.Thread(target=lambda: got.append(RangeFile(Asked(content), len(content)).read()))
            for _ in range(40)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(30)
    assert got == [content] * 40


def parquet(columns: int, groups: int) -> bytes:
    content = io.BytesIO()
    table = pa.table({f"c{i}": range(groups) for i in range(columns)})
    pq.write_table(table, content, row_group_size=1)
    return content.getvalue()


@pytest.mark.parametrize("columns", [1, 3, 40])
@pytest.mark.parametrize("groups", [1, 30])
@pytest.mark.parametrize("beside", [-1, 0, 1, None])
def test_a_footer_costs_one_request_or_two_and_no_byte_more_than_it_says(
    columns: int, groups: int, beside: int | None
) -> None:
    """``beside``: bytes by which the first request is larger than the footer; None: as much as it is."""
    content = parquet(columns, groups)
    wanted = pq.read_metadata(io.BytesIO(content))
    needed = wanted.serialized_size + END_BYTES
    first = objects.FOOTER_BYTES if beside is None else needed + beside
    get = Asked(content)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(objects, "FOOTER_BYTES", first)
        end = objects.read_footer(get, len(content))
    fetched = min(max(first, needed), len(content))
    assert end == content[-fetched:]
    assert len(get.ranges) == (1 if first >= needed else 2)
    assert sum(stop - start for start, stop in get.ranges) == fetched
    assert pq.read_metadata(pa.BufferReader(end)).equals(wanted)


def test_the_footers_of_these_are_smaller_and_larger_than_one_request() -> None:
    sizes = {pq.read_metadata(io.BytesIO(parquet(c, g))).serialized_size for c in (1, 40) for g in (1, 30)}
    assert min(sizes) < objects.FOOTER_BYTES < max(sizes)


@ANY
@given(body=st.binary(max_size=200), length=st.one_of(st.integers(0, 250), st.integers(0, 2**32 - 1)))
@example(body=b"", length=0)
@example(body=b"", length=2**32 - 1)
@example(body=b"x" * 100, length=100)
@example(body=b"x" * 100, length=101)
@example(body=b"x" * 100, length=FOOTER_BYTES - END_BYTES)
@example(body=b"x" * 100, length=FOOTER_BYTES - END_BYTES + 1)
def test_a_footer_of_any_length_is_whole_or_is_not_within_the_file(body: bytes, length: int) -> None:
    content = body + length.to_bytes(4, "little") + b"PAR1"
    get = Asked(content)
    with small():
        end = objects.read_footer(get, len(content))
    assert content.endswith(end)
    wanted = length + END_BYTES
    at_once = min(FOOTER_BYTES, len(content))
    # A length that leads out of the file is a lie: nothing more is fetched for it.
    assert len(end) == (max(at_once, wanted) if wanted <= len(content) else at_once)


@ANY
@given(content=st.binary(max_size=100).filter(lambda content: content[-4:] != b"PAR1"))
@example(content=bytes(100) + (80).to_bytes(4, "little") + b"PARE")
def test_what_is_no_parquet_costs_no_second_request(content: bytes) -> None:
    get = Asked(content)
    with small():
        assert objects.read_footer(get, len(content)) == content[-FOOTER_BYTES:]
    assert len(get.ranges) == min(1, len(content))


@pytest.mark.parametrize("content", [b"P", b"PAR1", b"1PAR1", b"\0\0\0PAR1", b"\xff\xff\xffPAR1"])
def test_a_file_too_short_for_a_footer_is_fetched_once(content: bytes) -> None:
    get = Asked(content)
    assert objects.read_footer(get, len(content)) == content
    assert get.ranges == [(0, len(content))]


def test_a_footer_of_a_state_is_fetched_once_and_large_ones_are_not_kept() -> None:
    asked: list[tuple[int, int]] = []
    content = bytes(100_000) + b"PAR1"

    def get(start: int, stop: int) -> bytes:
        asked.append((start, stop))
        return content[start:stop]

    first = objects.read_footer(get, len(content), "s3://b/once 1")
    assert objects.read_footer(get, len(content), "s3://b/once 1") == first
    assert len(asked) == 1
    objects.read_footer(get, len(content), "s3://b/once 2")
    objects.read_footer(get, len(content))
    assert len(asked) == 3
    content = bytes(60_000) + (50_000).to_bytes(4, "little") + b"PAR1"
    for _ in range(2):
        asked.clear()
        objects.read_footer(get, len(content), "s3://b/large 1")
        assert len(asked) == 2
    for number in range(objects._MOST_FOOTERS):
        objects.read_footer(get, 8, f"s3://b/{number} 1")
    asked.clear()
    content = bytes(100_000) + b"PAR1"
    objects.read_footer(get, len(content), "s3://b/once 1")
    assert len(asked) == 1


# Writing.


class Kept:
    """A store in memory: the objects, and the parts that each upload was sent."""

    def __init__(self, *, keeps_uploads: bool = False) -> None:
        self.keeps_uploads = keeps_uploads
        self.objects: dict[str, bytes] = {}
        self.parts: list[bytes] = []
        self.finished = 0

    def put(self, bucket: str, key: str, content: bytes, only_if: str | None) -> str:
        self.objects[key] = content
        return "1"

    def upload(self, bucket: str, key: str) -> Kept:
        assert not self.parts, "a second upload was begun"
        return self

    def part(self, content: bytes) -> None:
        self.parts.append(content)

    def finish(self) -> None:
        self.finished += 1

    def token(self) -> str:
        return f"id,{len(self.parts)}"


@contextmanager
def parts_of(size_bytes: int, of_a_size: int = 1000) -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(objects, "PART_BYTES", size_bytes)
        patch.setattr(objects, "_PARTS_OF_A_SIZE", of_a_size)
        yield


def sink_of(kept: Kept) -> ObjectSink:
    return ObjectSink(cast(Client, kept), "s3://b/x", "b", "x", stays_open=kept.keeps_uploads)


def sizes(total: int, first: int, of_a_size: int) -> list[int]:
    """What the parts must be: so many of each size, each size twice the one before, and then the rest."""
    found: list[int] = []
    while total:
        wanted = int(first * 2 ** (len(found) // of_a_size))
        found.append(min(wanted, total))
        total -= found[-1]
    return found


WRITES = st.lists(st.one_of(st.integers(0, 20), st.sampled_from([0, 7, 8, 9, 16, 24, 40, 150])), max_size=12)


@settings(ANY, max_examples=100)
@given(lengths=WRITES, stays_open=st.booleans())
@example(lengths=[], stays_open=True)
@example(lengths=[8], stays_open=True)
@example(lengths=[8], stays_open=False)
@example(lengths=[8, 8, 8, 16], stays_open=False)
@example(lengths=[7, 1, 17], stays_open=True)
def test_what_is_written_in_any_pieces_is_sent_in_parts_of_the_right_sizes(
    lengths: list[int], stays_open: bool
) -> None:
    kept = Kept(keeps_uploads=stays_open)
    whole = bytes(number % 251 for number in range(sum(lengths)))
    ends = list(itertools.accumulate(lengths))
    with parts_of(8, of_a_size=3):
        sink = sink_of(kept)
        for end, length in zip(ends, lengths, strict=True):
            piece = whole[end - length : end]
            assert sink.write(memoryview(piece) if length % 2 else piece) == length
            # Held are at most a part's bytes, however much was written.
            assert sum(map(len, kept.parts)) > end - 8 * 2 ** (len(kept.parts) // 3)
        assert not kept.objects
        assert not kept.finished
        handle = sink.seal()
    if not stays_open and len(whole) < 8:
        assert (kept.objects, kept.parts, kept.finished) == ({"x": whole}, [], 0)
    else:
        # Something must have been sent, or there is nothing that can be finished.
        assert list(map(len, kept.parts)) == (sizes(len(whole), 8, 3) or [0])
        assert (b"".join(kept.parts), kept.objects) == (whole, {})
        assert kept.finished == (0 if stays_open else 1)
    assert handle == ("s3://b/x" + f"#upload=id,{len(kept.parts)}" * stays_open)


def test_the_largest_object_that_s3_takes_fits_its_parts() -> None:
    """5 TiB, 10,000 parts, of 5 MiB to 5 GiB: https://docs.aws.amazon.com/AmazonS3/latest/userguide/qfacts.html.

    Each byte here stands for a part of the first size.
    """
    unit_bytes = objects.PART_BYTES
    kept = Kept(keeps_uploads=True)
    with parts_of(1, of_a_size=getattr(objects, "_PARTS_OF_A_SIZE")):  # noqa: B009 - not for others to use
        sink = sink_of(kept)
        for _ in range(5):
            sink.write(bytes((1 << 40) // unit_bytes))
        sink.seal()
    assert len(kept.parts) <= 10_000
    assert unit_bytes >= 5 << 20
    assert max(map(len, kept.parts)) * unit_bytes <= 5 << 30
