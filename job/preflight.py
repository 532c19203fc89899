"""What is checked before the first prediction: every shard against the model, all mismatches at once."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import pyarrow as pa

from job import planning
from job.binding import Binding, bind, mismatches
from job.columns import layout
from job.errors import SchemaError
from job.planning import Footer
from job.predictions import check_names, prediction_fields
from job.spec import ModelReference, ScoringSpec, Shard, Signature

_MOST_MISMATCHES = 20


@dataclass(frozen=True, eq=False)
class Ready:
    """What preflight found: how columns feed the model, and what its outputs are called."""

    binding: Binding
    predictions: tuple[pa.Field, ...]
    signature: str
    weights_digest: str


def check(
    spec: ScoringSpec,
    shards: Sequence[Shard],
    footers: Sequence[Footer],
    reference: ModelReference,
    threads: int,
) -> Ready:
    """Load the model and check every footer against it.

    Raises:
        ModelError: the model cannot be loaded or built.
        SchemaError: columns and inputs do not fit, in one message for all shards.
    """
    from job import model

    schemas = [
        planning.with_partitions(footer.schema, shard.partition)
        for shard, footer in zip(shards, footers, strict=True)
    ]
    loaded = model.acquire(reference, device=spec.device, threads=threads)
    try:
        binding = bind(
            schemas[0],
            loaded.signature,
            keys=(*spec.keys, *_unasked_folders(spec, shards[0], footers[0])),
            features=spec.features,
            casts=spec.casts,
        )
    except SchemaError as e:
        raise SchemaError(f"{e} | of the first of {len(shards)} shards, {shards[0].path}") from e
    _check_shards(schemas, shards, binding, spec.keys)
    loaded.build([feed.input for feed in binding.feeds])
    fields = prediction_fields(loaded.signature.outputs, spec.prediction_columns)
    check_names(fields, spec.keys)
    return Ready(binding, fields, describe(loaded.signature), loaded.weights_digest)


def describe(signature: Signature) -> str:
    """Return a signature as one line: ``x float32[10] → y float32[1]``."""
    sides = (signature.inputs, signature.outputs)
    return " → ".join(", ".join(f"{s.name} {s.dtype}{list(s.shape)}" for s in side) for side in sides)


def _check_shards(
    schemas: Sequence[pa.Schema], shards: Sequence[Shard], binding: Binding, keys: Sequence[str]
) -> None:
    known: list[tuple[pa.Schema, tuple[str, ...]]] = []
    wrong: dict[str, list[str]] = {}
    for schema, shard in zip(schemas, shards, strict=True):
        # Most shards have one of a few schemas; each is checked once.
        lines = next((lines for seen, lines in known if seen.equals(schema)), None)
        if lines is None:
            lines = (
                *mismatches(schema, binding, keys),
                *_key_types(schema, schemas[0], keys),
                *_cast_types(schema, schemas[0], binding),
            )
            known.append((schema, lines))
        for line in lines:
            wrong.setdefault(line, []).append(shard.path)
    if wrong:
        found = [
            f"{line} in {len(paths)} of {len(shards)} shards, first {paths[0]}"
            for line, paths in wrong.items()
        ]
        more = f"; and {len(found) - _MOST_MISMATCHES} more" if len(found) > _MOST_MISMATCHES else ""
        raise SchemaError("; ".join(found[:_MOST_MISMATCHES]) + more)


def _key_types(schema: pa.Schema, first: pa.Schema, keys: Sequence[str]) -> tuple[str, ...]:
    return tuple(
        f"key {key}: {schema.field(key).type}, but {first.field(key).type} in the first shard"
        for key in keys
        if key in schema.names and key in first.names and schema.field(key).type != first.field(key).type
    )


def _cast_types(schema: pa.Schema, first: pa.Schema, binding: Binding) -> tuple[str, ...]:
    """Say which cast columns hold values of another type than in the first shard, one line a column.

    What a cast makes of a value depends on the type: a timestamp in seconds and the same one in
    microseconds become different numbers. Dictionary encoding and the kind of list do not matter.
    """
    return tuple(
        f"column {name!r}, which --cast names: {schema.field(name).type}, but {first.field(name).type} in "
        f"the first shard, of which the cast would make other values; write all shards with one type"
        for name, _ in binding.casts
        if name in schema.names
        and layout(schema.field(name).type).leaf != layout(first.field(name).type).leaf
    )


def _unasked_folders(spec: ScoringSpec, shard: Shard, footer: Footer) -> tuple[str, ...]:
    """Return the Hive columns that must not feed the model merely because they can: nobody named them."""
    known = (*footer.schema.names, *spec.features, *spec.keys)
    return tuple(name for name, _ in shard.partition if name not in known)
