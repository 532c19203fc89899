"""What a kind of model is: how it is recognised, trusted, hashed and loaded, and the step that loading gives.

A kind is one module with one subclass of :class:`Kind`, listed in ``artifact.KINDS``. It is a file with an
ending of its own, a folder with a marking file in it, or neither of them. ``load`` imports what it needs, so
that a night that is published already needs no TensorFlow. It returns a :class:`Step`: what the job needs of
a loaded model, whatever kind it is.
"""

from __future__ import annotations

import itertools
import json
import os
import socket
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import TYPE_CHECKING, ClassVar, Final, Protocol

from job.errors import ModelError
from job.model import copies
from job.spec import ModelReference, Reads

if TYPE_CHECKING:
    import numpy as np

    from job.model.signature import InputSpec, OutputSpec, Signature, Tensor

# The folder of a private copy that has the model in it.
MODEL: Final = "model"
_LOADS: Final = itertools.count(1)


class Kind:
    """One kind of model.

    Attributes:
        name: what it is called here.
        form: what ``--model`` is given, as messages list it.
        suffixes: the endings of a file of this kind, in small letters; none where it is no file.
        mark: a file that every folder of this kind has; empty where it is no folder.
        takes_signature: whether ``--signature`` chooses among its functions.
        is_keras: whether Keras computes it, with the backend that Keras is set to.
    """

    name: ClassVar[str]
    form: ClassVar[str]
    suffixes: ClassVar[tuple[str, ...]] = ()
    mark: ClassVar[str] = ""
    takes_signature: ClassVar[bool] = False
    is_keras: ClassVar[bool] = False

    @property
    def has_files(self) -> bool:
        """Whether it is a file or a folder, rather than code that is installed."""
        return bool(self.suffixes or self.mark)

    def names_code(self, _path: str, /) -> bool:
        """Say whether a path, at which nothing lies, names installed code of this kind."""
        return False

    def check_trust(self, _path: str, *, trusted: bool) -> None:
        """Raise ``ModelError`` where no model of this kind can be checked, so that it must be trusted."""
        del trusted

    def check(self, held: Held, *, trusted: bool) -> None:
        """Raise ``ModelError`` where a model is malformed or, unless trusted, may do more than compute."""

    def parts(self, _path: str, files: Mapping[str, str], /) -> Mapping[str, str]:
        """Return the SHA-256 of each part by its name; ``files`` are those of a model's own files."""
        return files

    def columns(self, path: str, copy: str) -> tuple[str, ...]:
        """Return the names of the feature columns, in the model's order, that a model's own file keeps.

        They are a JSON list. There are none where nobody put them there.

        Args:
            path: the model, as ``--model`` names it.
            copy: the local file or folder that is loaded.

        Raises:
            ModelError: the list is none of distinct names.
        """
        content = self.columns_file(copy)
        if content is None:
            return ()
        try:
            names = json.loads(content)
        except (ValueError, RecursionError) as e:
            raise ModelError(f"--model={path}: its feature_names.json is no JSON: {e}") from e
        if not isinstance(names, list) or not all(isinstance(name, str) and name for name in names):
            raise ModelError(
                f"--model={path}: its feature_names.json is no list of names; write one, in order"
            )
        if len(set(names)) != len(names):
            raise ModelError(f"--model={path}: its feature_names.json holds a name twice; each is one column")
        return tuple(names)

    def columns_file(self, _copy: str, /) -> bytes | None:
        """Return the content of its ``feature_names.json``, ``None`` where it has none."""
        return None

    def saved_by(self, _copy: str, /) -> str:
        """Return the version of Keras that saved a model; empty where it does not tell."""
        return ""

    def load(self, reference: ModelReference, held: Held) -> Step:
        """Load a model as this process holds it.

        Raises:
            ModelError: it cannot be read, is not trusted enough, or its builder fails.
        """
        raise NotImplementedError


@dataclass(frozen=True)
class Held:
    """A model as this process holds it: what is hashed, checked and loaded.

    Attributes:
        path: how the model is named; ``weights`` likewise.
        kind: of what lies in the copy.
        file: the private copy of it, a file or a folder; of a builder, which has none, its name.
        weights_file: the private copy of the weights, with their shards beside it.
        digest: SHA-256 in hex, of exactly these.
        copy: what keeps them.
    """

    path: str
    weights: str | None
    kind: Kind
    file: str
    weights_file: str | None
    digest: str
    copy: copies.Copy | None

    def load(self, reference: ModelReference) -> Step:
        """Load it; raises as :meth:`Kind.load`."""
        return self.kind.load(reference, self)

    @property
    def links(self) -> dict[str, bool]:
        """The names of what is a link in a model's folder, and whether it leads to a file."""
        if self.copy is None:
            return {}
        top = f"{MODEL}/{name_of(self.path)}/"
        return {name.removeprefix(top): name in self.copy.digests for name in self.copy.links}


def name_of(path: str) -> str:
    """Return the name of a copy: Keras and TensorFlow look at names, too."""
    name = PurePosixPath(path).name
    return name if name not in ("", "..") else "model"


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


def load_name() -> str:
    """Return what identifies one loading of a model among all loadings of a run: host, process, number."""
    return f"{socket.gethostname()}:{os.getpid()}:{next(_LOADS)}"
