"""What the job needs of a loaded model, whatever kind it is."""

from __future__ import annotations

import itertools
import os
import socket
from collections.abc import Sequence
from typing import Protocol

import numpy as np

from job.model.signature import InputSpec, OutputSpec, Signature, Tensor
from job.spec import Reads

_LOADS = itertools.count(1)


def load_name() -> str:
    """Return what identifies one loading of a model among all loadings of a run: host, process, number."""
    return f"{socket.gethostname()}:{os.getpid()}:{next(_LOADS)}"


class Step(Protocol):
    """One loaded model. ``recompiles`` says that every new batch shape costs a compilation."""

    recompiles: bool

    def signature(self) -> Signature:
        """Return inputs and outputs; no inputs where the model has no input shape yet."""

    def build(self, inputs: Sequence[InputSpec]) -> None:
        """Ready the model for these inputs and trace its predict step."""

    def outputs(self) -> tuple[OutputSpec, ...]:
        """Return the outputs; after ``build``."""

    def predict(self, tensors: Sequence[Tensor]) -> list[np.ndarray]:
        """Predict one batch; ``(rows, *shape)`` in and out."""

    def predict_plain(self, tensors: Sequence[Tensor]) -> list[np.ndarray]:
        """Predict one batch by ``Model.predict``, the slow way that everybody knows."""

    def traces(self) -> int:
        """Return how often the predict step has been traced."""

    def reads(self) -> Reads:
        """Return what a builder read to make the model (``model.provenance``); nothing of an artifact."""

    def weights_digest(self) -> str:
        """Return the SHA-256 of weights that no artifact pins, or nothing."""
