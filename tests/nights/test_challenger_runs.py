"""Nights with a challenger on several engines, killed, in a backfill, with shards and copies that fail."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from job.cli import options
from job.engines.engine import Fit
from job.errors import UsageError
from job.launch import identity, preflight
from job.model import artifact, versions
from job.scoring.challenger import MOST_MODEL_ERRORS, failed_rows, spread
from job.scoring.split import score_split
from job.shards import inputs
from job.spec import ModelReference, ScoringSpec, Shard
from tests.support.jobs import Job, Zygote
from tests.support.nights import Night, dense, features, module, run_cli, saved

FLAGS = ("--keys=id", "--features=f0,f1,f2,f3", "--split_rows=100", "--batch_size=32")
PROCESSES = ("--direct_running_mode=multi_processing", "--direct_num_workers=2")
# Fails on every row.
BROKEN = """
import keras
import tensorflow as tf

class Broken(keras.layers.Layer):
    def call(self, x):
        tf.debugging.assert_less(x, -1e9)
        return x

def build():
    given = keras.Input((4,), name="x")
    return keras.Model(given, keras.layers.Dense(1, kernel_initializer="ones")(Broken()(given)))
"""


@pytest.fixture
def both(night: Night) -> Night:
    """Two shards of 300 rows, a model, and a challenger that takes ``f4`` as well, which is null in row 7."""
    for i in range(2):
        table = features(300, seed=i, first_id=300 * i, width=5)
        values = [None if row == 7 else value for row, value in enumerate(table["f4"].to_pylist())]
        night.shard(f"{'ab'[i]}", table.set_column(5, "f4", pa.array(values, pa.float32())), group_rows=50)
    saved(dense(), night.folder / "m.keras")
    saved(dense(5, seed=3), night.folder / "c.keras")
    return night


def flags(night: Night, *more: str) -> list[str]:
    own = (f"--challenger={night.folder / 'c.keras'}", "--challenger_features=f0,f1,f2,f3,f4")
    return [*night.args(night.folder / "m.keras", *FLAGS, *own), *more]


def score(night: Night, capfd: pytest.CaptureFixture[str], *more: str) -> dict[str, Any]:
    code, _, err = run_cli(capfd, "score", *flags(night, *more))
    assert code == 0, err
    return dict(json.loads((night.output / "_report.json").read_text()))


def test_without_one_a_run_is_what_it_was() -> None:
    """To the digit: as the version before there were challengers had it."""
    spec = ScoringSpec(inputs=("/in",), model="/m.keras", output="/out", keys=("id",))
    shards = [Shard("/in/a.parquet", 10, "1")]
    champion, other = (ModelReference("/m.keras", None, False, digit * 64) for digit in "de")
    before = identity.run_id(spec, shards, identity.Models(champion, None))
    assert before == "8a1bc0a9fae472d3b15c84f3d0f87933f61ea4d70a17c2b659e90790d2a0995b"
    with_one = replace(spec, challenger="/c.keras")
    found = {
        before,
        identity.run_id(with_one, shards, identity.Models(champion, other)),
        identity.run_id(with_one, shards, identity.Models(other, champion)),
        identity.run_id(
            replace(with_one, challenger_features=("f0",)), shards, identity.Models(champion, other)
        ),
    }
    assert len(found) == 4


def test_flags_of_a_challenger_that_is_not_there() -> None:
    args = ["--input=a", "--model=m.keras", "--output=o"]
    for flag in (
        "--challenger_weights=w.weights.h5",
        f"--challenger_sha256={'0' * 64}",
        "--challenger_features=a",
    ):
        with pytest.raises(UsageError, match=r"there is no --challenger; give one, or leave it out"):
            options.parse([*args, flag])
    with pytest.raises(UsageError, match=r"--challenger_sha256=x: must be 64"):
        options.parse([*args, "--challenger=c.keras", "--challenger_sha256=x"])


def test_its_path_may_be_a_glob_an_alias_or_hold_the_night(
    both: Night, capfd: pytest.CaptureFixture[str]
) -> None:
    args = ["--input=a", "--model=m.keras", "--output=o", "--challenger=c/{ds}.keras", "--ds=2026-11-25"]
    assert options.parse(args)[0].challenger == "c/2026-11-25.keras"
    (both.folder / "@next").write_text("c.keras\n")
    args = [one for one in flags(both) if not one.startswith("--challenger=")]
    code, _, err = run_cli(capfd, "score", *args, f"--challenger={both.folder}/@next")
    assert (code, f"--challenger={both.folder}/@next: {both.folder}/c.keras" in err) == (0, True)
    # It is the same run, whatever it was called.
    assert "already" in run_cli(capfd, "score", *flags(both))[1]
    assert versions.chosen(f"{both.folder}/@next") == str(both.folder / "c.keras")


@pytest.mark.slow
@pytest.mark.usefixtures("forks")
def test_processes_that_share_one_copy_of_each(both: Night, capfd: pytest.CaptureFixture[str]) -> None:
    report = score(both, capfd, *PROCESSES, "--model_sharing=machine")
    told = report["challenger"]
    assert (told["rows"], told["failed"], told["reasons"]) == (600, 2, [["null", 2]])
    assert (len(report["workers"]), len(report["loads"]), told["loads"]) == (2, 1, 1)
    embedded = both.beside("embedded")
    embedded.score(both.folder / "m.keras", *flags(both)[3:])
    assert both.scored().equals(embedded.scored())


def killed_halfway(night: Night, warm: Zygote, args: list[str], path: str = "") -> pa.Table:
    """Score a night, forget it, and kill a second try at half of its receipts; return what the first gave."""
    job = Job(("score", *args), str(night.folder / "log"), str(night.output), path=path)
    places = [i for i, step in enumerate(warm.run(job)[0].steps) if "receipts" in step]
    assert len(places) >= 6
    whole = night.scored()
    for file in [one for one in night.output.rglob("*") if one.is_file()]:
        file.unlink()
    assert warm.run(replace(job, kill_at=places[len(places) // 2]))[0].code == -9
    return whole


def receipts(night: Night) -> list[dict[str, Any]]:
    return [json.loads(path.read_text()) for path in night.output.rglob("receipts/*.json")]


def test_killed_and_resumed(both: Night, warm: Zygote, capfd: pytest.CaptureFixture[str]) -> None:
    whole = killed_halfway(both, warm, flags(both))
    found = receipts(both)
    assert 0 < len(found) < 6
    assert any(one["challenger"]["failed"] for one in found)
    report = score(both, capfd)
    assert report["splits_reused"] == len(found)
    assert (report["challenger"]["failed"], report["challenger"]["loads"]) == (2, 2)
    assert both.scored().equals(whole)


# Another model each time.
UNSEEDED = """
import keras

def build():
    return keras.Sequential([keras.layers.Input((4,)), keras.layers.Dense(1)])
"""


def test_one_that_is_built_anew_is_one_model_all_night(
    both: Night, warm: Zygote, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    name = module(both.folder, "unseeded_challenger", UNSEEDED, monkeypatch)
    args = both.args(both.folder / "m.keras", *FLAGS, f"--challenger={name}:build")
    killed_halfway(both, warm, args, str(both.folder))
    assert receipts(both)
    code, _, err = run_cli(capfd, "score", *args)
    assert code == 0, err
    rows = pa.concat_tables([features(300, seed=i, first_id=300 * i, width=5) for i in range(2)])
    # One model of no hidden layer: four weights and a bias give all 600 predictions.
    scored = both.scored().sort_by("id")["challenger_prediction"].to_numpy()
    x = np.column_stack([*(rows[f"f{i}"].to_numpy() for i in range(4)), np.ones(600)])
    solved, *_ = np.linalg.lstsq(x, scored, rcond=None)
    np.testing.assert_allclose(x @ solved, scored, atol=1e-5)


def test_a_backfill_has_one_load_of_each(both: Night, capfd: pytest.CaptureFixture[str]) -> None:
    days = ("2026-02-27", "2026-02-28")
    for day, name in zip(days, "ab", strict=True):
        (both.input / f"ds={day}").mkdir()
        (both.input / f"{name}.parquet").rename(both.input / f"ds={day}" / "p.parquet")
    paths = (f"--input={both.input}/ds={{ds}}", f"--output={both.output}/{{ds}}")
    own = [one for one in flags(both) if not one.startswith(("--input", "--output"))]
    code, _, err = run_cli(capfd, "backfill", f"--start={days[0]}", f"--end={days[1]}", *paths, *own)
    assert code == 0, err
    told = [json.loads((both.output / day / "_report.json").read_text())["challenger"] for day in days]
    assert [(one["rows"], one["failed"], one["loads"]) for one in told] == [(300, 1, 1)] * 2
    # To the microsecond, so it is one load.
    assert told[0]["load_s"] == told[1]["load_s"] > 0


def test_a_refused_night_is_released_with_it_and_a_plan_knows_it(
    both: Night, capfd: pytest.CaptureFixture[str]
) -> None:
    code, out, err = run_cli(capfd, "plan", *flags(both), "--json")
    assert code == 0, err
    planned = json.loads(out)
    assert planned["predictions"] == ["prediction", "challenger_prediction"]
    code, _, err = run_cli(capfd, "score", *flags(both, "--min_rows=1000"))
    assert code == 5, err
    code, _, err = run_cli(capfd, "publish", str(both.output), f"--run_id={planned['run_id'][:12]}")
    assert code == 0, err
    assert (both.manifest()["challenger"]["failed"], both.manifest()["rows_scored"]) == (2, 600)


def spoil(path: Path, column: str) -> None:
    """Garble what a shard has of a column in its first row group; its footer stays as it was."""
    names = pq.read_schema(path).names
    chunk = pq.read_metadata(path).row_group(0).column(names.index(column))
    start = chunk.dictionary_page_offset or chunk.data_page_offset
    with path.open("r+b") as file:
        file.seek(start)
        file.write(os.urandom(chunk.total_compressed_size))


def without_f4(path: Path) -> None:
    pq.write_table(pq.read_table(path).drop_columns("f4"), path, row_group_size=50)


@pytest.mark.parametrize(
    ("harm", "more"),
    [(lambda path: spoil(path, "f4"), ()), (without_f4, ("--on_bad_shard=reject",))],
    ids=["damaged", "absent"],
)
def test_a_column_that_it_alone_wants_cannot_be_read(
    both: Night, capfd: pytest.CaptureFixture[str], harm: Callable[[Path], None], more: tuple[str, ...]
) -> None:
    harm(both.input / "b.parquet")
    alone = both.beside("alone")
    alone.score(both.folder / "m.keras", *FLAGS, *more)
    report = score(both, capfd, *more)
    assert both.scored().drop_columns("challenger_prediction").equals(alone.scored())
    assert report["rows_rejected"] == 0
    # Of the damaged shard the split that holds the damage; of the other all rows.
    failed = {"bad_shard": 300 if more else 100, "null": 1}
    assert dict(report["challenger"]["reasons"]) == failed
    assert "f4" in report["challenger"]["error"] or not more


def test_a_shard_without_its_column_fails_the_preflight(
    both: Night, capfd: pytest.CaptureFixture[str]
) -> None:
    without_f4(both.input / "b.parquet")
    code, _, err = run_cli(capfd, "score", *flags(both))
    assert code == 4
    assert f"--challenger={both.folder}/c.keras: column 'f4' is absent" in err
    assert "in 1 of 2 shards" in err


def test_a_model_that_fails_on_every_row_is_asked_no_more(
    both: Night, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    name = module(both.folder, "broken_challenger", BROKEN, monkeypatch)
    args = both.args(both.folder / "m.keras", *FLAGS, "--split_rows=300", f"--challenger={name}:build")
    args.remove("--split_rows=100")
    code, _, err = run_cli(capfd, "score", *args)
    assert code == 0, err
    told = json.loads((both.output / "_report.json").read_text())["challenger"]
    # In batches of 32: the fourth holds the hundred-and-first.
    assert (told["failed"], told["reasons"]) == (600, [["not_asked", 344], ["model_error", 256]])
    assert both.scored()["challenger_prediction"].null_count == 600
    assert 96 <= MOST_MODEL_ERRORS < 128
    assert "InvalidArgumentError" in told["error"]


def test_a_worker_that_cannot_load_it_goes_on_without(both: Night) -> None:
    """Another file lies there by the time a worker starts."""
    planned = both.planned(both.folder / "m.keras", *FLAGS)
    spec, _ = options.parse(flags(both))
    shards = inputs.list_shards(spec)
    footers = inputs.read_footers(shards)
    champion = preflight.check(spec, shards, footers, planned.task.run.model, 0)
    found = artifact.resolve(str(spec.challenger), None, trusted=False, sha256=None)
    fit = Fit(0, here=True)
    rival = preflight.check_challenger(spec, shards, footers, found, fit, champion, lambda line: None)
    assert rival is not None
    saved(dense(5, seed=4), both.folder / "c.keras")
    gone = replace(rival, told=replace(rival.told, model=replace(rival.told.model, digest="0" * 64)))
    how: dict[str, Any] = {"device": "auto", "threads": 0, "machine": "", "stores": spec.stores}
    receipt = score_split(
        planned.splits[0], planned.task, planned.loaded, rival=gone.acquire(planned.loaded, **how)
    )
    work = receipt.challenger
    assert work is not None
    assert (work.failed, work.reasons, work.load) == (100, (("not_loaded", 100),), "")
    assert "its SHA-256 is" in work.error
    assert receipt.rows_scored == 100


def test_values_are_spread_over_places() -> None:
    places = np.array([1, -1, 0])
    assert spread(pa.array(["a", "b"]), places).to_pylist() == ["b", None, "a"]
    inner = pa.FixedSizeListArray.from_arrays(pa.array([1, 2, 3, 4, 5, 6, 7, 8]), 2)
    deep = pa.FixedSizeListArray.from_arrays(inner, 2)
    found = spread(deep, places)
    assert found.type == deep.type
    assert found.to_pylist() == [[[5, 6], [7, 8]], [[None] * 2] * 2, [[1, 2], [3, 4]]]
    assert failed_rows(found).tolist() == [False, True, False]
    assert failed_rows(spread(pa.array([], pa.float32()), np.array([-1]))).tolist() == [True]
