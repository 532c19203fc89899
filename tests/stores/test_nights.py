"""A whole night in buckets, of both stores, against what plain pyarrow and one ``Model.predict`` say."""

from __future__ import annotations

import importlib
import io
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from job import storage
from job.binding.predictions import Tolerance
from job.cli import options
from job.commit import output
from job.compare import verify
from job.errors import OutputConflictError, StorageError, UsageError
from job.launch import score as launch_score
from job.model import artifact, versions
from job.report.run_report import RunReport
from job.storage import objects
from tests.support.nights import dense, features, matrix, module, saved
from tests.support.servers import stores
from tests.support.servers.clients import BUCKET, gcs_way, s3_way
from tests.support.store_nights import until
from tests.unit.model.test_keras_step import TWO_LAYERS, write_weights

ROWS = 120


@pytest.fixture(scope="module", params=["gs", "s3"])
def bucket(request: pytest.FixtureRequest) -> Iterator[str]:
    """The address of an empty bucket that this process reaches."""
    patch = pytest.MonkeyPatch()
    with gcs_way() if request.param == "gs" else s3_way() as way:
        endpoints = (None, way.store) if request.param == "gs" else (way.store, None)
        stores.apply(patch, stores.environment(*endpoints))
        objects.forget()
        yield f"{request.param}://{BUCKET}"
    objects.forget()
    patch.undo()


def upload(path: str, table: pa.Table) -> None:
    content = io.BytesIO()
    pq.write_table(table, content, row_group_size=40)
    storage.write_atomic(path, content.getvalue())


@pytest.fixture
def night(bucket: str, tmp_path: Path) -> str:
    """A folder with a model and three shards of 120 rows, the first of which has a null."""
    top = f"{bucket}/{tmp_path.name}"
    storage.write_atomic(f"{top}/m.keras", saved(dense(), tmp_path / "m.keras").read_bytes())
    for day in range(3):
        table = features(ROWS, seed=day, first_id=day * ROWS)
        if day == 0:
            values = [None if i == 50 else value for i, value in enumerate(table["f1"].to_pylist())]
            table = table.set_column(2, "f1", pa.array(values, pa.float32()))
        upload(f"{top}/in/ds=2013-12-0{day + 1}/a b#%.parquet", table)
    return top


def score(top: str, *flags: str, split_rows: int = 40) -> launch_score.Outcome:
    spec, beam_args = options.parse(
        [
            f"--input={top}/in/ds=2013-12-*",
            f"--model={top}/m.keras",
            f"--output={top}/out",
            *("--keys=id", f"--split_rows={split_rows}", "--batch_size=64", *flags),
        ]
    )
    return launch_score.score(spec, beam_args, announce=lambda line: None)


def published(top: str) -> pa.Table:
    """The visible files below ``out/``, in order."""
    infos = storage.tree(f"{top}/out")
    visible = [i.path for i in infos if not any(x[0] in "_." for x in i.path.split("/out/")[1].split("/"))]
    return pa.concat_tables([pq.ParquetFile(storage.parquet_source(path)).read() for path in visible])


def is_oracle(table: pa.Table, tmp_path: Path) -> None:
    """Compare with every shard's rows, but for the one with a null."""
    import keras

    rows = pa.concat_tables([features(ROWS, seed=day, first_id=day * ROWS) for day in range(3)])
    rows = rows.filter(pa.compute.not_equal(rows["id"], 50))
    expected = keras.models.load_model(tmp_path / "m.keras").predict(matrix(rows), verbose=0)[:, 0]
    assert table["id"].to_pylist() == rows["id"].to_pylist()
    np.testing.assert_allclose(table.column(1).to_numpy(), expected, rtol=1e-5, atol=1e-6)


def check_whole(top: str, report: RunReport, tmp_path: Path) -> None:
    assert (report.rows_scored, report.rows_rejected) == (3 * ROWS - 1, 1)
    is_oracle(published(top), tmp_path)
    names = storage.names(f"{top}/out")
    assert names == [
        *("_SUCCESS", "_manifest.json", "_rejected", "_report.html", "_report.json"),
        *(f"ds=2013-12-0{day}" for day in (1, 2, 3)),
    ]
    client = objects.store(top.partition("://")[0])._client
    assert client.open_uploads(BUCKET, "") == []
    found = verify.verify(f"{top}/out", sample_rows=verify.ALL, seed=0, tolerance=Tolerance(1e-5, 1e-6))
    assert found.is_right, list(verify.lines(found))


def test_a_night_from_bucket_to_bucket(night: str, tmp_path: Path) -> None:
    first = score(night)
    check_whole(night, first.report, tmp_path)
    again = score(night)
    assert again.already_published
    assert again.report.run_id == first.report.run_id
    with pytest.raises(OutputConflictError, match="holds run"):
        score(night, split_rows=120)
    replaced = score(night, "--if_exists=replace", split_rows=120)
    assert replaced.report.run_id != first.report.run_id
    check_whole(night, replaced.report, tmp_path)


def test_what_has_a_receipt_is_not_scored_again(
    night: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from job.commit import staging
    from job.scoring import split as scoring_split
    from job.scoring import worker

    real, write, written = scoring_split.score_split, staging.write_receipt, list[str]()

    def failing(split: Any, *args: Any) -> Any:
        if "ds=2013-12-03" in split.shard.path and split.first_row == 80:
            until(lambda: len(written) >= 3)
            raise MemoryError("as if it had died")
        return real(split, *args)

    def noted(folder: str, receipt: Any) -> Any:
        done = write(folder, receipt)
        written.append(receipt.split.name)
        return done

    with monkeypatch.context() as patch:
        patch.setattr(worker, "score_split", failing)
        patch.setattr(staging, "write_receipt", noted)
        with pytest.raises(Exception, match="as if it had died"):
            score(night)
    assert output.published(f"{night}/out") is None
    report = score(night).report
    assert report.splits_reused >= 3
    check_whole(night, report, tmp_path)


def test_a_bucket_that_is_not_there_is_told_in_one_line(bucket: str, tmp_path: Path) -> None:
    scheme = bucket.partition("://")[0]
    asks = [storage.tree, storage.read_bytes, storage.sha256 if scheme == "gs" else storage.names]
    for ask in (
        *asks,
        lambda path: storage.write_atomic(path, b"1"),
        lambda path: storage.create(path).seal(),
    ):
        with pytest.raises(StorageError, match=rf"^{scheme}://nowhere-at-all/x.*there is no such bucket"):
            ask(f"{scheme}://nowhere-at-all/x")
    with pytest.raises(UsageError, match="names no bucket"):
        storage.absolute(f"{scheme}://")


def test_models_of_several_files_come_out_of_a_bucket_whole(
    bucket: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A folder that Keras wrote, and sharded weights for a builder."""
    builder = module(tmp_path, "store_shards", TWO_LAYERS, monkeypatch)
    trained = importlib.import_module(builder).build()
    (tmp_path / "w").mkdir()
    write_weights(trained, tmp_path / "w" / "m.weights.json")
    trained.save(tmp_path / "w" / "m-1", zipped=False)
    top = f"{bucket}/{tmp_path.name}"
    for path in (tmp_path / "w").rglob("*"):
        if path.is_file():
            storage.write_atomic(f"{top}/{path.relative_to(tmp_path / 'w')}", path.read_bytes())
    assert versions.chosen(f"{top}/m-*") == f"{top}/m-1"
    x = np.random.default_rng(0).normal(size=(5, 4)).astype(np.float32)
    for model, weights in ((f"{builder}:build", f"{top}/m.weights.json"), (f"{top}/m-1", None)):
        reference = artifact.resolve(model, weights, trusted=False, sha256=None)
        step = artifact.opened(reference).load(reference)
        step.build(step.signature().inputs)
        np.testing.assert_array_equal(step.predict([x])[0], trained.predict(x, batch_size=5, verbose=0))
        changed = f"{top}/m_00001.weights.h5" if weights else f"{top}/m-1/model.weights.h5"
        storage.write_atomic(changed, b"other")
        again = artifact.resolve(model, weights, trusted=False, sha256=None)
        assert again.digest != reference.digest
