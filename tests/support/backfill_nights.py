"""Four nights to be filled in by one command."""

from __future__ import annotations

import datetime
import json
from typing import Any

import pytest

from tests.support.nights import Night, dense, features, run_cli, saved

FIRST = datetime.date(2026, 2, 27)
DAYS = ("2026-02-27", "2026-02-28", "2026-03-01", "2026-03-02")


def made(night: Night) -> Night:
    """Four nights of two shards each, and a model."""
    for i, day in enumerate(DAYS):
        for j in range(2):
            night.shard(
                f"ds={day}/{j}", features(30, seed=2 * i + j, first_id=60 * i + 30 * j), group_rows=10
            )
    saved(dense(), night.folder / "m.keras")
    return night


def flags(night: Night, *more: str, model: str = "") -> list[str]:
    paths = (f"--input={night.input}/ds={{ds}}", f"--output={night.output}/{{ds}}")
    return [*paths, f"--model={model or night.folder / 'm.keras'}", "--keys=id", "--batch_size=16", *more]


def filled(
    night: Night, capfd: pytest.CaptureFixture[str], *more: str, model: str = ""
) -> tuple[int, str, str]:
    asked = (f"--start={DAYS[0]}", f"--end={DAYS[-1]}")
    return run_cli(capfd, "backfill", *asked, *flags(night, *more, model=model))


def lines(out: str) -> list[str]:
    return [" ".join(line.split()) for line in out.splitlines()]


def closed(text: str) -> str:
    """Without blanks, for a table folds what is long."""
    return "".join(text.split())


def report(night: Night, day: str) -> dict[str, Any]:
    return dict(json.loads((night.output / day / "_report.json").read_text()))
