"""Damaged Parquet: an error of one line, or all the rows that were planned. No crash, no hang."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tests.support.archives import CHANGES

CASES = 6400
ROWS = 60
ROOT = Path(__file__).parents[2]


def tables() -> dict[str, pa.Table]:
    chance = np.random.default_rng(3)
    numbers = chance.normal(size=ROWS).astype(np.float32)
    nulls = pa.array([None if i % 7 == 0 else float(i) for i in range(ROWS)], pa.float64())
    words = pa.array([f"word {i % 5}" if i % 11 else None for i in range(ROWS)])
    lists = pa.array([[float(i), float(i + 1)] for i in range(ROWS)], pa.list_(pa.float32()))
    fixed = pa.FixedSizeListArray.from_arrays(pa.array(np.arange(ROWS * 3, dtype=np.int32)), 3)
    return {
        "numbers": pa.table({"id": np.arange(ROWS), "x": numbers, "y": nulls}),
        "words": pa.table({"id": np.arange(ROWS), "w": words, "c": words.dictionary_encode()}),
        "lists": pa.table({"id": np.arange(ROWS), "l": lists, "f": fixed}),
        "nested": pa.table(
            {
                "id": np.arange(ROWS),
                "n": pa.array([[[i]] for i in range(ROWS)]),
                "s": [{"a": i} for i in range(ROWS)],
            }
        ),
    }


WAYS: list[dict[str, Any]] = [
    {"compression": "none"},
    {"compression": "snappy", "write_page_checksum": True},
    {"compression": "zstd", "data_page_version": "2.0", "write_page_checksum": True},
    {"compression": "gzip", "use_dictionary": False, "store_schema": False},
]

CHILD = """
import json, os, resource, signal, sys, traceback
from pathlib import Path
resource.setrlimit(resource.RLIMIT_AS, (6 << 30, 6 << 30))
import pyarrow as pa
pa.set_cpu_count(1)
from job.shards import planner as planning
from job.errors import ShardError
from job.scoring.reader import SplitReader
from job.spec import Shard

def look(path):
    found = os.stat(path)
    shard = Shard(path, found.st_size, str(found.st_mtime_ns))
    try:
        footer = planning.read_footer(shard)
        names = footer.schema.names
        batches = []
        for split in planning.splits_of(shard, "x", footer.group_rows, 25):
            with SplitReader(split) as reader:
                some = list(reader.chunks(names[1:], names[:1], 16))
                every = list(reader.everything())
            for read in (some, every):
                rows = sum(batch.num_rows for batch in read)
                if rows != split.rows:
                    return f"count {rows} of {split.rows}"
            batches += every
        for batch in batches:
            batch.to_pylist()
    except ShardError as e:
        text = str(e)
        return "error" if "\\n" not in text and len(text) < 1000 and path in text else f"text {text!r}"
    return "read " + json.dumps([row for batch in batches for row in batch.to_pylist()], default=str)

outcomes = []
for path in sys.stdin.read().split():
    Path(sys.argv[1]).write_text(path)
    signal.alarm(10)
    try:
        outcomes.append(look(path))
    except BaseException as e:
        outcomes.append(f"raised {type(e).__name__}: {e} {traceback.format_exc()[-1500:]}")
    signal.alarm(0)
print(json.dumps(outcomes))
"""


def outcomes_of(paths: list[Path], folder: Path) -> list[str]:
    """What becomes of each file, read in a process that may be killed without harm."""
    last = folder / "last"
    done = subprocess.run(
        [sys.executable, "-c", CHILD, str(last)],
        input="\n".join(map(str, paths)),
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=250,
        check=False,
    )
    if done.returncode:
        name = signal.Signals(-done.returncode).name if done.returncode < 0 else done.returncode
        pytest.fail(f"{last.read_text()}: {name}: {done.stderr[-2000:]}")
    found: list[str] = json.loads(done.stdout)
    assert len(found) == len(paths)
    return found


def damaged(folder: Path, seed: int) -> list[tuple[Path, str, bool]]:
    """Files, what their rows were before, and whether their pages have checksums."""
    chance = random.Random(seed)
    made = []
    for name, table in tables().items():
        rows = "read " + json.dumps(table.to_pylist(), default=str)
        for way, options in enumerate(WAYS):
            whole = folder / f"{name}-{way}.parquet"
            pq.write_table(table, whole, row_group_size=20, data_page_size=200, **options)
            original = whole.read_bytes()
            for i in range(CASES // (len(WAYS) * 4)):
                content = bytearray(original)
                # Half of the damage where it is worst: in the footer.
                start = len(content) - int.from_bytes(content[-8:-4], "little") - 8 if i % 2 else 0
                part = content[start:]
                CHANGES[i // 2 % len(CHANGES)](chance, part)
                path = folder / f"{name}-{way}-{i}.parquet"
                path.write_bytes(bytes(content[:start] + part))
                made.append((path, rows, bool(options.get("write_page_checksum")) and not i % 2))
    return made


def test_damaged_files_end_in_an_error_or_in_all_their_rows(tmp_path: Path) -> None:
    made = damaged(tmp_path, 1)
    assert len(made) >= 3000
    found = outcomes_of([path for path, _, _ in made], tmp_path)
    kinds = Counter(outcome.partition(" ")[0] for outcome in found)
    wrong = [
        (path.name, o)
        for (path, _, _), o in zip(made, found, strict=True)
        if o.split(" ")[0] not in ("error", "read")
    ]
    assert not wrong, f"{kinds}: {wrong[:3]}"
    # Where pages have checksums and the footer is whole, damage is an error or changed nothing.
    values = [
        (rows, o) for (_, rows, checked), o in zip(made, found, strict=True) if checked and o != "error"
    ]
    assert len(values) > 10
    assert [read for rows, read in values if read != rows] == []
    assert kinds["error"] > 1000
    assert kinds["read"] > 100


def test_what_is_not_parquet_at_all(tmp_path: Path) -> None:
    for name, content in {
        "empty": b"",
        "magic": b"PAR1",
        "two": b"PAR1PAR1",
        "encrypted": b"PARE" + bytes(40) + b"PARE",
        "length": b"PAR1" + bytes(20) + (1 << 31).to_bytes(4, "little") + b"PAR1",
        "text": b"a,b\n1,2\n" * 100,
    }.items():
        (tmp_path / f"{name}.parquet").write_bytes(content)
    paths = sorted(tmp_path.glob("*.parquet"))
    assert outcomes_of(paths, tmp_path) == ["error"] * 6
    os.mkdir(tmp_path / "folder.parquet")
    assert outcomes_of([tmp_path / "folder.parquet"], tmp_path) == ["error"]
