"""The traffic through the proxy: each request is noted, delayed, perhaps spoilt, and sent on."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import struct
import time
from dataclasses import dataclass, field
from typing import Literal

from tests.support.servers import http1, listings
from tests.support.servers.faults import ERRORS, Fault, Plan, refusal

STEP_S = 0.05
_Streams = tuple[asyncio.StreamReader, asyncio.StreamWriter]
_TOLD = ("authorization", "x-amz-", "x-goog-")
_BROKEN = (OSError, EOFError, asyncio.LimitOverrunError, ValueError)


@dataclass(slots=True)
class Entry:
    """One request in the log.

    ``status`` is the store's or the fault's; 0 where there was none (yet). ``held`` says that it waits to be
    released, ``over`` that nothing more will come of it. ``at_s`` and ``ended_s`` are of the steady clock.
    """

    method: str
    target: str
    key: str = ""
    range: str = ""
    status: int = 0
    request_bytes: int = 0
    response_bytes: int = 0
    fault: str = ""
    held: bool = field(default=False, compare=False)
    over: bool = field(default=False, compare=False)
    # What tells who asks, who pays and how to encrypt, by lower-case name.
    fields: dict[str, str] = field(default_factory=dict, compare=False)
    at_s: float = field(default_factory=time.monotonic, compare=False)
    ended_s: float = field(default=0.0, compare=False)


@dataclass
class Relay:
    """Carries requests to one store, over connections that are kept."""

    host: str
    port: int
    delay_s: float = 0.0
    hide_s: float = 0.0
    plan: Plan = field(default_factory=Plan)
    log: list[Entry] = field(default_factory=list)
    _recent: listings.Recent = field(default_factory=listings.Recent)
    _idle: list[_Streams] = field(default_factory=list)
    _released: asyncio.Event = field(default_factory=asyncio.Event)

    async def client(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Serve one connection, until either side leaves it."""
        with contextlib.suppress(*_BROKEN):
            while await self._exchange(reader, writer):
                pass
        writer.close()

    async def _exchange(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
        head = await http1.read_head(reader)
        if head is None:
            return False
        method, target, _ = head.first.split(" ", 2)
        told = {name: value for name, value in head.fields.items() if name.startswith(_TOLD)}
        entry = Entry(method, target, range=head.fields.get("range", ""), fields=told)
        fault = None
        # What google-auth asks gcsd in its other role is no traffic to a store.
        if not target.startswith("/computeMetadata/") and "metadata-flavor" not in head.fields:
            self.log.append(entry)
            fault = self.plan.due(method, target)
            entry.fault = fault.kind if fault else ""
            if self.delay_s:
                await asyncio.sleep(self.delay_s)
        try:
            return await self._serve(head, entry, fault, reader, writer)
        finally:
            entry.over, entry.ended_s = True, time.monotonic()

    async def _serve(
        self,
        head: http1.Head,
        entry: Entry,
        fault: Fault | None,
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
    ) -> bool:
        """Let happen to a request what is due; whether the client's connection may be kept."""
        if fault and fault.kind in ("reset", "hang"):
            return await _silent(fault, reader, writer)
        if head.fields.get("expect", "").lower() == "100-continue":
            writer.write(b"HTTP/1.1 100 Continue\r\n\r\n")
            head = http1.changed(head, expect=None)
        if fault and fault.kind == "hold" and not fault.done:
            await _swallow(head, entry, reader)
            return await self._hold(entry)
        if fault and fault.kind in ERRORS:
            await _swallow(head, entry, reader)
            entry.status = int(fault.kind)
            writer.write(refusal(fault.kind, entry.method, entry.target))
            await writer.drain()
            return head.keeps_open
        return await self._forward(head, entry, fault, reader, writer) and head.keeps_open

    async def _hold(self, entry: Entry) -> Literal[False]:
        entry.held = True
        await self._released.wait()
        entry.held = False
        return False

    async def _forward(
        self,
        head: http1.Head,
        entry: Entry,
        fault: Fault | None,
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
    ) -> bool:
        """Send a request on and its answer back; whether the client's connection may be kept."""
        store_reader, store_writer = await self._connected()
        whole = False
        try:
            length = http1.request_length(head)
            entry.request_bytes, first = await http1.copy(reader, length, store_writer, head.raw)
            entry.key = listings.key(entry.target, first)
            answer = await http1.read_head(store_reader)
            if answer is None:
                return False
            entry.status = answer.status
            self._recent.saw(entry.method, entry.target, entry.key, answer.status)
            kept = await self._answer(answer, entry, fault, store_reader, writer)
            # A body that ends with the connection takes it along, and the client's too.
            whole = answer.keeps_open and http1.answer_length(answer, entry.method) != http1.UNTIL_CLOSE
            return kept and whole
        finally:
            if whole:
                self._idle.append((store_reader, store_writer))
            else:
                store_writer.transport.abort()

    async def _connected(self) -> _Streams:
        while self._idle:
            reader, writer = self._idle.pop()
            if not reader.at_eof() and not writer.is_closing():
                return reader, writer
        return await asyncio.open_connection(self.host, self.port, limit=http1.BLOCK_BYTES)

    async def _answer(
        self,
        answer: http1.Head,
        entry: Entry,
        fault: Fault | None,
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
    ) -> bool:
        length = http1.answer_length(answer, entry.method)
        late = self.hide_s > 0 and answer.status == 200 and listings.lists(entry.method, entry.target)
        if fault is None and not late:
            entry.response_bytes, _ = await http1.copy(reader, length, writer, answer.raw)
            return True
        body = b"".join([data async for _, data in http1.pieces(reader, length)])
        if late:
            body = listings.without(entry.target, body, self._recent.hidden(entry.key, self.hide_s))
        if length:
            answer = http1.changed(answer, transfer_encoding=None, content_length=str(len(body)))
        if fault and fault.kind == "hold":
            await self._hold(entry)
            if not fault.late:
                return False
        if fault is None or fault.kind == "hold":
            entry.response_bytes = len(body)
            writer.write(answer.raw + body)
            await writer.drain()
            return True
        return await _spoilt(fault, answer.raw, body, entry, writer)

    def release(self) -> None:
        """Let go of the requests that are held."""
        self._released.set()
        self._released = asyncio.Event()

    def reset(self) -> None:
        """Forget the log, the faults, what is held and the delays; objects stay known by their age."""
        self.release()
        self.delay_s = self.hide_s = 0.0
        self.plan = Plan()
        self.log = []


async def _swallow(head: http1.Head, entry: Entry, reader: asyncio.StreamReader) -> None:
    """Take a request's body that nobody will see off the connection."""
    async for _, data in http1.pieces(reader, http1.request_length(head)):
        entry.request_bytes += len(data)
        entry.key = entry.key or listings.key(entry.target, data)
    entry.key = entry.key or listings.key(entry.target, b"")


async def _silent(fault: Fault, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> Literal[False]:
    if fault.kind == "hang":
        # Whatever the client sends is read and dropped, so that it waits for the answer and nothing else.
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(fault.hang_s):
                while await reader.read(http1.BLOCK_BYTES):
                    pass
    else:
        handle: socket.socket = writer.get_extra_info("socket")
        handle.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    writer.transport.abort()
    return False


async def _spoilt(fault: Fault, head: bytes, body: bytes, entry: Entry, writer: asyncio.StreamWriter) -> bool:
    if fault.kind == "lost":
        return False
    if fault.kind == "cut":
        half = body[: len(body) // 2]
        entry.response_bytes = len(half)
        # A client takes a head without its end for a whole one, but not so a line without its status.
        writer.write(head + half if body else head[: len(b"HTTP/1.1")])
        await writer.drain()
        return False
    writer.write(head)
    for start in range(0, len(body), fault.step_bytes):
        await asyncio.sleep(STEP_S)
        step = body[start : start + fault.step_bytes]
        writer.write(step)
        await writer.drain()
        entry.response_bytes += len(step)
    return True
