"""``python -m benchmarks.sharing``: each worker process with its own model against one model for all of them.

Speed, of two processes: seconds past the first batch, of a light model and of a heavy one. Memory, of four
processes and a large model: the proportional set size of launcher, workers and model process together,
sampled four times a second; the peak, and what is held from the first batch on. Sides take turns; a finding
is a median. Loading takes about five times a model's size for a moment, in one process after the other.
"""

from __future__ import annotations

import argparse
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import median
from typing import Final

import psutil

from benchmarks.cases import ROWS, Bench, first_batch_s
from benchmarks.compare import equal_outputs
from benchmarks.measure import CommandFailedError, process, python
from benchmarks.processes import PROCESSES, WIDE, steady_s

SHARINGS: Final = ("process", "machine")
LARGE: Final = (
    "import sys; from benchmarks import networks; networks.large(int(sys.argv[1])).save(sys.argv[2])"
)
_EVERY_S: Final = 0.25


def main(argv: Sequence[str] | None = None) -> int:
    """Measure and print."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.sharing", description=__doc__)
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--shards", type=int, default=40, help="of 500,000 rows, for the light model")
    parser.add_argument("--what", choices=("speed", "memory", "both"), default="both")
    parser.add_argument("--megabytes", type=int, default=1000, help="of the large model's weights")
    parser.add_argument("--sharings", default="process,machine", help="of the memory, for a small machine")
    parser.add_argument("--root", type=Path, default=Path("data/bench"))
    asked = parser.parse_args(argv)
    root = asked.root.resolve()
    if asked.what != "memory":
        light = Bench(root, asked.runs, asked.shards / ROWS.shards, lambda *_: None)
        _speed(light, "10→128→1", str(light.model("sequential")), 16_384)
        heavy = Bench(root, asked.runs, max(1, asked.shards // 20) / ROWS.shards, lambda *_: None)
        _speed(heavy, "10→1024→1024→1", WIDE, 4_096)
    if asked.what != "speed":
        bench = Bench(root, asked.runs, 4 / ROWS.shards, lambda *_: None)
        _memory(bench, asked.megabytes, asked.sharings.split(","))
    return 0


def _speed(bench: Bench, told: str, model: str, batch_rows: int) -> None:
    shards = bench.data(ROWS)
    rows = len(list(shards.glob("*.parquet"))) * ROWS.shard_rows
    flags = (f"--batch_size={batch_rows}", "--split_rows=125000", "--direct_num_workers=2")
    sides = {sharing: _side(bench, shards, model, sharing, flags) for sharing in SHARINGS}
    taken = {side: median(seconds) for side, seconds in steady_s(bench, sides).items()}
    equal_outputs(bench.output("process"), bench.output("machine"))
    ratio = taken["machine"] / taken["process"]
    seconds = ", ".join(f"{side} {taken[side]:.2f} s" for side in SHARINGS)
    print(f"{told}, {rows:,} rows, 2 processes: machine over process {ratio:.2f} ({seconds})", flush=True)


def _memory(bench: Bench, megabytes: int, sharings: Sequence[str]) -> None:
    shards, model = bench.data(ROWS), bench.root / "models" / f"large-{megabytes}.keras"
    if not model.exists():
        model.parent.mkdir(parents=True, exist_ok=True)
        process(python("-c", LARGE, str(megabytes), str(model)))
    flags = ("--batch_size=4096", "--split_rows=125000", "--direct_num_workers=4")
    peaks: dict[str, list[float]] = {sharing: [] for sharing in sharings}
    held: dict[str, list[float]] = {sharing: [] for sharing in sharings}
    for _ in range(bench.runs):
        for sharing in sharings:
            samples = _pss_gb(_side(bench, shards, str(model), sharing, flags)())
            peaks[sharing].append(max(gb for _, gb in samples))
            began_s = first_batch_s(bench.output(sharing))
            held[sharing].append(median(gb for at_s, gb in samples if at_s >= began_s))
    for sharing in sharings:
        told = f"peak {median(peaks[sharing]):.2f} GB, while scoring {median(held[sharing]):.2f} GB"
        print(f"{megabytes} MB model, 4 processes, {sharing}: {told}", flush=True)
    if len(sharings) == len(SHARINGS):
        equal_outputs(bench.output("process"), bench.output("machine"))
        ratios = [median(found["machine"]) / median(found["process"]) for found in (peaks, held)]
        print(f"machine over process: peak {ratios[0]:.2f}, while scoring {ratios[1]:.2f}", flush=True)


def _side(
    bench: Bench, shards: Path, model: str, sharing: str, flags: Sequence[str]
) -> Callable[[], list[str]]:
    output = bench.output(sharing)

    def prepare() -> list[str]:
        shutil.rmtree(output, ignore_errors=True)
        places = (f"--input={shards}", f"--model={model}", f"--output={output}")
        return python("-m", "job", "score", *places, PROCESSES, *flags, f"--model_sharing={sharing}")

    return prepare


def _pss_gb(command: Sequence[str]) -> list[tuple[float, float]]:
    """Return what the processes of a command hold together: seconds since its start, and GB."""
    samples = []
    began = time.perf_counter()
    with subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL) as child:
        launcher = psutil.Process(child.pid)
        while child.poll() is None:
            samples.append((time.perf_counter() - began, _together(launcher) / 1e9))
            time.sleep(_EVERY_S)
    if child.returncode:
        raise CommandFailedError(f"exit code {child.returncode} of {' '.join(command)}")
    return samples


def _together(launcher: psutil.Process) -> int:
    found = 0
    try:
        for one in (launcher, *launcher.children(recursive=True)):
            found += _pss(one.pid)
    except psutil.NoSuchProcess:
        return 0
    return found


def _pss(pid: int) -> int:
    # The kernel's own sum: psutil adds up thousands of mappings, which takes the time of what is measured.
    try:
        lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    except OSError:
        return 0
    return sum(int(line.split()[1]) * 1024 for line in lines if line.startswith("Pss:"))


if __name__ == "__main__":
    sys.exit(main())
