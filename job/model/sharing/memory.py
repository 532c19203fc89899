"""Batches between processes of one machine: bytes in memory that both have mapped, no Python objects.

The memory is an anonymous file (``memfd``), which the other process opens under ``/proc``. It has no name, so
nothing can be left behind: the kernel frees it when the last process has let go of it, also when that one was
killed. Nor does it count towards ``/dev/shm``, which is 64 MB in many containers.

A thread has one such memory, as large as its largest batch and what the model made of it.
"""

from __future__ import annotations

import mmap
import os
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, Literal

import numpy as np

from job.model.signature import CodedStrings, Tensor

# TensorFlow takes an array as it is, without a copy, where it begins at such an address.
_ALIGNED = 64


@dataclass(frozen=True)
class Address:
    """Where another process of this machine finds a memory: an open file of a process, which ``inode`` is."""

    pid: int
    fd: int
    inode: int


@dataclass(frozen=True, eq=False)
class _Place:
    """One array in a memory, its first byte at ``offset``."""

    offset: int
    dtype: np.dtype[Any]
    shape: tuple[int, ...]


@dataclass(frozen=True, eq=False)
class Piece:
    """One tensor in a memory.

    ``plain`` is one array. ``objects``, an array of byte strings, is where each one ends, and the bytes.
    ``coded`` is its values in these two, and its codes.
    """

    form: Literal["plain", "objects", "coded"]
    places: tuple[_Place, ...]
    shape: tuple[int, ...]


class Memory:
    """Mapped memory. One side makes it, the other opens it; both may write and let it grow."""

    def __init__(self, fd: int) -> None:
        self._fd = fd
        self._map: mmap.mmap | None = None
        self.address = Address(os.getpid(), fd, os.fstat(fd).st_ino)

    @classmethod
    def made(cls) -> Memory:
        """Return new memory, of no size yet."""
        return cls(os.memfd_create("scoring-job", os.MFD_CLOEXEC))

    @classmethod
    def opened(cls, address: Address) -> Memory:
        """Return the memory of another process.

        Raises:
            FileNotFoundError: that process is gone.
        """
        return cls(os.open(f"/proc/{address.pid}/fd/{address.fd}", os.O_RDWR | os.O_CLOEXEC))

    def __del__(self) -> None:
        # Arrays that still look at the memory keep it mapped.
        os.close(self._fd)

    def write(self, tensors: Sequence[Tensor], start: int = 0) -> tuple[tuple[Piece, ...], int]:
        """Copy tensors into the memory from byte ``start`` on; return what they became, and where it ends."""
        parts = [_parts(tensor) for tensor in tensors]
        pieces, end = [], start
        for form, arrays, shape in parts:
            places = []
            for array in arrays:
                offset = -(-end // _ALIGNED) * _ALIGNED
                places.append(_Place(offset, array.dtype, array.shape))
                end = offset + array.nbytes
            pieces.append(Piece(form, tuple(places), shape))
        self._reach(end)
        for (_, arrays, _), piece in zip(parts, pieces, strict=True):
            for array, place in zip(arrays, piece.places, strict=True):
                np.copyto(self._array(place), array)
        return tuple(pieces), end

    def read(self, pieces: Sequence[Piece]) -> list[Tensor]:
        """Return tensors that look at the memory: they are right until it is written again."""
        ends = [p.offset + _nbytes(p) for piece in pieces for p in piece.places]
        self._reach(max(ends, default=0))
        return [_tensor(piece, [self._array(place) for place in piece.places]) for piece in pieces]

    def _array(self, place: _Place) -> np.ndarray:
        if not _nbytes(place):
            return np.empty(place.shape, place.dtype)
        return np.ndarray(place.shape, place.dtype, self._map, place.offset)

    def _reach(self, size: int) -> None:
        if not size or (self._map is not None and len(self._map) >= size):
            return
        if os.fstat(self._fd).st_size < size:
            # Room for a somewhat larger batch, in whole pages.
            os.ftruncate(self._fd, -(-size * 5 // 4 // mmap.PAGESIZE) * mmap.PAGESIZE)
        self._map = mmap.mmap(self._fd, os.fstat(self._fd).st_size)


def _nbytes(place: _Place) -> int:
    return int(np.prod(place.shape, dtype=np.int64)) * place.dtype.itemsize


Form = Literal["plain", "objects", "coded"]


def _parts(tensor: Tensor) -> tuple[Form, list[np.ndarray], tuple[int, ...]]:
    if isinstance(tensor, CodedStrings):
        return "coded", [*_bytes(tensor.values), tensor.codes], tensor.values.shape
    if tensor.dtype == object:
        return "objects", _bytes(tensor), tensor.shape
    return "plain", [tensor], tensor.shape


def _bytes(values: np.ndarray) -> list[np.ndarray]:
    flat = values.ravel().tolist()
    ends = np.cumsum([len(value) for value in flat], dtype=np.int64)
    return [ends, np.frombuffer(b"".join(flat), dtype=np.uint8)]


def _tensor(piece: Piece, arrays: list[np.ndarray]) -> Tensor:
    if piece.form == "plain":
        return arrays[0]
    ends, data = arrays[0].tolist(), arrays[1].tobytes()
    values = np.empty(len(ends), dtype=object)
    values[:] = [data[start:end] for start, end in pairwise([0, *ends])]
    values = values.reshape(piece.shape)
    return values if piece.form == "objects" else CodedStrings(values, arrays[2])
