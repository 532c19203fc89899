"""From ``--model`` to a ``ModelReference``: its kind, its digest, and how far it is trusted. No Keras here.

What kinds there are, and what each does to be recognised, checked and loaded, is in the modules of ``KINDS``.
"""

from __future__ import annotations

import hashlib
import json
import os
import threading
from collections.abc import Mapping
from pathlib import Path, PurePosixPath
from typing import Final

from job import storage
from job.errors import ModelError, UsageError
from job.model import builder, copies
from job.model.builder import Builder
from job.model.keras_files import KerasArchive, KerasFolder, KerasH5
from job.model.kind import MODEL, Held, Kind, name_of
from job.model.saved_model import SavedModel
from job.spec import ModelReference

# All kinds of models. A folder is of the first kind whose mark it has.
KINDS: Final[tuple[Kind, ...]] = (KerasArchive(), KerasH5(), SavedModel(), KerasFolder(), Builder())

# How many copies a process keeps that it does not use any more: of a champion and a challenger, and the next.
_MOST_KEPT: Final = 4
# The folder of a private copy that has weights in it.
_WEIGHTS_FOLDER: Final = "weights"


def marks() -> dict[str, Kind]:
    """Return what a folder holds that is a model, and which kind it is then."""
    return {kind.mark: kind for kind in KINDS if kind.mark}


def forms() -> str:
    """Return what ``--model`` may be, as messages say it."""
    files = "".join(f"{kind.form}, " for kind in KINDS if kind.suffixes)
    folders = ", or ".join(kind.form for kind in KINDS if kind.mark)
    code = "".join(f" or {kind.form}" for kind in KINDS if not kind.has_files)
    return f"{files}a folder ({folders}){code}"


def _of_suffix(suffix: str) -> Kind | None:
    return next((kind for kind in KINDS if suffix.lower() in kind.suffixes), None)


def kind_of(path: str) -> Kind:
    """Return the kind of model that ``--model`` names.

    Raises:
        ModelError: nothing is there, or it is of no kind.
    """
    if storage.is_remote(path):
        return _kind_in_bucket(path)
    if not storage.exists(path):
        if (code := next((kind for kind in KINDS if kind.names_code(path)), None)) is not None:
            return code
        raise ModelError(f"--model={path}: there is no such file, folder or builder; give {forms()}")
    if storage.is_folder(path):
        there = (kind for mark, kind in marks().items() if storage.exists(storage.join(path, mark)))
        if (folder := next(there, None)) is None:
            raise ModelError(
                f"--model={path}: the folder holds no {' and no '.join(marks())}; give {forms()}"
            )
        return folder
    suffix = Path(path).suffix.lower()
    if (file := _of_suffix(suffix)) is None:
        raise ModelError(
            f"--model={path}: {suffix or 'no'} suffix is no kind of model known here; give {forms()}"
        )
    return file


def is_model(path: str) -> bool:
    """Say whether what lies there is one of these kinds, by its name."""
    try:
        return kind_of(path).has_files
    except ModelError:
        return False


def _kind_in_bucket(path: str) -> Kind:
    """Return what a name in a bucket must be; each look at it would be a request of its own."""
    kind = _of_suffix(PurePosixPath(path).suffix)
    for mark, of_folder in () if kind else marks().items():
        if storage.size_bytes(storage.join(path, mark)) is not None:
            return of_folder
    if kind is None:
        raise ModelError(
            f"--model={path}: it holds no {' and no '.join(marks())}, and is no file; give {forms()}"
        )
    return kind


def resolve(
    path: str, weights: str | None, *, trusted: bool, sha256: str | None, signature: str = ""
) -> ModelReference:
    """Check a model's form, trust and digest, and return the reference that workers load.

    Raises:
        ModelError: it is absent, no model, not trusted enough, or has another SHA-256.
        UsageError: weights are given for a model that has its own, or a signature for one that has none.
    """
    kind = kind_of(path)
    if signature and not kind.takes_signature:
        raise UsageError(
            f"--signature={signature} goes only with a SavedModel folder, not with --model={path}; leave "
            f"--signature out"
        )
    if weights is not None:
        if kind.has_files:
            raise misplaced_weights(path, weights)
        builder.check_weights(weights)
    kind.check_trust(path, trusted=trusted)
    if kind.suffixes and storage.is_remote(path) and storage.size_bytes(path) is None:
        raise ModelError(f"--model={path}: there is no such object; give {forms()}")
    found = held(path, weights)
    found.kind.check(found, trusted=trusted)
    if sha256 is not None and found.digest != sha256.lower():
        raise ModelError(
            f"--model={path}: its SHA-256 is {found.digest}, --model_sha256 wants {sha256.lower()}"
        )
    backend = _keras_backend() if found.kind.is_keras else "tensorflow"
    return ModelReference(path, weights, trusted, found.digest, backend, signature)


def _keras_backend() -> str:
    """Return Keras' backend as Keras finds it: by its environment variable, else by its settings."""
    if given := os.environ.get("KERAS_BACKEND"):
        return given
    home = os.environ.get("KERAS_HOME") or os.path.join(os.path.expanduser("~"), ".keras")
    try:
        settings = json.loads(Path(home, "keras.json").read_text())
        return str(settings.get("backend", "tensorflow"))
    except (OSError, ValueError, AttributeError):
        return "tensorflow"


def held(path: str, weights: str | None) -> Held:
    """Return a model as it is now, as a private copy that nobody else changes.

    It is copied where this process has not done so, or where it has changed since.

    Raises:
        ModelError: it is no model.
        StorageError: it cannot be read, or there is no room for the copy.
    """
    if weights is None and _is_code(path):
        return _held(path, None, None)
    states, key = _known.get((path, weights), ({}, ""))
    copy = None
    if states and {source: storage.state(source) for source in states} == states:
        copy = _recent(key)
    return _held(path, weights, copy or _copied(path, weights))


def opened(reference: ModelReference) -> Held:
    """Return the model that a reference means, checked: whatever has been put in its place since.

    A copy that this user's processes on this machine hold will do.

    Raises:
        ModelError: what is there by now is another one, and nobody here holds the one that is meant.
        StorageError: it cannot be read, or there is no room for the copy.
    """
    path, weights = reference.path, reference.weights
    copy = _recent(_key(path, weights, reference.digest))
    if copy is None and reference.trusted:
        copy = _recent(_key(path, weights, reference.digest, linked=True))
    found = held(path, weights) if copy is None else _held(path, weights, copy)
    if found.digest != reference.digest:
        raise ModelError(
            f"{reference.path}: its SHA-256 is {found.digest} here, the run was planned with "
            f"{reference.digest}; put the artifact back or start a new run"
        )
    found.kind.check(found, trusted=reference.trusted)
    return found


def digest(path: str, weights: str | None) -> str:
    """Return a model's SHA-256 in hex: of the file, or of the names and digests of its parts.

    A ``.keras`` or ``.h5`` model has the digest that ``sha256sum`` prints. A builder has that of its
    reference, its weights and all sources around it: every ``*.py`` of its top-level package or, where it
    is a module in no package, every one in its folder.
    """
    return held(path, weights).digest


# The states of the sources that this process has copied last of each model, and the copy's key.
_known: dict[tuple[str, str | None], tuple[Mapping[str, str], str]] = {}
# What this process keeps for its next loading, the latest last; what is being loaded is kept by its own.
_kept: dict[str, copies.Copy] = {}
_mutex = threading.Lock()


def _recent(key: str) -> copies.Copy | None:
    """Return the copy of a key that this process or another one on this machine keeps."""
    copy = _kept.get(key) or copies.found(key)
    return copy and _keep(key, copy)


def _keep(key: str, copy: copies.Copy) -> copies.Copy:
    with _mutex:
        _kept.pop(key, None)
        _kept[key] = copy
        for old in list(_kept)[:-_MOST_KEPT]:
            del _kept[old]
    return copy


def _copied(path: str, weights: str | None) -> copies.Copy:
    with copies.making() as new:
        if not _is_code(path):
            new.add(path, f"{MODEL}/{name_of(path)}")
        if weights is not None:
            file = new.add(weights, f"{_WEIGHTS_FOLDER}/{name_of(weights)}")
            for name in builder.shards(weights, file):
                new.add(storage.join(storage.parent(weights), name), f"{_WEIGHTS_FOLDER}/{name}")
        digest = _held(path, weights, new.copy).digest
        key = _key(path, weights, digest, linked=bool(new.copy.links))
        copy = _keep(key, new.keep(key))
        _known[path, weights] = new.states, key
        return copy


def _is_code(path: str) -> bool:
    return not storage.is_remote(path) and not kind_of(path).has_files


def _key(path: str, weights: str | None, digest: str, *, linked: bool = False) -> str:
    """Return what a copy is known by, on this machine; ``linked`` is one that was links in part."""
    names = [digest, name_of(path), name_of(weights or ""), linked]
    return hashlib.sha256(json.dumps(names).encode()).hexdigest()


def _held(path: str, weights: str | None, copy: copies.Copy | None) -> Held:
    model = copy.below(MODEL) if copy else {}
    if copy is None or not model:
        kind, file = kind_of(path), path
    else:
        file = os.path.join(copy.folder, MODEL, name_of(path))
        kind = kind_of(file)
    if kind.suffixes:
        return Held(path, weights, kind, file, None, model[name_of(path)], copy)
    own = {part.removeprefix(f"{name_of(path)}/"): sha256 for part, sha256 in model.items()}
    parts = dict(kind.parts(path, own))
    weights_file = None
    if copy is not None and weights is not None:
        weights_file = os.path.join(copy.folder, _WEIGHTS_FOLDER, name_of(weights))
        for part, sha256 in copy.below(_WEIGHTS_FOLDER).items():
            parts["weights" if part == name_of(weights) else f"weights {part}"] = sha256
    found = hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()
    return Held(path, weights, kind, file, weights_file, found, copy)


def size_bytes(path: str) -> int:
    """Return the size of a model that is a file or a folder."""
    found = storage.size_bytes(path) if kind_of(path).suffixes else None
    return sum(info.size_bytes for info in storage.tree(path)) if found is None else found


def misplaced_weights(path: str, weights: str) -> UsageError:
    """Return the error that ``--weights`` does not go with this ``--model``."""
    return UsageError(
        f"--weights={weights} goes only with --model=package.module:function, not with "
        f"--model={path}, which holds its own weights; leave --weights out"
    )
