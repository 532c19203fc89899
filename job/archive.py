"""What a ``.keras`` archive may hold, looked at before Keras opens it. Without Keras.

What a malicious archive may try, and who stops it (Keras as of 3.15.1):

========================================================== =============================================
a Python lambda or a ``Lambda`` layer: marshalled code     here, by name; Keras' safe mode too
``TorchModuleWrapper`` (a pickle), ``TFSMLayer`` (a graph) here, by name; Keras' safe mode too
a class or function from any module (``os.system``)        Keras: its own classes and registered ones only
a ``vocabulary`` that is a path on the reader's machine    Keras' safe mode
links, external and virtual data in ``model.weights.h5``   Keras, when it reads them
data that declares far more bytes than it has              Keras in the weights; here in the archive
members that leave the folder that they are unpacked to    here
links, devices, encrypted and doubled members              here
members that no Keras writes                               here
a configuration too large or too deep to read              here
========================================================== =============================================

``--trust_model`` lets code in; an archive that is malformed is refused all the same.
"""

from __future__ import annotations

import json
import os
import re
import stat
import zipfile
import zlib
from collections.abc import Iterator
from typing import Any, Final

from job import storage
from job.errors import ModelError

# What Keras writes into config.json for code: byte code, a pickle, or a graph that is read from a path.
_CODE_CLASSES: Final = frozenset({"Lambda", "__lambda__", "TorchModuleWrapper", "TFSMLayer"})
_MEMBERS: Final = frozenset({"config.json", "metadata.json", "model.weights.h5", "model.weights.npz"})
_ASSETS: Final = "assets/"
_UNREADABLE: Final = (zipfile.BadZipFile, zlib.error, ValueError, OSError, EOFError)
_METADATA: Final = "metadata.json"
_METADATA_BYTES: Final = 1 << 16
_VERSION: Final = re.compile(r"[0-9][0-9A-Za-z.+-]{0,40}")
# A thousand times the configuration of a model of some hundred layers.
_JSON_BYTES: Final = 64 << 20
# Keras stores weights as they are, and float32 weights hardly shrink. Zeros shrink a thousandfold, which is
# also what a bomb does. Below the floor nothing is worth a refusal.
_MOST_EXPANSION: Final = 100
_EXPANSION_FLOOR_BYTES: Final = 1 << 20
_ENCRYPTED: Final = 0x1


def check(path: str, *, trusted: bool) -> None:
    """Refuse an archive that is malformed or, unless it is trusted, carries code.

    Raises:
        ModelError: in one line, what it holds that it must not.
    """
    try:
        copy = storage.fetched(path)
        with zipfile.ZipFile(copy) as archive:
            if wrong := _malformed(archive.infolist(), os.path.getsize(copy)):
                raise ModelError(f"--model={path}: {wrong}; it was tampered with, or is no .keras archive")
            config = _json(archive, "config.json")
    except (*_UNREADABLE, KeyError) as e:
        raise _no_archive(path, " ".join(str(e).split())[:300]) from e
    except (NotImplementedError, RuntimeError, RecursionError) as e:
        # A compression or an encryption that Python does not know; a configuration nested too deep.
        raise _no_archive(path, f"{type(e).__name__}: {e}") from e
    if not isinstance(config, dict):
        raise _no_archive(path, "config.json holds no object")
    coded = sorted(_CODE_CLASSES.intersection(_class_names(config)))
    if coded and not trusted:
        raise ModelError(
            f"--model={path}: it carries Python code ({', '.join(coded)}); look at it, then add --trust_model"
        )


def keras_version(file: str) -> str:
    """Return the version of Keras that saved a local archive; empty where it does not tell."""
    try:
        with zipfile.ZipFile(file) as archive, archive.open(_METADATA) as member:
            version = json.loads(member.read(_METADATA_BYTES))["keras_version"]
    except (*_UNREADABLE, RuntimeError, LookupError, TypeError):
        return ""
    return version if isinstance(version, str) and _VERSION.fullmatch(version) else ""


def _no_archive(path: str, reason: str) -> ModelError:
    return ModelError(f"--model={path}: it is no .keras archive ({reason}); save it with model.save()")


def _malformed(members: list[zipfile.ZipInfo], archive_bytes: int) -> str:
    """Return what is wrong with the members of an archive of so many bytes; nothing where all is well."""
    seen: set[str] = set()
    for member in members:
        name = member.filename
        if reason := _bad_name(name) or _bad_kind(member) or _bad_size(member):
            return f"its member {name!r} {reason}"
        if name.casefold() in seen:
            return f"its member {name!r} is there twice"
        seen.add(name.casefold())
    # Members that lie over each other unpack to many times what the file holds.
    if sum(member.compress_size for member in members) > archive_bytes:
        return "its members lie over each other"
    return ""


def _bad_name(name: str) -> str:
    parts = name.removesuffix("/").split("/")
    if "\\" in name or "\0" in name or ":" in name or any(part in ("", ".", "..") for part in parts):
        return "would leave the folder that it is unpacked to"
    if name not in _MEMBERS and not name.startswith(_ASSETS):
        return "is none that Keras writes"
    return ""


def _bad_kind(member: zipfile.ZipInfo) -> str:
    mode = member.external_attr >> 16
    # Writers on other systems leave the kind of file out.
    kinds = (0, stat.S_IFDIR) if member.is_dir() else (0, stat.S_IFREG)
    if stat.S_IFMT(mode) not in kinds:
        return "is a link or a device"
    if member.flag_bits & _ENCRYPTED:
        return "is encrypted"
    return ""


def _bad_size(member: zipfile.ZipInfo) -> str:
    if member.filename.endswith(".json") and "/" not in member.filename and member.file_size > _JSON_BYTES:
        return f"is {member.file_size:,} bytes long, more than {_JSON_BYTES:,}"
    most = max(_EXPANSION_FLOOR_BYTES, _MOST_EXPANSION * member.compress_size)
    if member.file_size > most:
        return f"unpacks from {member.compress_size:,} bytes to {member.file_size:,}"
    return ""


def _json(archive: zipfile.ZipFile, name: str) -> Any:
    with archive.open(name) as member:
        # The size that is declared may be a lie.
        content = member.read(_JSON_BYTES + 1)
    if len(content) > _JSON_BYTES:
        raise ValueError(f"{name} is longer than it says")
    return json.loads(content)


def _class_names(config: object) -> Iterator[str]:
    nodes = [config]
    while nodes:
        node = nodes.pop()
        if isinstance(node, dict):
            name = node.get("class_name")
            if isinstance(name, str):
                yield name
            nodes += node.values()
        elif isinstance(node, list):
            nodes += node
