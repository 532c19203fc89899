"""Receipts with real files behind them, for tests of staging and publishing."""

from __future__ import annotations

import hashlib
import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from job import storage
from job.commit import staging
from job.spec import ModelReference, Receipt, Run, Shard, Split

RUN_ID = "a" * 64


def split(name: str, rows: int = 3) -> Split:
    return Split(name, Shard(f"/in/{name}.parquet", 10, "1", (("ds", "1"),)), (0, 1), 0, rows)


def run_of(output: Path, splits: Sequence[Split], run_id: str = RUN_ID, *, replace: bool = False) -> Run:
    rows = sum(s.rows for s in splits)
    model = ModelReference("/m.keras", None, False, "d" * 64)
    return Run(
        run_id,
        str(output),
        model,
        "x → y",
        len(splits),
        len(splits),
        rows,
        0.5,
        replace,
        1000.0,
        (("python", "3"),),
    )


def parquet(content: bytes, rows: int) -> bytes:
    """A Parquet file of so many rows, each of which holds the content; the same bytes each time."""
    sink = io.BytesIO()
    pq.write_table(pa.table({"content": [content] * rows}), sink)
    return sink.getvalue()


def receipt(output: Path, one: Split, content: bytes = b"predictions", **changes: Any) -> Receipt:
    """Write an attempt of Parquet with ``content`` in it and return the receipt for it, not yet written."""
    run_id = changes.pop("run_id", RUN_ID)
    content = parquet(content, one.rows)
    if not Path(staging.folder_of(str(output), run_id), staging.PLAN).exists():
        staging.write_plan(str(output), run_id, [])
    attempt = staging.new_attempt(str(output), run_id, one)
    Path(attempt).write_bytes(content)
    fields: dict[str, Any] = {
        "split": one,
        "run_id": run_id,
        "attempt": attempt,
        "rows_read": one.rows,
        "rows_scored": one.rows,
        "rows_rejected": 0,
        "file_bytes": len(content),
        "file_sha256": hashlib.sha256(content).hexdigest(),
        "batch_rows": 2,
        "batches": 2,
        "read_s": 0.1,
        "bind_s": 0.1,
        "predict_s": 0.1,
        "write_s": 0.1,
        "worker": "host:1",
        "load": "host:1:1",
        "load_s": 1.0,
        "traces": 1,
        "first_batch_unix_s": 1002.0,
        "weights_digest": "",
        "boot_id": storage.boot_id(),
    }
    return Receipt(**{**fields, **changes})
