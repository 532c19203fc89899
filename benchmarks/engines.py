"""``python -m benchmarks.engines``: 4 million rows on each engine that this machine has, in turns.

A whole command in a process of its own, start-up included, and what is left past the first batch; medians.
The services, clusters and pools that an engine needs stand all the time, with two workers where it can have
them. Every engine's predictions are compared with those of the embedded engine.
"""

from __future__ import annotations

import argparse
import shutil
import sys
import tempfile
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from statistics import median
from typing import Final

from benchmarks.cases import ROWS, Bench, first_batch_s
from benchmarks.compare import equal_outputs
from benchmarks.data import first
from benchmarks.measure import process, python
from tests.support.dask_cluster import dask_cluster
from tests.support.servers import prism
from tests.support.worker_pool import service

EMBEDDED: Final = "embedded, threads"
_SHARDS: Final = 8
_FLAGS: Final = ("--batch_size=16384", "--split_rows=250000")


def main(argv: Sequence[str] | None = None) -> int:
    """Measure, compare and print."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.engines", description=__doc__)
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--root", type=Path, default=Path("data/bench"))
    asked = parser.parse_args(argv)
    root = asked.root.resolve()
    bench = Bench(root, asked.runs, 1.0, lambda *_: None)
    given = [
        "--input",
        str(first(bench.data(ROWS), _SHARDS)),
        "--model",
        str(bench.model("sequential")),
        *_FLAGS,
    ]
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(dir=root)))
        sides = _sides(stack, folder)
        outputs = {side: folder / f"out-{number}" for number, side in enumerate(sides)}
        taken: dict[str, list[tuple[float, float]]] = {side: [] for side in sides}
        for _ in range(asked.runs):
            for side, flags in sides.items():
                shutil.rmtree(outputs[side], ignore_errors=True)
                wall_s = process(
                    python("-m", "job", "score", *given, "--output", str(outputs[side]), *flags)
                ).wall_s
                taken[side].append((wall_s, wall_s - first_batch_s(outputs[side])))
        for side, found in taken.items():
            equal_outputs(outputs[EMBEDDED], outputs[side])
            whole_s, steady_s = (median(times) for times in zip(*found, strict=True))
            rows = _SHARDS * ROWS.shard_rows
            print(
                f"{side:24} {whole_s:6.2f} s, {steady_s:6.2f} s past the first batch: "
                f"{rows / whole_s / 1e6:5.2f} and {rows / steady_s / 1e6:5.2f} million rows/s"
            )
    return 0


def _sides(stack: ExitStack, folder: Path) -> Mapping[str, Sequence[str]]:
    """Start what the engines need, and return the flags that lead to them."""
    cluster = stack.enter_context(dask_cluster(folder / "dask"))
    (folder / "pool").mkdir()
    pool = stack.enter_context(service(folder / "pool"))
    return {
        EMBEDDED: (),
        "embedded, processes": ("--direct_running_mode=multi_processing", "--direct_num_workers=2"),
        "Dask": ("--runner=DaskRunner", f"--dask_client_address={cluster.address}"),
        "job service, worker pool": pool.flags,
        "Prism": ("--runner=PrismRunner", f"--prism_location={prism.built()}"),
    }


if __name__ == "__main__":
    sys.exit(main())
