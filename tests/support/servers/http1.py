"""As much of HTTP/1.1 as a proxy must know to tell where a message ends."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from dataclasses import dataclass

# What has no length: bodies in chunks, and those that end with the connection.
CHUNKED = -1
UNTIL_CLOSE = -2
BLOCK_BYTES = 256 * 1024


@dataclass(frozen=True, slots=True)
class Head:
    """The first line and the fields, by lower-case name; ``raw`` is what came, to be sent on as it is."""

    raw: bytes
    first: str
    fields: dict[str, str]

    @property
    def status(self) -> int:
        """Of an answer."""
        return int(self.first.split(" ", 2)[1])

    @property
    def keeps_open(self) -> bool:
        """Whether more may follow on this connection."""
        return "HTTP/1.1" in self.first and self.fields.get("connection", "").lower() != "close"


def parse(raw: bytes) -> Head:
    """Return the head that ``raw`` is, blank line included."""
    first, *lines = raw[:-4].decode("latin-1").split("\r\n")
    fields = {}
    for line in lines:
        name, _, value = line.partition(":")
        fields[name.lower()] = value.strip()
    return Head(raw, first, fields)


def changed(head: Head, **fields: str | None) -> Head:
    """The same head with other fields (written with ``_`` for ``-``); None leaves one out."""
    wanted = {name.replace("_", "-"): value for name, value in fields.items()}
    first, *lines = head.raw[:-4].decode("latin-1").split("\r\n")
    kept = [line for line in lines if line.partition(":")[0].lower() not in wanted]
    kept += [f"{name}: {value}" for name, value in wanted.items() if value is not None]
    return parse("\r\n".join([first, *kept, "", ""]).encode("latin-1"))


async def read_head(reader: asyncio.StreamReader) -> Head | None:
    """The next head, or None where the connection ended between two messages."""
    try:
        return parse(await reader.readuntil(b"\r\n\r\n"))
    except asyncio.IncompleteReadError as error:
        if error.partial:
            raise
        return None


def request_length(head: Head) -> int:
    """Bytes of a request's body, or ``CHUNKED``."""
    if "transfer-encoding" in head.fields:
        return CHUNKED
    return int(head.fields.get("content-length", 0))


def answer_length(head: Head, method: str) -> int:
    """Bytes of an answer's body, or ``CHUNKED`` or ``UNTIL_CLOSE``."""
    if method == "HEAD" or head.status in (204, 304):
        return 0
    if "transfer-encoding" in head.fields:
        return CHUNKED
    return int(head.fields.get("content-length", UNTIL_CLOSE))


async def pieces(reader: asyncio.StreamReader, length: int) -> AsyncIterator[tuple[bytes, bytes]]:
    """The body as it is on the wire, piece by piece, each with what it carries."""
    if length == CHUNKED:
        async for piece in _chunks(reader):
            yield piece
    elif length == UNTIL_CLOSE:
        while data := await reader.read(BLOCK_BYTES):
            yield data, data
    else:
        while length:
            data = await reader.read(min(length, BLOCK_BYTES))
            if not data:
                raise asyncio.IncompleteReadError(b"", length)
            length -= len(data)
            yield data, data


async def _chunks(reader: asyncio.StreamReader) -> AsyncIterator[tuple[bytes, bytes]]:
    while True:
        line = await reader.readuntil(b"\r\n")
        size = int(line.partition(b";")[0], 16)
        if not size:
            break
        data = await reader.readexactly(size + 2)
        yield line + data, data[:-2]
    while line != b"\r\n":
        yield line, b""
        line = await reader.readuntil(b"\r\n")
    yield line, b""


async def copy(
    reader: asyncio.StreamReader, length: int, writer: asyncio.StreamWriter, head: bytes
) -> tuple[int, bytes]:
    """Send a head and the body that follows it; returns the body's bytes, and its first piece.

    What is small goes out in one write: this is what most requests are made of.
    """
    pending, size, first = head, 0, b""
    async for wire, data in pieces(reader, length):
        first = first or data
        size += len(data)
        pending += wire
        if len(pending) >= BLOCK_BYTES:
            writer.write(pending)
            await writer.drain()
            pending = b""
    writer.write(pending)
    await writer.drain()
    return size, first
