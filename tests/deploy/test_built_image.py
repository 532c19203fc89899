"""The images as they are built: a night that is launched and scored inside them, and what fails a build."""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import subprocess
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import pytest

from tests.support import images
from tests.support.nights import Night, dense, features, saved
from tests.support.store_nights import until
from tests.support.worker_pool import external, free_port, job_service, listens
from tests.unit.test_repository import pins

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1200)]
CONTEXT = ("Dockerfile", ".dockerignore", "requirements-worker.lock", "pyproject.toml", "setup.py", "LICENSE")


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
    pool_port = free_port()
    with (
        images.container("worker-cpu", night.folder) as worker,
        images.container("launcher", night.folder) as launcher,
    ):
        # As `boot -worker_pool` does it, but on a port that is free.
        (boot,) = worker.config["Entrypoint"]
        pool = ("python", "-m", "apache_beam.runners.worker.worker_pool_main", f"--service_port={pool_port}")
        with (
            job_service(logs) as (service_port, _),
            served(worker.command(*pool, f"--container_executable={boot}"), pool_port, logs / "pool"),
        ):
            said = launcher.run(
                *launcher.config["Entrypoint"],
                "score",
                *inside.args(inside.folder / "m.keras", *flags),
                *external(service_port, pool_port),
            )
    assert "9,000 scored of 9,000 read" in said
    started = re.findall(r"Starting worker with command (.*)", (logs / "pool").read_text())
    assert started
    assert all(boot in command for command in started), started
    told = json.loads((night.output / "_report.json").read_text())
    assert len(told["loads"]) == len(told["workers"]) >= 1
    assert {path.stat().st_uid for path in night.files()} == {10001}
    assert len(night.files()) == 18
    night.check_as_embedded(path, *flags)


def test_a_night_is_scored_on_dask_inside_the_images(tmp_path: Path) -> None:
    night, logs, inside = Night(tmp_path / "night"), tmp_path / "logs", Night(Path("/night"))
    logs.mkdir()
    for day in range(2):
        night.shard(f"part-{day}", features(300, seed=day))
    path = saved(dense(), night.folder / "m.keras")
    night.folder.chmod(0o777)
    port = free_port()
    address = f"tcp://127.0.0.1:{port}"
    here = ("--host=127.0.0.1", "--no-dashboard")
    with (
        images.container("worker-cpu", night.folder) as worker,
        images.container("launcher", night.folder) as launcher,
        served(worker.command("dask", "scheduler", *here, f"--port={port}"), port, logs / "scheduler"),
        served(worker.command("dask", "worker", address, *here, "--nthreads=1"), port, logs / "worker"),
    ):
        engine = ("--runner=DaskRunner", f"--dask_client_address={address}")
        args = inside.args(inside.folder / "m.keras", "--keys=id", "--batch_size=100")
        until(lambda: "Registered to" in (logs / "worker").read_text(), within_s=60)
        said = launcher.run(*launcher.config["Entrypoint"], "score", *args, *engine)
    assert "600 scored of 600 read" in said
    assert {path.stat().st_uid for path in night.files()} == {10001}
    night.check_as_embedded(path, "--keys=id", "--batch_size=100")


@pytest.mark.parametrize(
    ("image", "lock"),
    [("worker-cpu", "requirements-worker.lock"), ("launcher", "requirements-launcher.lock")],
)
def test_what_is_installed_is_what_is_locked(tmp_path: Path, image: str, lock: str) -> None:
    with images.container(image, tmp_path) as one:
        told = json.loads(one.run("python", "-m", "pip", "list", "--format=json"))
        assert "No broken requirements" in one.run("python", "-m", "pip", "check")
    held = {re.sub(r"[-_.]+", "-", one["name"]).lower(): one["version"] for one in told}
    assert {held.pop(name) for name in ("pip", "scoring-job")}
    assert held == pins(lock)


def test_the_flex_templates_image_starts_the_command(tmp_path: Path) -> None:
    # As Google's program does, which is of no use without Google.
    done = images.template('#!/bin/sh\nexec python "$FLEX_TEMPLATE_PYTHON_PY_FILE" "$@"\n')
    assert done.returncode == 0, f"{done.stdout}\n{done.stderr}"
    launch = ["--input=gs://b/in", "--model=gs://b/m.keras", "--output=gs://b/out", "--trust_model=false"]
    with images.container("template", tmp_path) as template:
        (program,) = template.config["Entrypoint"]
        assert template.run("id", "-u").strip() == template.config["User"] == "10001"
        ended = template.tried(program, *launch, "--runner=DataflowRunner")
        assert "No broken requirements" in template.run("python", "-m", "pip", "check")
    # All that submitting takes is installed, or that would have been told first.
    told = "error: --runner=DataflowRunner needs --project, --region, --temp_location as well"
    assert (ended.returncode, ended.stderr.splitlines()[0]) == (2, told)


def edit(path: Path, old: str, new: str) -> None:
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new))


def with_other_hashes(context: Path) -> None:
    lock = context / "requirements-worker.lock"
    lock.write_text(re.sub(r"sha256:[0-9a-f]{64}", f"sha256:{'0' * 64}", lock.read_text()))


def without_packages(context: Path) -> None:
    edit(context / "pyproject.toml", '"job", "job.*"', '"job"')


BROKEN: dict[str, tuple[Callable[[Path], object], str]] = {
    "a source is missing": (lambda context: (context / "LICENSE").unlink(), "LICENSE"),
    "a source is hidden": (lambda context: edit(context / ".dockerignore", "!job\n", ""), "job"),
    "a hash is wrong": (with_other_hashes, "DO NOT MATCH THE HASHES"),
    "a package is left out": (without_packages, "No module named 'job.launch'"),
}


@pytest.mark.parametrize("name", BROKEN)
def test_a_build_fails_where(name: str, tmp_path: Path) -> None:
    for one in CONTEXT:
        shutil.copy2(images.ROOT / one, tmp_path)
    shutil.copytree(images.ROOT / "job", tmp_path / "job")
    spoil, told = BROKEN[name]
    spoil(tmp_path)
    done = images.build("worker-cpu", tmp_path)
    assert done.returncode != 0, done.stdout
    assert told in done.stderr + done.stdout
