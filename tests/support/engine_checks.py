"""What every engine of several processes must do: the embedded engine's night, and one whatever is killed.

The same functions run on Flink, where its job server is to be had, and on Beam's own job service.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from job.cli import options
from job.launch import score
from tests.support import slow_model
from tests.support.nights import Night, check_same_files, features, matrix, visible
from tests.support.store_nights import until

ROOT = Path(__file__).parents[2]
_ROWS_A_SPLIT = 1000


def start(args: Sequence[str], log: Path) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-m", "job", "score", *args]
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    with log.open("wb") as out:
        return subprocess.Popen(command, cwd=ROOT, env=env, stdout=out, stderr=out)


def run(args: Sequence[str], log: Path, within_s: float) -> None:
    with start(args, log) as job:
        try:
            assert job.wait(within_s) == 0, log.read_text()
        finally:
            job.kill()


def report(output: Path) -> dict[str, Any]:
    return dict(json.loads((output / "_report.json").read_text()))


def here(args: Sequence[str]) -> None:
    """Run the command in this process, which has imported everything already."""
    score.score(*options.parse(args), announce=lambda line: None)


def as_embedded(args: Sequence[str], folder: Path, engine: Sequence[str], within_s: float) -> dict[str, Any]:
    """Score ``args`` on an engine and on the embedded one, compare all files, and return the first report."""
    outputs = folder / "engine", folder / "embedded"
    run([*args, f"--output={outputs[0]}", *engine], folder / "engine.log", within_s)
    here([*args, f"--output={outputs[1]}"])
    return compared(*outputs)


def compared(*outputs: Path, shared: bool = False) -> dict[str, Any]:
    """Compare all files of an engine's night and the embedded one's, and return the first report.

    ``shared`` says that all workers are on one machine and share a model.
    """
    ours, theirs = map(visible, outputs)
    assert [path.relative_to(outputs[0]) for path in ours] == [
        path.relative_to(outputs[1]) for path in theirs
    ]
    # Equal batches, so equal to the bit.
    check_same_files(ours, theirs)
    told = report(outputs[0])
    assert told["rows_scored"] == report(outputs[1])["rows_scored"]
    # Each process has loaded the model once, whatever the engine does with its DoFns.
    assert len(told["workers"]) >= 1
    assert len(told["loads"]) == (1 if shared else len(told["workers"]))
    return told


def killed(
    night: Night,
    engine: Sequence[str],
    kill: Callable[[subprocess.Popen[bytes]], None],
    *,
    splits: int,
    survives: bool,
    within_s: float,
) -> dict[str, Any]:
    """Kill something while a night is scored, and return the report of the one complete night that follows.

    ``kill`` is given the command that runs. ``survives``: the engine gets over it; else the command ends, and
    the same command completes the night.
    """
    rows = splits * _ROWS_A_SPLIT
    night.shard("part", features(rows), group_rows=_ROWS_A_SPLIT)
    flags = ["--keys=id", "--features=f0,f1,f2,f3", f"--split_rows={_ROWS_A_SPLIT}"]
    args = [*night.args("tests.support.slow_model:build", *flags, f"--batch_size={_ROWS_A_SPLIT}"), *engine]
    log = night.folder / "log"
    with start(args, log) as job:
        try:
            until(lambda: receipts(night) >= 5 or job.poll() is not None, within_s=within_s)
            assert job.poll() is None, log.read_text()
            assert receipts(night) < splits
            kill(job)
            code = job.wait(within_s)
        finally:
            job.kill()
    said = log.read_text()
    held = 0
    if survives:
        assert code == 0, said
        # What runs again finds the receipts of what ran before.
        held = 1
    else:
        assert code in (1, 7), said
        assert sum(line.startswith("error: ") for line in said.splitlines()) == 1, said
        assert not (night.output / "_SUCCESS").exists()
        held = receipts(night)
        assert held >= 5
        run(args, night.folder / "again.log", within_s)
    told = report(night.output)
    assert (told["rows_scored"], told["splits"]) == (rows, splits)
    assert told["splits_reused"] >= held
    scored = night.scored()
    assert scored["id"].to_pylist() == list(range(rows))
    expected = slow_model.build().predict(matrix(features(rows)), verbose=0, batch_size=8192)[:, 0]
    np.testing.assert_allclose(scored.column(1).to_numpy(), expected, rtol=1e-5, atol=1e-6)
    assert not (night.output / "_staging").exists()
    return told


def receipts_of(night: Night) -> list[dict[str, Any]]:
    """The receipts of the run that goes on, or of the runs of several nights below the output."""
    found = [path for below in ("", "*/") for path in night.output.glob(f"{below}_staging/*/receipts/*.json")]
    contents = [path.read_text() for path in found]
    return [dict(json.loads(content)) for content in contents if content]


def receipts(night: Night) -> int:
    """How many splits of the run that goes on are finished."""
    return len(receipts_of(night))
