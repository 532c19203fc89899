"""A server that answers as a test says: where credentials come from, and stores in rare states."""

from __future__ import annotations

import contextlib
import json
import threading
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


@dataclass(frozen=True)
class Asked:
    """A request. Names of fields are in lower case."""

    method: str
    path: str
    fields: Mapping[str, str]
    body: bytes


@dataclass(frozen=True)
class Answer:
    """What it is answered with."""

    body: bytes | str | Mapping[str, Any] = b""
    status: int = 200
    fields: Mapping[str, str] = field(default_factory=dict)

    def content(self) -> bytes:
        if isinstance(self.body, bytes):
            return self.body
        return (self.body if isinstance(self.body, str) else json.dumps(self.body)).encode()


@dataclass(frozen=True)
class Answers:
    """The server's address, and what it was asked."""

    endpoint: str
    asked: list[Asked]


@contextlib.contextmanager
def answering(answer: Callable[[Asked], Answer]) -> Iterator[Answers]:
    """A server on the loopback, in this process."""
    asked: list[Asked] = []

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def serve(self) -> None:
            fields = {name.lower(): value for name, value in self.headers.items()}
            body = self.rfile.read(int(fields.get("content-length", 0)))
            one = Asked(self.command, self.path, fields, body)
            asked.append(one)
            given = answer(one)
            content = given.content()
            self.send_response(given.status)
            for name, value in {"Content-Length": str(len(content)), **given.fields}.items():
                self.send_header(name, value)
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(content)

        do_GET = do_HEAD = do_POST = do_PUT = do_DELETE = serve  # noqa: N815 - http.server wants these names

        def log_message(self, format: str, *args: Any) -> None:  # noqa: A002
            """Say nothing."""

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        server.daemon_threads = True
        thread = threading.Thread(target=server.serve_forever, args=[0.02])
        thread.start()
        try:
            yield Answers(f"http://127.0.0.1:{server.server_port}", asked)
        finally:
            server.shutdown()
            thread.join()
