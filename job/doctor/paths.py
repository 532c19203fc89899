"""Checks of a night's paths and of the credentials for its buckets, made from the launching machine."""

from __future__ import annotations

import os
import shutil
import uuid
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass

import pyarrow as pa
import pyarrow.parquet as pq

from job import storage
from job.binding.binding import closest
from job.binding.columns import nested_type
from job.commit import output, staging
from job.engines.engine import Check
from job.errors import SchemaError, StorageError
from job.launch import preparation
from job.model import artifact, builder
from job.shards import inputs, planner
from job.spec import ModelReference, ScoringSpec, Shard
from job.storage import objects

# The least that a row takes: one float32 prediction.
_PREDICTION_BYTES = 4


@dataclass(frozen=True)
class Model:
    """A model's reference and its size; for a builder the size of its weights."""

    reference: ModelReference
    size_bytes: int


def shards_check(shards: Sequence[Shard]) -> Check:
    """Return the check of an input whose first footer was read."""
    size = sum(shard.size_bytes for shard in shards)
    count = f"{len(shards):,} {'shard' if len(shards) == 1 else 'shards'}"
    return Check("input", True, f"{count}, {size:,} bytes; the first can be read")


def shards(spec: ScoringSpec) -> list[Shard]:
    """List the shards and read the first footer.

    Raises:
        JobError: there are none, or the footer cannot be read, or a flag names a column that it lacks.
    """
    found = inputs.list_shards(spec)
    (footer,) = inputs.read_footers(found[:1])
    if footer.error:
        raise StorageError(f"{found[0].path}: {footer.error}")
    # Where bad shards are to be rejected, this one may be one of them.
    if spec.on_bad_shard == "fail":
        _check_named(spec, found[0].path, planner.with_partitions(footer.schema, found[0].partition))
    return found


def _check_named(spec: ScoringSpec, path: str, schema: pa.Schema) -> None:
    """Refuse flags that name a column which a shard lacks: every shard must have it."""
    for flag in ("keys", "features", "challenger_features"):
        for name in getattr(spec, flag):
            if name not in schema.names and nested_type(schema, name) is None:
                raise SchemaError(
                    f"--{flag} names {name!r}, which is no column of {path}{closest(name, schema.names)}; "
                    f"correct it"
                )


def model(spec: ScoringSpec) -> Model:
    """Read the model's files, without loading the model.

    Raises:
        JobError: it does not exist, or is not trusted.
    """
    reference = preparation.resolved(spec)
    if not artifact.kind_of(spec.model).has_files:
        return Model(reference, builder.weights_bytes(spec.weights) if spec.weights else 0)
    return Model(reference, artifact.size_bytes(spec.model))


def model_check(found: Model) -> Check:
    """Return the check of a model that was read."""
    told = f"{found.reference.path}, {found.size_bytes:,} bytes, SHA-256 {found.reference.digest[:12]}…"
    return Check("model", True, told)


class AnswerFolder:
    """A new folder below staging, for the workers' answers: ``folder`` is its path.

    It does not exist until somebody writes a file there.
    """

    def __init__(self, spec: ScoringSpec) -> None:
        self.folder = staging.folder_of(spec.output, f"doctor-{uuid.uuid4().hex[:12]}")
        self._top = None if storage.is_remote(self.folder) else _existing(storage.local(self.folder))

    def write(self, spec: ScoringSpec) -> str:
        """Write a file there, read and remove it; return the id of the run that is published at the output.

        Raises:
            StorageError: one of these fails.
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
        # Where nothing can be written nothing can be removed; the check of the output says so already.
        with suppress(StorageError):
            storage.remove_tree(self.folder)
            if self._top is not None:
                storage.remove_empty_parents(self.folder, self._top)


def output_check(spec: ScoringSpec, held: str) -> Check:
    """Return the check of an output that can be written, at which run ``held`` is published, or none."""
    there = f"run {held[:12]} is published there" if held else "nothing is published there"
    return Check("output", True, f"{spec.output} can be written from here; {there}")


def disk(spec: ScoringSpec, shards: Sequence[Shard]) -> Check:
    """Return the check whether a local output has room for the least that the predictions can take."""
    free = shutil.disk_usage(_existing(storage.local(spec.output))).free
    least = _least_bytes(spec, shards)
    told = f"{free:,} bytes are free at {spec.output}; the predictions take {least:,} or more"
    if free < least:
        return Check("disk", False, told, "make room, or choose another --output")
    return Check("disk", True, told)


def _least_bytes(spec: ScoringSpec, shards: Sequence[Shard]) -> int:
    """Estimate the least size of the predictions from the first shard: its keys, and one number a row."""
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
    """Check a folder for the engine's own files without writing there; return what was found.

    Raises:
        JobError: it cannot be listed or written.
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
    """Return the nearest folder above a path that exists."""
    while not os.path.isdir(path) and path != os.path.dirname(path):
        path = os.path.dirname(path)
    return path


# The credentials that buckets are read with: where they come from, never they themselves.

EXTRAS = {"s3": "s3", "gs": "gcs"}
_STORES = {"s3": "S3", "gs": "Cloud Storage"}
_HOW = {
    "s3": "set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, AWS_PROFILE, or give the machine a role",
    "gs": "set GOOGLE_APPLICATION_CREDENTIALS, run `gcloud auth application-default login`, or give the "
    "machine a service account",
}


def credentials_name(scheme: str) -> str:
    """Return the name of the check of a store's credentials."""
    return f"{_STORES[scheme]} credentials"


def credentials(scheme: str) -> str:
    """Return where a store's client found credentials; empty if its requests are not signed.

    Raises:
        UsageError: the client is not installed.
        StorageError: its configuration cannot be used.
    """
    return objects.client(scheme).credentials()


def credentials_check(scheme: str, source: str) -> Check:
    """Return the check of a store's credentials; without any, public buckets can still be read."""
    if source:
        return Check(credentials_name(scheme), True, f"found: {source}")
    return Check(
        credentials_name(scheme), None, "none are found: only what everybody may do can be done", _HOW[scheme]
    )
