"""``job doctor`` asks real workers: of pools that are well, broken or dying, of Dask, and about buckets."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from job.doctor import engine
from tests.support.dask_cluster import dask_cluster
from tests.support.nights import Night, dense, features, saved
from tests.support.remote_store import Remote
from tests.support.servers.clients import BUCKET
from tests.support.store_nights import until
from tests.support.worker_pool import external, free_port, job_service, worker_pool
from tests.unit.doctor.test_doctor import NOBODY, examined, not_ok

ROOT = Path(__file__).parents[2]


@pytest.fixture
def args(night: Night) -> list[str]:
    night.shard("part", features(100))
    return night.args(saved(dense(), night.folder / "m.keras"), "--keys=id")


@pytest.fixture(scope="module")
def job_port(tmp_path_factory: pytest.TempPathFactory) -> Iterator[int]:
    with job_service(tmp_path_factory.mktemp("service")) as (port, _):
        yield port


@pytest.mark.slow
def test_a_pool_is_asked_by_a_job_and_must_be_alone_on_its_port(
    night: Night, args: list[str], job_port: int, tmp_path: Path
) -> None:
    port = free_port()
    with worker_pool(tmp_path, port) as pool:
        checks = examined([*args, *external(job_port, port)])
        assert not_ok(checks) == []
        assert checks["worker pool"].told == f"localhost:{port} answers, process {pool.pid} alone"
        assert checks["workers: output"].ok
        # Not this process, nor a child of it that will be gone.
        assert checks["workers"].told.startswith("1 answered: ")
        assert not night.output.exists()
        with worker_pool(tmp_path, port) as other:
            until(lambda: len(engine.listeners(port)) == 2, within_s=60)
            checks = examined([*args, *external(job_port, port)])
    assert not_ok(checks) == ["worker pool"]
    assert all(f"process {one.pid}" in checks["worker pool"].told for one in (pool, other))
    assert checks["workers"].ok is None
    checks = examined([*args, *external(job_port, port)])
    assert not_ok(checks) == ["worker pool"]
    assert "nobody answers" in checks["worker pool"].told


@pytest.mark.slow
def test_a_package_that_fails_when_the_workers_import_it(
    args: list[str], job_port: int, tmp_path: Path
) -> None:
    broken = tmp_path / "broken" / "job"
    broken.mkdir(parents=True)
    (broken / "__init__.py").write_text("import a_module_that_nobody_installed\n")
    port = free_port()
    with worker_pool(tmp_path, port, [broken.parent]):
        checks = examined([*args, *external(job_port, port)])
    assert not_ok(checks) == ["workers: package"]
    assert "No module named 'a_module_that_nobody_installed'" in checks["workers: package"].told
    assert checks["workers: versions"].ok


@pytest.mark.slow
def test_workers_that_die_when_they_start_are_given_up(
    night: Night, args: list[str], job_port: int, tmp_path: Path
) -> None:
    python = tmp_path / "dying" / "python"
    python.parent.mkdir()
    python.write_text("#!/bin/sh\nexit 3\n")
    python.chmod(0o755)
    port = free_port()
    with worker_pool(tmp_path, port, before=python.parent):
        checks = examined([*args, *external(job_port, port)], limit_s=5)
    assert not_ok(checks) == ["workers"]
    assert checks["workers"].told == "no answer within 5 s"
    assert f"the log of the worker pool at localhost:{port}" in checks["workers"].fix
    assert not night.output.exists()


@pytest.mark.slow
def test_a_dask_worker_with_another_version_and_another_model(
    args: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Found before the one that is installed.
    older = tmp_path / "older" / "keras-3.0.0.dist-info"
    older.mkdir(parents=True)
    (older / "METADATA").write_text("Metadata-Version: 2.1\nName: keras\nVersion: 3.0.0\n")
    builder = "def build():\n    raise NotImplementedError\n"
    here, there = tmp_path / "here", older.parent
    for number, folder in enumerate((here, there)):
        folder.mkdir(exist_ok=True)
        (folder / "built_by_night.py").write_text(f"{builder}# {number}\n")
    with (
        dask_cluster(tmp_path / "cluster", workers=1, path=there) as cluster,
        pytest.MonkeyPatch.context() as on,
    ):
        on.syspath_prepend(here)
        flags = ["--runner=dask", f"--dask_client_address={cluster.address}"]
        model = [
            f"--model={'built_by_night:build' if one.startswith('--model') else one}" for one in args[1:2]
        ]
        checks = examined([args[0], *model, *args[2:], *flags])
    assert not_ok(checks) == ["workers: versions", "workers: model"]
    assert "keras 3.0.0, here 3." in checks["workers: versions"].told
    assert "1 answered: " in checks["workers"].told


def filled(bucket: Remote, top: str, folder: Path) -> list[str]:
    """Put a shard and a model below ``top``, and return the flags of a night there."""
    pq.write_table(features(100), folder / "part.parquet")
    saved(dense(), folder / "m.keras")
    key = top.partition(f"{BUCKET}/")[2]
    bucket.bucket.put(f"{key}/in/part.parquet", (folder / "part.parquet").read_bytes())
    bucket.bucket.put(f"{key}/m.keras", (folder / "m.keras").read_bytes())
    return [f"--input={top}/in", f"--model={top}/m.keras", f"--output={top}/out", "--keys=id"]


@pytest.mark.slow
def test_workers_reach_a_bucket_and_nothing_is_left_there(bucket: Remote, top: str, tmp_path: Path) -> None:
    checks = examined(filled(bucket, top, tmp_path))
    assert not_ok(checks) == []
    assert checks["workers: output"].ok
    assert bucket.files(f"{top}/out") == {}
    source = checks["S3 credentials" if bucket.is_s3 else "Cloud Storage credentials"]
    # The server of Cloud Storage asks nobody who they are.
    assert (source.ok, source.told) == ((True, "found: env") if bucket.is_s3 else (None, source.told))


def test_a_bucket_that_is_not_there(bucket: Remote, top: str, tmp_path: Path) -> None:
    args = filled(bucket, top, tmp_path)
    args[2] = f"--output={bucket.scheme}://nobody-has-this-bucket/out"
    checks = examined([*args, *NOBODY, f"--job_endpoint=localhost:{free_port()}"])
    assert not_ok(checks) == ["job endpoint", "output"]
    assert "nobody-has-this-bucket" in checks["output"].told
