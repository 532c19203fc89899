"""Whether somebody answers at a port, and who listens there on this machine. gRPC is HTTP/2."""

from __future__ import annotations

import os
import socket
from contextlib import suppress
from pathlib import Path
from typing import Final

from job.errors import EngineError

_LISTENING: Final = "0A"
# RFC 9113: what a client begins with, then an empty SETTINGS frame; the type of the first frame in answer.
_PREFACE: Final = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + bytes([0, 0, 0, 4, 0, 0, 0, 0, 0])
_SETTINGS: Final = 4
_HEADER_BYTES: Final = 9


def split(address: str) -> tuple[str, int]:
    """Return host and port.

    Raises:
        EngineError: it is none.
    """
    host, _, port = address.rpartition("//")[2].rpartition(":")
    if not host or not port.isdigit():
        raise EngineError(f"{address} is no address; give HOST:PORT")
    return host.strip("[]"), int(port)


def is_here(address: str) -> bool:
    """Say whether an address is this machine's own, seen from itself."""
    with suppress(OSError, EngineError):
        found = socket.getaddrinfo(*split(address), type=socket.SOCK_STREAM)
        return all(str(one[4][0]).startswith("127.") or one[4][0] == "::1" for one in found)
    return False


def check_grpc(address: str, limit_s: float) -> None:
    """Exchange the first words of HTTP/2.

    Raises:
        EngineError: nobody listens, or who does says nothing, or something else.
    """
    try:
        with socket.create_connection(split(address), limit_s) as one:
            one.settimeout(limit_s)
            one.sendall(_PREFACE)
            said = b""
            while len(said) < _HEADER_BYTES and (more := one.recv(_HEADER_BYTES - len(said))):
                said += more
    except TimeoutError as e:
        raise EngineError(
            f"{address}: somebody listens, and says nothing within {limit_s:.0f} s; restart what hangs there"
        ) from e
    except OSError as e:
        raise EngineError(
            f"{address}: nobody answers ({e.strerror or e}); start it, or correct the address"
        ) from e
    if len(said) < _HEADER_BYTES or said[3] != _SETTINGS:
        raise EngineError(f"{address}: who listens there does not speak gRPC; correct the address")


def listeners(port: int) -> list[str]:
    """Return who listens on a port of this machine: process numbers as far as they may be seen.

    Sockets that share a port by ``SO_REUSEPORT`` are told apart; those of one process are one.
    """
    sockets = set()
    for table in ("/proc/net/tcp", "/proc/net/tcp6"):
        with suppress(OSError):
            for line in Path(table).read_text().splitlines()[1:]:
                fields = line.split()
                if fields[3] == _LISTENING and int(fields[1].rpartition(":")[2], 16) == port:
                    sockets.add(fields[9])
    owners = {inode: f"a process of another user (socket {inode})" for inode in sockets}
    for link in Path("/proc").glob("[0-9]*/fd/*") if sockets else ():
        with suppress(OSError):
            inode = os.readlink(link).removeprefix("socket:[").removesuffix("]")
            if inode in owners:
                owners[inode] = f"process {link.parts[2]}"
    return sorted(set(owners.values()))
