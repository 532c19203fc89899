"""An output in a bucket with nothing in it but perhaps a lease, and a clock for who waits for that."""

from __future__ import annotations

import contextlib
import itertools
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any, ClassVar

import pytest

from job import storage
from job.commit import lease
from tests.support.servers import clients, stores
from tests.support.servers.proxy import Proxy
from tests.support.store_nights import Bucket, CloudBucket, S3Bucket, environment, own_clients

OTHER = "process 77 on other since 2999-01-01"
_outputs = (f"out{number}" for number in itertools.count())


@dataclass(frozen=True)
class Place:
    """An output with nothing in it but perhaps a lease."""

    scheme: str
    bucket: Bucket
    proxy: Proxy
    name: str = field(default_factory=lambda: next(_outputs))

    @property
    def fresh(self) -> Place:
        """Another one in the same bucket."""
        self.proxy.reset()
        return Place(self.scheme, self.bucket, self.proxy)

    @property
    def output(self) -> str:
        return f"{self.scheme}://{clients.BUCKET}/{self.name}"

    @property
    def path(self) -> str:
        return f"{self.output}/_staging/lease"

    def content(self) -> bytes | None:
        """What the lease holds."""
        return self.bucket.files(f"{self.name}/_staging/").get("lease")

    def told(self) -> Any:
        """The same, made out."""
        return json.loads(self.content() or b"")

    def keys(self) -> set[str]:
        """All that is there."""
        return {*self.bucket.files(f"{self.name}/")}

    def put(self, content: bytes) -> None:
        """Let the lease hold this."""
        self.bucket.put(f"{self.name}/_staging/lease", content)

    def owned(self, **changes: Any) -> None:
        """A lease of a process on another machine, or with these ``changes``."""
        other = {"token": "other", "since": "2999-01-01", "renewals": 0, "process": 77, "began": "1"}
        self.put(json.dumps({**other, "host": "other boot namespace", **changes}).encode())

    def remove(self) -> None:
        """Take the lease away."""
        storage.remove(self.path)

    def held(self, announce: Callable[[str], None] = lambda line: None) -> Any:
        return lease.held(self.path, announce)


@contextlib.contextmanager
def place(scheme: str) -> Iterator[Place]:
    """A place in a store that this process is led to through a proxy."""
    start = clients.s3_way if scheme == "s3" else clients.gcs_way
    with start() as way, pytest.MonkeyPatch.context() as patch, own_clients():
        stores.apply(patch, environment(scheme, way.proxy.endpoint))
        bucket: Bucket = S3Bucket(way.store) if scheme == "s3" else CloudBucket(way.store)
        with contextlib.closing(bucket):
            yield Place(scheme, bucket, way.proxy)


@dataclass
class Clock:
    """Stands in for ``time``: nobody waits, and things happen when their time has come."""

    CLOCK_BOOTTIME: ClassVar[int] = 7

    now_s: float = 1e6
    asleep_s: float = 0.0
    paused_s: float = 0.0
    events: dict[float, Callable[[], None]] = field(default_factory=dict)

    def monotonic(self) -> float:
        return self.now_s

    def clock_gettime(self, clock: int) -> float:
        """The machine's sleep included."""
        assert clock == self.CLOCK_BOOTTIME
        return self.now_s + self.asleep_s

    def time(self) -> float:
        """On the wall, also while a virtual machine is paused."""
        return 1.7e9 + self.now_s + self.asleep_s + self.paused_s

    def sleep(self, seconds: float) -> None:
        self.now_s += seconds
        for due_s in [due_s for due_s in self.events if due_s <= self.now_s - 1e6]:
            self.events.pop(due_s)()

    @property
    def passed_s(self) -> float:
        return self.now_s - 1e6
