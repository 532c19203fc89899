"""What ``verify`` tells a person beside its verdict."""

from __future__ import annotations

import json

import pytest

from tests.nights import Night, dense, features, run_cli, saved


def test_shards_that_were_rejected_are_told_and_are_no_fault(
    night: Night, capfd: pytest.CaptureFixture[str]
) -> None:
    for i in range(3):
        night.shard(f"b{i}", features(50, seed=i, first_id=50 * i))
    (night.input / "a.parquet").write_bytes(b"PAR1")
    night.shard("c", features(20).drop_columns(["f2"]), group_rows=10)
    model = saved(dense(), night.folder / "m.keras")
    night.score(model, "--keys=id", "--on_bad_shard=reject", "--max_rejected=0.5", "--split_rows=10")
    code, out, _ = run_cli(capfd, "verify", str(night.output), "--sample_rows=0")
    assert code == 0
    (line,) = [line for line in out.splitlines() if "rejected" in line]
    start = f"2 shards were rejected in part or whole, first {night.input}/a.parquet: no readable Parquet"
    assert line.startswith(start)
    code, out, _ = run_cli(capfd, "verify", str(night.output), "--sample_rows=0", "--json")
    assert (code, json.loads(out)["notes"], json.loads(out)["is_right"]) == (0, [line], True)
