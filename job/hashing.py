"""A file that is digested while it is written."""

from __future__ import annotations

import contextlib
import hashlib
from typing import BinaryIO

from job.storage import local


class HashingSink:
    """A new file that keeps the SHA-256 and the length of what is written to it.

    Hashing on the way saves reading every output file again.
    """

    def __init__(self, path: str) -> None:
        self.path = path
        self._digest = hashlib.sha256()
        self._file: BinaryIO = open(local(path), "xb")  # noqa: SIM115 - closed by close()
        self.bytes_written = 0
        self._abandoned = False

    def write(self, data: bytes | memoryview) -> int:
        """Append ``data`` and return its length in bytes; it goes nowhere after an unsealed ``close``."""
        if self._abandoned:
            # Arrow still writes a footer when it collects a writer that was given up.
            return len(data)
        self._digest.update(data)
        written = self._file.write(data)
        self.bytes_written += written
        return written

    def tell(self) -> int:
        """Return the number of bytes written so far."""
        return self.bytes_written

    def flush(self) -> None:
        """Hand buffered bytes to the operating system."""
        if not self._abandoned:
            self._file.flush()

    def seal(self) -> str:
        """Close, and return the content's SHA-256 in hex; it is not flushed to the disk."""
        self._file.close()
        return self._digest.hexdigest()

    def close(self) -> None:
        """Close; safe to call twice."""
        self._abandoned = self._abandoned or not self._file.closed
        # What could not be written is lost with the attempt; the error that led here says more.
        with contextlib.suppress(OSError):
            self._file.close()

    @property
    def closed(self) -> bool:
        """Whether the file is closed."""
        return self._file.closed
