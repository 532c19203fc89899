"""A real Flink cluster for tests, of the distribution that is kept under ``build/flink``."""

from __future__ import annotations

import contextlib
import os
import shutil
import socket
import subprocess
import zipfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import psutil
import pytest
from apache_beam.options.pipeline_options import PipelineOptions

from deploy.flink.cluster import Cluster, free_port
from deploy.flink.distribution import VERSION, fetched
from job.engines import choice
from job.engines.engine import Check

MINOR = VERSION.rpartition(".")[0]

HOLDING = Path(__file__).with_name("Holding.java")
# What runs for seconds is compiled in less time than it takes to be compiled well.
_SHORT = "-XX:TieredStopAtLevel=1"
_JAVA = (
    *(_SHORT, "--add-opens=java.base/java.lang=ALL-UNNAMED"),
    "--add-opens=java.base/java.util=ALL-UNNAMED",
)
_SUBMIT_S = 90


def java_or_skip() -> None:
    if shutil.which("java") is None:
        told = "Flink needs Java, which is not installed"
        # Where every test counts, a skip would be taken for a pass.
        if os.environ.get("CI"):
            pytest.fail(told)
        pytest.skip(told)


@contextlib.contextmanager
def flink_cluster(folder: Path) -> Iterator[Cluster]:
    """A cluster of four slots, at a port of its own, that ends with the body."""
    java_or_skip()
    cluster = Cluster(folder)
    try:
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("JAVA_TOOL_OPTIONS", _SHORT)
            cluster.up(free_port())
        yield cluster
    finally:
        cluster.down()


@contextlib.contextmanager
def holding_slots(cluster: Cluster) -> Iterator[Callable[[Sequence[str]], list[str]]]:
    """What starts a Flink job of each name, with two slots, that does nothing; it returns their ids."""
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen()

        def hold(names: Sequence[str]) -> list[str]:
            ports = cluster.rest().url.rpartition(":")[2], str(silent.getsockname()[1])
            command = ["java", *_JAVA, "-cp", f"{fetched()}/lib/*", str(HOLDING), *ports, *names]
            done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=_SUBMIT_S)
            return done.stdout.split()

        yield hold


def processes_of(folder: Path) -> list[psutil.Process]:
    """Every process that was told of the cluster's folder, whoever started it."""
    found = []
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error):
            if any(str(folder) in word for word in process.cmdline()):
                found.append(process)
    return found


def a_jar(path: Path, beam: str, flink_version: str) -> Path:
    """What Beam and Flink write into everything that is built with them, and nothing else."""
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("org/apache/beam/sdk/sdk.properties", f"# a comment\nversion={beam}\n")
        archive.writestr(".flink-runtime.version.properties", f"project.version={flink_version}\n")
    return path


def options(cluster: Cluster | str, *flags: str) -> PipelineOptions:
    """What the job makes of these flags, for a cluster or an address."""
    address = cluster if isinstance(cluster, str) else cluster.rest().url.removeprefix("http://")
    return choice.beam_options(["--runner=FlinkRunner", f"--flink_master={address}", *flags])


def by_name(checks: list[Check]) -> dict[str, Check]:
    found = {check.name: check for check in checks}
    assert len(found) == len(checks)
    # Whoever reads that something is wrong reads what to do.
    assert all(check.fix for check in checks if check.ok is False)
    return found
