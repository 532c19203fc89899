"""The interfaces for writing files, and a file that is hashed while it is written."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Protocol

from job import storage


class Sink(Protocol):
    """A new file. It counts only once it is sealed."""

    def write(self, data: bytes | memoryview) -> int:
        """Append ``data`` and return its length in bytes."""
        ...

    def flush(self) -> None:
        """Pass buffered bytes on."""
        ...

    def seal(self) -> str:
        """End the file and return its handle, which ``storage.release`` takes."""
        ...

    def abandon(self) -> None:
        """Give the file up; a sealed one stays."""
        ...


class Conditional(Protocol):
    """Writes small files unless somebody else has written them meanwhile, which their stamps tell."""

    def read_stamped(self, path: str) -> tuple[bytes, str] | None:
        """Return a file's content and stamp, or ``None`` where there is none."""
        ...

    def read_bytes(self, path: str) -> bytes | None:
        """Return a file's content, or ``None`` where there is none."""
        ...

    def write_if(self, path: str, content: bytes, stamp: str) -> str | None:
        """Write a file if it has this stamp, or, if the stamp is empty, if there is no file.

        Returns:
            Its new stamp; ``None`` where the condition did not hold.
        """
        ...

    def remove(self, paths: Sequence[str], stamp: str = "") -> None:
        """Remove files; with ``stamp``, only if they still have it."""
        ...


class HashingSink:
    """A new file that computes the SHA-256 and the length of what is written to it.

    So no output file has to be read again. ``path`` and ``final`` are as in ``storage.create``; ``handle`` is
    that of the sealed file.
    """

    def __init__(self, path: str, final: str = "") -> None:
        self.handle = ""
        self._digest = hashlib.sha256()
        self._sink = storage.create(path, final)
        self.bytes_written = 0
        self._abandoned = False

    def write(self, data: bytes | memoryview) -> int:
        """Append ``data`` and return its length in bytes; after an unsealed ``close`` it is dropped."""
        if self._abandoned:
            # Arrow still writes a footer when it collects a writer that was given up.
            return len(data)
        self._digest.update(data)
        written = self._sink.write(data)
        self.bytes_written += written
        return written

    def tell(self) -> int:
        """Return the number of bytes written so far."""
        return self.bytes_written

    def flush(self) -> None:
        """Pass buffered bytes on."""
        if not self._abandoned:
            self._sink.flush()

    def seal(self) -> str:
        """Close the file and return the SHA-256 of its content in hex."""
        self.handle = self._sink.seal()
        return self._digest.hexdigest()

    def close(self) -> None:
        """Close the file; a second call does nothing."""
        if not self.closed:
            self._abandoned = True
            self._sink.abandon()

    @property
    def closed(self) -> bool:
        """Whether the file is closed."""
        return self._abandoned or bool(self.handle)
