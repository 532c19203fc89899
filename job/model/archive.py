"""What a ``.keras`` archive may hold, looked at before Keras opens it. Without Keras.

What a malicious archive may try, and who stops it (Keras as of 3.15.1):

========================================================== =============================================
a Python lambda or a ``Lambda`` layer: marshalled code     here, by name; Keras' safe mode too
``TorchModuleWrapper`` (a pickle), ``TFSMLayer`` (a graph) here, by name; Keras' safe mode too
a class or function from any module (``os.system``)        Keras: its own classes and registered ones only
a ``vocabulary`` that is a path on the reader's machine    Keras' safe mode
links, external and virtual data in ``model.weights.h5``   Keras, when it reads them
data that declares far more bytes than it has              Keras in the weights; here in the archive
data that unpacks to more than this machine has room for   here
members that leave the folder that they are unpacked to    here
links, devices, encrypted and doubled members              here
members that no Keras writes                               here
a configuration too large for the memory, or too deep      here
========================================================== =============================================

What is too large is judged by what the machine has, and by what unpacking adds: honest models may be of any
size. ``--trust_model`` lets code in; an archive that is malformed is refused all the same.

A folder that Keras wrote (``zipped=False``) holds the same files and is looked at likewise.
"""

from __future__ import annotations

import copy
import json
import os
import re
import shutil
import stat
import tempfile
import zipfile
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Final

from job import environment
from job.errors import ModelError, one_line

# What Keras writes into config.json for code: byte code, a pickle, or a graph that is read from a path.
_CODE_CLASSES: Final = frozenset({"Lambda", "__lambda__", "TorchModuleWrapper", "TFSMLayer"})
_MEMBERS: Final = frozenset({"config.json", "metadata.json", "model.weights.h5", "model.weights.npz"})
_ASSETS: Final = "assets/"
_CONFIG: Final = "config.json"
_UNREADABLE: Final = (zipfile.BadZipFile, zlib.error, ValueError, OSError, EOFError)
_METADATA: Final = "metadata.json"
_METADATA_BYTES: Final = 1 << 16
_VERSION: Final = re.compile(r"[0-9][0-9A-Za-z.+-]{0,40}")
_READ_ME: Final = "README.md"
_CHUNK_BYTES: Final = 1 << 20
# What loading a configuration takes for each of its bytes and, above that, for each of its parts (values of
# lists and objects). Measured of Keras 3.15: 12 bytes for each of a vocabulary of 70 MB in 70 words, 19 for
# each of 30 MB in 2 million.
_BYTES_OF_A_BYTE: Final = 12
_BYTES_OF_A_PART: Final = 90
_LOOKED_AT: Final[dict[str, Any]] = {}
_ENCRYPTED: Final = 0x1


def check(path: str, *, trusted: bool, memory_bytes: int | None = None, copy: str = "") -> None:
    """Refuse an archive that is malformed or, unless it is trusted, carries code.

    Args:
        path: the archive.
        trusted: whether code is let in.
        memory_bytes: what may be taken of this machine's memory; found out where it is ``None``.
        copy: where it lies on this machine, if that is not ``path``.

    Raises:
        ModelError: in one line, what it holds that it must not.
    """
    told = f"--model={path}"
    with _unpackable(told, copy or path, memory_bytes) as (archive, free_bytes):
        member = archive.getinfo(_CONFIG)
        _check_memory(told, member.file_size, 0, free_bytes)
        config = bytearray()
        for chunk in _unpacked(archive, member):
            config += chunk
        _check_config(told, config, free_bytes, trusted=trusted)


def check_weights(path: str, *, memory_bytes: int | None = None, copy: str = "") -> None:
    """Refuse an archive that is malformed, of which the weights alone are to be read: no code is.

    Raises:
        ModelError: in one line, what it holds that it must not.
    """
    with _unpackable(f"--weights={path}", copy or path, memory_bytes):
        pass


def check_folder(path: str, *, trusted: bool, copy: str, links: Sequence[str] = ()) -> None:
    """Refuse a folder that Keras wrote, of what an archive would hold, as ``check`` does an archive.

    ``copy`` is where its files lie on this machine, ``links`` those that were links. A link is no better than
    its target, which may be any file of this machine: that takes trust.

    Raises:
        ModelError: in one line, what it holds that it must not.
    """
    told, free_bytes = f"--model={path}", environment.memory_bytes()
    for above, _, files in os.walk(copy):
        for name in files:
            if wrong := _bad_entry(os.path.relpath(os.path.join(above, name), copy)):
                raise ModelError(f"{told}: {wrong}")
    for name in links:
        if wrong := _bad_link(name, trusted=trusted):
            raise ModelError(f"{told}: {wrong}")
    try:
        with open(os.path.join(copy, _CONFIG), "rb") as source:
            _check_memory(told, os.fstat(source.fileno()).st_size, 0, free_bytes)
            _check_config(told, source.read(), free_bytes, trusted=trusted)
    except (ValueError, OSError, RecursionError) as e:
        raise ModelError(f"{told}: its {_CONFIG} cannot be read: {one_line(e)}") from e


def _bad_entry(name: str) -> str:
    """Return what is wrong with a file in a folder; nothing where all is well."""
    top = name.split(os.sep)[0]
    if top.startswith(".") or name == _READ_ME or name in _MEMBERS or top == _ASSETS.rstrip("/"):
        return ""
    return f"its entry {name!r} is none that Keras writes; take it out"


def _bad_link(name: str, *, trusted: bool) -> str:
    """Return what is wrong with a link in a folder; nothing where all is well."""
    if name.startswith(".") or name == _READ_ME or (trusted and name in _MEMBERS):
        return ""
    return f"its entry {name!r} is a link; put a copy of what it leads to there (cp -rL)"


@contextmanager
def _unpackable(told: str, file: str, memory_bytes: int | None) -> Iterator[tuple[zipfile.ZipFile, int]]:
    """Open an archive that can be unpacked without harm; the body reads it, and may find it damaged.

    Yields the archive and how much memory may be taken, in bytes; 0 where nobody knows.
    """
    free_bytes = environment.memory_bytes() if memory_bytes is None else memory_bytes
    try:
        with zipfile.ZipFile(file) as archive:
            members = archive.infolist()
            if wrong := _malformed(members, os.path.getsize(file)):
                raise ModelError(f"{told}: {wrong}; it was tampered with, or is no .keras archive")
            if wrong := _too_large(members, free_bytes):
                raise ModelError(f"{told}: {wrong}")
            for member in members:
                if member.compress_type != zipfile.ZIP_STORED:
                    for _ in _unpacked(archive, member):
                        pass
            yield archive, free_bytes
    except (*_UNREADABLE, KeyError) as e:
        raise _no_archive(told, " ".join(str(e).split())[:300]) from e
    except (NotImplementedError, RuntimeError, RecursionError) as e:
        # An encryption that Python does not know; a configuration nested too deep.
        raise _no_archive(told, f"{type(e).__name__}: {e}") from e


def _too_large(members: Sequence[zipfile.ZipInfo], free_bytes: int) -> str:
    """Return what members would take more of than the machine has; nothing where there is enough.

    Weights are stored as they are, so what an honest archive unpacks to is about what it holds. Of what
    unpacking adds, half of the free memory is let through: zeros, and texts that are much alike.
    """
    packed = sum(member.compress_size for member in members)
    unpacked = sum(member.file_size for member in members)
    added = sum(max(0, member.file_size - member.compress_size) for member in members)
    if free_bytes and added > free_bytes // 2:
        return (
            f"its members unpack from {packed:,} bytes to {unpacked:,}, and {free_bytes:,} bytes of memory "
            f"are free here; if it is no bomb, pack it without compression"
        )
    if any(member.filename.startswith(_ASSETS) for member in members):
        # Keras unpacks all of them, to get at these.
        place = tempfile.gettempdir()
        free_bytes = shutil.disk_usage(place).free
        if unpacked > free_bytes:
            return (
                f"it unpacks to {unpacked:,} bytes in {place}, and {free_bytes:,} are free there; make room"
            )
    return ""


def _unpacked(archive: zipfile.ZipFile, member: zipfile.ZipInfo) -> Iterator[bytes]:
    """Yield what a member unpacks to, piece by piece.

    Raises:
        ValueError: that is more or less than it says; whoever reads it at once would take memory for more.
        zipfile.BadZipFile: it is damaged.
    """
    wanted = copy.copy(member)
    # One byte more shows whether there is more. The checksum is of what it says.
    wanted.file_size += 1
    del wanted.CRC
    found_bytes, checksum = 0, 0
    with archive.open(wanted) as source:
        while chunk := source.read(_CHUNK_BYTES):
            found_bytes += len(chunk)
            checksum = zlib.crc32(chunk, checksum)
            yield chunk
    if found_bytes != member.file_size:
        raise ValueError(f"{member.filename} is not as long as it says")
    if checksum != member.CRC:
        raise zipfile.BadZipFile(f"Bad CRC-32 for file {member.filename!r}")


def _check_memory(told: str, config_bytes: int, parts: int, free_bytes: int) -> None:
    """Refuse a configuration of so many bytes and parts that the machine has no memory for."""
    needed_bytes = _BYTES_OF_A_BYTE * config_bytes + _BYTES_OF_A_PART * parts
    if free_bytes and needed_bytes > free_bytes:
        raise ModelError(
            f"{told}: its {_CONFIG} of {config_bytes:,} bytes takes some {needed_bytes:,} bytes of memory to "
            f"load, and {free_bytes:,} are free here; free some, or take a larger machine"
        )


def _check_config(told: str, content: bytes | bytearray, free_bytes: int, *, trusted: bool) -> None:
    """Refuse a configuration that the machine has no memory for, or that names code.

    Raises:
        ModelError: it is one of the two, or holds no object.
        ValueError: it is no JSON.
        RecursionError: it is nested too deep.
    """
    parts = sum(content.count(mark) for mark in (b",", b"[", b"{"))
    _check_memory(told, len(content), parts, free_bytes)
    coded: set[str] = set()

    def look(node: dict[str, Any]) -> dict[str, Any]:
        if isinstance(name := node.get("class_name"), str) and name in _CODE_CLASSES:
            coded.add(name)
        # What is within it has been looked at.
        return _LOOKED_AT

    if json.loads(content, object_hook=look) is not _LOOKED_AT:
        raise _no_archive(told, f"{_CONFIG} holds no object")
    if coded and not trusted:
        raise ModelError(
            f"{told}: it carries Python code ({', '.join(sorted(coded))}); look at it, then add --trust_model"
        )


def keras_version(file: str) -> str:
    """Return the version of Keras that saved a local archive; empty where it does not tell."""
    try:
        with zipfile.ZipFile(file) as archive, archive.open(_METADATA) as member:
            version = json.loads(member.read(_METADATA_BYTES))["keras_version"]
    except (*_UNREADABLE, RuntimeError, LookupError, TypeError):
        return ""
    return as_version(version)


def as_version(value: object) -> str:
    """Return a value of a file as the version that it is; empty where it is none."""
    text = value.decode(errors="replace") if isinstance(value, bytes) else value
    return text if isinstance(text, str) and _VERSION.fullmatch(text) else ""


def _no_archive(told: str, reason: str) -> ModelError:
    return ModelError(f"{told}: it is no .keras archive ({reason}); save it with model.save()")


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
    # Other methods are unpacked as a whole, however much comes out.
    if member.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        return "is compressed in a way that no Keras reads or writes"
    if member.compress_type == zipfile.ZIP_STORED and member.file_size != member.compress_size:
        return f"is stored in {member.compress_size:,} bytes and says that it has {member.file_size:,}"
    return ""
