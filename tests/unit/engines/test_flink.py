"""What is told of a Flink cluster and a job server, worked out without one."""

from __future__ import annotations

import contextlib
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from apache_beam.options.pipeline_options import FlinkRunnerOptions, PipelineOptions, PortableOptions

from deploy.flink.cluster import free_port
from job.engines import choice
from job.engines.flink import checks, engine, job_server, rest
from job.engines.flink.rest import Overview, TaskManager
from job.errors import EngineError
from tests.support.servers.flink import MINOR, a_jar, by_name, options


def test_a_cluster_that_does_not_answer(tmp_path: Path) -> None:
    closed = options(f"127.0.0.1:{free_port()}", "--job_endpoint=localhost:5")
    check = by_name(engine.checks(closed))["Flink"]
    assert (check.ok, "Connection refused" in check.told, "start the cluster" in check.fix) == (
        False,
        True,
        True,
    )
    with pytest.raises(
        EngineError, match=r"--flink_master=http://127.0.0.1:.* no answer .*; start the cluster"
    ):
        choice.engine(closed).fit()


@contextlib.contextmanager
def answering(folder: Path, **answers: object) -> Iterator[rest.Cluster]:
    """A server that has these answers, by name, and no others; ``__`` stands for a slash."""
    for name, answer in answers.items():
        path = folder / name.replace("__", "/")
        path.parent.mkdir(exist_ok=True)
        path.write_text(json.dumps(answer))
    command = [sys.executable, "-m", "http.server", "0", "--bind=127.0.0.1", f"--directory={folder}"]
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, env={"PYTHONUNBUFFERED": "1"}
    ) as server:
        try:
            assert server.stdout is not None
            port = int(server.stdout.readline().split("port ")[1].split()[0])
            yield rest.Cluster(f"http://127.0.0.1:{port}")
        finally:
            server.kill()


def test_what_answers_must_be_flink(tmp_path: Path) -> None:
    with answering(tmp_path, overview={"slots": 4}) as served:
        with pytest.raises(EngineError, match="is not Flink's REST server"):
            served.overview()
        with pytest.raises(EngineError, match="answered 404"):
            served.jobs()


def test_a_cluster_that_grows_must_be_told_how_far(tmp_path: Path) -> None:
    empty = {"flink-version": "2.2.1", "taskmanagers": 0, "slots-total": 0, "slots-available": 0}
    grows = [{"key": "kubernetes.cluster-id", "value": "nightly"}]
    with answering(tmp_path, overview=empty, jobmanager__config=grows) as served:
        # It has no slots to count now, and Flink's own default is one.
        asked = options(served.url)
        assert asked.view_as(FlinkRunnerOptions).parallelism < 1
        check = checks.room(asked, served)
        assert (check.ok, check.fix) == (False, "give --parallelism")
        assert "0 of 0 slots" in check.told
        assert checks.room(options(served.url, "--parallelism=8"), served).ok


@pytest.mark.parametrize(
    ("members", "parallelism", "threads"),
    [
        # Two TaskManagers share a machine of eight cores, with two slots each; another has its own of two.
        ([("a", 2, 8), ("a", 2, 8), ("b", 1, 2)], 0, 2),
        ([("a", 2, 8), ("a", 2, 8)], 2, 4),
        ([("a", 2, 2), ("a", 2, 2)], 4, 1),
        ([("a", 1, 16)], 1, 16),
        ([], 4, 0),
    ],
)
def test_cores_are_shared_by_all_slots_of_a_machine(
    members: list[tuple[str, int, int]], parallelism: int, threads: int
) -> None:
    found = [TaskManager(str(i), host, slots, 0, cores) for i, (host, slots, cores) in enumerate(members)]
    assert engine._share(found, parallelism) == threads


@pytest.mark.parametrize(
    ("master", "url"),
    [
        ("host:8081", "http://host:8081"),
        (" https://host/flink/ ", "https://host/flink"),
        ("[auto]", None),
        ("[local]", None),
    ],
)
def test_where_a_cluster_is(master: str, url: str | None) -> None:
    found = rest.Cluster.at(master)
    assert (found and found.url) == url


def test_without_an_address_there_is_nothing_to_ask() -> None:
    own = choice.beam_options(["--runner=FlinkRunner", "--job_endpoint=localhost:5"])
    assert own.view_as(PortableOptions).environment_cache_millis == 60_000
    assert choice.engine(own).fit().threads == 0
    assert by_name(engine.checks(own))["Flink"].ok is None
    with choice.engine(own).ended_on_failure():
        pass


@pytest.mark.parametrize(
    ("name", "content", "versions"),
    [
        ("server.jar", ("2.77.0", "2.2.1"), ("2.77.0", "2.2.1")),
        # What is inside counts for more than the name.
        ("beam-runners-flink-1.19-job-server-2.50.0.jar", ("2.77.0", "2.2.1"), ("2.77.0", "2.2.1")),
        ("beam-runners-flink-1.19-job-server-2.50.0.jar", None, ("2.50.0", "1.19")),
        ("server.jar", None, ("", "")),
    ],
)
def test_the_versions_of_a_job_server(
    tmp_path: Path, name: str, content: tuple[str, str] | None, versions: tuple[str, str]
) -> None:
    path = tmp_path / name
    if content:
        a_jar(path, *content)
    else:
        path.write_bytes(b"no archive")
    assert job_server.versions(path) == versions


@pytest.mark.parametrize(("minor", "ok"), [("2.2", True), ("2.1", False), ("2.3", False)])
def test_a_cluster_that_beam_has_no_job_server_for(minor: str, ok: bool) -> None:
    asked = PipelineOptions(["--runner=FlinkRunner"])
    check = checks.version(asked, Overview(f"{minor}.7", 1, 1, 1))
    assert check.ok is ok
    assert check.fix or ok


def test_the_distribution_is_the_newest_that_beam_has_a_job_server_for() -> None:
    assert FlinkRunnerOptions.PUBLISHED_FLINK_VERSIONS[-1] == MINOR
