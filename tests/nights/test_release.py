"""``job publish`` and ``job clean`` on nights that a gate has refused."""

from __future__ import annotations

import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from job.commit import baseline, output, staging
from job.gates.gate import Compared
from job.spec import Gates
from tests.support.gate_nights import FLAGS, moved, published, report, score, staged
from tests.support.jobs import Job, Zygote
from tests.support.nights import Night, dense, features, matrix, put_back, run_cli
from tests.support.store_nights import until
from tests.support.worker_pool import service


@pytest.fixture(scope="module")
def first(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of a first night, published."""
    return published(tmp_path_factory.mktemp("gates"))


@pytest.fixture
def night(first: Path) -> Night:
    """The night after it: the same folder, whose shards a test replaces."""
    return put_back(first)


def test_a_refused_night_is_released_in_a_process_without_model_and_engine(
    night: Night, capfd: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    now = moved(600, 2.0)
    night.shard("a", now, group_rows=100)
    assert score(night, capfd, "--max_rows_change=0.5", "--max_psi=0.25")[0] == 5
    (run_id,) = staged(night)
    for gone in (night.input, night.folder / "m.keras"):
        gone.rename(tmp_path / gone.name)
    args = ["publish", str(night.output), f"--run_id={run_id[:7]}"]
    code, _, err = run_cli(capfd, *args)
    assert (code, "--if_exists=replace" in err) == (6, True)
    program = (
        "import sys; from job.cli.main import main; code = main(sys.argv[1:]); "
        "assert not {'apache_beam', 'keras', 'tensorflow'} & set(sys.modules); sys.exit(code)"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, *args, "--if_exists=replace"],
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr
    assert "released" in done.stdout
    assert night.manifest()["run_id"] == run_id
    released = night.manifest()["released"]
    assert len(released["refused"]) == 2
    assert "-75.0% against" in released["refused"][0]
    told = report(night)
    assert told["compared"]["released_unix_s"] == released["released_unix_s"] > 1.7e9
    assert (told["rows_scored"], told["splits_reused"], told["splits"]) == (600, 6, 6)
    expected = dense().predict(matrix(now), verbose=0)[:, 0]
    np.testing.assert_allclose(night.scored()["prediction"].to_numpy(), expected, rtol=1e-5, atol=1e-6)
    assert not (night.output / "_staging").exists()
    code, out, _ = run_cli(capfd, *args)
    assert (code, "already published" in out) == (0, True)
    (tmp_path / "in").rename(night.input)
    (tmp_path / "m.keras").rename(night.folder / "m.keras")
    assert "already published" in score(night, capfd, "--max_psi=0.25")[1]


def test_a_released_night_is_the_next_ones_last_good_night(
    night: Night, capfd: pytest.CaptureFixture[str]
) -> None:
    night.shard("a", moved(600, 2.0), group_rows=100)
    assert score(night, capfd, "--max_psi=0.25")[0] == 5
    (run_id,) = staged(night)
    publish = ["publish", str(night.output), f"--run_id={run_id}", "--if_exists=replace"]
    assert run_cli(capfd, *publish)[0] == 0
    night.shard("a", moved(600, 2.0, seed=5), group_rows=100)
    code, _, err = score(night, capfd, "--max_psi=0.25", "--max_rows_change=0")
    assert code == 0, err
    assert report(night)["compared"]["baseline_run"] == run_id


def test_what_publish_refuses(night: Night, capfd: pytest.CaptureFixture[str]) -> None:
    folder = str(night.output)
    for args, message in (
        ([folder], "--run_id must be given"),
        ([folder, "--run_id=0g"], "no such run is there"),
        ([f"{folder}x", "--run_id=0"], "there is no such folder"),
    ):
        code, _, err = run_cli(capfd, "publish", *args)
        assert (code, message in err) == (2, True), err
    night.shard("a", moved(600, 2.0), group_rows=100)
    assert score(night, capfd, "--max_psi=0.25")[0] == 5
    (run_id,) = staged(night)
    args = ["publish", folder, f"--run_id={run_id}", "--if_exists=replace"]
    with output.lease(folder):
        code, _, err = run_cli(capfd, *args)
    assert (code, "another run is at work" in err) == (6, True)
    place = Path(staging.folder_of(folder, run_id))
    receipt = next((place / "receipts").iterdir())
    receipt.rename(night.folder / "receipt")
    code, _, err = run_cli(capfd, *args)
    assert (code, "5 of 6 splits have a receipt" in err) == (1, True)
    (night.folder / "receipt").rename(receipt)
    note = (place / staging.REFUSAL).read_text()
    (place / staging.REFUSAL).write_text(note[:50])
    code, _, err = run_cli(capfd, *args)
    assert (code, "cannot be made out" in err) == (1, True)
    code, out, _ = run_cli(capfd, "clean", folder)
    assert (code, "kept, refused, though" in out) == (0, True)
    (place / staging.REFUSAL).unlink()
    code, _, err = run_cli(capfd, *args)
    assert (code, "no gate has refused run" in err) == (2, True)
    shutil.copytree(place, place.with_name(f"{run_id[:1]}{'0' * 63}"))
    code, _, err = run_cli(capfd, "publish", folder, f"--run_id={run_id[:1]}")
    assert (code, "it fits 2 runs" in err) == (2, True)


def test_clean_keeps_refused_nights_until_it_is_told_how_old_they_may_be(
    night: Night, capfd: pytest.CaptureFixture[str]
) -> None:
    night.shard("a", moved(600, 2.0), group_rows=100)
    assert score(night, capfd, "--max_psi=0.25")[0] == 5
    (run_id,) = staged(night)
    code, out, _ = run_cli(capfd, "clean", str(night.output))
    assert (code, staged(night)) == (0, [run_id])
    assert "kept, refused: predictions have another distribution" in out
    assert run_cli(capfd, "clean", str(night.output), "--older_than=1h")[0] == 0
    assert staged(night) == [run_id]
    assert run_cli(capfd, "clean", str(night.output), "--older_than=0h")[0] == 0
    assert staged(night) == []


def test_a_release_that_is_killed_at_any_step_is_finished_by_the_same_command(
    night: Night, capfd: pytest.CaptureFixture[str], warm: Zygote, tmp_path: Path
) -> None:
    night.shard("a", moved(300, 2.0), group_rows=100)
    assert score(night, capfd, "--max_psi=0.25")[0] == 5
    (run_id,) = staged(night)
    aside = shutil.copytree(night.output, tmp_path / "aside")
    args = ("publish", str(night.output), f"--run_id={run_id}", "--if_exists=replace")

    def publish(kill_at: int = -1) -> Any:
        job = Job(args, str(night.folder / "log"), str(night.output), kill_at)
        return warm.run(job)[0]

    whole = publish()
    assert whole.code == 0, whole.text
    assert len(whole.steps) > 10
    for step in range(0, len(whole.steps), 3):
        shutil.rmtree(night.output)
        shutil.copytree(aside, night.output)
        assert publish(step).code == -9
        done = publish()
        assert done.code == 0, (step, done.text)
        assert night.manifest()["run_id"] == run_id
        assert len(night.manifest()["released"]["refused"]) == 1
        assert night.scored()["id"].to_pylist() == list(range(300))
        assert (night.output / "_SUCCESS").exists()
        assert not (night.output / "_staging").exists()


def test_a_note_tells_the_run_as_it_was(night: Night) -> None:
    night.shard("a", features(50))
    planned = night.planned(night.folder / "m.keras", *FLAGS)
    limits = ("min_rows", 5), ("max_rows_change", 0.5), ("max_psi", (("", 0.2), ("a", 0.1)))
    asked = Gates(limits, ("/x", "/y"))
    run = replace(planned.task.run, gates=asked, versions=(("python", "3"),), lease="t", handed=True)
    compared = Compared("/x", "ab", 5, (("rows_change", 0.5), ("psi", (("p", 0.25),))), "note", ("no",))
    staging.write_refusal(run, compared)
    assert staging.read_refusal(run.output, run.run_id) == (run, compared)
    assert baseline.NIGHTS_BACK == 35


@pytest.mark.slow
@pytest.mark.usefixtures("forks")
def test_a_job_on_its_own_refuses_itself_and_its_output_is_free_for_the_release(
    night: Night, capfd: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    night.shard("a", moved(600, 2.0), group_rows=100)
    with service(tmp_path) as one:
        code, _, err = score(night, capfd, "--max_rows_change=0.5", "--no_wait", *one.flags)
        assert code == 0, err
        (run_id,) = staged(night)
        folder = str(night.output)
        until(lambda: staging.read_refusal(folder, run_id), within_s=100)
        until(lambda: staging.failure(folder, run_id))
        assert "-75.0% against" in str(staging.failure(folder, run_id))
        assert night.manifest()["run_id"] != run_id
        # Any other command would have to ask the engine whether the job has ended.
        assert run_cli(capfd, "clean", folder)[0] == 6
        publish = ("publish", folder, f"--run_id={run_id}", "--if_exists=replace")
        code, _, err = run_cli(capfd, *publish)
    assert code == 0, err
    assert night.manifest()["run_id"] == run_id
    assert not (night.output / "_staging").exists()
