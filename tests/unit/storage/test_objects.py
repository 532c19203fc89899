"""How what is written is cut into parts, whoever takes them."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from contextlib import contextmanager
from typing import cast

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from job.storage import objects
from job.storage.buckets import Client
from job.storage.objects import ObjectSink

ANY = settings(max_examples=100, deadline=None, derandomize=True)


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


@ANY
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
