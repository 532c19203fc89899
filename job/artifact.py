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
from collections.abc import Iterator, Mapping
from pathlib import Path, PurePosixPath
from typing import Any, Final, Literal

from job import archive, storage
from job.errors import ModelError, StorageError, UsageError, one_line
from job.spec import ModelReference

Kind = Literal["keras", "h5", "keras_folder", "saved_model", "builder"]

BUILDER = re.compile(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)*:[A-Za-z_]\w*")
_FILES: Final[Mapping[str, Kind]] = {".keras": "keras", ".h5": "h5", ".hdf5": "h5"}
# What a folder holds that is a model.
MARKS: Final[Mapping[str, Kind]] = {"saved_model.pb": "saved_model", "model.weights.h5": "keras_folder"}
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
    _fetch_anew(path, weights, kind)
    if kind == "keras":
        archive.check(path, trusted=trusted)
    elif kind == "keras_folder":
        archive.check_folder(path, trusted=trusted)
    if weights is not None and weights.endswith(".keras"):
        archive.check_weights(weights)
    found = digest(path, weights)
    if sha256 is not None and found != sha256.lower():
        raise ModelError(f"--model={path}: its SHA-256 is {found}, --model_sha256 wants {sha256.lower()}")
    return ModelReference(path, weights, trusted, found, _backend(kind), signature)


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


def _fetch_anew(path: str, weights: str | None, kind: Kind) -> None:
    """See to it that this process's copies are of what is there by now."""
    if weights is not None:
        fetched_weights(weights, again=True)
    try:
        if kind != "builder":
            storage.fetched(path, again=True)
    except StorageError as e:
        if kind in ("keras", "h5") and storage.size_bytes(path) is None:
            raise ModelError(f"--model={path}: there is no such object; give {FORMS}") from e
        raise


def check_digest(reference: ModelReference) -> None:
    """Refuse a model that is not the one whose digest the reference has.

    This process's copy will do if it is that one, whatever has been put in the model's place since.

    Raises:
        ModelError: it is another.
    """
    found = digest(reference.path, reference.weights)
    if found != reference.digest:
        _fetch_anew(reference.path, reference.weights, kind_of(reference.path))
        found = digest(reference.path, reference.weights)
    if found != reference.digest:
        raise ModelError(
            f"{reference.path}: its SHA-256 is {found} here, the run was planned with "
            f"{reference.digest}; put the artifact back or start a new run"
        )


def digest(path: str, weights: str | None) -> str:
    """Return a model's SHA-256 in hex: of the file, or of the names and digests of its parts.

    A ``.keras`` or ``.h5`` model has the digest that ``sha256sum`` prints. A builder has that of its
    reference, its weights and all sources around it: every ``*.py`` of its top-level package or, where it
    is a module in no package, every one in its folder.
    """
    kind = kind_of(path)
    if kind in ("keras", "h5"):
        return storage.sha256(storage.fetched(path))
    parts = _builder_parts(path) if kind == "builder" else _folder_parts(path)
    if weights is not None:
        file = fetched_weights(weights)
        parts["weights"] = storage.sha256(file)
        for name in _shards(weights):
            parts[f"weights {name}"] = storage.sha256(os.path.join(os.path.dirname(file), name))
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


def size_bytes(path: str) -> int:
    """Return the size of a model that is a file or a folder."""
    found = storage.size_bytes(path) if kind_of(path) in ("keras", "h5") else None
    return sum(info.size_bytes for info in storage.tree(path)) if found is None else found


def _folder_parts(path: str) -> dict[str, str]:
    folder = storage.fetched(path)
    return {
        info.path.removeprefix(folder).lstrip("/"): storage.sha256(info.path) for info in storage.tree(folder)
    }


def _builder_parts(path: str) -> dict[str, str]:
    found = {
        f"source {i} {source.relative_to(folder).as_posix()}": storage.sha256(str(source))
        for i, (folder, source) in _sources(path)
    }
    return {"builder": path, **found}


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


def fetched_weights(weights: str, *, again: bool = False) -> str:
    """Return a local file of weights, with its shards beside it; see ``storage.fetched``.

    Raises:
        ModelError: it is a map of shards that cannot be made out, or of shards that are not there.
        StorageError: it cannot be read.
    """
    if weights.endswith(_SHARDED):
        storage.fetched(weights, again=again)
    return storage.fetched(weights, again=again, beside=_shards(weights))


def weights_bytes(weights: str) -> int:
    """Return the size of weights, with that of their shards."""
    folder = storage.parent(weights)
    paths = [weights, *(storage.join(folder, name) for name in _shards(weights))]
    return sum(storage.size_bytes(path) or 0 for path in paths)


def _shards(weights: str) -> tuple[str, ...]:
    """Return the names of the files beside a map of sharded weights, none of weights that are one file."""
    if not weights.endswith(_SHARDED):
        return ()
    told = f"--weights={weights}: it is no map of shards as save_weights(…, max_shard_size=…) writes it"
    try:
        content = json.loads(Path(storage.fetched(weights)).read_bytes())
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
