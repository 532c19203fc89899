"""``python -m benchmarks.processes``: TensorFlow's threads in 1 and 2 worker processes, right and wrong.

Right is cores ÷ processes, which the job chooses. Wrong is what TensorFlow would do by itself (a thread for
each core in every process) and one thread where a process has the machine to itself. Sides take turns; a
finding is a median of seconds past the first batch, over that of the right setting.
"""

from __future__ import annotations

import argparse
import shutil
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from statistics import median
from typing import Final

from benchmarks.cases import ROWS, Bench, first_batch_s
from benchmarks.compare import equal_outputs
from benchmarks.measure import Measured, environment, python

WIDE: Final = "benchmarks.networks:wide"
PROCESSES: Final = "--direct_running_mode=multi_processing"


def main(argv: Sequence[str] | None = None) -> int:
    """Measure, print; 1 where a wrong setting was faster by more than a tenth."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.processes", description=__doc__)
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--shards", type=int, default=2, help="of 500,000 rows")
    parser.add_argument("--root", type=Path, default=Path("data/bench"))
    asked = parser.parse_args(argv)
    bench = Bench(asked.root.resolve(), asked.runs, asked.shards / ROWS.shards, lambda *_: None)
    shards = bench.data(ROWS)
    cores = environment()["cores"]
    print(f"{cores} cores, {asked.shards * ROWS.shard_rows:,} rows, 10→1024→1024→1, {asked.runs} runs")
    sides = {
        "1 process, right": _side(bench, shards, 1, None),
        "1 process, one thread": _side(bench, shards, 1, 1),
        "2 processes, right": _side(bench, shards, 2, None),
        "2 processes, TensorFlow's own": _side(bench, shards, 2, 0),
    }
    taken = steady_s(bench, sides)
    equal_outputs(bench.output("1-None"), bench.output("2-0"))
    worst = 9.9
    for count in ("1 process", "2 processes"):
        right = median(taken[f"{count}, right"])
        for side, seconds in taken.items():
            if side.startswith(count):
                print(f"{side:32} {median(seconds):6.2f} s  {median(seconds) / right:.2f}")
                worst = min(worst, median(seconds) / right)
    return 0 if worst >= 0.9 else 1


def _side(bench: Bench, shards: Path, processes: int, threads: int | None) -> Callable[[], list[str]]:
    output = bench.output(f"{processes}-{threads}")

    def prepare() -> list[str]:
        shutil.rmtree(output, ignore_errors=True)
        program = ["job"] if threads is None else ["benchmarks.threads", str(threads)]
        flags = (f"--input={shards}", f"--model={WIDE}", f"--output={output}", "--split_rows=125000")
        how = (PROCESSES, f"--direct_num_workers={processes}", "--batch_size=4096")
        return python("-m", *program, "score", *flags, *how)

    return prepare


def steady_s(bench: Bench, sides: Mapping[str, Callable[[], Sequence[str]]]) -> dict[str, list[float]]:
    """Measure sides in turns; return each one's seconds past its first batch."""
    taken: dict[str, list[float]] = {side: [] for side in sides}
    outputs: dict[str, Path] = {}

    def noting(side: str, prepare: Callable[[], Sequence[str]]) -> Callable[[], Sequence[str]]:
        def command() -> Sequence[str]:
            made = prepare()
            outputs[side] = Path(next(flag for flag in made if flag.startswith("--output="))[9:])
            return made

        return command

    def note(side: str, measured: Measured) -> None:
        taken[side].append(measured.wall_s - first_batch_s(outputs[side]))

    bench.alternate({side: noting(side, prepare) for side, prepare in sides.items()}, note)
    return taken


if __name__ == "__main__":
    sys.exit(main())
