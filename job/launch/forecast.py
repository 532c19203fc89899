"""``job plan``: what a night would be, with its shards, its splits, and the speed of a sample.

Nothing is written into the output. The sample is taken from the beginning, the middle and the end of the
night. It goes through the code that scores, into a temporary folder, so that bad rows show up too.
"""

from __future__ import annotations

import json
import resource
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, Any, Final

from job import environment
from job.commit import output, staging
from job.engines.engine import Fit, cores
from job.launch import identity, preparation
from job.model import loading
from job.shards import inputs, planner
from job.spec import Receipt, ScoringSpec, Split
from job.storage import objects
from job.terminal import console, progress

if TYPE_CHECKING:
    import pyarrow as pa
    from rich.table import Table

    from job.scoring.task import ScoringTask

# Of each part of the sample, as whole row groups.
SAMPLE_ROWS: Final = 100_000
# How many scoring threads the time is told for, beside this machine's own.
_WORKERS: Final = (1, 8, 64)


@dataclass(frozen=True)
class Outlook:
    """What is known of a night before it is scored.

    ``rows_per_s`` is the speed of one scoring thread once the model is loaded and a batch size is chosen, or
    ``None`` if the sample has no rows. ``memory_bytes`` is the peak of this process, which scores with one
    thread. ``held`` says in words what the output holds now.
    """

    run_id: str
    output: str
    held: str
    shards: int
    shard_bytes: int
    rows: int
    splits: int
    largest_split_rows: int
    refused_rows: int
    model: str
    model_sha256: str
    columns: tuple[str, ...]
    predictions: tuple[str, ...]
    batch_rows: int
    load_s: float
    sample_rows: int
    sample_rejected: int
    reasons: tuple[tuple[str, int], ...]
    rows_per_s: float | None
    memory_bytes: int
    cores: int

    def scoring_s(self, workers: int) -> float | None:
        """Return how long ``workers`` scoring threads take, each on its own core, in seconds.

        One split is scored by one thread, so the largest split sets the lower limit.
        """
        if self.rows_per_s is None:
            return None
        return max(self.rows / workers, self.largest_split_rows) / self.rows_per_s

    def to_json(self) -> str:
        """Return one line of JSON. ``scoring_s`` is for 1, 8 and 64 threads, and for this machine's cores."""
        counts = sorted({*_WORKERS, self.cores})
        seconds = {str(workers): self.scoring_s(workers) for workers in counts}
        return json.dumps({**asdict(self), "scoring_s": seconds}, allow_nan=False) + "\n"

    def table(self) -> Table:
        """Return a table of two columns for the screen."""
        return console.grid(dict(self.lines()))

    def lines(self) -> Iterator[tuple[str, str]]:
        """Yield the label and the value of every line of the table."""
        yield "rows", f"{self.rows:,} in {self.shards:,} shards, {self.shard_bytes / 1e6:,.1f} MB"
        yield "splits", f"{self.splits:,}, the largest of {self.largest_split_rows:,} rows"
        if self.refused_rows:
            yield "bad shards", f"{self.refused_rows:,} rows are to be rejected"
        yield "output", f"{self.output}: {self.held}"
        yield "model", f"{self.model}, SHA-256 {self.model_sha256}"
        yield "columns", f"{', '.join(self.columns)} → {', '.join(self.predictions)}"
        bad = ", ".join(f"{rows:,} {reason}" for reason, rows in self.reasons)
        yield "sample", f"{self.sample_rows:,} rows, {self.sample_rejected:,} rejected{bad and f': {bad}'}"
        if self.rows_per_s is not None:
            yield "speed", f"{self.rows_per_s:,.0f} rows/s by one thread, batches of {self.batch_rows:,}"
            told = [
                f"{progress.duration(self.scoring_s(workers) or 0.0)} by {workers}"
                for workers in sorted({*_WORKERS, self.cores})
            ]
            yield "scoring", f"{', '.join(told)} threads (this machine: {self.cores})"
            yield "loading", f"{self.load_s:.1f} s"
        yield "memory", f"{self.memory_bytes / 1e9:.2f} GB with one thread"
        yield "run", self.run_id


def look(spec: ScoringSpec, *, announce: Callable[[str], None]) -> Outlook:
    """Do what ``score`` does before the first split, without the lease and the plan; score a sample aside.

    Raises:
        JobError: what ``score`` would raise before it scores, or for rows of the sample.
    """
    objects.configure(spec.stores)
    spec = inputs.absolute(spec)
    shards = inputs.shards(spec, announce)
    models = identity.Models.of(spec, preparation.resolved)
    fit = Fit(threads=1, here=True)
    models = preparation.read(spec, models, fit) if models.built else models
    run_id = identity.run_id(spec, shards, models)
    held = output.published(spec.output)
    claim = preparation.Claim(spec, shards, models, run_id, "", environment.process_start_unix_s(), held)
    footers = inputs.read_footers(shards)
    task, splits = preparation.task_of(claim, footers, fit, announce)
    refused = {split.shard.path: split.refused for split in splits if split.refused}
    groups = [footer.group_rows for footer in footers]
    small = planner.plan(shards, groups, min(spec.split_rows, SAMPLE_ROWS), refused)
    receipts, rows_per_s = _sample(task, [split for split in small if split.rows and not split.refused])
    return Outlook(
        run_id=run_id,
        output=spec.output,
        held=_held(held, run_id),
        shards=len(shards),
        shard_bytes=sum(shard.size_bytes for shard in shards),
        rows=task.run.rows,
        splits=len(splits),
        largest_split_rows=max((split.rows for split in splits), default=0),
        refused_rows=sum(split.rows for split in splits if split.refused),
        model=models.champion.path,
        model_sha256=models.champion.digest,
        columns=task.binding.columns,
        predictions=tuple(field.name for field in (*task.predictions, *_of_challenger(task))),
        batch_rows=max((receipt.batch_rows for receipt in receipts), default=0),
        load_s=max((receipt.load_s for receipt in receipts), default=0.0),
        sample_rows=sum(receipt.rows_read for receipt in receipts),
        sample_rejected=sum(receipt.rows_rejected for receipt in receipts),
        reasons=_summed(receipts),
        rows_per_s=rows_per_s,
        memory_bytes=resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
        cores=cores(),
    )


def _of_challenger(task: ScoringTask) -> tuple[pa.Field, ...]:
    return task.challenger.predictions if task.challenger is not None else ()


def _held(done: Mapping[str, Any] | None, run_id: str) -> str:
    if done is None:
        return "no night yet"
    if done["run_id"] == run_id:
        return "this very run is published there: score would do nothing"
    return f"run {done['run_id'][:12]} is published there: --if_exists says what becomes of it"


def _sample(task: ScoringTask, splits: Sequence[Split]) -> tuple[list[Receipt], float | None]:
    """Score the first, the middle and the last split; return their receipts and the rows per second."""
    from job.scoring.split import score_split

    places = sorted({0, len(splits) // 2, len(splits) - 1}) if splits else []
    loaded = loading.acquire(task.run.model, device=task.device, threads=task.threads)
    rival = None
    if task.challenger is not None:
        rival = task.challenger.acquire(
            loaded, device=task.device, threads=task.threads, machine="", stores=task.run.stores
        )
    with tempfile.TemporaryDirectory(prefix="scoring-job-sample-") as folder:
        run = replace(task.run, output=folder, max_rejected=1.0)
        aside = replace(task, run=run, policy=replace(task.policy, most_rows=task.run.rows))
        some = [splits[place] for place in places]
        staging.write_plan(folder, run.run_id, some)
        # The first of them once more: a batch size is chosen and the step traced by then.
        receipts, spent_s, rows = [], 0.0, 0
        for number, split in enumerate([*some[:1], *some]):
            begin = time.perf_counter()
            receipt = score_split(split, aside, loaded, rival=rival)
            if number:
                receipts.append(receipt)
                rows += receipt.rows_read
                spent_s += time.perf_counter() - begin
    return receipts, rows / spent_s if rows else None


def _summed(receipts: Sequence[Receipt]) -> tuple[tuple[str, int], ...]:
    counts: dict[str, int] = {}
    for receipt in receipts:
        for reason, rows in receipt.reject_reasons:
            counts[reason] = counts.get(reason, 0) + rows
    return tuple(sorted(counts.items()))
