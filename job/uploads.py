"""An object that is being written: in one request if it is small, else in parts.

It holds up to two parts in memory, and nobody sees it before it is sealed. The client says whether an upload
may stay open when all of it has been sent: then finishing it is what publishes it, and costs one request
whatever its size.
"""

from __future__ import annotations

from contextlib import suppress
from typing import Final

from job.buckets import Client, Upload, handle_of
from job.errors import JobError

# S3 takes at most 10,000 parts of an upload, and none below 5 MiB but the last.
PART_BYTES: Final = 8 << 20
_PARTS_OF_A_SIZE: Final = 1000


class ObjectSink:
    """A new object. With ``stays_open`` it is not visible before somebody finishes its upload."""

    def __init__(self, client: Client, path: str, bucket: str, key: str, *, stays_open: bool) -> None:
        self._client, self._path, self._bucket, self._key = client, path, bucket, key
        self._stays_open = stays_open
        self._buffer = bytearray()
        self._upload: Upload | None = None
        self._parts = 0
        self._handle = ""

    def write(self, data: bytes | memoryview) -> int:
        """Append ``data`` and return its length in bytes."""
        self._buffer += data
        while len(self._buffer) >= (size := self._part_bytes()):
            with memoryview(self._buffer) as view:
                content = bytes(view[:size])
            del self._buffer[:size]
            self._send(content)
        return len(data)

    def flush(self) -> None:
        """Nothing: parts are sent when they are large enough."""

    def seal(self) -> str:
        """Send what is left and return the handle: the path, or that of an upload which stays open."""
        # Once: of an upload that stays open, what is left would be sent as one more part.
        self._handle = self._handle or self._send_rest()
        return self._handle

    def _send_rest(self) -> str:
        content = bytes(self._buffer)
        if self._upload is None and not self._stays_open:
            self._client.put(self._bucket, self._key, content, None)
            return self._path
        if content or not self._parts:
            self._send(content)
        if self._upload is not None and self._stays_open:
            return handle_of(self._path, self._upload.token())
        if self._upload is not None:
            self._upload.finish()
        return self._path

    def abandon(self) -> None:
        """Give the object up; nothing happens to a sealed one."""
        if self._upload is not None and not self._handle:
            # The error that led here says more; `job clean` removes what stays behind.
            with suppress(JobError):
                self._upload.abort()

    def _part_bytes(self) -> int:
        return PART_BYTES << (self._parts // _PARTS_OF_A_SIZE)

    def _send(self, content: bytes) -> None:
        if self._upload is None:
            self._upload = self._client.upload(self._bucket, self._key)
        self._upload.part(content)
        self._parts += 1
