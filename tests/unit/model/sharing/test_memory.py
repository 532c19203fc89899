"""What crosses from one process to another, and back: every kind of tensor, to the bit."""

from __future__ import annotations

import gc
import os
import subprocess
import sys

import ml_dtypes
import numpy as np
import pytest

from job.model.sharing.memory import Address, Memory
from job.model.signature import CodedStrings, Tensor
from tests.support.model_steps import memories

RANDOM = np.random.default_rng(7)


def byte_strings(*values: bytes) -> np.ndarray:
    array = np.empty(len(values), dtype=object)
    array[:] = values
    return array


def same(left: Tensor, right: Tensor) -> bool:
    if isinstance(left, CodedStrings):
        assert isinstance(right, CodedStrings)
        return same(left.values, right.values) and same(left.codes, right.codes)
    assert not isinstance(right, CodedStrings)
    if left.dtype == object:
        return left.shape == right.shape and left.tolist() == right.tolist()
    return (left.dtype, left.shape, left.tobytes()) == (right.dtype, right.shape, right.tobytes())


@pytest.mark.parametrize(
    "tensor",
    [
        RANDOM.normal(size=(100, 10)).astype(np.float32),
        np.array([[np.nan, -0.0, np.inf]], dtype=np.float64),
        RANDOM.normal(size=(8, 6)).astype(np.float32)[::2, ::3],
        np.asfortranarray(RANDOM.normal(size=(50, 4, 3))),
        np.array([True, False]),
        np.array([2**62, -1]),
        RANDOM.normal(size=(5, 2)).astype(ml_dtypes.bfloat16),
        np.empty((0, 10), np.float32),
        np.empty((3, 0), np.float32),
        byte_strings(b"", b"a\0b", "é".encode(), b"x" * 100_000).reshape(2, 2),
        byte_strings(),
        CodedStrings(byte_strings(b"EWR", b"", b"JFK"), np.array([[0, 2], [1, 1]], np.int32)),
        CodedStrings(byte_strings(), np.empty((0, 1), np.int32)),
    ],
    ids=lambda tensor: type(tensor).__name__ + str(getattr(tensor, "dtype", "")),
)
def test_a_tensor_crosses_to_the_bit(tensor: Tensor) -> None:
    here = Memory.made()
    there = Memory.opened(here.address)
    pieces, end = here.write([tensor])
    (found,) = there.read(pieces)
    assert same(found, tensor)
    # And back, behind what is there already.
    answer, _ = there.write([found, tensor], end)
    assert all(same(back, tensor) for back in here.read(answer))
    assert same(here.read(pieces)[0], tensor)


def test_memory_grows_with_the_largest_batch_and_no_further() -> None:
    memory = Memory.made()
    for rows in (10, 100_000, 10, 100_000):
        memory.write([np.ones((rows, 10), np.float32)])
    size = os.stat(f"/proc/self/fd/{memory.address.fd}").st_size
    assert 4_000_000 <= size < 5_100_000


def test_arrays_stay_right_when_the_memory_grows() -> None:
    memory = Memory.made()
    pieces, end = memory.write([np.arange(10)])
    (before,) = memory.read(pieces)
    memory.write([np.ones(1_000_000)], end)
    assert isinstance(before, np.ndarray)
    assert before.tolist() == list(range(10))


def test_nothing_is_left_open() -> None:
    def opened() -> int:
        gc.collect()
        return len(memories(os.getpid()))

    before = opened()
    memory = Memory.made()
    other = Memory.opened(memory.address)
    other.read(memory.write([np.ones(1000)])[0])
    assert opened() > before
    del memory, other
    assert opened() == before


def test_a_process_that_is_gone() -> None:
    command = [
        sys.executable,
        "-c",
        "from job.model.sharing.memory import Memory; a = Memory.made().address; print(a.pid, a.fd, a.inode)",
    ]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    with pytest.raises(FileNotFoundError):
        Memory.opened(Address(*map(int, done.stdout.split())))
