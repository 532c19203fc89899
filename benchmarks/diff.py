"""``python -m benchmarks.diff``: what ``job diff`` of two nights takes, and what it took at another commit.

The nights are made here: an int64 key and a float32 prediction a row, half of which moved. With
``--other=FOLDER`` a checkout of another commit is measured in turns with this one.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Final

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from benchmarks.measure import Measured, median_peak_bytes, median_wall_s, process, python

TIME: Final = 1.0
MEMORY: Final = 1.5
_FILE_ROWS: Final = 500_000


def main(argv: Sequence[str] | None = None) -> int:
    """Measure, print; 1 where this takes more than ``TIME`` × the time or ``MEMORY`` × the memory."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.diff", description=__doc__)
    parser.add_argument("--rows", type=int, default=40_000_000, help="of each night")
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--other", type=Path, help="a checkout of another commit")
    parser.add_argument("--root", type=Path, default=Path("data/bench"))
    asked = parser.parse_args(argv)
    nights = [str(_night(asked.root.resolve() / "diff" / str(asked.rows), side, asked.rows)) for side in "ab"]
    checkouts = {"this": Path.cwd()} | ({"other": asked.other.resolve()} if asked.other else {})
    taken: dict[str, list[Measured]] = {side: [] for side in checkouts}
    for _ in range(asked.runs):
        for side, checkout in checkouts.items():
            command = ["env", "-C", str(checkout), f"PYTHONPATH={checkout}", *python("-m", "job", "diff")]
            run = process([*command, *nights, "--json"])
            taken[side].append(run)
            found = json.loads(run.stdout)["rows"]
            took = f"{run.wall_s:.2f} s, {run.cpu_s:.2f} s of processors, {run.peak_rss_bytes / 1e9:.2f} GB"
            print(f"{side:5} {took}, {found:,} rows", flush=True)
    if asked.other is None:
        return 0
    time, memory = (
        median(taken["this"]) / median(taken["other"]) for median in (median_wall_s, median_peak_bytes)
    )
    print(f"this over other: {time:.2f} of the time (at most {TIME}), {memory:.2f} of the memory ({MEMORY})")
    return int(time > TIME or memory > MEMORY)


def _night(root: Path, side: str, rows: int) -> Path:
    """Return the folder of a night, written as ``score`` would where it is not there yet."""
    folder = root / side
    if (folder / "_SUCCESS").exists():
        return folder
    folder.mkdir(parents=True, exist_ok=True)
    entries = []
    for number, first in enumerate(range(0, rows, _FILE_ROWS)):
        random = np.random.default_rng(number)
        here = min(_FILE_ROWS, rows - first)
        score = random.normal(size=here)
        if side == "b":
            score += np.where(random.random(here) < 0.5, 0, random.normal(size=here) * 1e-3)
        path = folder / f"shard-{number:05}.parquet"
        columns = {"id": np.arange(first, first + here), "score": score.astype(np.float32)}
        pq.write_table(pa.table(columns), path, compression="zstd", row_group_size=131_072)
        entries.append(_entry(path, number, here))
    manifest = {
        "format": 1,
        "run_id": hashlib.sha256(side.encode()).hexdigest(),
        "ds": "",
        "model": {"path": "/models/none.keras", "weights": None, "trusted": False, "sha256": "0" * 64},
        "scoring": {
            "feeds": [],
            "casts": {},
            "keys": ["id"],
            "predictions": ["score"],
            "on_null": "reject",
            "on_nonfinite": "reject",
            "device": "cpu",
        },
        "rows_read": rows,
        "rows_scored": rows,
        "rows_rejected": 0,
        "rejected_files": [],
        "rejected_shards": [],
        "files": entries,
    }
    (folder / "_manifest.json").write_text(json.dumps(manifest))
    (folder / "_SUCCESS").touch()
    return folder


def _entry(path: Path, number: int, rows: int) -> dict[str, object]:
    return {
        "path": path.name,
        "rows": rows,
        "bytes": os.path.getsize(path),
        "sha256": "0" * 64,
        "shard": f"/shards/{number:05}.parquet",
        "shard_bytes": 1,
        "shard_stamp": "1",
        "partition": {},
        "row_groups": [0, 1],
        "first_row": 0,
        "split_rows": rows,
    }


if __name__ == "__main__":
    sys.exit(main())
