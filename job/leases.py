"""Who may work on an output in a bucket, where there is no lock that a dying process lets go of.

The lease is an object that one process created: the store sees to it that only one does. Its owner writes
it anew every ``RENEW_S``, so that its stamp changes; each write holds only if the lease is still its own.
Whoever finds one waits until the stamp has changed, and is refused, or until it has not for ``EXPIRES_S``,
and takes it over. Times are differences on the waiting machine's own steady clock; no two clocks are
compared. An owner on this very machine is looked up, so that after a crash the next command does not wait.

A process that was stopped for longer than ``EXPIRES_S`` and goes on finds that the lease is another's:
``check`` is called before anything is published.
"""

from __future__ import annotations

import json
import os
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

from job import files, objects
from job.errors import JobError, OutputConflictError, StateUnknownError

RENEW_S: Final = 10.0
EXPIRES_S: Final = 60.0
_LOOK_EVERY_S: Final = 2.0


@contextmanager
def held(path: str, announce: Callable[[str], None]) -> Iterator[str]:
    """Hold a lease while the body runs, and remove it afterwards; yields what ``check`` needs.

    Raises:
        OutputConflictError: somebody else holds it.
    """
    store = objects.store(path.partition("://")[0])
    token = os.urandom(8).hex()
    lease = _Lease(store, path, token)
    lease.take(announce)
    thread = threading.Thread(target=lease.renew, name="lease", daemon=True)
    thread.start()
    try:
        yield token
    finally:
        lease.ended.set()
        thread.join()
        # A lease that stays behind expires; what the body ended with matters more.
        with suppress(JobError):
            store.remove([path], lease.stamp)


def check(path: str, token: str) -> None:
    """Refuse to go on with a lease that is no longer one's own.

    Raises:
        StateUnknownError: it is another's, or gone.
    """
    found = objects.store(path.partition("://")[0]).read_bytes(path)
    owner = _parsed(found)
    if owner.get("token") != token:
        told = f"{_who(owner)} has it now" if owner else "it is gone"
        raise StateUnknownError(
            f"{path}: this run's lease expired while the machine stood still: {told}; nothing more was "
            f"published, run again to see what is there"
        )


class _Lease:
    """What one process knows of the lease that it holds."""

    def __init__(self, store: objects.ObjectStore, path: str, token: str) -> None:
        self._store, self._path, self._token = store, path, token
        self._since = datetime.now(UTC).isoformat(timespec="seconds")
        self._renewals = 0
        self.stamp = ""
        self.ended = threading.Event()

    def take(self, announce: Callable[[str], None]) -> None:
        """Become the owner.

        Raises:
            OutputConflictError: there is one that lives.
        """
        stamp = ""
        while (new := self._store.write_if(self._path, self._content(), stamp)) is None:
            found = self._store.read_stamped(self._path)
            stamp = "" if found is None else found[1]
            if found is not None:
                self._wait(_parsed(found[0]), stamp, announce)
        self.stamp = new

    def _wait(self, owner: dict[str, Any], stamp: str, announce: Callable[[str], None]) -> None:
        """Return when the lease's owner is dead; raise when it lives."""
        alive = _is_alive(owner)
        if alive is False:
            return
        give_up_s = time.monotonic() + EXPIRES_S
        if alive is None:
            announce(
                f"{self._path}: {_who(owner)} holds it; waiting up to {EXPIRES_S:.0f} s to see if it lives"
            )
        while not alive and time.monotonic() < give_up_s:
            time.sleep(_LOOK_EVERY_S)
            found = self._store.read_stamped(self._path)
            if found is None:
                return
            alive = found[1] != stamp
        if alive:
            output = self._path.rpartition("/_staging/")[0]
            raise OutputConflictError(
                f"{output}: another run is at work on it ({_who(owner)}); run again when it has ended"
            )

    def renew(self) -> None:
        """Keep the lease until ``ended`` is set."""
        while not self.ended.wait(RENEW_S):
            self._renewals += 1
            # One that fails is followed by others before the lease expires.
            with suppress(JobError):
                new = self._store.write_if(self._path, self._content(), self.stamp)
                if new is None:
                    return
                self.stamp = new

    def _content(self) -> bytes:
        own = {"token": self._token, "since": self._since, "renewals": self._renewals}
        return json.dumps({**own, **_process(os.getpid())}).encode()


def _process(pid: int) -> dict[str, Any]:
    """Return what tells a process of this machine from all others."""
    began = namespace = ""
    with suppress(OSError):
        namespace = os.readlink("/proc/self/ns/pid")
    with suppress(OSError, IndexError):
        # Field 22 of proc_pid_stat(5), when it began: numbers of processes are used again.
        began = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[19]
    host = f"{socket.gethostname()} {files.boot_id()} {namespace}"
    return {"host": host, "process": pid, "began": began}


def _is_alive(owner: dict[str, Any]) -> bool | None:
    """Say whether a lease's owner lives, ``None`` if it is not on this machine."""
    if not owner:
        return False
    found = _process(int(owner.get("process", 0)))
    if found["host"] != owner.get("host") or not files.boot_id():
        return None
    return bool(found["began"]) and found["began"] == owner.get("began")


def _who(owner: dict[str, Any]) -> str:
    host = str(owner.get("host", "?")).partition(" ")[0]
    return f"process {owner.get('process', '?')} on {host} since {owner.get('since', '?')}"


def _parsed(content: bytes | None) -> dict[str, Any]:
    with suppress(ValueError, TypeError):
        return dict(json.loads(content or b"{}"))
    return {}
