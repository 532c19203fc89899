"""Steps without Keras, for tests of the process that holds a model: it starts in the time of an import."""

from __future__ import annotations

import contextlib
import os
import signal
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from job.errors import ModelError
from job.model.signature import CodedStrings, InputSpec, OutputSpec, Signature, Tensor
from job.spec import Reads


class Doubling:
    """Gives twice what it is fed.

    A batch of more than 1,000 rows does not fit its memory, -1 in the first row is a row that it fails on, -2
    takes its process with it, -3 takes two seconds.
    """

    recompiles = False

    def signature(self) -> Signature:
        return Signature((InputSpec("x", (1,), "float32"),), (), named=False)

    def build(self, inputs: Sequence[InputSpec]) -> None:
        self._built = tuple(inputs)

    def outputs(self) -> tuple[OutputSpec, ...]:
        return (OutputSpec("y", (1,), "float32"),)

    def predict(self, tensors: Sequence[Tensor]) -> list[np.ndarray]:
        (x,) = tensors
        if isinstance(x, CodedStrings):
            return [x.values[x.codes]]
        if len(x) > 1000:
            raise MemoryError("too many rows")
        first = x.ravel()[0] if x.size else 0
        if first == -1:
            raise LookupError("no such row")
        if first == -2:
            os.kill(os.getpid(), signal.SIGKILL)
        if first == -3:
            time.sleep(2)
        return [x * 2]

    def predict_plain(self, tensors: Sequence[Tensor]) -> list[np.ndarray]:
        return [np.multiply(tensor, 2) for tensor in tensors if not isinstance(tensor, CodedStrings)]

    def traces(self) -> int:
        return 7

    def reads(self) -> Reads:
        return ()

    def weights_digest(self) -> str:
        return ""


def unloadable() -> Doubling:
    raise ModelError("m: it cannot be loaded")


class Unseeded(Doubling):
    """Other weights in every process."""

    def weights_digest(self) -> str:
        return f"{os.getpid():064x}"


def memories(pid: int) -> list[str]:
    """Return what a process has open of batches that cross."""
    found = []
    for path in Path(f"/proc/{pid}/fd").iterdir():
        with contextlib.suppress(OSError):
            found.append(os.readlink(path))
    return [name for name in found if "memfd:scoring-job" in name]
