"""``score`` from shards to a published night, against plain pyarrow and one ``Model.predict``.

Every kind of model reference; what is loaded how often; what happens when the same or another run comes
to an output that is there.
"""

from __future__ import annotations

import hashlib
import json
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pyarrow as pa
import pytest

from job.cli import options
from job.commit.output import published
from job.errors import ModelError, OutputConflictError
from job.launch import score
from tests.support.jobs import Job, Zygote
from tests.support.nights import Array, Night, dense, features, matrix, saved

ROOT = Path(__file__).parents[2]
BATCH = 64

UNSEEDED = """import keras
def build():
    return keras.Sequential([keras.layers.Input((4,)), keras.layers.Dense(1)])
"""
SEEDED = UNSEEDED.replace("    return", "    keras.utils.set_random_seed(3)\n    return")

Made = tuple[str | Path, list[str], Any]


def keras_archive(folder: Path) -> Made:
    model = dense()
    return saved(model, folder / "m.keras"), [], model


def legacy_h5(folder: Path) -> Made:
    model = dense()
    return saved(model, folder / "m.h5"), ["--trust_model"], model


def archive_with_code(folder: Path) -> Made:
    x = keras.Input((4,), name="x")
    model = keras.Model(x, keras.layers.Lambda(lambda x: x[:, :1] * 2 + 1, output_shape=(1,))(x))
    return saved(model, folder / "m.keras"), ["--trust_model"], model


def exported(folder: Path) -> Made:
    model = dense()
    model.export(folder / "m", verbose=False)
    return folder / "m", [], model


def saved_by_tensorflow(folder: Path) -> Made:
    import tensorflow as tf

    model, owner = dense(), tf.Module()
    owner.model = model
    spec = tf.TensorSpec((None, 4), tf.float32, name="x")
    owner.serve = tf.function(lambda x: {"score": model(x, training=False)}, input_signature=[spec])
    tf.saved_model.save(owner, folder / "m", signatures=owner.serve)
    return folder / "m", [], model


def builder(folder: Path) -> Made:
    (folder / "e2e_seeded.py").write_text(SEEDED)
    keras.utils.set_random_seed(3)
    return "e2e_seeded:build", [], __import__("e2e_seeded").build()


def builder_with_weights(folder: Path) -> Made:
    (folder / "e2e_unseeded.py").write_text(UNSEEDED)
    model = __import__("e2e_unseeded").build()
    model.save_weights(folder / "a.weights.h5")
    return "e2e_unseeded:build", [f"--weights={folder}/a.weights.h5"], model


def layer_that_keras_cannot_load_again(folder: Path) -> Made:
    from models import custom_layer

    model = custom_layer.build()
    model(np.zeros((1, 4), np.float32))
    model.save_weights(folder / "a.weights.h5")
    return "models.custom_layer:build", [f"--weights={folder}/a.weights.h5"], model


NEED_TRUST = (legacy_h5, archive_with_code)
REFERENCES = (
    *(keras_archive, exported, saved_by_tensorflow, builder, builder_with_weights),
    *(layer_that_keras_cannot_load_again, *NEED_TRUST),
)


@pytest.fixture
def importable(night: Night, monkeypatch: pytest.MonkeyPatch) -> Night:
    """The night's folder can be imported from, and nothing of an earlier one is remembered."""
    monkeypatch.syspath_prepend(night.folder)
    for name in ("e2e_seeded", "e2e_unseeded"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    return night


def by_hand(model: Any, tables: list[pa.Table], batch_rows: int = BATCH) -> Array:
    """``Model.predict`` on each shard, in batches of ``batch_rows``."""
    return np.concatenate(
        [model.predict(matrix(t), batch_size=batch_rows, verbose=0).reshape(-1) for t in tables if t.num_rows]
    )


def three_shards(night: Night) -> list[pa.Table]:
    tables = [features(rows, seed=i, first_id=1000 * i) for i, rows in enumerate((300, 0, 77))]
    for i, table in enumerate(tables):
        night.shard(f"part-{i}", table, group_rows=50)
    return tables


@pytest.mark.parametrize("make", REFERENCES)
def test_every_kind_of_model_equals_plain_predict(importable: Night, make: Callable[[Path], Made]) -> None:
    night, tables = importable, three_shards(importable)
    path, flags, plain = make(night.folder)
    report = night.score(path, "--keys=id", f"--batch_size={BATCH}", *flags)
    scored = night.scored()
    assert scored.column("id").to_pylist() == pa.concat_tables(tables).column("id").to_pylist()
    np.testing.assert_array_equal(scored.column(1).to_numpy(), by_hand(plain, tables))
    assert (report.rows_read, report.rows_scored, report.rows_rejected) == (377, 377, 0)
    assert (report.shards, report.splits, report.files, report.traces) == (3, 3, 3, 1)
    assert len(report.loads) == 1
    assert report.model_sha256 == night.manifest()["model"]["sha256"]


@pytest.mark.parametrize("make", NEED_TRUST)
def test_code_in_a_model_is_not_run_unless_trusted(night: Night, make: Callable[[Path], Made]) -> None:
    three_shards(night)
    path, _, _ = make(night.folder)
    with pytest.raises(ModelError, match="add --trust_model"):
        night.score(path, "--keys=id")
    assert not night.output.exists()


def test_values_do_not_depend_on_how_rows_are_cut(night: Night) -> None:
    tables = [features(5000, seed=1), features(1, seed=2), features(2999, seed=3)]
    for i, table in enumerate(tables):
        night.shard(f"part-{i}", table, group_rows=700)
    plain = dense()
    path = saved(plain, night.folder / "m.keras")
    expected = by_hand(plain, tables, batch_rows=10_000)
    for flags in (["--batch_size=auto"], ["--batch_size=1000", "--split_rows=1500"], ["--batch_size=333"]):
        night.score(path, "--keys=id", "--if_exists=replace", *flags)
        values = night.scored().column("prediction").to_numpy()
        np.testing.assert_allclose(values, expected, rtol=1e-6, atol=1e-6)


def test_many_splits_in_two_threads_are_one_load_and_one_trace(night: Night) -> None:
    table = features(1037)
    night.shard("part", table, group_rows=10)
    path = saved(dense(seed=11), night.folder / "m.keras")
    report = night.score(path, "--keys=id", "--split_rows=20", "--batch_size=16", "--direct_num_workers=2")
    assert report.splits == 52
    assert (len(report.loads), report.traces) == (1, 1)
    assert report.batch_rows == (16,)
    names = [file.name for file in night.files()]
    assert names[0] == "part-00000-00001.parquet"
    assert names[-1] == "part-00102-00103.parquet"
    assert night.scored().column("id").to_pylist() == list(range(1037))


def test_an_unseeded_builder_scores_every_row_with_the_same_weights(importable: Night) -> None:
    night = importable
    (night.folder / "e2e_unseeded.py").write_text(UNSEEDED)
    rows = pa.table({"id": np.arange(400), **{f"f{i}": np.ones(400, np.float32) for i in range(4)}})
    night.shard("part", rows, group_rows=10)
    report = night.score("e2e_unseeded:build", "--keys=id", "--split_rows=20")
    assert report.splits == 20
    assert len(report.weights_sha256) == 1
    assert len(report.weights_sha256[0]) == 64
    assert len(set(night.scored().column(1).to_pylist())) == 1


def test_a_pinned_model_is_scored_and_another_is_not(night: Night) -> None:
    three_shards(night)
    path = saved(dense(), night.folder / "m.keras")
    found = hashlib.sha256(path.read_bytes()).hexdigest()
    with pytest.raises(ModelError, match=f"its SHA-256 is {found}, --model_sha256 wants {'0' * 64}"):
        night.score(path, "--keys=id", f"--model_sha256={'0' * 64}")
    assert not night.output.exists()
    assert night.score(path, "--keys=id", f"--model_sha256={found.upper()}").model_sha256 == found


def stats(night: Night) -> dict[Path, tuple[int, int, bytes]]:
    files = [path for path in night.output.rglob("*") if path.is_file()]
    return {path: (path.stat().st_mtime_ns, path.stat().st_ino, path.read_bytes()) for path in files}


def test_the_same_run_again_is_done_at_once_and_changes_nothing(night: Night) -> None:
    three_shards(night)
    path = saved(dense(), night.folder / "m.keras")
    night.score(path, "--keys=id")
    before = stats(night)
    program = (
        "import sys; from job.cli import main as cli; code = cli.main(sys.argv[1:]); "
        "print(sorted({'tensorflow', 'keras', 'apache_beam'} & set(sys.modules))); sys.exit(code)"
    )
    command = [sys.executable, "-c", program, "score", *night.args(path, "--keys=id")]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False, timeout=120)
    assert (done.returncode, done.stderr) == (0, "")
    said, imported = done.stdout.splitlines()
    assert said.startswith("already published: run ")
    assert said.endswith(f" at {night.output}: nothing to do")
    assert imported == "[]"
    assert stats(night) == before


def test_another_run_is_refused_until_it_may_replace(night: Night) -> None:
    three_shards(night)
    path = saved(dense(), night.folder / "m.keras")
    night.score(path, "--keys=id", "--split_rows=100")
    before, old = stats(night), night.files()
    assert len(old) == 5
    with pytest.raises(OutputConflictError, match=r"it holds run [0-9a-f]{12}, this is run [0-9a-f]{12} "):
        night.score(path, "--keys=id")
    assert stats(night) == before
    (night.input / "part-2.parquet").unlink()
    night.score(path, "--keys=id", "--if_exists=replace")
    assert [file.name for file in night.files()] == ["part-0.parquet", "part-1.parquet"]
    assert night.scored().num_rows == 300
    assert (night.output / "_SUCCESS").exists()
    assert not (night.output / "_staging").exists()


def test_a_killed_run_resumes_and_keeps_what_it_had(night: Night, warm: Zygote) -> None:
    table = features(60_000)
    night.shard("part", table, group_rows=150)
    plain = dense()
    path = saved(plain, night.folder / "m.keras")
    args = night.args(path, "--keys=id", "--split_rows=150", "--batch_size=150")
    killed = warm.process(Job(("score", *args), str(night.folder / "log"), module="job"))
    deadline = time.monotonic() + 100
    while len(list(night.output.glob("_staging/*/receipts/*.json"))) < 5 and time.monotonic() < deadline:
        time.sleep(0.002)
    killed.kill()
    assert killed.wait() == -signal.SIGKILL
    receipts = {file.stem: file for file in night.output.glob("_staging/*/receipts/*.json")}
    assert 5 <= len(receipts) < 400, "the run was to be killed half way"
    assert night.files() == []
    inodes = {file.name.split(".")[0]: file.stat() for file in night.output.glob("_staging/*/attempts/*")}

    said: list[str] = []
    spec, beam_args = options.parse(args)
    report = score.score(spec, beam_args, announce=said.append).report
    assert said[0].startswith("model inputs: f0, f1, f2, f3 → ")
    assert said[1:] == [
        f"resuming run {report.run_id[:12]}: {report.splits_reused} of 400 splits have their receipt"
    ]
    assert 5 <= report.splits_reused <= len(receipts)
    reused = [f for f in night.files() if f.stem in inodes and f.stat().st_ino == inodes[f.stem].st_ino]
    assert len(reused) >= report.splits_reused
    assert all(file.stat().st_mtime_ns == inodes[file.stem].st_mtime_ns for file in reused)
    scored = night.scored()
    assert scored.column("id").to_pylist() == list(range(60_000))
    np.testing.assert_array_equal(scored.column(1).to_numpy(), by_hand(plain, [table], 150))
    assert len(report.loads) == 2
    assert published(str(night.output)) is not None
    assert not (night.output / "_staging").exists()


@pytest.mark.slow
def test_processes_load_once_each_are_silent_and_make_the_same_night(night: Night, warm: Zygote) -> None:
    table = features(2000)
    night.shard("part", table, group_rows=50)
    plain = dense()
    args = night.args(
        saved(plain, night.folder / "m.keras"), "--keys=id", "--split_rows=50", "--batch_size=50"
    )
    engine = ["--direct_running_mode=multi_processing", "--direct_num_workers=2"]
    log, out = str(night.folder / "log"), str(night.folder / "out.log")
    launcher = warm.process(Job(("score", *args, *engine), log, out=out, module="job"))
    done = launcher.done
    assert done.code == 0, done.text
    # Under a load the run may take long enough for lines of progress.
    (fed,) = [line for line in done.text.splitlines() if " rows (" not in line]
    assert fed.startswith("model inputs: f0, f1, f2, f3 → ")
    report = json.loads((night.output / "_report.json").read_text())
    assert report["splits"] == 40
    assert 1 <= len(report["loads"]) == len(report["workers"]) <= 2
    assert str(launcher.pid) not in {worker.rpartition(":")[2] for worker in report["workers"]}
    assert report["traces"] == len(report["loads"])
    scored = night.scored()
    assert scored.column("id").to_pylist() == list(range(2000))
    np.testing.assert_array_equal(scored.column(1).to_numpy(), by_hand(plain, [table], 50))
