"""A first night, published, and the shards of nights after it that gates have something against."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from job.commit import output
from tests.support.nights import Night, dense, features, kept, run_cli, saved

FLAGS = ("--keys=id", "--split_rows=100", "--batch_size=64", "--if_exists=replace")
ROWS = 2400


def moved(rows: int, by: float, *, seed: int = 1) -> pa.Table:
    """Features whose predictions are distributed otherwise than those of ``features``."""
    table = features(rows, seed=seed)
    for i in range(4):
        name = f"f{i}"
        table = table.set_column(
            i + 1, name, pa.array(table[name].to_numpy() * np.float32(1 + by), pa.float32())
        )
    return table


def score(night: Night, capfd: pytest.CaptureFixture[str], *flags: str) -> tuple[int, str, str]:
    return run_cli(capfd, "score", *night.args(night.folder / "m.keras", *FLAGS, *flags))


def report(night: Night) -> dict[str, Any]:
    return dict(json.loads((night.output / "_report.json").read_text()))


def run_of(night: Night) -> str:
    return str(night.manifest()["run_id"])


def staged(night: Night) -> list[str]:
    return output.leftovers(str(night.output), "")


def published(folder: Path) -> Path:
    """A copy of a night of 24 splits, published."""
    night = Night(folder / "night")
    night.shard("a", features(ROWS), group_rows=100)
    night.score(saved(dense(), night.folder / "m.keras"), *FLAGS)
    return kept(night)
