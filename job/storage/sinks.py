"""What those who write files must be able to do."""

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
        """Hand buffered bytes on."""
        ...

    def seal(self) -> str:
        """End the file and return its handle, by which ``storage.release`` finds it."""
        ...

    def abandon(self) -> None:
        """Give the file up; nothing happens to a sealed one."""
        ...


class Conditional(Protocol):
    """Where small files are written if nobody else has written them meanwhile, told by their stamps."""

    def read_stamped(self, path: str) -> tuple[bytes, str] | None:
        """Return a file's content and stamp, or ``None`` where there is none."""
        ...

    def read_bytes(self, path: str) -> bytes | None:
        """Return a file's content, or ``None`` where there is none."""
        ...

    def write_if(self, path: str, content: bytes, stamp: str) -> str | None:
        """Write a file if it has this stamp, or if that is empty and there is none; return its new stamp.

        ``None`` where the condition did not hold.
        """
        ...

    def remove(self, paths: Sequence[str], stamp: str = "") -> None:
        """Remove files; with ``stamp``, only if they still have it."""
        ...


# A file that is digested while it is written.


class HashingSink:
    """A new file that keeps the SHA-256 and the length of what is written to it.

    Hashing on the way saves reading every output file again. ``path`` and ``final`` are as in
    ``storage.create``; ``handle`` is that of the sealed file.
    """

    def __init__(self, path: str, final: str = "") -> None:
        self.handle = ""
        self._digest = hashlib.sha256()
        self._sink = storage.create(path, final)
        self.bytes_written = 0
        self._abandoned = False

    def write(self, data: bytes | memoryview) -> int:
        """Append ``data`` and return its length in bytes; it goes nowhere after an unsealed ``close``."""
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
        """Hand buffered bytes on."""
        if not self._abandoned:
            self._sink.flush()

    def seal(self) -> str:
        """Close, and return the content's SHA-256 in hex."""
        self.handle = self._sink.seal()
        return self._digest.hexdigest()

    def close(self) -> None:
        """Close; safe to call twice."""
        if not self.closed:
            self._abandoned = True
            self._sink.abandon()

    @property
    def closed(self) -> bool:
        """Whether the file is closed."""
        return self._abandoned or bool(self.handle)
