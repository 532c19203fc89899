"""The images as they are built: a night that is launched and scored inside them, and what fails a build."""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from tests import images
from tests.nights import Night, dense, features, saved
from tests.store_nights import until
from tests.test_rooms import pins
from tests.test_portable import free_port, listens

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1200)]
CONTEXT = ("Dockerfile", ".dockerignore", "requirements-worker.lock", "pyproject.toml", "setup.py")


@pytest.fixture(scope="module", autouse=True)
def built() -> None:
    """Both images that run without a GPU; the launcher is a worker with another entry point."""
    images.need("buildah", "go", "dpkg")
    for target in ("worker-cpu", "launcher"):
        done = images.build(target)
        assert done.returncode == 0, f"{done.stdout}\n{done.stderr}"


@contextlib.contextmanager
def served(command: Sequence[str], port: int, log: Path) -> Iterator[None]:
    with log.open("wb") as out:
        one = subprocess.Popen(command, cwd=log.parent, stdout=out, stderr=out, start_new_session=True)
    try:
        until(lambda: listens(port), within_s=100)
        yield
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(one.pid, 9)
        one.wait()


def test_a_night_is_launched_and_scored_inside_the_images(tmp_path: Path) -> None:
    night, logs = Night(tmp_path / "night"), tmp_path / "logs"
    logs.mkdir()
    for day in range(3):
        night.shard(f"ds=2013-12-0{day + 1}/part", features(3000, seed=day), group_rows=500)
    path = saved(dense(), night.folder / "m.keras")
    # The images' user is not this one.
    night.folder.chmod(0o777)
    flags = ["--keys=id", "--split_rows=500", "--batch_size=500"]
    # No folder of this machine is called so: what is read and written there, is by a process inside.
    inside = Night(Path("/night"))
    assert not inside.folder.exists()
    service_port, pool_port = free_port(), free_port()
    module = "apache_beam.runners.portability.local_job_service_main"
    service = [sys.executable, "-m", module, f"--port={service_port}", "--staging_dir=staging"]
    with (
        images.container("worker-cpu", night.folder) as worker,
        images.container("launcher", night.folder) as launcher,
    ):
        # As `boot -worker_pool` does it, but on a port that is free.
        (boot,) = worker.config["Entrypoint"]
        pool = ("python", "-m", "apache_beam.runners.worker.worker_pool_main", f"--service_port={pool_port}")
        with (
            served(service, service_port, logs / "service"),
            served(worker.command(*pool, f"--container_executable={boot}"), pool_port, logs / "pool"),
        ):
            said = launcher.run(
                *launcher.config["Entrypoint"],
                "score",
                *inside.args(inside.folder / "m.keras", *flags),
                *("--runner=PortableRunner", f"--job_endpoint=localhost:{service_port}"),
                *("--environment_type=EXTERNAL", f"--environment_config=localhost:{pool_port}"),
            )
    assert "9,000 scored of 9,000 read" in said
    started = re.findall(r"Starting worker with command (.*)", (logs / "pool").read_text())
    assert started
    assert all(boot in command for command in started)
    told = json.loads((night.output / "_report.json").read_text())
    assert len(told["loads"]) == len(told["workers"]) >= 1
    assert {path.stat().st_uid for path in night.files()} == {10001}
    beside = Night(tmp_path / "embedded")
    beside.folder.mkdir()
    beside.input.symlink_to(night.input)
    beside.score(path, *flags)
    assert len(night.files()) == 18
    for ours, theirs in zip(night.files(), beside.files(), strict=True):
        assert pq.ParquetFile(ours).read().equals(pq.ParquetFile(theirs).read())
