"""Many nights by one command: each as if it had been scored alone, and none for another."""

from __future__ import annotations

import datetime
import os
import re
import time
from collections.abc import Iterator

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from job import storage
from job.cli import options
from job.cli.commands import backfill as backfill_command
from job.errors import JobError, UsageError
from job.launch import backfill
from job.shards import dates
from job.storage import objects
from tests.support.backfill_nights import DAYS, FIRST, closed, filled, flags, lines, report
from tests.support.jobs import Job, Zygote
from tests.support.nights import Night, check_same_files, features, module, run_cli, visible
from tests.support.servers import stores
from tests.support.servers.clients import BUCKET, s3_way
from tests.support.store_nights import until

# Kills its process when it sees a value that no feature has.
DEADLY = """
import os
import signal
import keras
import tensorflow as tf

def deadly(values):
    if (values.numpy() > 1e6).any():
        os.kill(os.getpid(), signal.SIGKILL)
    return values

class Deadly(keras.layers.Layer):
    def call(self, x):
        y = tf.py_function(deadly, [x], x.dtype)
        y.set_shape(x.shape)
        return y

def build():
    seeded = keras.initializers.GlorotUniform(seed=1)
    given = keras.Input((4,), name="x")
    return keras.Model(given, keras.layers.Dense(1, name="score", kernel_initializer=seeded)(Deadly()(given)))
"""


def put_shard(night: Night, day: str, table: pa.Table) -> None:
    pq.write_table(table, night.input / f"ds={day}" / "0.parquet")


@pytest.mark.parametrize("parallel", ["auto", "1", "3"])
def test_every_night_is_as_if_it_had_been_scored_alone(
    nights: Night, capfd: pytest.CaptureFixture[str], parallel: str
) -> None:
    code, out, err = filled(nights, capfd, f"--parallel={parallel}", "--split_rows=10")
    assert code == 0, err
    # Once, since all nights are bound alike.
    assert re.fullmatch(rf"{DAYS[0]}: model inputs: f0, f1, f2, f3 → .* by position\n", err)
    assert lines(out)[1:] == [*(f"{day} 60 0 published" for day in DAYS), "4 nights 240 0 4 published"]
    alone = nights.beside("alone")
    for day in DAYS:
        assert (nights.output / day / "_SUCCESS").exists()
        assert not (nights.output / day / "_staging").exists()
        own = flags(alone, "--split_rows=10", model=f"{nights.folder}/m.keras")
        assert run_cli(capfd, "score", *own, f"--ds={day}")[0] == 0
        check_same_files(visible(nights.output / day), visible(alone.output / day))
    # One loading has served them all.
    loads = [one["load"] for day in DAYS for one in report(nights, day)["loads"]]
    assert len(loads) == len(DAYS)
    assert len(set(loads)) == 1


def test_nights_that_are_there_are_skipped(nights: Night, capfd: pytest.CaptureFixture[str]) -> None:
    assert run_cli(capfd, "score", *flags(nights), f"--ds={DAYS[1]}")[0] == 0
    before = {path: path.stat().st_mtime_ns for path in visible(nights.output / DAYS[1])}
    assert len(before) == 2
    code, out, _ = filled(nights, capfd)
    assert code == 0
    told = ("published", "already published", "published", "published")
    assert lines(out)[1:-1] == [f"{day} 60 0 {word}" for day, word in zip(DAYS, told, strict=True)]
    assert {path: path.stat().st_mtime_ns for path in visible(nights.output / DAYS[1])} == before
    code, out, _ = filled(nights, capfd)
    assert (code, out.count("already published")) == (0, 5)


def test_a_night_that_fails_does_not_stop_the_others(
    nights: Night, capfd: pytest.CaptureFixture[str]
) -> None:
    """One without input, one whose columns do not fit, one with a row that cannot be scored."""
    for path in (nights.input / f"ds={DAYS[0]}").iterdir():
        path.unlink()
    put_shard(nights, DAYS[1], features(30).drop_columns(["f2"]))
    values = pa.array([None, *range(29)], pa.float32())
    put_shard(nights, DAYS[2], features(30).set_column(2, "f1", values))
    code, out, err = filled(nights, capfd, "--on_null=fail", "--split_rows=10")
    assert code == 1
    told = closed(out)
    assert closed(f"{DAYS[0]} exit 3: --input={nights.input}/ds={DAYS[0]}: no file matches") in told
    assert closed(f"{DAYS[1]} exit 4: ") in told
    assert closed(f"{DAYS[2]} exit 5: ") in told
    assert closed("column 'f1'") in told or closed("column f1") in told
    assert closed("4 nights 60 0 3 failed, 1 published") in told
    assert "tried by itself" not in err
    assert [path.name for path in nights.output.iterdir() if (path / "_SUCCESS").exists()] == [DAYS[3]]
    # What they failed for can be mended, and the same command again does the rest.
    for day in DAYS[:3]:
        put_shard(nights, day, features(30))
    code, out, _ = filled(nights, capfd, "--on_null=fail", "--split_rows=10")
    assert code == 0
    assert lines(out)[-1].endswith("3 published, 1 already published")


def test_nights_that_fail_alike_end_with_their_exit_code(
    nights: Night, capfd: pytest.CaptureFixture[str]
) -> None:
    for day in DAYS[:2]:
        put_shard(nights, day, features(30).drop_columns(["f2"]))
    assert filled(nights, capfd)[0] == 4


@pytest.mark.slow
@pytest.mark.usefixtures("forks")
def test_a_night_that_kills_workers_fails_alone(
    nights: Night, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    model = f"{module(nights.folder, 'deadly_built', DEADLY, monkeypatch)}:build"
    monkeypatch.setenv("PYTHONPATH", f"{nights.folder}:{os.environ.get('PYTHONPATH', '')}")
    spoilt = features(30)
    put_shard(nights, DAYS[2], spoilt.set_column(1, "f0", pa.array([2e6] * 30, pa.float32())))
    processes = ("--direct_running_mode=multi_processing", "--direct_num_workers=1")
    asked = (f"--start={DAYS[1]}", f"--end={DAYS[2]}")
    code, out, err = run_cli(capfd, "backfill", *asked, *flags(nights, *processes, model=model))
    assert "a worker process died in mid-run" in err
    assert "each of 2 nights is tried by itself" in err
    assert (code, lines(out)[-1]) == (1, "2 nights 60 0 1 published, 1 failed")
    assert closed(f"{DAYS[2]} exit 1: a worker process died in mid-run") in closed(out)
    assert [path.parent.name for path in nights.output.glob("*/_SUCCESS")] == [DAYS[1]]


def test_a_killed_backfill_is_resumed_by_the_same_command(
    nights: Night, capfd: pytest.CaptureFixture[str], warm: Zygote
) -> None:
    args = [f"--start={DAYS[0]}", f"--end={DAYS[-1]}", *flags(nights, "--parallel=2", "--split_rows=10")]
    process = warm.process(Job(("backfill", *args), str(nights.folder / "log")))
    # In the middle of the second group.
    until(
        lambda: (
            any(nights.output.glob(f"{DAYS[2]}/_staging/*/receipts/*/*.json")) or process.poll() is not None
        )
    )
    process.kill()
    process.wait()
    done = [path.parent for path in nights.output.glob("*/_SUCCESS")]
    there = {path: path.stat().st_mtime_ns for folder in done for path in visible(folder)}
    code, out, _ = filled(nights, capfd, "--parallel=2", "--split_rows=10")
    assert code == 0
    assert lines(out)[-1].endswith(("2 published, 2 already published", "2 already published, 2 published"))
    assert len(there) == 12
    assert all(path.stat().st_mtime_ns == at for path, at in there.items())
    found = [pq.ParquetFile(path).read() for path in visible(nights.output)]
    assert sorted(pa.concat_tables(found)["id"].to_pylist()) == list(range(240))


@pytest.mark.parametrize(
    ("more", "reason"),
    [
        (["--ds=2026-02-27"], "--ds=2026-02-27: backfill scores the nights from --start to --end"),
        (["--no_wait"], "--no_wait: backfill publishes the nights in their order"),
        (["--parallel=0"], "--parallel=0: must be a whole number of nights from 1, or auto"),
        (["--end=2026-02-26"], "--end=2026-02-26: it lies before --start=2026-02-27"),
        (["--start=x"], "--start is given twice"),
    ],
)
def test_what_cannot_be_said_of_many_nights_is_refused(
    night: Night, capfd: pytest.CaptureFixture[str], more: list[str], reason: str
) -> None:
    code, _, err = run_cli(capfd, "backfill", "--start=2026-02-27", *flags(night), *more)
    assert code == 2
    assert reason in err


@pytest.mark.parametrize("name", ["input", "output"])
def test_each_night_has_paths_of_its_own(night: Night, capfd: pytest.CaptureFixture[str], name: str) -> None:
    given = [flag.replace("{ds}", "x") if flag.startswith(f"--{name}=") else flag for flag in flags(night)]
    code, _, err = run_cli(capfd, "backfill", "--start=2026-02-27", *given)
    assert code == 2
    assert f"--{name}=" in err
    assert "put {ds} into it" in err


def test_nights_that_would_share_an_output_are_refused(
    night: Night, capfd: pytest.CaptureFixture[str]
) -> None:
    given = [flag.replace("{ds}", "{ds:%Y-%m}") if "output" in flag else flag for flag in flags(night)]
    code, _, err = run_cli(capfd, "backfill", "--start=2026-02-27", "--end=2026-03-02", *given)
    assert code == 2
    assert f"it is {night.output}/2026-02 for 2026-02-27 and for 2026-02-28" in err


def test_without_an_end_it_goes_on_to_yesterday() -> None:
    argv = ["--start=2026-02-27", "--input={ds}", "--output={ds}", "--model=m.keras", "--timezone=Asia/Tokyo"]
    with options.parsed(argv, backfill_command.parser()) as asked:
        nights = backfill_command.nights(asked)
    assert (nights.start, nights.end) == (FIRST, dates.yesterday("Asia/Tokyo"))
    with (
        pytest.raises(UsageError, match="--start must be given"),
        options.parsed(argv[1:], backfill_command.parser()) as asked,
    ):
        backfill_command.nights(asked)


@pytest.fixture
def bucket() -> Iterator[str]:
    patch = pytest.MonkeyPatch()
    with s3_way() as way:
        stores.apply(patch, stores.environment(way.store, None))
        objects.forget()
        yield f"s3://{BUCKET}"
    objects.forget()
    patch.undo()


def test_from_bucket_to_bucket(nights: Night, bucket: str) -> None:
    for path in nights.input.rglob("*.parquet"):
        key = path.relative_to(nights.folder)
        storage.write_atomic(f"{bucket}/{key}", path.read_bytes())
    storage.write_atomic(f"{bucket}/m.keras", (nights.folder / "m.keras").read_bytes())
    given = [flag.replace(str(nights.folder), bucket) for flag in flags(nights)]
    with options.parsed(given) as asked:
        template = asked.template
    days = [*dates.days(FIRST, FIRST + datetime.timedelta(days=4))]
    found = [*backfill.score(template, (), days, nights_at_once=9, announce=lambda line: None)]
    assert [ending.told for ending in found] == [*["published"] * 4, "failed"]
    assert isinstance(found[-1].error, JobError)
    assert found[-1].exit_code == 3
    for day in DAYS:
        top = f"{bucket}/out/{day}/"
        names = {info.path.removeprefix(top) for info in storage.tree(top.rstrip("/"))}
        assert {"_SUCCESS", "_manifest.json", f"ds={day}/0.parquet", f"ds={day}/1.parquet"} <= names
        assert not any(name.startswith("_staging") for name in names)
    again = [*backfill.score(template, (), days[:4], nights_at_once=9, announce=lambda line: None)]
    assert {ending.told for ending in again} == {"already published"}


def test_times_of_a_night_are_its_own(nights: Night, capfd: pytest.CaptureFixture[str]) -> None:
    before = time.time()
    assert filled(nights, capfd)[0] == 0
    for day in DAYS:
        started = datetime.datetime.fromisoformat(report(nights, day)["started_utc"])
        assert before - 1 <= started.timestamp() <= time.time()
