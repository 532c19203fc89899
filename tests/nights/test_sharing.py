"""Whole nights by two worker processes that share one model, against each with its own."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pyarrow as pa
import pytest

from job.errors import JobError
from tests.support.nights import Night, dense, features, module, saved

PROCESSES = ("--keys=id", "--direct_running_mode=multi_processing", "--direct_num_workers=2")
SPLITS = ("--split_rows=1000", "--batch_size=256")


def night_of(folder: Path, rows: int) -> tuple[Night, Path]:
    night = Night(folder)
    table = features(rows)
    # One row that cannot be fed.
    nulled = table.column("f1").to_pylist()
    nulled[17] = None
    night.shard("a", table.set_column(2, "f1", pa.array(nulled, pa.float32())), group_rows=1000)
    return night, saved(dense(4), folder / "m.keras")


def hosts(of: int) -> list[psutil.Process]:
    """The processes that hold a model for others, below a process."""
    found = []
    for process in psutil.Process(of).children(recursive=True):
        try:
            if "spawn_main" in " ".join(process.cmdline()):
                found.append(process)
        except psutil.NoSuchProcess:
            continue
    return found


@pytest.mark.slow
@pytest.mark.usefixtures("forks")
def test_one_load_the_same_run_and_the_same_bits(tmp_path: Path) -> None:
    night, path = night_of(tmp_path, 8000)
    apart = night.score(path, *PROCESSES, *SPLITS)
    rows, rejected = night.scored(), next(night.output.glob("_rejected/**/*.rejected")).read_bytes()
    night.output.rename(tmp_path / "apart")
    together = night.score(path, *PROCESSES, *SPLITS, "--model_sharing=machine")
    assert night.scored().equals(rows)
    assert rows.num_rows == 7999
    assert next(night.output.glob("_rejected/**/*.rejected")).read_bytes() == rejected
    assert apart.run_id == together.run_id
    assert (len(apart.workers), len(apart.loads)) == (2, 2)
    assert (len(together.workers), len(together.loads)) == (2, 1)
    # Neither worker holds it, nor this process, and what does is gone.
    held_by = together.loads[0].load.split(":")[1]
    assert held_by not in {worker.split(":")[1] for worker in together.workers} | {str(os.getpid())}
    assert hosts(os.getpid()) == []


@pytest.mark.slow
@pytest.mark.usefixtures("forks")
def test_the_models_process_is_killed_in_mid_run(tmp_path: Path) -> None:
    night, path = night_of(tmp_path, 16_000)
    flags = (*PROCESSES, "--split_rows=1000", "--batch_size=8", "--model_sharing=machine")
    command = [sys.executable, "-m", "job", "score", *night.args(path, *flags)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as job:
        until = time.monotonic() + 120
        while not list(night.output.glob("_staging/*/receipts/**/*")) and time.monotonic() < until:
            assert job.poll() is None
            time.sleep(0.02)
        (host,) = hosts(os.getpid())
        os.kill(host.pid, signal.SIGKILL)
        told, _ = job.communicate(timeout=200)
    assert job.returncode == 0, told
    assert night.scored().num_rows == 15_999
    assert "model loads     2 in 2 workers" in told
    # Nobody hears of what was put right.
    assert "Traceback" not in told
    assert "WARNING" not in told


@pytest.mark.slow
@pytest.mark.usefixtures("forks")
def test_a_model_that_cannot_be_loaded_is_told_as_ever(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    night, _ = night_of(tmp_path, 100)
    name = module(
        tmp_path, "no_builder", "def build():\n    raise ValueError('no such thing')\n", monkeypatch
    )
    with pytest.raises(JobError, match=r"the builder failed: ValueError: no such thing") as raised:
        night.score(f"{name}:build", *PROCESSES, "--model_sharing=machine")
    assert raised.value.exit_code == 4
    assert hosts(os.getpid()) == []
