"""``python -m benchmarks.gpu``: one night on a GPU, by JAX and by TensorFlow, against TensorFlow on the CPU.

For a machine that has a GPU; elsewhere it ends as the job does there, with exit code 4. The nights must be
equal within 1e-5 (a GPU adds in another order, and may round products to TF32). Prints seconds past the first
batch. It has not been run on a GPU yet.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from statistics import median
from typing import Final

import numpy as np
import pyarrow.parquet as pq

from benchmarks.cases import ROWS, Bench, first_batch_s
from benchmarks.measure import python
from benchmarks.processes import WIDE

SIDES: Final = {"cpu": ("tensorflow", "cpu"), "tensorflow": ("tensorflow", "gpu"), "jax": ("jax", "gpu")}
RELATIVE: Final = 1e-5


def main(argv: Sequence[str] | None = None) -> int:
    """Score, compare and print; the job's exit code where it fails, 1 where nights differ."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gpu", description=__doc__)
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--shards", type=int, default=8, help="of 500,000 rows")
    parser.add_argument("--root", type=Path, default=Path("data/bench"))
    asked = parser.parse_args(argv)
    bench = Bench(asked.root.resolve(), asked.runs, asked.shards / ROWS.shards, lambda *_: None)
    shards = bench.data(ROWS)
    taken: dict[str, list[float]] = {side: [] for side in SIDES}
    for _ in range(asked.runs):
        for side, (backend, device) in SIDES.items():
            output = bench.output(f"gpu-{side}")
            shutil.rmtree(output, ignore_errors=True)
            flags = (f"--input={shards}", f"--model={WIDE}", f"--output={output}", f"--device={device}")
            began = time.perf_counter()
            done = subprocess.run(
                python("-m", "job", "score", *flags),
                env={**os.environ, "KERAS_BACKEND": backend},
                check=False,
            )
            if done.returncode:
                return done.returncode
            taken[side].append(time.perf_counter() - began - first_batch_s(output))
    for side, seconds in taken.items():
        report = json.loads((bench.output(f"gpu-{side}") / "_report.json").read_text())
        ratio = median(seconds) / median(taken["cpu"])
        told = f"{len(report['loads'])} loads, batches of {report['batch_rows']} rows"
        print(f"{side:12} {median(seconds):7.2f} s  {ratio:.2f} of the CPU's  {told}")
    differ = [side for side in SIDES if not _equal(bench.output(f"gpu-{side}"), bench.output("gpu-cpu"))]
    print(f"not the CPU's rows: {', '.join(differ)}" if differ else f"all rows equal within {RELATIVE}")
    return int(bool(differ))


def _equal(left: Path, right: Path) -> bool:
    ours, theirs = (pq.read_table(folder).column("prediction").to_numpy() for folder in (left, right))
    return bool(np.allclose(ours, theirs, rtol=RELATIVE, atol=RELATIVE * float(np.abs(theirs).max())))


if __name__ == "__main__":
    sys.exit(main())
