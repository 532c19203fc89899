"""An ordinary client of each store, which reaches it through a proxy and repeats nothing by itself."""

from __future__ import annotations

import contextlib
import importlib
import threading
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import pytest

from tests.support.servers import boto3_cache, stores
from tests.support.servers.proxy import Proxy, proxy

with warnings.catch_warnings():
    # It misses grpcio-status, which nothing here needs.
    warnings.simplefilter("ignore", ImportWarning)
    from google.api_core.exceptions import GoogleAPICallError
    from google.cloud import storage
    from google.cloud.storage.retry import DEFAULT_RETRY

# By name: they ship no types, and none of their own are needed here.
boto3: Any = boto3_cache.boto3
botocore: Any = importlib.import_module("botocore.exceptions")
Config: Any = importlib.import_module("botocore.config").Config

BUCKET = "bucket"
# For uploads without a condition, which are not repeated otherwise.
RETRY: Any = DEFAULT_RETRY


@dataclass(frozen=True)
class Way:
    """A client (boto3's, or a bucket of google-cloud-storage), the proxy it goes through, and the store."""

    proxy: Proxy
    client: Any
    store: str

    @property
    def reset(self) -> Way:
        """Itself, with nothing counted and nothing wrong."""
        self.proxy.reset()
        return self


def s3_client(endpoint: str, **settings: Any) -> Any:
    """A client that finds S3 by the environment, as a job does. ``settings`` are the client's own."""
    with pytest.MonkeyPatch.context() as patch:
        stores.apply(patch, stores.environment(endpoint, None))
        config = Config(retries={"total_max_attempts": 1}, read_timeout=5, max_pool_connections=16)
        return boto3.session.Session().client("s3", config=config, **settings)


def gcs_bucket(endpoint: str) -> Any:
    """The bucket, by a client that finds Cloud Storage by the environment, as a job does."""
    with pytest.MonkeyPatch.context() as patch:
        stores.apply(patch, stores.environment(None, endpoint))
        return storage.Client().bucket(BUCKET)


@contextlib.contextmanager
def s3_way() -> Iterator[Way]:
    """An S3 with one bucket, through a proxy."""
    with stores.s3_server() as store, proxy(store) as way:
        client = s3_client(way.endpoint)
        client.create_bucket(Bucket=BUCKET)
        yield Way(way, client, store)
        client.close()


@contextlib.contextmanager
def gcs_way() -> Iterator[Way]:
    """A Cloud Storage with one bucket, through a proxy."""
    with stores.gcs_server() as store, proxy(store) as way:
        bucket = gcs_bucket(way.endpoint)
        bucket.create()
        yield Way(way, bucket, store)
        bucket.client.close()


def status(error: Exception) -> int:
    """Which HTTP status a client's error stands for."""
    if isinstance(error, GoogleAPICallError):
        return int(error.code or 0)
    return int(error.response["ResponseMetadata"]["HTTPStatusCode"])  # type: ignore[attr-defined]


@contextlib.contextmanager
def refused(*wanted: int) -> Iterator[None]:
    """The body is answered with one of these."""
    with pytest.raises((GoogleAPICallError, botocore.ClientError)) as caught:
        yield
    assert status(caught.value) in wanted, caught.value


def race(writers: Sequence[Callable[[], object]]) -> list[int]:
    """Run all at the same time; returns their statuses in ascending order, 200 for those that succeed."""
    start = threading.Barrier(len(writers))
    statuses: list[int] = []

    def run(writer: Callable[[], object]) -> None:
        start.wait()
        try:
            writer()
        except (GoogleAPICallError, botocore.ClientError) as error:
            statuses.append(status(error))
        else:
            statuses.append(200)

    threads = [threading.Thread(target=run, args=[writer]) for writer in writers]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return sorted(statuses)
