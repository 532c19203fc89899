"""``python -m benchmarks.stores``: a night from bucket to bucket against the same night on local files.

The stores are the tests' servers on loopback, behind a proxy that adds 20 ms to each request. Server, proxy
and job share the machine's cores, which a real store would not. Sides take turns; a finding is a median.

Shards to be planned are spread over buckets: the server behind ``gs://`` looks through a whole bucket for
each object, which would be most of what is measured.
"""

from __future__ import annotations

import argparse
import io
import os
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from statistics import median
from typing import Final

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from benchmarks.cases import ROWS, Bench
from benchmarks.data import first
from benchmarks.measure import process, python
from job import storage
from job.shards import inputs, planner
from job.spec import ScoringSpec
from job.storage import objects
from tests.support.servers import stores
from tests.support.servers.proxy import Proxy, proxy

DELAY_S: Final = 0.02
LIMIT: Final = 1.3
PLAN_S: Final = 20.0
_BUCKETS: Final = 20


def main(argv: Sequence[str] | None = None) -> int:
    """Measure both stores; 1 where a limit was not kept."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.stores", description=__doc__)
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--shards", type=int, default=10_000, help="to be listed and planned on gs://")
    parser.add_argument("--root", type=Path, default=Path("data/bench"))
    asked = parser.parse_args(argv)
    bench = Bench(asked.root.resolve(), asked.runs, 1.0, lambda *_: None)
    shards, model = first(bench.data(ROWS), 8), bench.model("sequential")
    kept = True
    for scheme in ("gs", "s3"):
        with _store(scheme) as way:
            way.set(delay_s=DELAY_S)
            kept &= _night(scheme, shards, model, asked.runs, asked.root.resolve())
            if scheme == "gs":
                kept &= _plan(asked.shards, way)
    return 0 if kept else 1


@contextmanager
def _store(scheme: str) -> Iterator[Proxy]:
    """A store behind a proxy, as this process and those that it starts find it."""
    before = dict(os.environ)
    server = stores.gcs_server() if scheme == "gs" else stores.s3_server()
    with server as endpoint, proxy(endpoint) as way:
        own = (None, way.endpoint) if scheme == "gs" else (way.endpoint, None)
        os.environ.update(stores.environment(*own))
        objects.forget()
        for name in ("bench", *(f"bench-{number}" for number in range(_BUCKETS))):
            _make_bucket(scheme, name)
        yield way
    os.environ.clear()
    os.environ.update(before)


def _make_bucket(scheme: str, name: str) -> None:
    if scheme == "gs":
        from google.cloud import storage as cloud

        cloud.Client().bucket(name).create()
    else:
        import boto3

        boto3.client("s3").create_bucket(Bucket=name)


def _night(scheme: str, shards: Path, model: Path, runs: int, root: Path) -> bool:
    top = f"{scheme}://bench"
    for source in (model, *sorted(shards.glob("*.parquet"))):
        sink = storage.create(f"{top}/{'in/' if source != model else ''}{source.name}")
        sink.write(source.read_bytes())
        sink.seal()
    walls: dict[str, list[float]] = {"local": [], scheme: []}
    for run in range(runs):
        for side, (data, weights, output) in {
            "local": (str(shards), str(model), f"{root}/out/stores-{scheme}-{run}-{os.getpid()}"),
            scheme: (f"{top}/in", f"{top}/{model.name}", f"{top}/out-{run}"),
        }.items():
            flags = ("--input", data, "--model", weights, "--output", output)
            walls[side].append(process(python("-m", "job", "score", *flags)).wall_s)
    ratio = median(walls[scheme]) / median(walls["local"])
    told = ", ".join(f"{side} {median(of):.2f} s" for side, of in walls.items())
    print(f"{scheme}: 4 million rows, {DELAY_S * 1000:.0f} ms a request: {ratio:.2f} ({told}; limit {LIMIT})")
    return ratio <= LIMIT


def _plan(count: int, way: Proxy) -> bool:
    content = io.BytesIO()
    pq.write_table(pa.table({f"f{i}": np.zeros(50, np.float32) for i in range(10)}), content)
    shard = content.getvalue()
    tops = [f"gs://bench-{number}" for number in range(_BUCKETS)]
    paths = [f"{tops[number % _BUCKETS]}/{number:06d}.parquet" for number in range(count)]
    way.set(delay_s=0.0)
    storage.parallel(lambda path: storage.write_atomic(path, shard), paths, name="fill")
    way.set(delay_s=DELAY_S)
    begin = time.perf_counter()
    shards = inputs.list_shards(ScoringSpec(tuple(tops), "m", "/tmp"))
    groups = [footer.group_rows for footer in inputs.read_footers(shards)]
    splits = planner.plan(shards, groups, 2_000_000)
    took_s = time.perf_counter() - begin
    print(f"gs: {len(splits):,} shards listed and planned in {took_s:.1f} s (limit {PLAN_S:.0f} s)")
    return took_s <= PLAN_S


if __name__ == "__main__":
    sys.exit(main())
