"""A proxy in front of a store, in its own process: a test makes it slow or unreliable, and asks what it saw.

    with stores.s3_server() as store, proxy(store) as way:
        way.set(delay_s=0.05, faults=[Fault("503", r"^PUT /bucket/", at=2, times=3)])
        ...                                    # with stores.environment(way.endpoint, None)
        assert way.counts().by_method["PUT"] == 7

Orders go over a port of their own, one line of JSON each, and so never mix with the traffic. The Host field
is passed on as it came: it is part of S3's signatures, and gcsd's upload sessions lead back to it.
"""

from __future__ import annotations

import asyncio
import collections
import contextlib
import json
import socket
import sys
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from typing import Any

from tests.support.servers import stores
from tests.support.servers.faults import Fault, Plan
from tests.support.servers.relay import Entry, Relay

__all__ = ["Counts", "Entry", "Fault", "Proxy", "proxy"]

ORDER_BYTES = 1 << 20


@dataclass(frozen=True)
class Counts:
    """What came through since the start or the last reset, in the order of arrival."""

    requests: tuple[Entry, ...]

    @cached_property
    def by_method(self) -> collections.Counter[str]:
        """How many requests of each method."""
        return collections.Counter(one.method for one in self.requests)

    @cached_property
    def by_key(self) -> collections.Counter[tuple[str, str]]:
        """How many of each method for each ``bucket/name`` (``bucket`` where it is about all of it)."""
        return collections.Counter((one.method, one.key) for one in self.requests)

    @property
    def held(self) -> tuple[Entry, ...]:
        """Those that wait to be released."""
        return tuple(one for one in self.requests if one.held)

    @property
    def settled(self) -> bool:
        """Whether nothing more will come of all of them but those that are held."""
        return all(one.over or one.held for one in self.requests)

    @property
    def request_bytes(self) -> int:
        """Bytes of all request bodies."""
        return sum(one.request_bytes for one in self.requests)

    @property
    def response_bytes(self) -> int:
        """Bytes of all bodies that clients were sent."""
        return sum(one.response_bytes for one in self.requests)


class Proxy:
    """The test's end of the proxy. ``endpoint`` stands for the store's own."""

    def __init__(self, endpoint: str, control: socket.socket) -> None:
        self.endpoint = endpoint
        self._lines = control.makefile("rwb")

    def set(
        self,
        *,
        delay_s: float | None = None,
        faults: Sequence[Fault] | None = None,
        hide_s: float | None = None,
    ) -> None:
        """Change what is given, and nothing else; new faults begin to count from 0.

        ``delay_s``: each request waits so long before it is sent on. ``hide_s``: listings leave out objects
        that were made through this proxy less than so long ago.
        """
        told = None if faults is None else [asdict(fault) for fault in faults]
        self._order({"delay_s": delay_s, "faults": told, "hide_s": hide_s})

    def counts(self) -> Counts:
        """What came through so far."""
        return Counts(tuple(Entry(**one) for one in self._order({"counts": True})))

    def release(self) -> None:
        """Let go of the requests that a "hold" keeps; their connections are closed."""
        self._order({"release": True})

    def reset(self) -> None:
        """No delay, no faults, nothing held, nothing hidden, nothing counted."""
        self._order({"reset": True})

    def close(self) -> None:
        """Give no more orders."""
        self._lines.close()

    def _order(self, order: dict[str, Any]) -> Any:
        self._lines.write(json.dumps(order).encode() + b"\n")
        self._lines.flush()
        return json.loads(self._lines.readline())


@contextlib.contextmanager
def proxy(upstream: str) -> Iterator[Proxy]:
    """A proxy to the store with this endpoint; ends with the body."""
    command = [sys.executable, "-m", "tests.support.servers.proxy", upstream]
    with (
        stores.served(command, stores.environment(None, None)) as (endpoint, port),
        socket.create_connection(("127.0.0.1", int(port)), stores.START_S) as control,
        contextlib.closing(Proxy(endpoint, control)) as one,
    ):
        yield one


def obey(relay: Relay, order: dict[str, Any]) -> Any:
    """Carry out one order; returns what to answer."""
    if order.get("counts"):
        return [asdict(one) for one in relay.log]
    if order.get("release"):
        relay.release()
    if order.get("reset"):
        relay.reset()
    if order.get("delay_s") is not None:
        relay.delay_s = order["delay_s"]
    if order.get("hide_s") is not None:
        relay.hide_s = order["hide_s"]
    if order.get("faults") is not None:
        relay.plan = Plan([Fault(**one) for one in order["faults"]])
    return None


async def serve(upstream: str) -> None:
    """Carry traffic until standard input ends."""
    host, _, port = upstream.removeprefix("http://").partition(":")
    relay = Relay(host, int(port))

    async def control(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while line := await reader.readline():
            writer.write(json.dumps(obey(relay, json.loads(line))).encode() + b"\n")
            await writer.drain()
        writer.close()

    traffic = await asyncio.start_server(relay.client, "127.0.0.1", 0, limit=1 << 18, backlog=1024)
    orders = await asyncio.start_server(control, "127.0.0.1", 0, limit=ORDER_BYTES)
    ports = [server.sockets[0].getsockname()[1] for server in (traffic, orders)]
    print(f"http://127.0.0.1:{ports[0]} {ports[1]}", flush=True)
    await asyncio.to_thread(sys.stdin.read)


if __name__ == "__main__":
    asyncio.run(serve(sys.argv[1]))
