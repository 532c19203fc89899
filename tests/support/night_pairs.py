"""Nights of the same shards by two models, with keys and without, some rows of which one of them rejected."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from job.cli import options
from job.launch import score
from tests.support.nights import Night, dense, features, kept, saved
from tests.support.tampering import rewrite, table_of

NAMED = ("--features=f0,f1,f2,f3", "--prediction_columns=score")


def holed(rows: int, first_id: int) -> pa.Table:
    """Some rows have a null, which one night rejects and the other fills; ids repeat in no shard."""
    table = features(rows, seed=first_id, first_id=first_id)
    values = [None if i % 50 == 7 else v for i, v in enumerate(table["f1"].to_pylist())]
    return table.set_column(2, "f1", pa.array(values, pa.float32()))


def scored(night: Night) -> Path:
    """Score four nights below a folder, from the very same shards, and cut into different files."""
    for i, hour in enumerate(("07", "10", "10")):
        night.shard(f"hour={hour}/part-{i}", holed(300, 1000 * i), group_rows=100)
    old, new = (saved(dense(seed=seed), night.folder / f"{seed}.keras") for seed in (1, 2))
    rejecting, filling = ("--max_rejected=0.05", "--split_rows=200"), ("--on_null=fill=0",)
    for name, model, more in (
        ("a", old, ("--keys=id", *rejecting)),
        ("b", new, ("--keys=id", *filling)),
        ("plain_a", old, rejecting),
        ("plain_b", new, filling),
    ):
        flags = [flag for flag in night.args(model, *NAMED, *more) if not flag.startswith("--output")]
        spec, _ = options.parse([*flags, f"--output={night.folder}/{name}/out"])
        score.score(spec, (), announce=lambda line: None)
    return kept(night)


def folder(night: Night) -> str:
    return str(night.output)


def by_id(night: Night) -> dict[int, float]:
    return {row["id"]: row["score"] for row in night.scored().to_pylist()}


def replaced(night: Night, path: Path, **columns: Any) -> None:
    """Put other values into columns of a file, or add some; the manifest agrees."""
    table = table_of(path)
    for name, values in columns.items():
        column = values if isinstance(values, pa.Array) else pa.array(values)
        at = table.schema.get_field_index(name)
        table = table.append_column(name, column) if at < 0 else table.set_column(at, name, column)
    rewrite(night, path, table)


def check_against_python(told: dict[str, Any], a: dict[int, float], b: dict[int, float]) -> None:
    both = sorted(a.keys() & b.keys())
    x, y = np.array([a[key] for key in both]), np.array([b[key] for key in both])
    size = np.sort(np.abs(y - x))
    assert (told["rows"], told["equal"], told["moved"]) == (len(both), 0, len(both))
    for name, share in (("median_abs", 0.5), ("p95_abs", 0.95), ("p99_abs", 0.99)):
        assert told[name] == pytest.approx(size[math.ceil(share * len(size)) - 1], rel=0.0011)
    assert told["max_abs"] == size[-1]
    assert told["mean_abs"] == pytest.approx(size.mean())
    assert told["mean"] == pytest.approx((y - x).mean())
    assert told["correlation"] == pytest.approx(np.corrcoef(x, y)[0, 1])
    assert told["flips_up"] == sum((x < 0.1) & (y >= 0.1))
    assert told["flips_down"] == sum((x >= 0.1) & (y < 0.1))
    assert [abs(one["difference"]) for one in told["movers"]] == size[:-6:-1].tolist()


def retold(night: Night, change: Callable[[dict[str, Any]], object]) -> str:
    manifest = night.manifest()
    change(manifest)
    (night.output / "_manifest.json").write_text(json.dumps(manifest))
    return folder(night)
