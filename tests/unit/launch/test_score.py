"""What the launcher decides before it starts an engine, and what it finds when it is asked again."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from apache_beam.utils import shared

from job.cli import options
from job.commit import staging
from job.commit.output import lease
from job.errors import DataError, JobError, OutputConflictError, StorageError, UsageError
from job.launch import score
from job.model import loading
from job.storage.sinks import HashingSink
from tests.support.nights import Night, dense, features, module, saved, visible

ROOT = Path(__file__).parents[3]


@pytest.fixture
def path(night: Night) -> Path:
    night.shard("a", features(30))
    night.shard("b", features(20, first_id=30))
    return saved(dense(), night.folder / "m.keras")


def again(night: Night, path: str | Path, *flags: str) -> score.Outcome:
    spec, beam_args = options.parse(night.args(path, "--keys=id", *flags))
    return score.score(spec, beam_args, announce=lambda line: None)


@pytest.mark.slow
def test_a_published_night_whose_files_are_gone_is_not_called_done(night: Night, path: Path) -> None:
    night.score(path, "--keys=id")
    assert again(night, path).already_published
    (night.output / "a.parquet").unlink()
    with pytest.raises(OutputConflictError, match=r"1 of its files are gone or changed, first a\.parquet"):
        again(night, path)
    outcome = again(night, path, "--if_exists=replace")
    assert (outcome.already_published, outcome.report.rows_scored) == (False, 50)
    assert night.scored()["id"].to_pylist() == list(range(50))
    assert again(night, path).already_published


def test_an_output_on_which_another_run_works_is_refused(night: Night, path: Path) -> None:
    with lease(str(night.output)), pytest.raises(OutputConflictError, match="another run is at work on it"):
        night.score(path, "--keys=id")
    assert night.score(path, "--keys=id").rows_scored == 50
    assert not (night.output / "_staging").exists()


def test_a_run_that_fails_before_it_scores_leaves_no_staging(night: Night, path: Path) -> None:
    from job.errors import SchemaError

    with pytest.raises(SchemaError):
        night.score(path, "--keys=nothing")
    assert list(night.output.rglob("*")) == []


UNSEEDED = """import keras
def build():
    return keras.Sequential([keras.Input((4,)), keras.layers.Dense(1)])
"""


@pytest.mark.slow
def test_what_an_unseeded_builder_scored_is_scored_again_with_its_next_model(
    night: Night, monkeypatch: pytest.MonkeyPatch
) -> None:
    import pyarrow as pa

    name = module(night.folder, "launch_unseeded", UNSEEDED, monkeypatch)
    night.shard("a", features(30))
    night.shard("b", features(20, first_id=30).set_column(1, "f0", pa.nulls(20, pa.float32())))
    with pytest.raises(DataError, match="20"):
        night.score(f"{name}:build", "--keys=id")
    monkeypatch.setattr(loading, "_SHARED", shared.Shared())
    report = night.score(f"{name}:build", "--keys=id", "--max_rejected=0.5")
    assert (report.splits, report.splits_reused) == (2, 0)
    assert len(report.loads) == 1


@pytest.mark.slow
def test_a_full_disk_is_told_in_one_line_and_the_next_try_goes_on(
    night: Night, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On a full disk a worker cannot even leave its error behind."""

    def full(*_: object) -> int:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(HashingSink, "write", full)
        patch.setattr(staging, "write_failure", lambda *_: None)
        with pytest.raises(StorageError, match=r"^[^\n]*/attempts/[^\n]*No space left on device$"):
            night.score(path, "--keys=id")
    assert visible(night.output) == []
    assert night.score(path, "--keys=id").rows_scored == 50


@pytest.mark.parametrize(
    ("number", "kind"),
    [
        (errno.EROFS, StorageError),
        (errno.ENOSPC, StorageError),
        (errno.EIO, StorageError),
        (errno.EACCES, UsageError),
        (errno.EEXIST, UsageError),
    ],
    ids=lambda value: os.strerror(value) if isinstance(value, int) else "",
)
def test_a_disk_that_fails_is_no_wrong_flag(
    night: Night, path: Path, monkeypatch: pytest.MonkeyPatch, number: int, kind: type[JobError]
) -> None:
    made = os.makedirs

    def fails(folder: str, *more: Any, **named: Any) -> None:
        if str(night.output) in str(folder):
            raise OSError(number, os.strerror(number))
        made(folder, *more, **named)

    with monkeypatch.context() as patch:
        patch.setattr(os, "makedirs", fails)
        with pytest.raises(kind, match=os.strerror(number)) as told:
            night.score(path, "--keys=id")
    assert type(told.value) is kind
    assert night.score(path, "--keys=id").rows_scored == 50


@pytest.mark.slow
def test_a_rerun_waits_for_neither_beam_nor_tensorflow(night: Night) -> None:
    night.shard("a", features(50))
    args = ["score", *night.args(saved(dense(), night.folder / "m.keras"), "--keys=id")]
    program = "import sys; from job.cli import main as cli; code = cli.main(); "
    program += "print(sorted({'apache_beam', 'tensorflow', 'keras'} & set(sys.modules))); sys.exit(code)"
    for loaded in ("['apache_beam', 'keras', 'tensorflow']", "[]"):
        done = subprocess.run(
            [sys.executable, "-c", program, *args], cwd=ROOT, capture_output=True, text=True, check=False
        )
        assert (done.returncode, done.stdout.splitlines()[-1]) == (0, loaded), done.stderr
