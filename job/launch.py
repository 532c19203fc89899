"""From a validated spec to a published night: what happens on the launching machine.

List the shards, digest the model, name the run. If that run is published already, stop there: neither
Keras nor Beam has been imported. Else load the model, read every footer, bind, plan, run the pipeline.
"""

from __future__ import annotations

import os
import platform
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, replace
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING

import pyarrow as pa

from job import (
    artifact,
    commit,
    engines,
    listing,
    output,
    planning,
    preflight,
    progress,
    quiet,
    staging,
    storage,
)
from job.errors import EngineError, JobError, StateUnknownError, StorageError, UsageError
from job.report import RunReport
from job.spec import ModelReference, Run, ScoringSpec, Shard, Split

if TYPE_CHECKING:
    from job.scoring import ScoringTask

_FOOTER_THREADS = 16
_PACKAGES = ("scoring-job", "apache-beam", "keras", "tensorflow", "pyarrow", "numpy")


@dataclass(frozen=True)
class Outcome:
    """What ``score`` ends with; ``already_published`` when the same run was there before."""

    report: RunReport
    already_published: bool


def score(spec: ScoringSpec, beam_args: Sequence[str], *, announce: Callable[[str], None]) -> Outcome:
    """Score a night and publish it.

    Args:
        spec: what to score with what, and where to.
        beam_args: flags for Beam, untouched.
        announce: told, in one line each, what a person may want to know while waiting.

    Raises:
        JobError: with the exit code that fits.
    """
    spec = _absolute(spec)
    shards = list_shards(spec)
    reference = artifact.resolve(spec.model, spec.weights, trusted=spec.trust_model, sha256=spec.model_sha256)
    run_id = commit.run_id(shards, reference.digest, _options_that_shape_output(spec))
    if (done := _done_before(spec, run_id)) is not None:
        return done
    _make_output(spec.output)
    with output.lease(spec.output):
        # Once more: another run may have ended between the look above and the lease.
        if (done := _done_before(spec, run_id)) is not None:
            return done
        output.check_output(spec.output, run_id, replace=spec.if_exists == "replace")
        for other in output.leftovers(spec.output, run_id):
            folder = storage.join(spec.output, staging.STAGING, other)
            announce(f"{folder}: left by another run; --if_exists=replace removes it")
        return _run(spec, beam_args, shards, reference, run_id, announce)


def _done_before(spec: ScoringSpec, run_id: str) -> Outcome | None:
    """Return the outcome of this run if it is published already, and whole."""
    done = output.published(spec.output)
    if done is None or done["run_id"] != run_id:
        return None
    if wrong := output.damaged(spec.output, done):
        if spec.if_exists == "replace":
            # Without it the night counts as unfinished, and is scored anew.
            storage.remove(storage.join(spec.output, output.SUCCESS))
            return None
        raise StateUnknownError(
            f"{spec.output}: this run is published, but {len(wrong)} of its files are gone or changed, first "
            f"{wrong[0]}; find out why, or score it anew with --if_exists=replace"
        )
    output.remove_staging(spec.output, run_id)
    report = storage.read_bytes(storage.join(spec.output, output.REPORT_JSON)) or b""
    return Outcome(RunReport.from_json(report.decode()), already_published=True)


def _make_output(path: str) -> None:
    try:
        storage.make_folder(path)
    except StorageError as e:
        raise UsageError(f"--output={e}; choose another") from e


def list_shards(spec: ScoringSpec) -> list[Shard]:
    """Return the shards that the inputs name, each once, sorted by path.

    A file that several paths lead to is one shard: by its own path, or by the first of those through links.

    Raises:
        NoInputError: an input matches nothing.
        UsageError: the output lies in an input folder, so that tomorrow's input would hold tonight's output.
    """
    listed = [info for pattern in spec.inputs for info in listing.listing(pattern)]
    real = {info.path: os.path.realpath(info.path) for info in listed}
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
    return [planning.shard_of(info) for info in sorted(found.values(), key=lambda info: info.path)]


def _run(
    spec: ScoringSpec,
    beam_args: Sequence[str],
    shards: list[Shard],
    reference: ModelReference,
    run_id: str,
    announce: Callable[[str], None],
) -> Outcome:
    footers = read_footers(shards)
    with quiet.imports():
        import apache_beam as beam

        from job.pipeline import ScoreParquet

    options = engines.beam_options(beam_args)
    task, splits = _prepare(spec, shards, footers, reference, run_id, engines.tensorflow_threads(options))
    staging.clear_failures(spec.output, run_id)
    plan = staging.write_plan(spec.output, run_id, splits)
    finished = staging.finished(spec.output, run_id)
    if finished:
        announce(f"resuming run {run_id[:12]}: {len(finished)} of {len(splits)} splits have their receipt")
    reused_rows = sum(split.rows for split in splits if split.name in finished)
    with progress.shown(task.run.rows, reused_rows):
        pipeline = beam.Pipeline(options=options)
        pipeline | "Score Parquet" >> ScoreParquet(plan, task)
        _wait(pipeline, task.run)
    report = storage.read_bytes(storage.join(spec.output, output.REPORT_JSON)) or b""
    return Outcome(RunReport.from_json(report.decode()), already_published=False)


def _prepare(
    spec: ScoringSpec,
    shards: list[Shard],
    footers: list[planning.Footer],
    reference: ModelReference,
    run_id: str,
    threads: int,
) -> tuple[ScoringTask, tuple[Split, ...]]:
    from job.rejects import RowPolicy
    from job.scoring import ScoringTask

    ready = preflight.check(spec, shards, footers, reference, threads)
    splits = planning.plan(shards, [footer.group_rows for footer in footers], spec.split_rows)
    run = Run(
        run_id=run_id,
        output=spec.output,
        model=reference,
        signature=ready.signature,
        shards=len(shards),
        splits=len(splits),
        rows=sum(split.rows for split in splits),
        max_rejected=spec.max_rejected,
        replace=spec.if_exists == "replace",
        started_unix_s=_process_start_unix_s(),
        versions=_versions(),
    )
    task = ScoringTask(
        run=run,
        binding=ready.binding,
        keys=spec.keys,
        predictions=ready.predictions,
        policy=RowPolicy(spec.on_bad_row, spec.on_null, int(spec.max_rejected * run.rows)),
        batch_rows=spec.batch_size or 0,
        row_group_rows=spec.row_group_rows,
        compression=spec.compression,
        device=spec.device,
        threads=threads,
        weights_digest=ready.weights_digest,
    )
    return task, splits


def read_footers(shards: Sequence[Shard]) -> list[planning.Footer]:
    """Read every footer, several at a time.

    Raises:
        ShardError: a shard is no readable Parquet.
    """
    known: list[pa.Schema] = []
    footers = []
    with ThreadPoolExecutor(_FOOTER_THREADS, thread_name_prefix="footer") as pool:
        for footer in pool.map(planning.read_footer, shards):
            # Shards by the thousand share a few schemas; one object for each keeps them small. Their
            # metadata is of no use here, and all differ in it: pandas writes the number of rows there.
            schema = next((schema for schema in known if schema.equals(footer.schema)), None)
            if schema is None:
                schema = footer.schema.remove_metadata()
                known.append(schema)
            footers.append(replace(footer, schema=schema))
    return footers


def _wait(pipeline: object, run: Run) -> None:
    try:
        with quiet.engine():
            result = pipeline.run()  # type: ignore[attr-defined]
            state = result.wait_until_finish()
    except JobError:
        raise
    except Exception as e:
        # A worker's own error, where it left one, says more than what the engine made of it.
        raise (staging.failure(run.output, run.run_id) or e) from e
    if state not in (None, "DONE"):
        left = staging.failure(run.output, run.run_id)
        raise left or EngineError(f"the engine ended the job as {state}; look at its log, then run again")


def _absolute(spec: ScoringSpec) -> ScoringSpec:
    """Return the spec with absolute paths: workers stand elsewhere, and run ids must not depend on where."""
    inputs = tuple(
        f"@{os.path.abspath(storage.local(i[1:]))}"
        if i.startswith("@")
        else os.path.abspath(storage.local(i))
        for i in spec.inputs
    )
    is_builder = artifact.kind_of(spec.model) == "builder"
    return replace(
        spec,
        inputs=inputs,
        model=spec.model if is_builder else os.path.abspath(storage.local(spec.model)),
        weights=spec.weights and os.path.abspath(storage.local(spec.weights)),
        output=os.path.abspath(storage.local(spec.output)),
    )


def _options_that_shape_output(spec: ScoringSpec) -> dict[str, object]:
    return {
        name: getattr(spec, name)
        for name in (
            *("keys", "features", "casts", "prediction_columns", "batch_size", "split_rows"),
            *("compression", "row_group_rows", "device", "on_bad_row", "on_null"),
        )
    }


def _versions() -> tuple[tuple[str, str], ...]:
    found = [("python", platform.python_version())]
    for package in _PACKAGES:
        with suppress(PackageNotFoundError):
            found.append((package, version(package)))
    return tuple(found)


def _process_start_unix_s() -> float:
    """Return when this process began, so that the report's times include start-up."""
    try:
        # Field 22 of proc_pid_stat(5): clock ticks from boot to the start of the process.
        ticks = int(Path("/proc/self/stat").read_text().rpartition(")")[2].split()[19])
        uptime_s = float(Path("/proc/uptime").read_text().split()[0])
        return time.time() - (uptime_s - ticks / os.sysconf("SC_CLK_TCK"))
    except (OSError, ValueError, IndexError):
        return time.time() - time.process_time()
