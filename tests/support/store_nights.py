"""A small night in a bucket of either store, behind a proxy, and what it must look like in the end.

The job goes through the proxy. The test looks at the store directly, with the store's own client, so that
neither faults nor late listings deceive it and nothing that it asks is counted.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import re
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from job.errors import JobError
from job.model import artifact
from job.report.run_report import RunReport
from job.storage import objects
from tests.support.nights import dense, features, matrix, saved
from tests.support.servers import clients, stores
from tests.support.servers.clients import BUCKET, Way
from tests.support.servers.proxy import Entry, Fault

SCHEMES = ("s3", "gs")
SHARDS, ROWS, NULLS = 3, 60, 4
SPLITS = SHARDS
FLAGS = ("--keys=id", "--batch_size=64", "--split_rows=60", "--max_rejected=0.2")
MUTATES = "^(PUT|POST|DELETE|PATCH) "


class Bucket(Protocol):
    """The bucket as its store holds it, asked directly."""

    def files(self, prefix: str) -> dict[str, bytes]:
        """Every object whose key begins so, by the rest of its key."""
        ...

    def put(self, key: str, content: bytes) -> None:
        """Write an object."""
        ...

    def uploads(self, prefix: str) -> list[str]:
        """The keys of the uploads that are not finished."""
        ...

    def close(self) -> None:
        """Ask no more."""
        ...


class S3Bucket:
    """By boto3."""

    def __init__(self, endpoint: str) -> None:
        self._client = clients.s3_client(endpoint)

    def files(self, prefix: str) -> dict[str, bytes]:
        answer = self._client.list_objects_v2(Bucket=BUCKET, Prefix=prefix)
        assert not answer["IsTruncated"]
        keys = [one["Key"] for one in answer.get("Contents", ())]
        return {key.removeprefix(prefix): self._read(key) for key in keys}

    def _read(self, key: str) -> bytes:
        return bytes(self._client.get_object(Bucket=BUCKET, Key=key)["Body"].read())

    def put(self, key: str, content: bytes) -> None:
        self._client.put_object(Bucket=BUCKET, Key=key, Body=content)

    def uploads(self, prefix: str) -> list[str]:
        answer = self._client.list_multipart_uploads(Bucket=BUCKET, Prefix=prefix)
        return [one["Key"] for one in answer.get("Uploads", ())]

    def close(self) -> None:
        self._client.close()


class CloudBucket:
    """By google-cloud-storage."""

    def __init__(self, endpoint: str) -> None:
        self._bucket = clients.gcs_bucket(endpoint)

    def files(self, prefix: str) -> dict[str, bytes]:
        blobs = list(self._bucket.list_blobs(prefix=prefix))
        return {blob.name.removeprefix(prefix): bytes(blob.download_as_bytes()) for blob in blobs}

    def put(self, key: str, content: bytes) -> None:
        self._bucket.blob(key).upload_from_string(content)

    def uploads(self, prefix: str) -> list[str]:
        # The store shows none to anybody.
        return []

    def close(self) -> None:
        self._bucket.client.close()


@dataclass(frozen=True)
class StoreNight:
    """Shards and a model in a bucket. Every output is a folder of its own, ``name`` below the bucket."""

    scheme: str
    way: Way
    bucket: Bucket
    folder: Path
    # By id: the prediction of every row that is good. Told by one Model.predict.
    predictions: Mapping[int, float] = field(repr=False)

    @property
    def env(self) -> dict[str, str]:
        """What leads a job through the proxy."""
        return environment(self.scheme, self.way.proxy.endpoint)

    def path(self, name: str) -> str:
        return f"{self.scheme}://{BUCKET}/{name}"

    def args(self, name: str, *flags: str) -> tuple[str, ...]:
        named = (f"--input={self.path('in')}", f"--model={self.path('m.keras')}")
        given = {flag.partition("=")[0] for flag in flags}
        usual = (flag for flag in FLAGS if flag.partition("=")[0] not in given)
        return (*named, f"--output={self.path(name)}", *usual, *flags)

    def score(self, name: str, *flags: str) -> RunReport:
        """Run the job in this process and return its report; errors are raised as they are."""
        from job.cli import options
        from job.launch import score as launch_score

        spec, beam_args = options.parse(self.args(name, *flags))
        return launch_score.score(spec, beam_args, announce=lambda line: None).report

    def files(self, name: str) -> dict[str, bytes]:
        return self.bucket.files(f"{name}/")

    def receipts(self, name: str) -> int:
        """How many splits have their receipt."""
        return sum("/receipts/" in path for path in self.files(name))

    def check_nothing_published(self, name: str) -> None:
        """What is there is in staging, or is not told to be whole."""
        assert "_SUCCESS" not in self.files(name)

    def check(self, name: str, files: Mapping[str, bytes] | None = None) -> dict[str, str]:
        """The night is whole and right, and nothing else is there; returns its files and their SHA-256."""
        found = self.files(name) if files is None else files
        manifest = json.loads(found["_manifest.json"])
        told = {one["path"]: one["sha256"] for one in (*manifest["files"], *manifest["rejected_files"])}
        aside = {"_SUCCESS", "_manifest.json", "_report.json", "_report.html"}
        assert found.keys() == told.keys() | aside
        digests = {path: hashlib.sha256(content).hexdigest() for path, content in found.items()}
        assert {path: digests[path] for path in told} == told
        self._check_rows(found)
        assert self.bucket.uploads(f"{name}/") == []
        # They hold times.
        return {path: "" if path.startswith("_report") else digest for path, digest in digests.items()}

    def _check_rows(self, files: Mapping[str, bytes]) -> None:
        scored = table(content for path, content in files.items() if path[0] != "_")
        ids = scored["id"].to_pylist()
        assert sorted(ids) == sorted(self.predictions)
        wanted = [self.predictions[one] for one in ids]
        np.testing.assert_allclose(scored["prediction"].to_numpy(), wanted, rtol=1e-5, atol=1e-6)
        rejected = table(content for path, content in files.items() if path.startswith("_rejected/"))
        ids = rejected["id"].to_pylist()
        assert sorted(ids) == sorted({*range(SHARDS * ROWS)} - self.predictions.keys())
        assert len(ids) == NULLS


def table(contents: Iterator[bytes]) -> pa.Table:
    return pa.concat_tables([pq.ParquetFile(io.BytesIO(content)).read() for content in contents])


def environment(scheme: str, endpoint: str) -> dict[str, str]:
    return stores.environment(*((endpoint, None) if scheme == "s3" else (None, endpoint)))


def shard(number: int) -> pa.Table:
    """One shard; the middle one has nulls, and so rejected rows."""
    made = features(ROWS, seed=number, first_id=ROWS * number)
    if number != 1:
        return made
    values = [None if row < NULLS else value for row, value in enumerate(made["f1"].to_pylist())]
    return made.set_column(2, "f1", pa.array(values, pa.float32()))


def _oracle(model: Any, shards: list[pa.Table]) -> dict[int, float]:
    every = pa.concat_tables(shards)
    good = every.filter(every["f1"].is_valid())
    predicted = model.predict(matrix(good), verbose=0)[:, 0]
    return dict(zip(good["id"].to_pylist(), predicted.tolist(), strict=True))


@contextlib.contextmanager
def store_night(scheme: str, folder: Path) -> Iterator[StoreNight]:
    """A store with the night's shards and model, to which this process's jobs are led as well."""
    start = clients.s3_way if scheme == "s3" else clients.gcs_way
    with start() as way, pytest.MonkeyPatch.context() as patch, contextlib.ExitStack() as stack:
        stores.apply(patch, environment(scheme, way.proxy.endpoint))
        stack.enter_context(own_clients())
        model, shards = dense(), [shard(number) for number in range(SHARDS)]
        bucket: Bucket = S3Bucket(way.store) if scheme == "s3" else CloudBucket(way.store)
        night = StoreNight(scheme, way, bucket, folder, _oracle(model, shards))
        stack.callback(night.bucket.close)
        # Not through the proxy, for which all that it saw being made is young.
        for number, one in enumerate(shards):
            pq.write_table(one, folder / "shard.parquet", row_group_size=ROWS // 2)
            night.bucket.put(f"in/part-{number}.parquet", (folder / "shard.parquet").read_bytes())
        night.bucket.put("m.keras", saved(model, folder / "m.keras").read_bytes())
        way.proxy.reset()
        yield night


@contextlib.contextmanager
def own_clients() -> Iterator[None]:
    """In the body, the job in this process asks the stores by new clients, which are closed afterwards.

    They know nothing of what was copied before.
    """
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(objects, "_stores", {})
        patch.setattr(artifact, "_known", {})
        yield
        for store in objects._stores.values():
            client: Any = store._client
            client._client.close()


def kind(entry: Entry) -> str:
    """What a request does to which part of an output: ``PUT receipts``, ``POST uploads files`` …"""
    words = [entry.method]
    for word in ("uploads", "uploadId", "partNumber", "delete", "rewriteTo", "upload_id"):
        if re.search(rf"[?&/]{word}\b", entry.target):
            words.append(word)
    parts = entry.key.split("/")[2:]
    if parts[:1] == ["_staging"]:
        # The lease lies beside the run's own folder.
        parts = parts[2:] or parts[1:]
    where = parts[0] if parts else ""
    return " ".join([*words, "files" if where.endswith(".parquet") else where]).strip()


@contextlib.contextmanager
def held(
    night: StoreNight, fault: Fault, act: Callable[[], object]
) -> Iterator[tuple[threading.Thread, list[Any]]]:
    """Something in a thread of its own, whose request the proxy holds; afterwards it has come to its end.

    Yields the thread, and what comes out of it.
    """
    got: list[Any] = []

    def call() -> None:
        try:
            got.append(act())
        except JobError as e:
            got.append(e)

    night.way.proxy.set(faults=[fault])
    thread = threading.Thread(target=call)
    thread.start()
    try:
        until(lambda: night.way.proxy.counts().held)
        yield thread, got
    finally:
        night.way.proxy.reset()
        thread.join()


def until_held(night: StoreNight, thread: threading.Thread) -> bool:
    """Wait for the next request to be held; false if the thread has ended instead."""
    until(lambda: night.way.proxy.counts().held or not thread.is_alive())
    return thread.is_alive()


def until(condition: Callable[[], object], within_s: float = 30.0) -> None:
    """Wait for something that another process does."""
    give_up_s = time.monotonic() + within_s
    while not condition():
        assert time.monotonic() < give_up_s, "it did not happen"
        time.sleep(0.005)
