"""What those who write files must be able to do."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol


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
