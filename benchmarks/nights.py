"""``python -m benchmarks.nights``: a year of nights by ``job backfill`` against the same rows as one run.

Needs the flights and the model of ``make demo``. Sides take turns; a finding is a median of wall seconds from
the start of the process to its end, and of processor seconds, which other users of the machine disturb less.
"""

from __future__ import annotations

import argparse
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path
from statistics import median
from typing import Final

import pyarrow.parquet as pq

from benchmarks.measure import Measured, process, python

MOST: Final = 1.5


def main(argv: Sequence[str] | None = None) -> int:
    """Measure, print; 1 where the nights take more than ``MOST`` times as long as the one run."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.nights", description=__doc__)
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--features", type=Path, default=Path("data/features"))
    parser.add_argument("--model", type=Path, default=Path("data/models/flights.keras"))
    parser.add_argument("--root", type=Path, default=Path("data/bench"))
    asked = parser.parse_args(argv)
    features, out = asked.features.resolve(), asked.root.resolve() / "out" / "nights"
    days = sorted(path.name.removeprefix("ds=") for path in features.glob("ds=*"))
    usual = (f"--model={asked.model}", "--keys=flight_id")
    once = python("-m", "job", "score", f"--input={features}", f"--output={out}/once", *usual)
    each = (f"--input={features}/ds={{ds}}", f"--output={out}/each/ds={{ds}}", *usual)
    span = (f"--start={days[0]}", f"--end={days[-1]}")
    sides = {"one run": once, f"{len(days)} nights": python("-m", "job", "backfill", *span, *each)}
    taken: dict[str, list[Measured]] = {side: [] for side in sides}
    for _ in range(asked.runs):
        for side, command in sides.items():
            shutil.rmtree(out, ignore_errors=True)
            taken[side].append(process(command))
            rows = sum(pq.ParquetFile(path).metadata.num_rows for path in out.rglob("ds=*/*.parquet"))
            print(f"{side:12} {taken[side][-1].wall_s:6.2f} s, {rows:,} rows", flush=True)
    one, many = taken.values()
    wall, cpu = (
        median(getattr(run, figure) for run in many) / median(getattr(run, figure) for run in one)
        for figure in ("wall_s", "cpu_s")
    )
    print(f"nights over one run: {wall:.2f} of wall time, {cpu:.2f} of processor time (at most {MOST})")
    return int(wall > MOST)


if __name__ == "__main__":
    sys.exit(main())
