"""What is told of a Flink cluster and a job server, worked out without one."""

from __future__ import annotations

from pathlib import Path

import pytest
from apache_beam.options.pipeline_options import FlinkRunnerOptions, PipelineOptions, PortableOptions

from deploy.flink.cluster import free_port
from job import engines, flink, flink_checks, flink_jar, flink_rest
from job.errors import EngineError
from job.flink_rest import Overview, TaskManager
from tests.servers.flink import MINOR, a_jar, by_name, options


def test_a_cluster_that_does_not_answer(tmp_path: Path) -> None:
    closed = options(f"127.0.0.1:{free_port()}", "--job_endpoint=localhost:5")
    check = by_name(flink.checks(closed))["Flink"]
    assert (check.ok, "Connection refused" in check.told, "start the cluster" in check.fix) == (
        False,
        True,
        True,
    )
    with pytest.raises(
        EngineError, match=r"--flink_master=http://127.0.0.1:.* no answer .*; start the cluster"
    ):
        engines.fit(closed)


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
    assert flink._share(found, parallelism) == threads


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
    found = flink_rest.Cluster.at(master)
    assert (found and found.url) == url


def test_without_an_address_there_is_nothing_to_ask() -> None:
    own = engines.beam_options(["--runner=FlinkRunner", "--job_endpoint=localhost:5"])
    assert own.view_as(PortableOptions).environment_cache_millis == 60_000
    assert engines.fit(own).threads == 0
    assert by_name(flink.checks(own))["Flink"].ok is None
    with engines.ended_on_failure(own):
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
    assert flink_jar.versions(path) == versions


@pytest.mark.parametrize(("minor", "ok"), [("2.2", True), ("2.1", False), ("2.3", False)])
def test_a_cluster_that_beam_has_no_job_server_for(minor: str, ok: bool) -> None:
    asked = PipelineOptions(["--runner=FlinkRunner"])
    check = flink_checks.version(asked, Overview(f"{minor}.7", 1, 1, 1))
    assert check.ok is ok
    assert check.fix or ok


def test_the_distribution_is_the_newest_that_beam_has_a_job_server_for() -> None:
    assert FlinkRunnerOptions.PUBLISHED_FLINK_VERSIONS[-1] == MINOR
