"""Which model of several: the newest that a glob matches, or the one that an alias file names."""

from __future__ import annotations

import glob
import os
import re

from job import storage
from job.errors import ModelError
from job.model import artifact
from job.storage import matching

_ALIAS = "@"
# Numbers with a point, a dash or an underscore between them are one version, or one date.
_NUMBERS = re.compile(r"[0-9]+(?:[._-][0-9]+)*")


def chosen(model: str) -> str:
    """Return the path of the model that ``--model`` stands for.

    A **glob** stands for the newest of what it matches. Paths must differ in numbers alone, which are
    compared one by one: ``v10`` is newer than ``v9``, ``1.10`` than ``1.9.2``, ``2026-11-25`` than
    ``2026-11-24``. An **alias**, a file whose name begins with ``@``, stands for the path in it, one line,
    relative to the alias' own folder.

    Raises:
        ModelError: nothing matches, of two it is not clear which is newer, or the alias leads nowhere.
    """
    if _is_alias(model):
        return _behind(model)
    if not glob.has_magic(model) or storage.exists(model):
        return model
    found = sorted(_matches(model), key=_version)
    if not found:
        raise ModelError(f"--model={model}: no model matches; give {artifact.forms()}")
    newest = found[-1]
    if other := next((path for path in found if _without_numbers(path) != _without_numbers(newest)), None):
        raise ModelError(
            f"--model={model}: {newest} and {other} differ in more than numbers, so neither is the newer "
            f"one; give a glob that leaves one of them out, or one of them"
        )
    if len(found) > 1 and _version(newest) == _version(found[-2]):
        raise ModelError(f"--model={model}: {newest} and {found[-2]} are equally new; give one of them")
    return newest


def stands_for_another(model: str) -> bool:
    """Say whether ``--model`` may be a glob or an alias."""
    return _is_alias(model) or glob.has_magic(model)


def _is_alias(model: str) -> bool:
    return model.rpartition("/")[2].startswith(_ALIAS)


def _behind(alias: str) -> str:
    content = storage.read_bytes(alias)
    if content is None:
        raise ModelError(f"--model={alias}: there is no such alias; it is a file with a model's name in it")
    lines = [line for line in content.decode(errors="replace").splitlines() if line.strip()]
    if len(lines) != 1:
        raise ModelError(f"--model={alias}: it has {len(lines)} lines; it must have one, a model's name")
    name = lines[0].strip()
    if name.startswith(_ALIAS):
        raise ModelError(f"--model={alias}: it names another alias, {name}; let it name a model")
    path = name if storage.is_remote(name) or os.path.isabs(name) else _beside(alias, name)
    if not storage.exists(path):
        raise ModelError(f"--model={alias}: it names {name}, and {path} is not there")
    return path


def _beside(alias: str, name: str) -> str:
    return storage.absolute(storage.join(storage.parent(alias), name))


def _matches(pattern: str) -> list[str]:
    if storage.is_remote(pattern):
        # Some models are folders, which a bucket does not list.
        marks = [info for mark in artifact.marks() for info in matching.matches(f"{pattern}/{mark}")]
        named = [info.path for info in matching.matches(pattern) if not info.root]
        found = list(dict.fromkeys([*(info.path.rpartition("/")[0] for info in marks), *named]))
    else:
        found = [path for path in glob.glob(storage.local(pattern)) if not path.endswith("/")]
    shown = [path for path in found if not path.rpartition("/")[2].startswith((_ALIAS, "_", "."))]
    return [path for path in shown if artifact.is_model(path)]


def _version(path: str) -> list[list[int]]:
    """Return what models are compared by: the numbers of each version in the path."""
    return [[int(number) for number in re.findall("[0-9]+", one)] for one in _NUMBERS.findall(_stem(path))]


def _without_numbers(path: str) -> str:
    return _NUMBERS.sub("0", _stem(path))


def _stem(path: str) -> str:
    """Return a path without what tells the kind of model."""
    return re.sub(r"\.(keras|h5|hdf5)$", "", path)
