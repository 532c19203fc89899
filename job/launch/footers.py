"""Footers of many shards, read by the engine's workers.

::

    shards.jsonl ▶ Read the shards       str     → [Shard]   a hundred at a time
                 ▶ Spread the shards     [Shard] → [Shard]   a shuffle
                 ▶ Read the footers      [Shard] → dict      several at a time, on a worker
                 ▶ Gather ▶ Write        [dict]  → str       a shuffle; footers.json, for the launcher

Workers are many and near the data, and the launcher may be a laptop far away. But a pipeline takes seconds to
minutes to start. So the launcher reads the footers itself if there are fewer than ``inputs.ON_WORKERS``
shards. It reads those of 20,000 local ones in 4 s.
"""

from __future__ import annotations

import base64
import dataclasses
import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Final

import apache_beam as beam
import pyarrow as pa
from apache_beam.options.pipeline_options import PipelineOptions

from job import storage
from job.commit import staging
from job.engines import choice
from job.errors import JobError, StateUnknownError
from job.shards import inputs, planner
from job.shards.planner import Footer
from job.spec import Shard, StoreOptions
from job.storage import objects

_SHARDS_AT_ONCE: Final = 100
_AS_CONFIGURED: Final = StoreOptions()
_LIST, _FOOTERS = "shards.jsonl", "footers.json"


def read_on_workers(
    shards: Sequence[Shard],
    output: str,
    run_id: str,
    options: PipelineOptions,
    stores: StoreOptions = _AS_CONFIGURED,
) -> list[Footer]:
    """Read every footer on the engine's workers. A footer that cannot be read has an ``error``.

    The shards go to the workers, and the footers come back, through files in the run's staging.

    Raises:
        ShardChangedError: a shard is gone.
        StateUnknownError: the engine ended without an answer.
    """
    folder = staging.folder_of(output, run_id)
    storage.make_folder(folder)
    listed, answer = storage.join(folder, _LIST), storage.join(folder, _FOOTERS)
    lines = [json.dumps(dataclasses.asdict(shard)) for shard in shards]
    storage.write_atomic(listed, "\n".join([*lines, ""]).encode())
    storage.remove(answer)
    pipeline = beam.Pipeline(runner=choice.engine(options).runner(), options=options)
    _ = (
        pipeline
        | "Name the list" >> beam.Create([listed], reshuffle=False)
        | "Read the shards" >> beam.FlatMap(read_list)
        | "Spread the shards" >> beam.Reshuffle()
        | "Read the footers" >> beam.Map(FootersOf(output, run_id, stores))
        | "Gather" >> beam.WithKeys(0)
        | "Gather all footers" >> beam.GroupByKey()
        | "Write" >> beam.MapTuple(Write(answer))
    )
    pipeline.run().wait_until_finish()
    content = storage.read_bytes(answer)
    if content is None:
        raise StateUnknownError(f"{answer}: the engine ended without having written it; run again")
    return _decoded(json.loads(content), shards)


def read_list(path: str) -> Iterator[list[Shard]]:
    """Yield the shards of the list at a path, a hundred at a time."""
    lines = (storage.read_bytes(path) or b"").splitlines()
    for start in range(0, len(lines), _SHARDS_AT_ONCE):
        yield [staging.shard_of(json.loads(line)) for line in lines[start : start + _SHARDS_AT_ONCE]]


@dataclass(frozen=True)
class FootersOf:
    """Reads the footers of some shards: ``[Shard]`` → one dict for JSON, with each schema once."""

    output: str
    run_id: str
    stores: StoreOptions

    def __call__(self, shards: list[Shard]) -> dict[str, Any]:
        """Return ``schemas`` in base64, and for each path the number of its schema and its row groups."""
        objects.configure(self.stores)
        try:
            footers = inputs.read_footers(shards)
        except JobError as e:
            staging.write_failure(self.output, self.run_id, "", e, planned=False)
            raise
        schemas: list[pa.Schema] = []
        found = {}
        for shard, footer in zip(shards, footers, strict=True):
            number = next((i for i, schema in enumerate(schemas) if schema is footer.schema), len(schemas))
            if number == len(schemas):
                schemas.append(footer.schema)
            int96 = _encoded(pa.schema(footer.int96)) if footer.int96 else ""
            found[shard.path] = [number, footer.group_rows, footer.error, footer.index_columns, int96]
        return {"schemas": [_encoded(schema) for schema in schemas], "footers": found}


@dataclass(frozen=True)
class Write:
    """Writes the footers that all workers read to the file in which the launcher looks for them."""

    path: str

    def __call__(self, _: int, answers: Iterable[dict[str, Any]]) -> str:
        """Write the file and return its path."""
        storage.write_atomic(self.path, json.dumps(list(answers)).encode(), durable=False)
        return self.path


def _decoded(answers: list[dict[str, Any]], shards: Sequence[Shard]) -> list[Footer]:
    known: dict[str, pa.Schema] = {}
    found = {}
    for answer in answers:
        for path, (number, group_rows, error, index, int96) in answer["footers"].items():
            text = answer["schemas"][number]
            if text not in known:
                known[text] = _schema(text)
            fields = tuple(_schema(int96)) if int96 else ()
            found[path] = planner.Footer(known[text], tuple(group_rows), error, tuple(index), fields)
    return [found[shard.path] for shard in shards]


def _encoded(schema: pa.Schema) -> str:
    return base64.b64encode(schema.serialize()).decode()


def _schema(text: str) -> pa.Schema:
    return pa.ipc.read_schema(pa.py_buffer(base64.b64decode(text)))
