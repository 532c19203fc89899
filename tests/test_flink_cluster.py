"""The starter of a Flink cluster, where it starts none; what it starts is in tests/test_flink.py."""

from __future__ import annotations

import os
import socket
from pathlib import Path

import pytest

from deploy.flink import cluster as starter
from deploy.flink.cluster import Cluster, free_port
from deploy.flink.distribution import DeployError
from tests.servers.flink import java_or_skip, processes_of


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
