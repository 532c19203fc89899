"""The paths of a night, as ``job doctor`` looks at them from the launching machine."""

from __future__ import annotations

import os
import shutil
import uuid
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass

import pyarrow.parquet as pq

from job import storage
from job.commit import output, staging
from job.engines.checks import Check
from job.errors import StorageError
from job.launch import preparation
from job.model import artifact, builder
from job.shards import inputs
from job.spec import ModelReference, ScoringSpec, Shard
from job.storage import objects

# One prediction, and nothing for the keys' dictionaries: the least that a row takes.
_PREDICTION_BYTES = 4


@dataclass(frozen=True)
class Model:
    """A model's reference and size; a builder's is that of its weights."""

    reference: ModelReference
    size_bytes: int


def shards_told(shards: Sequence[Shard]) -> Check:
    """Say what was listed, and that the first footer can be read."""
    size = sum(shard.size_bytes for shard in shards)
    count = f"{len(shards):,} {'shard' if len(shards) == 1 else 'shards'}"
    return Check("input", True, f"{count}, {size:,} bytes; the first can be read")


def shards(spec: ScoringSpec) -> list[Shard]:
    """List the shards and read the first footer.

    Raises:
        JobError: one of the two fails.
    """
    found = inputs.list_shards(spec)
    (footer,) = inputs.read_footers(found[:1])
    if footer.error:
        raise StorageError(f"{found[0].path}: {footer.error}")
    return found


def model(spec: ScoringSpec) -> Model:
    """Read the model, without loading it.

    Raises:
        JobError: it is not there, or not trusted.
    """
    reference = preparation.resolved(spec)
    if not artifact.kind_of(spec.model).has_files:
        return Model(reference, builder.weights_bytes(spec.weights) if spec.weights else 0)
    return Model(reference, artifact.size_bytes(spec.model))


def model_told(found: Model) -> Check:
    """Say which model it is."""
    told = f"{found.reference.path}, {found.size_bytes:,} bytes, SHA-256 {found.reference.digest[:12]}…"
    return Check("model", True, told)


class PlaceForAnswers:
    """A new folder below staging: ``folder`` is its path. It is made by whoever writes there first."""

    def __init__(self, spec: ScoringSpec) -> None:
        self.folder = staging.folder_of(spec.output, f"doctor-{uuid.uuid4().hex[:12]}")
        self._top = None if storage.is_remote(self.folder) else _existing(storage.local(self.folder))

    def write(self, spec: ScoringSpec) -> str:
        """Write a file, read it, remove it; return what is published at the output.

        Raises:
            StorageError: one of them fails.
        """
        path, content = storage.join(self.folder, "launcher"), os.urandom(16)
        storage.make_folder(self.folder)
        storage.write_atomic(path, content, durable=False)
        if storage.read_bytes(path) != content:
            raise StorageError(f"{path}: what is read is not what was written; see what file system it is")
        storage.remove(path)
        held = output.published(spec.output)
        return str(held["run_id"]) if held else ""

    def remove(self) -> None:
        """Remove it, with the folders that were made for it."""
        # What cannot be written cannot be removed either; that is told already.
        with suppress(StorageError):
            storage.remove_tree(self.folder)
            if self._top is not None:
                storage.remove_empty_parents(self.folder, self._top)


def output_told(spec: ScoringSpec, held: str) -> Check:
    """Say that the output can be written, and what is there."""
    there = f"run {held[:12]} is published there" if held else "nothing is published there"
    return Check("output", True, f"{spec.output} can be written from here; {there}")


def disk(spec: ScoringSpec, shards: Sequence[Shard]) -> Check:
    """Compare the free space of a local output with the least that the predictions can take."""
    free = shutil.disk_usage(_existing(storage.local(spec.output))).free
    least = _least_bytes(spec, shards)
    told = f"{free:,} bytes are free at {spec.output}; the predictions take {least:,} or more"
    if free < least:
        return Check("disk", False, told, "make room, or choose another --output")
    return Check("disk", True, told)


def _least_bytes(spec: ScoringSpec, shards: Sequence[Shard]) -> int:
    """Estimate from the first shard: what its keys take there, and one number a row."""
    first = shards[0]
    with pq.ParquetFile(storage.footer_source(first.path, first.size_bytes, first.stamp)) as file:
        metadata = file.metadata
        keys = 0
        for i in range(metadata.num_row_groups):
            group = metadata.row_group(i)
            columns = [group.column(j) for j in range(metadata.num_columns)]
            keys += sum(
                column.total_compressed_size
                for column in columns
                if column.path_in_schema.partition(".")[0] in spec.keys
            )
        rows = metadata.num_rows
    share = sum(shard.size_bytes for shard in shards) / max(1, first.size_bytes)
    return int((rows * _PREDICTION_BYTES + keys) * share)


def temporary(path: str) -> str:
    """Look at a place for the engine's own files, and return what was found. Nothing is written there.

    Raises:
        JobError: it cannot be listed, or not be written.
    """
    if storage.is_remote(path):
        storage.is_folder(path)
        return f"{path} can be listed"
    top = _existing(storage.local(path))
    below = os.path.join(top, os.path.relpath(storage.local(path), top).partition("/")[0])
    if os.path.isfile(below):
        raise StorageError(f"{path}: {below} is no folder; choose another")
    if not os.access(top, os.W_OK | os.X_OK):
        raise StorageError(f"{path}: nothing can be written in {top}; choose another")
    return f"{path} can be written from here"


def _existing(path: str) -> str:
    """Return the nearest folder around a path that is there."""
    while not os.path.isdir(path) and path != os.path.dirname(path):
        path = os.path.dirname(path)
    return path


# As whom buckets are asked, and who said so. Never what proves it.

EXTRAS = {"s3": "s3", "gs": "gcs"}
_STORES = {"s3": "S3", "gs": "Cloud Storage"}
_HOW = {
    "s3": "set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, AWS_PROFILE, or give the machine a role",
    "gs": "set GOOGLE_APPLICATION_CREDENTIALS, run `gcloud auth application-default login`, or give the "
    "machine a service account",
}


def name(scheme: str) -> str:
    """Return what the check is called."""
    return f"{_STORES[scheme]} credentials"


def found(scheme: str) -> str:
    """Return what a store's client finds, empty where its requests are not signed.

    Raises:
        UsageError: the client is not installed.
        StorageError: what is configured for it cannot be used.
    """
    return objects.client(scheme).credentials()


def told(scheme: str, source: str) -> Check:
    """Say where the credentials come from; without any, public buckets can still be read."""
    if source:
        return Check(name(scheme), True, f"found: {source}")
    return Check(name(scheme), None, "none are found: only what everybody may do can be done", _HOW[scheme])
