"""Promises 1, 2 and 4 by SIGKILL at every step of the protocol and at random, then the same command."""

from __future__ import annotations

import hashlib
import json
import random
import shutil
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import pyarrow as pa
import pytest

from job.cli import options
from job.launch import score
from tests.support.jobs import Done, Job, Zygote, kinds
from tests.support.nights import Night, dense, features, saved
from tests.support.store_nights import until

SPLITS = 12
KILLED = -9
# As many real ones as are wanted of the long form.
KILLS = 50


def with_nulls(rows: int, i: int) -> pa.Table:
    table = features(rows, seed=i, first_id=rows * i)
    values = [None if row % 40 == 3 else value for row, value in enumerate(table["f1"].to_pylist())]
    return table.set_column(2, "f1", pa.array(values, pa.float32()))


@dataclass(frozen=True)
class Killed:
    """A night of twelve splits with rejected rows, and how it looks when nobody kills it."""

    night: Night
    warm: Zygote
    flags: tuple[str, ...]

    def job(self, *, kill_at: int = -1, kill_after_s: float = -1.0) -> Job:
        args = ("score", *self.night.args(self.night.folder / "m.keras", *self.flags))
        return Job(args, str(self.night.folder / "log"), str(self.night.output), kill_at, kill_after_s)

    def run(self, **kill: Any) -> Done:
        return self.warm.run(self.job(**kill))[0]

    def again(self) -> score.Outcome:
        """Run the same command in this process."""
        spec, beam_args = options.parse(self.job().args[1:])
        return score.score(spec, beam_args, announce=lambda line: None)


@pytest.fixture
def killed(night: Night, warm: Zygote) -> Killed:
    for i, hour in enumerate(("07", "07", "10")):
        night.shard(f"hour={hour}/part-{i}", with_nulls(200, i), group_rows=50)
    saved(dense(), night.folder / "m.keras")
    flags = ("--keys=id", "--split_rows=50", "--batch_size=64", "--max_rejected=0.1")
    return Killed(night, warm, flags)


def files(output: Path) -> dict[str, str]:
    """Every file below an output and its SHA-256; of the reports, which hold times, only the names."""
    return {
        str(path.relative_to(output)): ""
        if path.name.startswith("_report")
        else hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(output.rglob("*"))
        if path.is_file()
    }


def is_whole(output: Path) -> str:
    """Look as a reader looks that goes by ``_SUCCESS`` and the manifest: the run's id, or nothing."""
    if not (output / "_SUCCESS").exists():
        return ""
    manifest = json.loads((output / "_manifest.json").read_text())
    for entry in (*manifest["files"], *manifest["rejected_files"]):
        content = (output / entry["path"]).read_bytes()
        assert hashlib.sha256(content).hexdigest() == entry["sha256"], entry["path"]
    return str(manifest["run_id"])


def receipts(output: Path, run_id: str) -> int:
    """How many splits of a run have a receipt whose attempt is there."""
    found = 0
    for path in (output / "_staging" / run_id / "receipts").rglob("*.json"):
        receipt = json.loads(path.read_text())
        moved = output / f"{receipt['split']['name']}.parquet"
        found += Path(receipt["attempt"]).exists() or moved.exists()
    return found


def check_the_same_command(killed: Killed, wanted: dict[str, str], run_id: str, old: str = "") -> None:
    """After a kill: look as a reader does, run again, and compare with the uninterrupted night."""
    output = killed.night.output
    seen = is_whole(output)
    assert seen in ("", old, run_id)
    before = receipts(output, run_id)
    # Here, where the model is loaded already: all that a dead process can leave behind is on the disk.
    outcome = killed.again()
    assert files(output) == wanted
    assert not (output / "_staging").exists()
    assert outcome.already_published == (seen == run_id)
    if seen != run_id:
        assert (outcome.report.splits, outcome.report.splits_reused) == (SPLITS, before)


def uninterrupted(killed: Killed) -> tuple[dict[str, str], str, tuple[str, ...]]:
    done = killed.run()
    assert done.code == 0, done.text
    output = killed.night.output
    run_id = json.loads((output / "_manifest.json").read_text())["run_id"]
    return files(output), run_id, done.steps


def spread(steps: tuple[str, ...], most_of_a_kind: int) -> list[int]:
    """The first, the last and some between of every kind of step."""
    points: set[int] = set()
    for numbers in kinds(steps).values():
        stride = max(1, (len(numbers) - 1) // max(1, most_of_a_kind - 1))
        points.update((*numbers[::stride][: most_of_a_kind - 1], numbers[-1]))
    return sorted(points)


def test_the_steps_are_those_of_the_protocol(killed: Killed) -> None:
    """The hook sees what the docstring of job.commit.protocol tells, in its order."""
    _, _, steps = uninterrupted(killed)
    found = kinds(steps)
    order = [
        *("open _staging", "os.rename plan.jsonl aside", "open attempts", "os.rename receipts"),
        *("os.rename publishing.json aside", "os.rename _SUCCESS", "os.rename attempts"),
        *("os.rename _report.json aside", "os.rename _manifest.json aside", "os.rename _SUCCESS aside"),
        *("os.remove plan.jsonl", "os.rmdir _staging"),
    ]
    assert [found[kind][0] for kind in order] == sorted(found[kind][0] for kind in order)
    # Three attempts in each shard's four splits have rejected rows in a file of their own.
    assert len(found["os.rename receipts"]) == SPLITS
    assert len(found["os.rename attempts"]) == len(found["open attempts"]) > SPLITS


@pytest.mark.slow
def test_killed_at_every_kind_of_step_and_at_random(killed: Killed) -> None:
    wanted, run_id, steps = uninterrupted(killed)
    points = spread(steps, 2)
    assert len(points) >= 40
    for point in points:
        shutil.rmtree(killed.night.output)
        assert killed.run(kill_at=point).code == KILLED, steps[point]
        check_the_same_command(killed, wanted, run_id)
    chance = random.Random(20131201)
    died = tries = 0
    # A kill that comes too late is none.
    while tries < 8 or (len(points) + died < KILLS and tries < 3 * KILLS):
        shutil.rmtree(killed.night.output)
        died += killed.run(kill_after_s=chance.uniform(0.02, 0.5)).code == KILLED
        check_the_same_command(killed, wanted, run_id)
        tries += 1
    assert died >= 2
    assert len(points) + died >= KILLS


@pytest.mark.slow
def test_killed_again_and_again(killed: Killed) -> None:
    """Each try gets a few steps further, whatever the one before left."""
    wanted, run_id, steps = uninterrupted(killed)
    shutil.rmtree(killed.night.output)
    tries = 0
    while killed.run(kill_at=15 + 4 * tries).code == KILLED:
        assert is_whole(killed.night.output) in ("", run_id)
        tries += 1
        assert tries < len(steps)
    assert tries > 5
    assert files(killed.night.output) == wanted


@pytest.mark.slow
def test_killed_while_an_old_night_is_replaced(killed: Killed) -> None:
    """Who goes by ``_SUCCESS`` sees the old night or the new one; what only the old one had goes."""
    night = killed.night
    night.shard("hour=11/gone", features(40))
    old = Killed(night, killed.warm, killed.flags)
    _, old_id, _ = uninterrupted(old)
    kept = night.folder / "old"
    shutil.copytree(night.output, kept)
    (night.input / "hour=11/gone.parquet").unlink()
    new = Killed(night, killed.warm, (*killed.flags, "--if_exists=replace"))
    wanted, run_id, steps = uninterrupted(new)
    assert not any("hour=11" in name for name in wanted)
    found = kinds(steps)
    stale = next(i for i, step in enumerate(steps) if step.startswith("os.rename hour=11"))
    begin = found["open publishing.json aside"][0]
    points = sorted({*range(begin, found["os.rename _SUCCESS aside"][0] + 2, 3), stale, stale + 1, 20, 60})
    for point in points:
        shutil.rmtree(night.output)
        shutil.copytree(kept, night.output)
        assert new.run(kill_at=point).code == KILLED
        check_the_same_command(new, wanted, run_id, old_id)


def test_a_killed_replacement_leaves_the_old_night_until_it_publishes(killed: Killed) -> None:
    wanted, old_id, _ = uninterrupted(killed)
    new = Killed(killed.night, killed.warm, (*killed.flags, "--if_exists=replace", "--row_group_rows=10"))
    assert new.run(kill_at=30).code == KILLED
    assert is_whole(killed.night.output) == old_id
    now = files(killed.night.output)
    assert {name: now[name] for name in wanted} == wanted


@pytest.mark.slow
def test_killed_with_worker_processes(killed: Killed) -> None:
    """The group of launcher and workers dies at once, as it does when a machine stops."""
    processes = ("--direct_running_mode=multi_processing", "--direct_num_workers=2")
    alone = Killed(killed.night, killed.warm, killed.flags)
    wanted, run_id, _ = uninterrupted(alone)
    shutil.rmtree(killed.night.output)
    both = Killed(killed.night, killed.warm, (*killed.flags, *processes))
    launcher = killed.warm.process(both.job())
    # Receipts are written by the workers; the launcher waits for them.
    until(lambda: receipts(killed.night.output, run_id), within_s=100)
    launcher.kill()
    assert launcher.wait() in (KILLED, 0)
    check_the_same_command(alone, wanted, run_id)


@pytest.mark.slow
def test_one_worker_process_that_the_kernel_kills(killed: Killed) -> None:
    """It ends at once with one line, and the same command goes on from the receipts."""
    wanted, _, _ = uninterrupted(killed)
    night = killed.night
    shutil.rmtree(night.output)
    processes = ("--direct_running_mode=multi_processing", "--direct_num_workers=2")
    (pid,) = killed.warm.start(Killed(night, killed.warm, (*killed.flags, *processes)).job())
    launcher, victim = psutil.Process(pid), None
    # The slow part of a worker's start is behind it when its first receipt is there.
    while victim is None and launcher.status() != psutil.STATUS_ZOMBIE:
        time.sleep(0.005)
        if any((night.output / "_staging").rglob("receipts/*/*.json")):
            children = launcher.children(recursive=True)
            victim = next((child for child in children if "python" in child.name()), None)
    assert victim is not None
    victim.kill()
    (done,) = killed.warm.wait(pid)
    if done.code:
        assert done.code == 1
        last = done.text.strip().splitlines()[-1]
        assert last.startswith("error: a worker process died in mid-run")
        assert "Traceback" not in done.text
        assert is_whole(night.output) == ""
    assert killed.run().code == 0
    assert files(night.output) == wanted
