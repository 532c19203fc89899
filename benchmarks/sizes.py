"""``python -m benchmarks.sizes``: what one split adds to every file, to every list in memory, to every step.

A run is made up, of shards in an S3 bucket with names as Spark gives them; nothing is scored and no bucket is
asked. Each line tells what a split costs and what a million of them do, which docs/scale.md goes by.
"""

from __future__ import annotations

import argparse
import base64
import dataclasses
import functools
import gc
import json
import pickle
import resource
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from itertools import chain
from pathlib import Path
from typing import Any, Final, TypeVar

import numpy as np
import pyarrow as pa

from job.commit import manifest, reconciliation, staging
from job.gates import histograms
from job.gates.histograms import Counting
from job.report.run_report import RunReport
from job.shards import planner
from job.spec import ModelReference, Receipt, Run, Shard, Split
from job.storage.buckets import handle_of

T = TypeVar("T")

MILLION: Final = 1_000_000
_IN, _OUT = "s3://features-of-the-company/nightly", "s3://predictions-of-the-company/nightly/2026-11-24"
_RUN_ID = "5f" * 32


def main(argv: Sequence[str] | None = None) -> int:
    """Print the table."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.sizes", description="What a split adds.")
    parser.add_argument("--splits", type=int, default=20_000)
    count = parser.parse_args(argv).splits
    print(f"{'':<46}{'a split':>12}{'a million':>14}")
    shards = _memory("launcher: shards listed", count, lambda: [_shard(i) for i in range(count)])
    groups = _memory("launcher: row groups of footers", count, lambda: [_groups(i) for i in range(count)])
    splits = _memory("launcher: splits", count, lambda: planner.plan(shards, groups, 2_000_000))
    with tempfile.TemporaryDirectory() as folder:
        path = _timed("launcher: write the plan", count, lambda: staging.write_plan(folder, _RUN_ID, splits))
        _bytes("file: plan.jsonl", count, Path(path).stat().st_size)
        _timed("worker: read the whole plan", count, lambda: sum(1 for _ in staging.read_plan(path)))
    footers = {shard.path: [0, group, ""] for shard, group in zip(shards, groups, strict=True)}
    _bytes("file: footers.json", count, len(json.dumps(footers)))
    _bytes("shuffle: a split", count, sum(len(pickle.dumps(split)) for split in splits))
    receipts = [_receipt(split, i) for i, split in enumerate(splits)]
    told = [json.dumps(dataclasses.asdict(receipt)).encode() for receipt in receipts]
    _bytes("file: receipts, one a split", count, sum(map(len, told)))
    del told
    crossing = [pickle.dumps(receipt) for receipt in receipts]
    del receipts
    _bytes("shuffle: a receipt", count, sum(map(len, crossing)))
    gathered = _memory("publisher: receipts", count, lambda: [pickle.loads(one) for one in crossing])
    _publisher(_run(splits), gathered)
    return 0


def _publisher(run: Run, receipts: list[Receipt]) -> None:
    count = len(receipts)
    parts = _memory("publisher: files to move", count, lambda: list(chain(*map(staging.parts, receipts))))
    _timed("publisher: count the rows", count, lambda: reconciliation.reconcile(run, receipts))
    report = _timed("publisher: report", count, lambda: RunReport.of(run, receipts, ended_unix_s=2e9))
    _bytes("file: _report.json, 1,000 workers", count, len(report.to_json()))
    before = _peak_bytes()
    _timed("publisher: histograms", count, lambda: histograms.of(receipts))
    text = _timed("publisher: manifest with them", count, lambda: manifest.compose(run, receipts))
    _bytes("publisher: memory while it is written", count, _peak_bytes() - before)
    _bytes("file: _manifest.json", count, len(text))
    _bytes("file: publishing.json", count, len(json.dumps({"files": [part.final for part in parts]})))
    _timed("reader: parse the manifest", count, lambda: manifest.parse(text.encode(), "it"))


def _shard(number: int) -> Shard:
    day, hour = f"2026-11-{number % 30 + 1:02d}", f"{number % 24:02d}"
    name = f"part-{number:05d}-3f1c2d4e-8a7b-4c6d-9e0f-1a2b3c4d5e6f.c000.snappy.parquet"
    etag = f"{number:032x}"
    path = f"{_IN}/ds={day}/hour={hour}/{name}"
    return Shard(path, 100_000_000 + number, etag, (("ds", day), ("hour", hour)))


def _groups(number: int) -> tuple[int, ...]:
    return tuple(240_000 + number % 1000 + group for group in range(8))


def _receipt(split: Split, number: int) -> Receipt:
    # An upload's id and the ETag of its one part, both as long as S3's.
    upload = base64.b64encode(f"{number:096d}".encode()).decode()
    worker = f"worker-{number % 1000:04d}:{4000 + number % 100}"
    return Receipt(
        split=split,
        run_id=_RUN_ID,
        attempt=handle_of(f"{_OUT}/{split.name}.parquet", f"{upload},{number:032x}"),
        rows_read=split.rows,
        rows_scored=split.rows,
        rows_rejected=0,
        file_bytes=8_000_000 + number,
        file_sha256=f"{number:064x}",
        batch_rows=16_384,
        batches=123,
        read_s=1.2345678901234567 + number,
        bind_s=0.1234567890123456 + number,
        predict_s=12.345678901234567 + number,
        write_s=0.4567890123456789 + number,
        worker=worker,
        load=f"{worker}:1",
        load_s=1.2345678901234567,
        traces=1,
        first_batch_unix_s=1.79e9 + number,
        weights_digest="",
        boot_id=f"{number % 1000:08x}-8a7b-4c6d-9e0f-1a2b3c4d5e6f",
        histograms=(("prediction", _histogram(number % 10)),),
    )


@functools.cache
def _histogram(seed: int) -> str:
    """Of two million predictions of one column, as of a regression: both signs and 20 doublings."""
    counting = Counting([pa.field("prediction", pa.float32())])
    values = np.random.default_rng(seed).normal(size=2_000_000).astype(np.float32)
    counting.add(pa.table({"prediction": values}))
    return counting.packed()[0][1]


def _run(splits: Sequence[Split]) -> Run:
    model = ModelReference("s3://models-of-the-company/flights.keras", None, False, "d8" * 32)
    rows, count = sum(split.rows for split in splits), len(splits)
    return Run(_RUN_ID, _OUT, model, "x → y", count, count, rows, 0.01, False, 1.0, (("python", "3.11"),))


def _bytes(what: str, count: int, size_bytes: float) -> None:
    print(f"{what:<46}{size_bytes / count:>10,.0f} B{size_bytes / count * MILLION / 1e9:>11,.2f} GB")


def _timed(what: str, count: int, act: Callable[[], T]) -> T:
    begin = time.process_time()
    made = act()
    spent_s = time.process_time() - begin
    print(f"{what:<46}{spent_s / count * 1e6:>9,.1f} µs{spent_s / count * MILLION:>12,.0f} s")
    return made


def _memory(what: str, count: int, act: Callable[[], T]) -> T:
    gc.collect()
    before = _resident_bytes()
    made: Any = act()
    gc.collect()
    _bytes(what, count, _resident_bytes() - before)
    return made  # type: ignore[no-any-return]


def _resident_bytes() -> int:
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * resource.getpagesize()


def _peak_bytes() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


if __name__ == "__main__":
    sys.exit(main())
