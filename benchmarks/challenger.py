"""``python -m benchmarks.challenger``: one night with a challenger against a night of each model.

Sides take turns; a finding is the median, over the rounds, of one round's ratio: of the whole command, and of
its seconds past the first batch. Both columns must be those of the nights alone, to the bit.
"""

from __future__ import annotations

import argparse
import shutil
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import median

import pyarrow.parquet as pq

from benchmarks.cases import ROWS, Bench, first_batch_s
from benchmarks.compare import UnequalOutputsError
from benchmarks.measure import Measured, process, python


def main(argv: Sequence[str] | None = None) -> int:
    """Measure and print; 1 where one night takes as long as two."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.challenger", description=__doc__)
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--shards", type=int, default=20, help="of 500,000 rows")
    parser.add_argument("--root", type=Path, default=Path("data/bench"))
    asked = parser.parse_args(argv)
    bench = Bench(asked.root.resolve(), asked.runs, asked.shards / ROWS.shards, lambda *_: None)
    shards = bench.data(ROWS)
    first = bench.model("sequential")
    second = bench.root / "models" / "challenger.keras"
    if not second.exists():
        process(
            python(
                "-m", "models", "train", "sequential", "--output", str(second), "--epochs", "1", "--seed=7"
            )
        )
    sides = {
        "champion": _side(bench, shards, "champion", first),
        "challenger": _side(bench, shards, "challenger", second),
        "both": _side(bench, shards, "both", first, f"--challenger={second}"),
    }
    steady: dict[str, list[float]] = {side: [] for side in sides}

    def note(side: str, measured: Measured) -> None:
        steady[side].append(measured.wall_s - first_batch_s(bench.output(side)))

    walls = {side: [run.wall_s for run in runs] for side, runs in bench.alternate(sides, note).items()}
    rows = _check(bench)
    print(f"{rows:,} rows, 10→128→1 twice, {asked.runs} runs")
    for what, taken in (("whole", walls), ("past the first batch", steady)):
        told = ", ".join(f"{side} {median(seconds):.2f} s" for side, seconds in taken.items())
        ratio = _ratio(taken, "champion", "challenger")
        more = _ratio(taken, "champion")
        print(f"{what}: one night over two {ratio:.2f}, over the champion's {more:.2f} ({told})")
    return 0 if _ratio(walls, "champion", "challenger") < 1 else 1


def _side(bench: Bench, shards: Path, side: str, model: Path, *more: str) -> Callable[[], list[str]]:
    output = bench.output(side)

    def prepare() -> list[str]:
        shutil.rmtree(output, ignore_errors=True)
        flags = (f"--input={shards}", f"--model={model}", f"--output={output}", "--batch_size=16384")
        return python("-m", "job", "score", *flags, *more)

    return prepare


def _ratio(taken: dict[str, list[float]], *alone: str) -> float:
    rounds = zip(taken["both"], *(taken[side] for side in alone), strict=True)
    return float(median(both / sum(others) for both, *others in rounds))


def _check(bench: Bench) -> int:
    """Return the rows; both columns of the one night are those of the two."""
    rows = 0
    for path in sorted(bench.output("both").glob("[!_]*.parquet")):
        both = pq.ParquetFile(path).read()
        for side, column in zip(("champion", "challenger"), both.column_names, strict=True):
            alone = pq.ParquetFile(bench.output(side) / path.name).read().column(0)
            if not both[column].equals(alone):
                raise UnequalOutputsError(f"{path}: {column} is not what {side} alone gives")
        rows += both.num_rows
    return rows


if __name__ == "__main__":
    sys.exit(main())
