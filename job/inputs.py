"""The shards that a spec names, and their footers."""

from __future__ import annotations

import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from dataclasses import replace

import pyarrow as pa

from job import artifact, challenger_flags, choosing, listing, planning, storage
from job.errors import ShardChangedError, ShardError, UsageError
from job.spec import ScoringSpec, Shard

# A footer that is far away is one request.
_FOOTER_THREADS = 32
# So many footers are read by the engine's workers, where it has some: see ``job.footers``.
ON_WORKERS = 2000


def absolute(spec: ScoringSpec) -> ScoringSpec:
    """Return the spec with absolute paths: workers stand elsewhere, and run ids must not depend on where.

    Its model is the one that was chosen, see ``job.choosing``.
    """
    with challenger_flags.told(spec):
        challenger = spec.challenger and _model(spec.challenger)
    inputs = tuple(
        f"@{storage.absolute(i[1:])}" if i.startswith("@") else storage.absolute(i) for i in spec.inputs
    )
    return replace(
        spec,
        inputs=inputs,
        model=_model(spec.model),
        weights=spec.weights and storage.absolute(spec.weights),
        golden=spec.golden and storage.absolute(spec.golden),
        challenger=challenger,
        challenger_weights=spec.challenger_weights and storage.absolute(spec.challenger_weights),
        output=storage.absolute(spec.output),
        output_template=spec.output_template and storage.absolute(spec.output_template),
    )


def _model(model: str) -> str:
    if choosing.stands_for_another(model):
        return choosing.chosen(storage.absolute(model))
    is_builder = not storage.is_remote(model) and artifact.kind_of(model) == "builder"
    return model if is_builder else storage.absolute(model)


def model_files(spec: ScoringSpec) -> list[str]:
    """Return the paths of the models' own files: a builder comes with its package."""
    models = [path for path in (spec.model, spec.challenger) if path]
    files = [path for path in models if storage.is_remote(path) or artifact.kind_of(path) != "builder"]
    return [*files, *(path for path in (spec.weights, spec.challenger_weights) if path)]


def list_shards(spec: ScoringSpec) -> list[Shard]:
    """Return the shards that the inputs name, each once, sorted by path.

    A file that several paths lead to is one shard: by its own path, or by the first of those through links.

    Raises:
        NoInputError: an input matches nothing.
        UsageError: the output lies in an input folder, so that tomorrow's input would hold tonight's output.
    """
    listed = _listed(spec)
    real = {
        info.path: info.path if storage.is_remote(info.path) else os.path.realpath(info.path)
        for info in listed
    }
    best_last = sorted(listed, key=lambda info: (info.path != real[info.path], info.path), reverse=True)
    inside = f"{spec.output}/"
    for info in listed:
        # A file that was named by itself or by a glob stands for no folder.
        below = info.root and inside.startswith(f"{info.root.rstrip('/')}/")
        if info.path.startswith(inside) or below:
            raise UsageError(
                f"--output={spec.output}: it and the input {info.root or info.path} lie within each other, "
                f"so predictions would be read as features; choose a folder beside the input"
            )
    found = {real[info.path]: info for info in best_last}
    for info in listed:
        kept, left_out = planning.hive_folders(found[real[info.path]].path), planning.hive_folders(info.path)
        if left_out and left_out != kept:
            raise UsageError(
                f"--input: {info.path} and {found[real[info.path]].path} are one file in two Hive folders; "
                f"take one of them out of the input"
            )
    return [planning.shard_of(info) for info in sorted(found.values(), key=lambda info: info.path)]


def folders(spec: ScoringSpec) -> list[str]:
    """Return the folders that the inputs name, sorted; of a file that is named by itself, the one it lies in.

    Raises:
        NoInputError: an input matches nothing.
    """
    return sorted({info.root or storage.parent(info.path) for info in _listed(spec)})


def _listed(spec: ScoringSpec) -> list[storage.FileInfo]:
    return [info for pattern in spec.inputs for info in listing.listing(pattern)]


def read_footers(shards: Sequence[Shard]) -> list[planning.Footer]:
    """Read every footer, several at a time; one that cannot be read tells so in its ``error``.

    Raises:
        ShardChangedError: a shard is gone.
    """
    known: list[pa.Schema] = []
    footers = []
    # Threads take longer to start than the only footer to be read.
    threads = (
        ThreadPoolExecutor(_FOOTER_THREADS, thread_name_prefix="footer") if shards[1:] else nullcontext()
    )
    with threads as pool:
        for footer in pool.map(_footer, shards) if pool else map(_footer, shards):
            # Shards by the thousand share a few schemas; one object for each keeps them small. Their
            # metadata is of no use here, and all differ in it: pandas writes the number of rows there.
            schema = next((schema for schema in known if schema.equals(footer.schema)), None)
            if schema is None:
                schema = footer.schema.remove_metadata()
                known.append(schema)
            footers.append(replace(footer, schema=schema))
    return footers


def _footer(shard: Shard) -> planning.Footer:
    try:
        return planning.read_footer(shard)
    except ShardChangedError:
        raise
    except ShardError as e:
        # Without the path, so that shards with one and the same fault are told in one line.
        return planning.Footer(pa.schema([]), (), str(e).removeprefix(f"{shard.path}: "))
