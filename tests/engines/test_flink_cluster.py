"""The starter of a Flink cluster, where it starts none; what it starts is in tests/engines/test_flink.py."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
from apache_beam.utils.subprocess_server import JavaJarServer
from apache_beam.version import __version__ as beam_version

from deploy.flink import cluster as starter
from deploy.flink import jobserver
from deploy.flink.cluster import Cluster, free_port
from deploy.flink.distribution import VERSION, DeployError
from tests.support.servers.flink import java_or_skip, processes_of

ROOT = Path(__file__).parents[2]


def test_a_port_that_is_taken_is_told(tmp_path: Path) -> None:
    java_or_skip()
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(DeployError, match=rf"port {port} is taken; give another \(FLINK_PORT="):
            Cluster(tmp_path).up(port)
    assert processes_of(tmp_path) == []


def test_another_process_of_the_same_number_is_not_taken_for_the_cluster(tmp_path: Path) -> None:
    cluster = Cluster(tmp_path)
    (tmp_path / "run").mkdir()
    told = f'{{"pid": {os.getpid()}, "began": 1.5, "id": ""}}'
    (tmp_path / "run" / "jobmanager.json").write_text(told)
    (tmp_path / "run" / f"worker-{os.getpid()}").touch()
    assert cluster.down() == []
    assert list((tmp_path / "run").iterdir()) == []
    with pytest.raises(DeployError, match="jobmanager does not run; see "):
        cluster.process("jobmanager")


def test_without_java_it_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(DeployError, match="Flink needs Java, which is not in PATH; install"):
        Cluster(tmp_path).up()


def test_a_free_port_is_free() -> None:
    assert starter.is_free(free_port())


def test_without_the_job_server_a_rehearsal_is_not_run(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "deploy.flink", "jar"]
    env = {**os.environ, "PYTHONPATH": str(ROOT), "FLINK_JOB_SERVER_JAR": str(tmp_path / "server.jar")}
    done = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True, check=False, timeout=60)
    assert (done.returncode, done.stdout) == (77, "")
    assert done.stderr == f"NOT RUN: FLINK_JOB_SERVER_JAR={tmp_path}/server.jar: no such file\n"
    (tmp_path / "server.jar").touch()
    done = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True, check=False, timeout=60)
    assert (done.returncode, done.stdout) == (0, f"{tmp_path}/server.jar\n")


def test_a_jar_that_is_not_on_this_machine_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(jobserver.VARIABLE, raising=False)
    monkeypatch.setattr(JavaJarServer, "JAR_CACHE", str(tmp_path))
    name = f"beam-runners-flink-{VERSION.rpartition('.')[0]}-job-server-{beam_version}.jar"
    with pytest.raises(DeployError, match=rf"{name} is not on this machine; give FLINK_JOB_SERVER_JAR=PATH"):
        jobserver.found(fetch=False)
    (tmp_path / name).touch()
    assert jobserver.found(fetch=False) == tmp_path / name
