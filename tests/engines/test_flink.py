"""What the job makes of a real Flink cluster: defaults, refusals, the doctor's lines, the end of a job."""

from __future__ import annotations

import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from apache_beam.options.pipeline_options import (
    FlinkRunnerOptions,
    GoogleCloudOptions,
    PipelineOptions,
    PortableOptions,
)
from apache_beam.version import __version__ as beam_version

from deploy.flink.__main__ import flags
from deploy.flink.cluster import Cluster, free_port, is_free
from deploy.flink.distribution import VERSION
from job.engines import choice
from job.engines.flink import engine as flink_engine
from job.errors import EngineError
from tests.support import engine_checks
from tests.support.archives import CONFIG, written
from tests.support.nights import Night, dense, features, saved
from tests.support.servers.flink import (
    MINOR,
    a_jar,
    by_name,
    flink_cluster,
    holding_slots,
    options,
    processes_of,
)
from tests.support.store_nights import until

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    with flink_cluster(tmp_path_factory.mktemp("flink")) as one:
        yield one


@pytest.fixture
def jar(tmp_path: Path) -> Path:
    """What Beam and Flink write into everything that is built with them, and nothing else."""
    return a_jar(tmp_path / "server.jar", beam_version, VERSION)


@pytest.mark.slow
def test_what_was_not_said_is_what_suits_the_cluster(
    cluster: Cluster, capsys: pytest.CaptureFixture[str]
) -> None:
    filled = options(cluster)
    choice.engine(options(cluster, "--job_endpoint=localhost:5")).fit()
    said = capsys.readouterr().err
    assert f"Flink: the job takes 4 slots (--parallelism); 4 of 4 slots at {cluster.rest().url} are" in said
    assert filled.view_as(FlinkRunnerOptions).flink_version == MINOR
    assert filled.view_as(FlinkRunnerOptions).parallelism == 4
    assert filled.view_as(PortableOptions).environment_cache_millis == 60_000
    names = {options(cluster).view_as(GoogleCloudOptions).job_name for _ in range(2)}
    assert len(names) == 2
    given = options(
        cluster,
        *("--flink_version=1.20", "--parallelism=2", "--environment_cache_millis=5", "--job_name=mine"),
    )
    assert given.view_as(FlinkRunnerOptions).flink_version == "1.20"
    assert given.view_as(FlinkRunnerOptions).parallelism == 2
    assert given.view_as(PortableOptions).environment_cache_millis == "5"
    assert given.view_as(GoogleCloudOptions).job_name == "mine"
    assert given.view_as(PortableOptions).environment_type is None


@pytest.mark.slow
def test_the_doctor_has_nothing_to_say_against_a_good_cluster(cluster: Cluster, jar: Path) -> None:
    engine = ["--environment_type=PROCESS", f'--environment_config={{"command": "{cluster.worker}"}}']
    found = by_name(flink_engine.checks(options(cluster, f"--flink_job_server_jar={jar}", *engine)))
    assert {name: check.ok for name, check in found.items()} == {
        "Java": True,
        "job server jar": True,
        "Flink": True,
        "Flink version": True,
        "free slots": True,
        "restart strategy": True,
        "Python workers": True,
        "job server version": True,
        "staging folder": True,
    }, found
    assert f"{VERSION} at http://127.0.0.1:" in found["Flink"].told
    assert "4 of 4 slots" in found["free slots"].told
    assert "fixed-delay, 10 attempts" in found["restart strategy"].told
    assert f"Beam {beam_version} for Flink {VERSION}" in found["job server version"].told


@pytest.mark.slow
@pytest.mark.parametrize(
    ("flags", "name", "ok", "told"),
    [
        (["--job_server_java_launcher=no-java"], "Java", False, "no-java is not in PATH"),
        (["--flink_job_server_jar=gone.jar"], "job server jar", False, "gone.jar: no such file"),
        (["--flink_version=1.20"], "Flink version", False, f"1.20, and the cluster is {VERSION}"),
        (["--parallelism=5"], "free slots", False, "--parallelism=5, and"),
        ([], "Python workers", False, "DOCKER by default"),
        (["--environment_config=our/image"], "Python workers", True, "DOCKER our/image"),
        (["--environment_type=LOOPBACK"], "Python workers", True, "in this process"),
        # Both TaskManagers are on this machine, so this address is one pool for both.
        (
            ["--environment_type=EXTERNAL", "--environment_config=localhost:5"],
            "Python workers",
            False,
            "2 Task",
        ),
        (["--environment_type=EXTERNAL", "--environment_config=pool:5"], "Python workers", False, "hangs"),
        (
            ["--environment_type=EXTERNAL", '--environment_config={"url": "localhost:5"}'],
            "Python workers",
            False,
            "at localhost:5",
        ),
        (["--environment_type=EXTERNAL", "--environment_config={bad"], "Python workers", False, "no JSON"),
        (["--artifacts_dir=no/such/folder"], "staging folder", False, "no/such/folder"),
        (["--artifacts_dir=gs://bucket/staged"], "staging folder", None, "not looked at"),
        (["--job_endpoint=localhost:5"], "job server version", None, "does not tell its version"),
        (["--job_endpoint=localhost:5"], "Flink version", True, "a given one"),
    ],
)
def test_the_doctor_says_what_is_wrong(
    cluster: Cluster, tmp_path: Path, flags: list[str], name: str, ok: bool | None, told: str
) -> None:
    # Beam must not ask the network for its jar.
    given = ["--flink_job_server_jar=http://127.0.0.1:9/server.jar", f"--jar_cache_dir={tmp_path}"]
    if "--flink_version=1.20" in flags:
        a_jar(tmp_path / f"beam-runners-flink-1.20-job-server-{beam_version}.jar", beam_version, VERSION)
        given.pop(0)
    check = by_name(flink_engine.checks(options(cluster, *given, *flags)))[name]
    assert (check.ok, told in check.told) == (ok, True), check


@pytest.mark.slow
@pytest.mark.parametrize(
    ("flags", "told"),
    [
        (["--job_server_java_launcher=no-java"], "no-java is not in PATH; install Java"),
        (["--flink_job_server_jar=gone.jar"], "--flink_job_server_jar=gone.jar: no such file; correct"),
        (
            [],
            "server.jar cannot be had from .*; fetch server.jar where that works and give --flink_job_server",
        ),
        (["--parallelism=5"], "--parallelism=5, and .* has 4 slots in all; give at most 4"),
    ],
)
def test_what_cannot_run_is_refused_before_anything_is_scored(
    night: Night, cluster: Cluster, tmp_path: Path, flags: list[str], told: str
) -> None:
    night.shard("part", features(100))
    # An archive that holds no model: it is not loaded before the engine is looked at.
    path = written(night.folder / "m.keras", {CONFIG: b"{}"})
    address = cluster.rest().url.removeprefix("http://")
    engine = ["--runner=flink", f"--flink_master={address}", f"--jar_cache_dir={tmp_path}"]
    engine += ["--flink_job_server_jar=http://127.0.0.1:9/server.jar", *flags]
    with pytest.raises(EngineError, match=told) as raised:
        night.score(path, "--keys=id", *engine)
    assert (raised.value.exit_code, "\n" in str(raised.value)) == (7, False)
    assert not (night.output / "_SUCCESS").exists()


def test_a_master_that_does_not_answer_ends_the_command_with_seven_and_one_line(night: Night) -> None:
    night.shard("part", features(100))
    # An archive that holds no model: it is not loaded before the engine is looked at.
    path = written(night.folder / "m.keras", {CONFIG: b"{}"})
    engine = ["--runner=FlinkRunner", f"--flink_master=127.0.0.1:{free_port()}"]
    done = subprocess.run(
        [sys.executable, "-m", "job", "score", *night.args(path, "--keys=id"), *engine],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
        timeout=100,
    )
    assert done.returncode == 7
    (line,) = done.stderr.splitlines()
    assert line.startswith("error: --flink_master=http://127.0.0.1:")


@pytest.mark.slow
def test_who_holds_the_slots_is_named_and_ctrl_c_ends_what_is_ours(cluster: Cluster) -> None:
    rest, ours = cluster.rest(), options(cluster, "--job_endpoint=localhost:5")
    name = str(ours.view_as(GoogleCloudOptions).job_name)
    with holding_slots(cluster) as hold:
        other, pressed_s = interrupted(cluster, ours, lambda: hold(("other", name)))
        assert time.monotonic() - pressed_s < 20
        assert [one.id for one in rest.jobs() if not one.has_ended] == [other]
        assert rest.overview().free_slots == 2
        # Theirs bears our name here, but was there before.
        interrupted(cluster, options(cluster, "--job_name=other"), lambda: [other])
        assert [one.id for one in rest.jobs() if not one.has_ended] == [other]
        assert flink_engine.cancel(rest, "other") == [other]
        assert rest.overview().free_slots == 4


def interrupted(cluster: Cluster, ours: PipelineOptions, start: Callable[[], list[str]]) -> tuple[str, float]:
    """Press Ctrl-C while what was started runs; returns the first of its ids, and when."""
    try:
        with choice.engine(ours).ended_on_failure():
            jobs = start()
            if len(jobs) > 1:
                until(lambda: cluster.rest().overview().free_slots == 0, within_s=30)
                refused = rf"0 of 4 slots at .*, held by .*other \({jobs[0]}\).*; wait, or `curl -X PATCH"
                with pytest.raises(EngineError, match=refused):
                    choice.engine(ours).fit()
            pressed_s = time.monotonic()
            raise KeyboardInterrupt
    except KeyboardInterrupt:
        return jobs[0], pressed_s


@pytest.mark.slow
@pytest.mark.usefixtures("forks")
def test_a_night_by_the_flags_of_the_cluster_on_another_job_server(
    night: Night, tmp_path: Path, cluster: Cluster
) -> None:
    """All but the jar and what Flink makes of it: Prism takes the job, and starts the cluster's worker."""
    prism = ROOT / "build" / f"prism-{beam_version}"
    if not prism.exists():
        pytest.skip(f"{prism.name} is not built; it needs Go")
    night.shard("part", features(2000), group_rows=500)
    model = saved(dense(), night.folder / "m.keras")
    args = [f"--input={night.input}", f"--model={model}", "--keys=id", "--split_rows=500", "--batch_size=500"]
    port = free_port()
    with (tmp_path / "prism.log").open("wb") as log:
        serves = subprocess.Popen([prism, f"--job_port={port}", "--serve_http=false"], stdout=log, stderr=log)
    try:
        until(lambda: not is_free(port), within_s=30)
        engine = [*flags(cluster), f"--job_endpoint=localhost:{port}"]
        told = engine_checks.as_embedded(args, night.folder, engine, within_s=150)
    finally:
        serves.kill()
        serves.wait()
    started = [int(path.name.rpartition("-")[2]) for path in (cluster.folder / "run").glob("worker-*")]
    assert [int(worker.rpartition(":")[2]) for worker in told["workers"]] == started
    until(lambda: not cluster.python_workers(), within_s=20)


def pids(cluster: Cluster) -> dict[str, int]:
    return {name: cluster.process(name).pid for name in ("jobmanager", *cluster.task_managers())}


@pytest.mark.slow
def test_a_cluster_is_mended_by_starting_it_again_and_ends_without_orphans(cluster: Cluster) -> None:
    """The last one: it ends the cluster."""
    before = pids(cluster)
    assert cluster.up() == cluster.rest()
    assert pids(cluster) == before
    # A worker of a TaskManager that is gone: nobody but the cluster knows of it.
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        endpoint = f"127.0.0.1:{silent.getsockname()[1]}"
        command = [str(cluster.worker), "--id='1-1'", f"--provision_endpoint={endpoint}"]
        with subprocess.Popen(command) as worker:
            until(lambda: [one.pid for one in cluster.python_workers()] == [worker.pid], within_s=30)
            cluster.kill("taskmanager1")
            rest = cluster.up()
            after = pids(cluster)
            assert after["taskmanager1"] != before["taskmanager1"]
            assert {**after, "taskmanager1": 0} == {**before, "taskmanager1": 0}
            # Without the dead one's, which a job would wait for.
            told = rest.overview()
            assert (told.task_managers, told.slots, told.free_slots) == (2, 4, 4)
            # Half of it is there, and not the half that matters.
            cluster.kill("jobmanager")
            assert cluster.down() == ["taskmanager1", "taskmanager2"]
        assert processes_of(cluster.folder) == []
    assert cluster.down() == []
    assert list((cluster.folder / "run").iterdir()) == list((cluster.folder / "tmp").iterdir()) == []
    assert "Starting the resource manager" in (cluster.folder / "logs" / "jobmanager.log").read_text()
