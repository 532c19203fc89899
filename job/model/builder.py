"""Builders: ``--model=package.module:function`` is the caller's own code, with ``--weights`` or without.

Weights are numbers without code, in whatever Keras reads them from.
"""

from __future__ import annotations

import importlib.util
import json
import os
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Final

from job import forms, storage
from job.errors import ModelError, one_line
from job.model import archive
from job.model.kind import Held, Kind
from job.spec import ModelReference

if TYPE_CHECKING:
    from job.model.kind import Step

BUILDER: Final = re.compile(forms.BUILDER)
# What Keras reads weights from; the second is a map of files of the first kind, its shards.
_SHARDED: Final = ".weights.json"
_WEIGHTS: Final = (".weights.h5", _SHARDED, ".keras", ".h5", ".hdf5")


class Builder(Kind):
    """A function that returns a Keras model."""

    name: ClassVar[str] = "builder"
    form: ClassVar[str] = "package.module:function"
    is_keras: ClassVar[bool] = True

    def names_code(self, path: str, /) -> bool:
        """Say whether a path is that of a function."""
        return BUILDER.fullmatch(path) is not None

    def check(self, held: Held, *, trusted: bool) -> None:
        """Refuse weights that are no whole archive; the code is the caller's."""
        del trusted
        if held.weights_file is not None and held.weights_file.endswith(".keras"):
            archive.check_weights(str(held.weights), copy=held.weights_file)

    def parts(self, path: str, _files: Mapping[str, str], /) -> Mapping[str, str]:
        """Return the SHA-256 of every ``*.py`` of the top-level package or, without one, of the folder."""
        found = {
            f"source {i} {source.relative_to(folder).as_posix()}": storage.sha256(str(source))
            for i, (folder, source) in _sources(path)
        }
        return {"builder": path, **found}

    def load(self, reference: ModelReference, held: Held) -> Step:
        """Call the function; its model is given ``--weights`` later, when it is built."""
        from job.model import keras_step

        return keras_step.of_builder(reference, held.weights_file)


def check_weights(weights: str) -> None:
    """Refuse weights that are not there or that Keras does not read.

    Raises:
        ModelError: they are such.
    """
    if not storage.exists(weights):
        raise ModelError(f"--weights={weights}: there is no such file")
    if not weights.endswith(_WEIGHTS):
        raise ModelError(
            f"--weights={weights}: Keras reads weights from files named *{', *'.join(_WEIGHTS)}; save them "
            f"by model.save_weights('x.weights.h5')"
        )


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
    paths = [weights, *(storage.join(folder, name) for name in shards(weights, weights))]
    return sum(storage.size_bytes(path) or 0 for path in paths)


def shards(weights: str, copy: str) -> tuple[str, ...]:
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
