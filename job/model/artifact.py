"""Model references: what kind of artifact, whose digest, how far it is trusted. Without Keras.

Five kinds of ``--model``:

* ``x.keras``: Keras' own archive; opened in safe mode, and an archive that carries code is refused
  unless trusted.
* ``x.h5``: the legacy file. Keras ignores safe mode there, so it is refused unless trusted.
* a folder that Keras wrote with ``zipped=False``: the same, not packed.
* a SavedModel folder: a TensorFlow graph; refused unless trusted if it holds operations that reach
  outside the graph.
* ``package.module:function``: a builder, which is the caller's own code, with ``--weights`` or without.
  These are numbers without code, in whatever Keras reads them from.
"""

from __future__ import annotations

import hashlib
import importlib.util
import json
import os
import re
import threading
import zipfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any, Final, Literal

from job import storage
from job.errors import ModelError, UsageError, one_line
from job.model import archive, copies
from job.spec import ModelReference

Kind = Literal["keras", "h5", "keras_folder", "saved_model", "builder"]

_KERAS_NAMES: Final = "assets/feature_names.json"
_SAVED_MODEL_NAMES: Final = "assets.extra/feature_names.json"

BUILDER = re.compile(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)*:[A-Za-z_]\w*")
_FILES: Final[Mapping[str, Kind]] = {".keras": "keras", ".h5": "h5", ".hdf5": "h5"}
# What a folder holds that is a model.
MARKS: Final[Mapping[str, Kind]] = {"saved_model.pb": "saved_model", "model.weights.h5": "keras_folder"}
# How many copies a process keeps that it does not use any more: of a champion and a challenger, and the next.
_MOST_KEPT: Final = 4
# The folders of a private copy.
_MODEL: Final = "model"
_WEIGHTS_FOLDER: Final = "weights"
FORMS: Final = "x.keras, x.h5, a folder (a SavedModel, or of zipped=False) or package.module:function"
# What Keras reads weights from; the second is a map of files of the first kind, its shards.
_SHARDED: Final = ".weights.json"
_WEIGHTS: Final = (".weights.h5", _SHARDED, ".keras", ".h5", ".hdf5")


def kind_of(path: str) -> Kind:
    """Return the kind of model that ``--model`` names.

    Raises:
        ModelError: nothing is there, or it is none of the five kinds.
    """
    if storage.is_remote(path):
        return _kind_in_bucket(path)
    if not storage.exists(path):
        if BUILDER.fullmatch(path):
            return "builder"
        raise ModelError(f"--model={path}: there is no such file, folder or builder; give {FORMS}")
    if storage.is_folder(path):
        kind = next((kind for mark, kind in MARKS.items() if storage.exists(storage.join(path, mark))), None)
        if kind is None:
            raise ModelError(f"--model={path}: the folder holds no {' and no '.join(MARKS)}; give {FORMS}")
        return kind
    suffix = Path(path).suffix.lower()
    if suffix not in _FILES:
        raise ModelError(
            f"--model={path}: {suffix or 'no'} suffix is no kind of model known here; give {FORMS}"
        )
    return _FILES[suffix]


def is_model(path: str) -> bool:
    """Say whether what lies there is one of these kinds, by its name."""
    try:
        return kind_of(path) != "builder"
    except ModelError:
        return False


def _kind_in_bucket(path: str) -> Kind:
    """Return what a name in a bucket must be; each look at it would be a request of its own."""
    kind = _FILES.get(PurePosixPath(path).suffix.lower())
    for mark, of_folder in () if kind else MARKS.items():
        if storage.size_bytes(storage.join(path, mark)) is not None:
            return of_folder
    if kind is None:
        raise ModelError(
            f"--model={path}: it holds no {' and no '.join(MARKS)}, and is no file; give {FORMS}"
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
    if signature and kind != "saved_model":
        raise UsageError(
            f"--signature={signature} goes only with a SavedModel folder, not with --model={path}; leave "
            f"--signature out"
        )
    if weights is not None:
        _check_weights(path, weights, kind)
    if kind == "h5" and not trusted:
        raise ModelError(
            f"--model={path}: an .h5 model may carry code that Keras' safe mode does not stop; "
            f"save it as .keras, or add --trust_model"
        )
    if kind in ("keras", "h5") and storage.is_remote(path) and storage.size_bytes(path) is None:
        raise ModelError(f"--model={path}: there is no such object; give {FORMS}")
    found = held(path, weights)
    _check(found, trusted=trusted)
    if sha256 is not None and found.digest != sha256.lower():
        raise ModelError(
            f"--model={path}: its SHA-256 is {found.digest}, --model_sha256 wants {sha256.lower()}"
        )
    return ModelReference(path, weights, trusted, found.digest, _backend(found.kind), signature)


def _backend(kind: Kind) -> str:
    """Return Keras' backend as Keras finds it: by its environment variable, else by its settings."""
    if kind == "saved_model":
        return "tensorflow"
    if given := os.environ.get("KERAS_BACKEND"):
        return given
    home = os.environ.get("KERAS_HOME") or os.path.join(os.path.expanduser("~"), ".keras")
    try:
        settings = json.loads(Path(home, "keras.json").read_text())
        return str(settings.get("backend", "tensorflow"))
    except (OSError, ValueError, AttributeError):
        return "tensorflow"


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


def held(path: str, weights: str | None) -> Held:
    """Return a model as it is now, as a private copy that nobody else changes.

    It is copied where this process has not done so, or where it has changed since.

    Raises:
        ModelError: it is no model.
        StorageError: it cannot be read, or there is no room for the copy.
    """
    if weights is None and _is_builder(path):
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
    _check(found, trusted=reference.trusted)
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
        if not _is_builder(path):
            new.add(path, f"{_MODEL}/{_name(path)}")
        if weights is not None:
            file = new.add(weights, f"{_WEIGHTS_FOLDER}/{_name(weights)}")
            for name in _shards(weights, file):
                new.add(storage.join(storage.parent(weights), name), f"{_WEIGHTS_FOLDER}/{name}")
        digest = _held(path, weights, new.copy).digest
        key = _key(path, weights, digest, linked=bool(new.copy.links))
        copy = _keep(key, new.keep(key))
        _known[path, weights] = new.states, key
        return copy


def _is_builder(path: str) -> bool:
    return not storage.is_remote(path) and kind_of(path) == "builder"


def _name(path: str) -> str:
    """Return the name of a copy: Keras and TensorFlow look at names, too."""
    name = PurePosixPath(path).name
    return name if name not in ("", "..") else "model"


def _key(path: str, weights: str | None, digest: str, *, linked: bool = False) -> str:
    """Return what a copy is known by, on this machine; ``linked`` is one that was links in part."""
    names = [digest, _name(path), _name(weights or ""), linked]
    return hashlib.sha256(json.dumps(names).encode()).hexdigest()


def _held(path: str, weights: str | None, copy: copies.Copy | None) -> Held:
    model = copy.below(_MODEL) if copy else {}
    if copy is None or not model:
        kind, file = kind_of(path), path
    else:
        file = os.path.join(copy.folder, _MODEL, _name(path))
        kind = kind_of(file)
    if kind in ("keras", "h5"):
        return Held(path, weights, kind, file, None, model[_name(path)], copy)
    if kind == "builder":
        parts = _builder_parts(path)
    else:
        parts = {part.removeprefix(f"{_name(path)}/"): sha256 for part, sha256 in model.items()}
    weights_file = None
    if copy is not None and weights is not None:
        weights_file = os.path.join(copy.folder, _WEIGHTS_FOLDER, _name(weights))
        for part, sha256 in copy.below(_WEIGHTS_FOLDER).items():
            parts["weights" if part == _name(weights) else f"weights {part}"] = sha256
    found = hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()
    return Held(path, weights, kind, file, weights_file, found, copy)


def _check(found: Held, *, trusted: bool) -> None:
    """Refuse a model that is malformed or, unless it is trusted, may do more than compute."""
    if found.kind == "keras":
        archive.check(found.path, trusted=trusted, copy=found.file)
    elif found.kind == "keras_folder":
        archive.check_folder(found.path, trusted=trusted, copy=found.file, links=list(_links(found)))
    elif found.kind == "saved_model":
        _check_links(found, trusted=trusted)
    if found.weights_file is not None and found.weights_file.endswith(".keras"):
        archive.check_weights(str(found.weights), copy=found.weights_file)


def _check_links(found: Held, *, trusted: bool) -> None:
    for name, is_file in _links(found).items():
        if not is_file:
            raise ModelError(
                f"--model={found.path}: its {name!r} is a link to a folder; put a copy of that there (cp -rL)"
            )
        if not trusted:
            raise ModelError(
                f"--model={found.path}: its {name!r} is a link, which may lead to any file of this machine; "
                f"put a copy of what it leads to there (cp -rL), or add --trust_model"
            )


def _links(found: Held) -> dict[str, bool]:
    """Return the names of what is a link in a model's folder, and whether it leads to a file."""
    if found.copy is None:
        return {}
    top = f"{_MODEL}/{_name(found.path)}/"
    return {name.removeprefix(top): name in found.copy.digests for name in found.copy.links}


def size_bytes(path: str) -> int:
    """Return the size of a model that is a file or a folder."""
    found = storage.size_bytes(path) if kind_of(path) in ("keras", "h5") else None
    return sum(info.size_bytes for info in storage.tree(path)) if found is None else found


def _builder_parts(path: str) -> dict[str, str]:
    found = {
        f"source {i} {source.relative_to(folder).as_posix()}": storage.sha256(str(source))
        for i, (folder, source) in _sources(path)
    }
    return {"builder": path, **found}


def feature_names(path: str, kind: Kind, copy: str) -> tuple[str, ...]:
    """Return the names of the feature columns, in the model's order, that a model's own file keeps.

    They are a JSON list: of a Keras archive or folder the member ``assets/feature_names.json``, of a
    SavedModel ``assets.extra/feature_names.json``, which is TensorFlow's folder for what it does not read
    itself. There are none in other kinds, or where nobody put them there.

    Args:
        path: the model, as ``--model`` names it.
        kind: what kind of model it is.
        copy: the local file or folder that is loaded.

    Raises:
        ModelError: the list is none of distinct names.
    """
    if kind == "keras":
        with zipfile.ZipFile(copy) as archive:
            content = archive.read(_KERAS_NAMES) if _KERAS_NAMES in archive.namelist() else None
    elif kind in ("keras_folder", "saved_model"):
        name = _KERAS_NAMES if kind == "keras_folder" else _SAVED_MODEL_NAMES
        content = storage.read_bytes(storage.join(copy, name))
    else:
        content = None
    if content is None:
        return ()
    try:
        names = json.loads(content)
    except (ValueError, RecursionError) as e:
        raise ModelError(f"--model={path}: its feature_names.json is no JSON: {e}") from e
    if not isinstance(names, list) or not all(isinstance(name, str) and name for name in names):
        raise ModelError(f"--model={path}: its feature_names.json is no list of names; write one, in order")
    if len(set(names)) != len(names):
        raise ModelError(f"--model={path}: its feature_names.json holds a name twice; each is one column")
    return tuple(names)


def sources(path: str) -> set[str]:
    """Return the paths of the sources that are in a builder's digest."""
    return {os.path.abspath(source) for _, (_, source) in _sources(path)}


def _sources(path: str) -> Iterator[tuple[int, tuple[Path, Path]]]:
    """Yield the number of a folder, the folder, and a source in it, of all that are around a builder."""
    module, _, _ = path.partition(":")
    try:
        found = importlib.util.find_spec(module)
        package = importlib.util.find_spec(module.partition(".")[0])
    except Exception as e:
        # Finding a module runs the packages around it.
        reason = " ".join(f"{type(e).__name__}: {e}".split())
        raise ModelError(
            f"--model={path}: module {module} cannot be imported ({reason}); install it or set PYTHONPATH"
        ) from e
    if found is None or package is None:
        raise ModelError(f"--model={path}: there is no module {module}; install it or set PYTHONPATH")
    if package.submodule_search_locations is not None:
        searched = [(Path(folder), "**/*.py") for folder in package.submodule_search_locations]
    else:
        searched = [(Path(package.origin).parent, "*.py")] if package.origin and package.has_location else []
    for i, (folder, pattern) in enumerate(searched):
        yield from ((i, (folder, source)) for source in folder.glob(pattern) if source.is_file())


def weights_bytes(weights: str) -> int:
    """Return the size of weights, with that of their shards."""
    folder = storage.parent(weights)
    paths = [weights, *(storage.join(folder, name) for name in _shards(weights, weights))]
    return sum(storage.size_bytes(path) or 0 for path in paths)


def _shards(weights: str, copy: str) -> tuple[str, ...]:
    """Return the names of the files beside a map of sharded weights, none of weights that are one file.

    Raises:
        ModelError: the map cannot be made out, or is of shards that are not there.
    """
    if not weights.endswith(_SHARDED):
        return ()
    told = f"--weights={weights}: it is no map of shards as save_weights(…, max_shard_size=…) writes it"
    try:
        content = json.loads(storage.read_bytes(copy) or b"")
        found = [name for names in content["weight_map"].values() for name in _listed(names)]
    except (OSError, ValueError, LookupError, TypeError, AttributeError, RecursionError) as e:
        raise ModelError(f"{told}: {one_line(e)}") from e
    # Keras opens the first one whatever the map says.
    first = f"{Path(weights).stem.replace('.weights', '')}_00000.weights.h5"
    names = tuple(dict.fromkeys([first, *found]))
    for name in names:
        if not isinstance(name, str) or not re.fullmatch(r"[^/\\\0]+\.weights\.h5", name):
            raise ModelError(f"{told}: it names the shard {name!r}")
        if not storage.exists(storage.join(storage.parent(weights), name)):
            raise ModelError(f"--weights={weights}: its shard {name} is not there; put it beside the map")
    return names


def _listed(names: Any) -> list[Any]:
    return names if isinstance(names, list) else [names]


def misplaced_weights(path: str, weights: str) -> UsageError:
    """Return the error that ``--weights`` does not go with this ``--model``."""
    return UsageError(
        f"--weights={weights} goes only with --model=package.module:function, not with "
        f"--model={path}, which holds its own weights; leave --weights out"
    )


def _check_weights(path: str, weights: str, kind: Kind) -> None:
    if kind != "builder":
        raise misplaced_weights(path, weights)
    if not storage.exists(weights):
        raise ModelError(f"--weights={weights}: there is no such file")
    if not weights.endswith(_WEIGHTS):
        raise ModelError(
            f"--weights={weights}: Keras reads weights from files named *{', *'.join(_WEIGHTS)}; save them "
            f"by model.save_weights('x.weights.h5')"
        )
