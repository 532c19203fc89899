"""``python -m deploy.flink fetch | up | down | jar``: what ``make flink-up`` and its like call."""

from __future__ import annotations

import argparse
import json
import shlex
import sys
from collections.abc import Sequence
from typing import Final

from deploy.flink import jobserver
from deploy.flink.cluster import Cluster
from deploy.flink.distribution import DeployError, fetched
from job.terminal import library_output

# As test drivers say that a test was not run: neither passed nor failed.
NOT_RUN: Final = 77


def main(argv: Sequence[str]) -> int:
    """Do what is asked; returns the exit code."""
    parser = argparse.ArgumentParser(prog="python -m deploy.flink", allow_abbrev=False)
    parser.add_argument("what", choices=("fetch", "up", "down", "jar"))
    parser.add_argument("--port", type=int, default=0, help="of the REST server; 8081 or a free one if 0")
    given = parser.parse_args(argv)
    cluster = Cluster()
    if given.what == "jar":
        return _jar()
    try:
        if given.what == "fetch":
            _say(str(fetched()))
        elif given.what == "up":
            _up(cluster, given.port)
        else:
            _say(f"ended: {', '.join(cluster.down()) or 'nothing was running'}")
    except DeployError as e:
        sys.stderr.write(f"error: {e}\n")
        return 1
    return 0


def _jar() -> int:
    library_output.hush(debug=False)
    try:
        path = jobserver.found(fetch=True)
    except DeployError as e:
        sys.stderr.write(f"NOT RUN: {e}\n")
        return NOT_RUN
    _say(str(path))
    return 0


def _up(cluster: Cluster, port: int) -> None:
    rest = cluster.up(port)
    told = rest.overview()
    _say(f"Flink {told.version} at {rest.url}: {told.task_managers} TaskManagers, {told.slots} slots")
    _say(f"logs in {cluster.folder / 'logs'}; score on it with\n  {shlex.join(flags(cluster))}")


def flags(cluster: Cluster) -> list[str]:
    """Return the flags of ``score`` that lead to the cluster."""
    worker = json.dumps({"command": str(cluster.worker)})
    address = cluster.rest().url.removeprefix("http://")
    return [
        *("--runner=FlinkRunner", f"--flink_master={address}"),
        *("--environment_type=PROCESS", f"--environment_config={worker}"),
    ]


def _say(text: str) -> None:
    sys.stdout.write(f"{text}\n")


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
