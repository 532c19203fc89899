"""Files of the local file system.

Durability: a durable ``write_atomic`` flushes a file before its name refers to it. Many files are flushed
together by ``sync_files``: measured on ext4, a new file costs 4.2 ms if it is flushed when it is closed, and
0.07 ms if it is flushed later from several threads. ``sync_folder`` flushes the names themselves.

Where a file system has no locks, ``ConditionalFiles`` writes small files on condition, as object stores do.
"""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import hashlib
import json
import os
import shutil
import stat
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO

from job.errors import StorageError

_SYNC_THREADS = 16
_PIECE_BYTES = 4 << 20
# How often a folder is removed again, because another process removes it too or still writes there.
_REMOVALS = 100


@dataclass(frozen=True)
class FileInfo:
    """A file as a listing shows it.

    ``stamp`` changes whenever the file does: it is the modification time in ns, an object's generation or its
    ETag. ``root`` is the folder that was searched, empty for a file that was named by its path or matched by
    a glob; ``named`` says that it was named by its path. ``file_id`` is the same for all local names of one
    file.
    """

    path: str
    size_bytes: int
    stamp: str
    root: str
    modified_unix_s: float = 0.0
    named: bool = field(default=False, compare=False)
    file_id: tuple[int, int] | None = field(default=None, compare=False)


@dataclass(frozen=True)
class Copied:
    """The result of copying to a local file or folder.

    Attributes:
        digests: SHA-256 in hex of each file as it was written, by its name below the folder, "" for a file.
        links: the names below the folder that are links in the source, to a file or to a folder.
        state: the state of the source, see ``state``.
    """

    digests: Mapping[str, str]
    links: tuple[str, ...]
    state: str


def local(path: str) -> str:
    """Return a path as the operating system wants it."""
    return path.removeprefix("file://")


def exists(path: str) -> bool:
    """Say whether a file or a folder is there."""
    return os.path.exists(local(path))


def is_folder(path: str) -> bool:
    """Say whether ``path`` is a folder."""
    return os.path.isdir(local(path))


def describe(path: str) -> FileInfo | None:
    """Return a file as a listing would show it now, or ``None`` where there is no such file."""
    with _told(path, "cannot be looked at"):
        try:
            status = os.stat(local(path))
        except (FileNotFoundError, NotADirectoryError):
            return None
    file_id = (status.st_dev, status.st_ino)
    return FileInfo(
        path, status.st_size, str(status.st_mtime_ns), "", status.st_mtime_ns / 1e9, file_id=file_id
    )


def tree(path: str) -> list[FileInfo]:
    """Return every file below a folder, hidden ones too, sorted by path; empty if it is absent."""
    found = []
    for folder, _, names in os.walk(local(path)):
        for name in names:
            # A file may vanish since its name was read.
            if (info := describe(os.path.join(folder, name))) is not None:
                found.append(dataclasses.replace(info, root=path))
    return sorted(found, key=lambda info: info.path)


def names(path: str) -> list[str]:
    """Return the sorted names in a folder; empty if it is absent."""
    with _told(path, "cannot be listed"):
        try:
            return sorted(os.listdir(local(path)))
        except (FileNotFoundError, NotADirectoryError):
            return []


def holds(path: str, names: Iterable[str]) -> list[str]:
    """Return those of some names that a folder contains."""
    return [name for name in names if os.path.lexists(os.path.join(local(path), name))]


def read_bytes(path: str) -> bytes | None:
    """Return a small file's content, or ``None`` where there is no such file."""
    with _told(path, "cannot be read"):
        try:
            return Path(local(path)).read_bytes()
        except (FileNotFoundError, NotADirectoryError):
            return None


def sha256(path: str) -> str:
    """Return the SHA-256 of a file's content, in hex."""
    with _told(path, "cannot be read"), open(local(path), "rb") as source:
        return hashlib.file_digest(source, "sha256").hexdigest()


def copied(path: str, target: str) -> Copied:
    """Copy a file, or every file below a folder; folders behind links are left out.

    If the source is replaced meanwhile, the copy may have parts of both. The digests are always of what was
    written.

    Raises:
        StorageError: something cannot be read or written, or is no regular file.
    """
    digests: dict[str, str] = {}
    links, states = [], []
    for name, descriptor, is_link in _opened(local(path)):
        if is_link:
            links.append(name)
        if descriptor is None:
            continue
        with _told(path, f"cannot be copied to {target}"), open(descriptor, "rb", buffering=0) as source:
            status = os.fstat(descriptor)
            if not stat.S_ISREG(status.st_mode):
                raise StorageError(f"{path}: cannot be copied: {name or 'it'} is no regular file")
            states.append(_state_of(name, status))
            digests[name] = copy_to(os.path.join(target, name) if name else target, _pieces(source))
    return Copied(digests, tuple(sorted(links)), "\n".join(sorted(states)))


def state(path: str) -> str:
    """Return a text that changes whenever a file, or one below a folder, does; empty where nothing is."""
    states = []
    for name, descriptor, _ in _opened(local(path)):
        if descriptor is not None:
            states.append(_state_of(name, os.fstat(descriptor)))
            os.close(descriptor)
    return "\n".join(sorted(states))


def _state_of(name: str, status: os.stat_result) -> str:
    times = f"{status.st_mtime_ns} {status.st_ctime_ns}"
    return f"{name} {status.st_dev} {status.st_ino} {status.st_size} {times}"


def _opened(path: str) -> Iterator[tuple[str, int | None, bool]]:
    """Yield name, descriptor and whether it is a link, of each file below a folder or of the file ``path``.

    A link to a folder has no descriptor. Files that vanish meanwhile are skipped.
    """
    if not os.path.isdir(path):
        if (descriptor := _open(path, 0, None)) is not None:
            yield "", descriptor, False
        return
    # By descriptors, so that no folder is exchanged for a link on the way.
    for above, folders, names, folder in os.fwalk(path):
        for name in (*folders, *names):
            below = os.path.relpath(os.path.join(above, name), path)
            try:
                is_link = stat.S_ISLNK(os.stat(name, dir_fd=folder, follow_symlinks=False).st_mode)
            except FileNotFoundError:
                continue
            if name in folders:
                if is_link:
                    yield below, None, True
            elif (descriptor := _open(name, 0 if is_link else os.O_NOFOLLOW, folder)) is not None:
                yield below, descriptor, is_link


def _open(name: str, flags: int, folder: int | None) -> int | None:
    with _told(name, "cannot be read"):
        try:
            # Opening must not block if somebody puts a pipe in the file's place.
            return os.open(name, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC | flags, dir_fd=folder)
        except (FileNotFoundError, NotADirectoryError):
            return None


def _pieces(source: BinaryIO) -> Iterator[bytes]:
    while piece := source.read(_PIECE_BYTES):
        yield piece


def copy_to(target: str, pieces: Iterable[bytes]) -> str:
    """Write a new file, and return the SHA-256 of what was written."""
    digest = hashlib.sha256()
    os.makedirs(os.path.dirname(target), exist_ok=True)
    with open(target, "xb") as sink:
        for piece in pieces:
            digest.update(piece)
            sink.write(piece)
    return digest.hexdigest()


class ConditionalFiles:
    """Small JSON files that are written on condition, as objects are, on disks without locks.

    A file is created exclusively, which network file systems support. After that only its owner writes to it,
    in place. To take it over, a process first renames it, which only one of several can do, and then checks
    that it is the file it meant. So the old owner finds its file gone, and whoever creates the next one owns
    it. The field ``token`` tells one file from another; the content tells its states apart.
    """

    # Longer than any, so that it is written over in one piece.
    _SIZE_BYTES = 4096
    _READS, _BETWEEN_READS_S = 20, 0.05

    def read_stamped(self, path: str) -> tuple[bytes, str] | None:
        """Return a file's content and stamp, or ``None`` where there is none.

        A file that is just being written is read again. If it stays unreadable, its owner counts as unknown.
        """
        content = None
        for _ in range(self._READS):
            content = read_bytes(path)
            if content is None or _token(content) is not None:
                break
            time.sleep(self._BETWEEN_READS_S)
        if content is None:
            return None
        return (content if _token(content) is not None else b'{"token": ""}'), _stamp(content)

    def read_bytes(self, path: str) -> bytes | None:
        """Return a file's content, or ``None`` where there is none."""
        found = self.read_stamped(path)
        return None if found is None else found[0]

    def write_if(self, path: str, content: bytes, stamp: str) -> str | None:
        """Write a file if it has this stamp, or, if the stamp is empty, if there is no file.

        Returns:
            Its new stamp; ``None`` where the condition did not hold.

        Raises:
            StorageError: it cannot be written.
        """
        content = content.ljust(self._SIZE_BYTES)
        with _told(path, "cannot be written"):
            found = self.read_stamped(path) if stamp else None
            if stamp and (found is None or found[1] != stamp):
                return None
            if found is not None and _token(found[0]) == _token(content):
                return self._rewrite(path, content)
            if stamp and not self._take_away(path, stamp):
                return None
            return self._create(path, content)

    def _create(self, path: str, content: bytes) -> str | None:
        try:
            descriptor = os.open(local(path), os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o644)
        except FileExistsError:
            return None
        try:
            os.write(descriptor, content)
        finally:
            os.close(descriptor)
        return _stamp(content)

    def _rewrite(self, path: str, content: bytes) -> str | None:
        """Write to a file that this process owns; return ``None`` if another process has moved it away."""
        try:
            descriptor = os.open(local(path), os.O_RDWR)
        except FileNotFoundError:
            return None
        try:
            if _token(os.read(descriptor, 2 * self._SIZE_BYTES)) != _token(content):
                return None
            os.pwrite(descriptor, content, 0)
        finally:
            os.close(descriptor)
        found = read_bytes(path)
        return _stamp(content) if found == content else None

    def _take_away(self, path: str, stamp: str) -> bool:
        aside = f"{local(path)}.{os.urandom(6).hex()}.gone"
        try:
            os.rename(local(path), aside)
        except FileNotFoundError:
            return False
        found = read_bytes(aside)
        is_it = found is not None and _stamp(found) == stamp
        if not is_it:
            # Another's, who came in between. Where it cannot be put back, that one finds it gone and ends.
            with contextlib.suppress(OSError):
                os.link(aside, local(path))
        with contextlib.suppress(OSError):
            os.unlink(aside)
        return is_it

    def remove(self, paths: Sequence[str], stamp: str = "") -> None:
        """Remove files; with ``stamp``, only if they still have it."""
        for path in paths:
            found = self.read_stamped(path)
            if found is not None and stamp in ("", found[1]):
                with _told(path, "cannot be removed"):
                    self._take_away(path, found[1])


def _stamp(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def _token(content: bytes) -> str | None:
    """Return a file's token, ``None`` where the content is not whole."""
    try:
        return str(json.loads(content)["token"])
    except (ValueError, TypeError, KeyError):
        return None


class LocalSink:
    """A new local file; its handle is its path. Publishing flushes it to the disk, not this class."""

    def __init__(self, path: str) -> None:
        self._path = path
        self._file: BinaryIO = open(local(path), "xb")  # noqa: SIM115 - closed by seal() and abandon()

    def write(self, data: bytes | memoryview) -> int:
        """Append ``data`` and return its length in bytes."""
        return self._file.write(data)

    def flush(self) -> None:
        """Hand buffered bytes to the operating system."""
        self._file.flush()

    def seal(self) -> str:
        """Close the file and return its path."""
        self._file.close()
        return self._path

    def abandon(self) -> None:
        """Close the file; it is removed with its folder."""
        # What could not be written is lost with the attempt; the error that led here says more.
        with contextlib.suppress(OSError):
            self._file.close()


def make_folder(path: str) -> None:
    """Make a folder and those above it.

    Raises:
        StorageError: the place cannot be written.
    """
    with _told(path, "the folder cannot be made"):
        os.makedirs(local(path), exist_ok=True)


def write_atomic(path: str, content: bytes, *, durable: bool = True, aside: str | None = None) -> None:
    """Write a small file so that a reader sees all of it or none.

    The content is first written to a temporary file, in the folder ``aside`` or else beside ``path``; a
    killed process leaves it there. With ``durable`` the promise also holds after a power cut. Without it the
    file may then be empty or absent, and its reader must be able to live with that.
    """
    folder, name = os.path.split(local(path))
    unfinished = os.path.join(local(aside) if aside else folder, f"{name}.{os.urandom(6).hex()}.tmp")
    try:
        with open(unfinished, "xb") as sink:
            sink.write(content)
            sink.flush()
            if durable:
                os.fsync(sink.fileno())
        os.replace(unfinished, local(path))
        if durable:
            sync_folder(folder or ".")
    except OSError as e:
        with contextlib.suppress(OSError):
            os.unlink(unfinished)
        raise StorageError(f"{path}: cannot be written: {reason(e)}") from e


def rename(source: str, target: str) -> None:
    """Give a file another name, replacing what had that name.

    Raises:
        StorageError: it failed, and ``source`` is still there.
        FileNotFoundError: there is no ``source``.
    """
    try:
        os.replace(local(source), local(target))
    except FileNotFoundError:
        raise
    except OSError as e:
        raise StorageError(f"{source}: cannot become {target}: {reason(e)}") from e


def sync_files(paths: Iterable[str]) -> None:
    """Flush files' contents to the disk, several at a time.

    Raises:
        StorageError: a file cannot be flushed.
    """
    with ThreadPoolExecutor(_SYNC_THREADS, thread_name_prefix="sync") as pool:
        for _ in pool.map(_sync_file, paths):
            pass


def _sync_file(path: str) -> None:
    with _told(path, "cannot be flushed to the disk"):
        descriptor = os.open(local(path), os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def boot_id() -> str:
    """Return an id that stays the same until this machine restarts; empty if it is not known.

    A file that was written since the last start still has its content, whether or not it was flushed.
    """
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
    except OSError:
        return ""


def sync_folder(path: str) -> None:
    """Flush a folder's names to the disk, where the file system can."""
    with _told(path, "cannot be flushed to the disk"):
        _sync_names(local(path))


def _sync_names(folder: str) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as e:
        # Some file systems cannot sync folders and say so: of a network, durable by themselves, or read-only.
        if e.errno not in (errno.EINVAL, errno.ENOTSUP, errno.EBADF, errno.EROFS):
            raise
    finally:
        os.close(descriptor)


def sync_way(path: str) -> None:
    """Flush a folder's names and those of the folders above it, up to the top of its file system.

    It is not known who made the folders above: an earlier run that was killed may have made them all.
    """
    folder = os.path.realpath(local(path))
    sync_folder(folder)
    device = os.stat(folder).st_dev
    while (above := os.path.dirname(folder)) != folder and os.stat(above).st_dev == device:
        folder = above
        # One that may not be read is somebody else's, who has made what is in it.
        with contextlib.suppress(PermissionError):
            _sync_names(folder)


def remove(path: str) -> None:
    """Remove a file; nothing happens where there is none."""
    with _told(path, "cannot be removed"), contextlib.suppress(FileNotFoundError):
        os.unlink(local(path))


def withdraw(path: str, folder: str) -> None:
    """Move a file into a folder, to be removed with it; nothing happens where there is no file.

    Raises:
        FileNotFoundError: there is no such folder.
        StorageError: it failed.
    """
    with _told(path, "cannot be removed"):
        try:
            os.rename(local(path), os.path.join(local(folder), f"{os.urandom(6).hex()}.gone"))
        except FileNotFoundError:
            gone = not os.path.isdir(local(folder))
        else:
            return
    if gone:
        raise FileNotFoundError(folder)


def remove_tree(path: str) -> None:
    """Remove a folder and all below it, or a file; nothing happens where there is none.

    Raises:
        StorageError: something could not be removed.
    """
    place = local(path)
    for _ in range(_REMOVALS):
        with _told(path, "cannot be removed"), contextlib.suppress(FileNotFoundError):
            try:
                if os.path.isdir(place) and not os.path.islink(place):
                    shutil.rmtree(place)
                else:
                    os.unlink(place)
            except OSError as e:
                if e.errno != errno.ENOTEMPTY:
                    raise
        if not os.path.lexists(place):
            return
    raise StorageError(f"{path}: cannot be removed: something is written there; run again when it has ended")


def remove_empty_folder(path: str) -> None:
    """Remove a folder if it is there and empty."""
    with contextlib.suppress(OSError):
        os.rmdir(local(path))


def remove_empty_parents(path: str, top: str) -> None:
    """Remove the folders above ``path`` that are empty, up to ``top``, which stays."""
    folder = os.path.dirname(local(path))
    while folder != local(top) and folder.startswith(local(top)):
        remove_empty_folder(folder)
        folder = os.path.dirname(folder)


@contextlib.contextmanager
def _told(path: str, what: str) -> Iterator[None]:
    """Raise an error of the operating system as one line about a path."""
    try:
        yield
    except OSError as e:
        raise StorageError(f"{path}: {what}: {reason(e)}") from e


def reason(error: Exception) -> str:
    """Return what the operating system says about an error, without its number and path."""
    return getattr(error, "strerror", None) or str(error)
