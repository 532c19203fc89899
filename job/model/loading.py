"""Load once, predict many times.

A worker process holds one ``LoadedModel`` for a reference, whatever the engine does with its DoFns:
``acquire`` goes through Beam's ``Shared``. The predict step is ``Model.predict_on_batch``, which
is the function ``Model.predict`` compiles, without its data adapter. TensorFlow traces it once, with the
batch axis left open, so that a ragged last batch compiles nothing. XLA and JAX compile each shape: for them
ragged batches are filled up with copies of a row, so that there are few sizes. How large a whole batch is
says ``job.model.batch_size``.

Memory: the weights once per process, and per scoring thread one batch of inputs, the layer outputs that
it needs, and one batch of outputs.
"""

from __future__ import annotations

import functools
import math
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np
from apache_beam.utils import shared
from numpy.typing import NDArray

from job.errors import ModelError
from job.model import artifact, devices, provenance
from job.model.batch_size import BatchSize
from job.model.independence import Batch, Independence, Numbers
from job.model.kind import Step, load_name
from job.model.sharing import client
from job.model.signature import CodedStrings, InputSpec, Tensor
from job.spec import NO_OPTIONS, Device, ModelReference, Reads, StoreOptions
from job.storage import objects

# Each holds one model, so a challenger has another. Beam keeps only the last that was acquired alive, and the
# two keep each other.
_SHARED, _SHARED_BESIDE = shared.Shared(), shared.Shared()


# A batch of a shape that few rows have is filled up to it, then to twice that and so on.
_FEWEST_FILLED_ROWS = 16


class LoadedModel:
    """A model in this process. Safe to use from several threads.

    Attributes:
        signature: its inputs and outputs; empty ``inputs`` until ``build`` where it has no input shape.
        batch: the batch size chosen for it, shared by all threads.
        independence: whether its predictions depend on their own rows alone.
        weights_digest: SHA-256 of the weights a builder made without ``--weights``; else empty.
        beside: the other model of the same run, which lives as long as this one.
    """

    def __init__(self, reference: ModelReference, load: Callable[[], Step] | None = None) -> None:
        begin = time.perf_counter()
        self._reference = reference
        self._lock = threading.Lock()
        self.batch = BatchSize()
        self.independence = Independence()
        self._load = load_name()
        self.weights_digest = ""
        self.beside: LoadedModel | None = None
        self._step = load() if load else artifact.opened(reference).load(reference)
        self.signature = self._step.signature()
        self._ready = self._is_open = False
        self._load_s = time.perf_counter() - begin
        if self.signature.inputs:
            self.build(self.signature.inputs)

    def build(self, inputs: Sequence[InputSpec]) -> None:
        """Make the model ready to predict; later calls do nothing.

        Args:
            inputs: its inputs, which a model without an input shape learns from the columns.

        Raises:
            ModelError: the model cannot be built for them, or the weights do not fit.
        """
        with self._lock:
            if self._ready:
                return
            begin = time.perf_counter()
            self._step.build(inputs)
            self.signature = replace(self.signature, inputs=tuple(inputs), outputs=self._step.outputs())
            self._is_open = any(None in spec.shape for spec in inputs)
            self.weights_digest = self._step.weights_digest()
            self._ready = True
            self._load_s += time.perf_counter() - begin

    def predict(self, tensors: Sequence[Tensor], steady_rows: int = 0) -> list[np.ndarray]:
        """Predict one batch.

        Args:
            tensors: one per input, in the signature's order, each ``(rows, *shape)``.
            steady_rows: where another shape would be compiled anew (XLA, JAX), the batch is filled up to
                this many rows, or to a power of two where the inputs leave an axis open, and the filling is
                cut off again.

        A batch that does not fit the memory is predicted in halves, and the size that fits is remembered.

        Returns:
            One array per output, in the signature's order, each ``(rows, *shape)``.
        """
        rows = rows_of(tensors)
        cells = row_cells(tensors) if self._is_open else 1
        size = self._filled_rows(rows, steady_rows, cells) if self._step.recompiles and rows else rows
        try:
            return self._predict(tensors, rows, size)
        except MemoryError as e:
            if size <= 1:
                raise ModelError(f"{self._reference.path}: one row does not fit the memory: {e}") from e
            middle = size // 2
            self.batch.shrink(size, cells)
        if rows <= middle:
            # It was the filling that did not fit.
            return self.predict(tensors, middle)
        halves = [
            self.predict([slice_of(tensor, *bounds) for tensor in tensors], 0)
            for bounds in ((0, middle), (middle, rows))
        ]
        return [np.concatenate(pair) for pair in zip(*halves, strict=True)]

    def _filled_rows(self, rows: int, steady_rows: int, cells: int) -> int:
        """Return how many rows to fill a batch up to, where each batch shape is a program of its own."""
        if not self._is_open or not steady_rows:
            return max(rows, steady_rows)
        # Rows of one shape may be few, and shapes many: of each there are 13 programs up to 65,536 rows.
        filled = max(_FEWEST_FILLED_ROWS, 1 << (rows - 1).bit_length())
        return max(rows, self.batch.within(filled, cells))

    def _predict(self, tensors: Sequence[Tensor], rows: int, size: int) -> list[np.ndarray]:
        if rows < size:
            filled = [_fill(tensor, size) for tensor in tensors]
            return [output[:rows] for output in self._step.predict(filled)]
        return self._step.predict(tensors)

    def check_independence(
        self,
        tensors: Sequence[Tensor],
        places: NDArray[np.int64],
        outputs: Sequence[np.ndarray],
        steady_rows: int,
        numbers: Numbers,
        where: str,
    ) -> None:
        """Predict some rows of a batch once more, alone and beside others, unless that has been done.

        Args:
            tensors: what ``predict`` was given.
            places: the rows of them that ``outputs`` are of, ascending.
            outputs: what it gave.
            steady_rows: see ``predict``.
            numbers: how the rows of ``tensors`` are called, in order.
            where: what they are of.

        Raises:
            ModelError: a prediction depends on more than its row, see ``job.model.independence``.
        """
        names = [output.name for output in self.signature.outputs]
        batch = Batch(tensors, places, outputs, steady_rows, numbers, where)
        self.independence.check(self._reference.path, names, batch, self.predict, self.load)

    def predict_plain(self, tensors: Sequence[Tensor]) -> list[np.ndarray]:
        """Predict rows by ``Model.predict``: slow, and without anything of ours; for checks."""
        return self._step.predict_plain(tensors)

    @property
    def reads(self) -> Reads:
        """Return what a builder read to make the model (``model.provenance``); nothing of an artifact."""
        return self._step.reads()

    @property
    def digest(self) -> str:
        """Return the SHA-256 of the artifact, in hex."""
        return self._reference.digest

    @property
    def load(self) -> str:
        """Return what identifies this loading among all loadings of a run."""
        return self._step.facts.load if isinstance(self._step, client.SharedStep) else self._load

    @property
    def load_s(self) -> float:
        """Return how long loading, building and tracing took, in seconds."""
        return self._step.facts.load_s if isinstance(self._step, client.SharedStep) else self._load_s

    @property
    def traces(self) -> int:
        """Return how many times the predict step has been traced so far."""
        return self._step.traces()


def acquire(
    reference: ModelReference,
    *,
    device: Device = "auto",
    threads: int = 0,
    machine: str = "",
    stores: StoreOptions = NO_OPTIONS,
    beside: LoadedModel | None = None,
) -> LoadedModel:
    """Return this process's one copy of a model, loading it where that has not been done.

    Args:
        reference: the model; its artifact must still have the reference's digest.
        device: where to run.
        threads: TensorFlow's threads within one operation; 0 leaves the choice to TensorFlow. It cannot be
            changed once TensorFlow has run an operation in this process.
        machine: not empty where all processes of this machine that give the same are to share one copy.
        stores: how that copy's process asks object stores; this one has been told.
        beside: the champion, where this is its challenger.

    Raises:
        ModelError: it cannot be loaded, or is not the artifact that the run was planned with, or its builder
            read other files.
    """

    def load() -> LoadedModel:
        if not machine:
            return LoadedModel(reference, functools.partial(_load, reference, device, threads))
        there = functools.partial(_load_there, stores, reference, device, threads)
        key = machine if beside is None else _challengers(machine)
        return LoadedModel(reference, lambda: client.SharedStep(there, key, reference.path))

    holder = _SHARED if beside is None else _SHARED_BESIDE
    loaded: LoadedModel = holder.acquire(load, tag=(reference, device, machine))
    provenance.check_same(reference, loaded.reads)
    if beside is not None:
        loaded.beside, beside.beside = beside, loaded
    return loaded


def forget() -> None:
    """Let go of this process's models: who asks for one again has it loaded again."""
    for holder in (_SHARED, _SHARED_BESIDE):
        holder.acquire(_Nothing, tag=object())


class _Nothing:
    pass


def release(machine: str) -> None:
    """End the sharing that this process began; see ``acquire``."""
    client.release(machine)
    client.release(_challengers(machine))


def _challengers(machine: str) -> str:
    return f"{machine}{client.OF_ONE_LAUNCH}challenger"


def _load_there(stores: StoreOptions, reference: ModelReference, device: Device, threads: int) -> Step:
    objects.configure(stores)
    return _load(reference, device, threads)


def _load(reference: ModelReference, device: Device, threads: int) -> Step:
    held = artifact.opened(reference)
    devices.configure(reference, device, threads)
    return held.load(reference)


def rows_of(tensors: Sequence[Tensor]) -> int:
    """Return how many rows a batch of tensors has."""
    first = tensors[0]
    return len(first.codes if isinstance(first, CodedStrings) else first)


def slice_of(tensor: Tensor, start: int, stop: int) -> Tensor:
    """Return rows ``start`` to ``stop`` of a tensor, without a copy."""
    if isinstance(tensor, CodedStrings):
        return CodedStrings(tensor.values, tensor.codes[start:stop])
    return tensor[start:stop]


def row_cells(tensors: Sequence[Tensor]) -> int:
    """Return how many values a row of these tensors has."""
    shapes = [(t.codes if isinstance(t, CodedStrings) else t).shape for t in tensors]
    return max(1, sum(math.prod(shape[1:]) for shape in shapes))


def _fill(tensor: Tensor, rows: int) -> Tensor:
    if isinstance(tensor, CodedStrings):
        return CodedStrings(tensor.values, _fill_array(tensor.codes, rows))
    return _fill_array(tensor, rows)


def _fill_array(array: np.ndarray, rows: int) -> np.ndarray:
    # The last row again: a value the model has seen cannot raise where zeros might.
    return np.concatenate([array, np.repeat(array[-1:], rows - len(array), axis=0)])
