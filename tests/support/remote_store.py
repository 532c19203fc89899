"""A store behind a proxy, as the job reaches it, and beside it the store's own client, as the oracle."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass

import pytest

from job.storage import objects
from tests.support.servers import clients, stores
from tests.support.servers.clients import BUCKET, Way
from tests.support.servers.proxy import Entry
from tests.support.store_nights import Bucket, CloudBucket, S3Bucket, environment, own_clients, until


@dataclass(frozen=True)
class Remote:
    """What a test asks goes through the proxy by ``store``, or by ``job.storage``; ``bucket`` does not."""

    scheme: str
    way: Way
    bucket: Bucket

    @property
    def store(self) -> objects.ObjectStore:
        """The job's own."""
        return objects.store(self.scheme)

    @property
    def is_s3(self) -> bool:
        """Whether an upload that is not finished can be seen."""
        return self.scheme == "s3"

    def path(self, key: str) -> str:
        return f"{self.scheme}://{BUCKET}/{key}"

    def files(self, folder: str) -> dict[str, bytes]:
        """What the store's own client finds below a path."""
        return self.bucket.files(f"{folder.partition(f'{BUCKET}/')[2]}/")

    def requests(self, key: str = "") -> tuple[Entry, ...]:
        """What the job asked since the last reset; with ``key``, of that object."""
        every = self.way.proxy.counts().requests
        return tuple(one for one in every if not key or one.key == f"{BUCKET}/{key}")

    def settled(self, key: str = "") -> tuple[Entry, ...]:
        """The same, once nothing more comes of any: the proxy takes note after a client has it all."""
        until(lambda: self.way.proxy.counts().settled)
        return self.requests(key)


@contextlib.contextmanager
def remote(scheme: str) -> Iterator[Remote]:
    """An empty bucket that this process's jobs are led to."""
    start = clients.s3_way if scheme == "s3" else clients.gcs_way
    with start() as way, pytest.MonkeyPatch.context() as patch, contextlib.ExitStack() as stack:
        stores.apply(patch, environment(scheme, way.proxy.endpoint))
        stack.enter_context(own_clients())
        bucket: Bucket = S3Bucket(way.store) if scheme == "s3" else CloudBucket(way.store)
        stack.callback(bucket.close)
        way.proxy.reset()
        yield Remote(scheme, way, bucket)
