"""What a file that is being written must be able to do."""

from __future__ import annotations

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
