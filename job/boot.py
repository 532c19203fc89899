"""A worker of Beam for machines that have everything installed.

It is started as ``python -m job.boot --id=ID --provision_endpoint=HOST:PORT``: by a runner for
``--environment_type=PROCESS``, or by a worker pool as its ``--container_executable``. Beam's own program is
made for its container image: it is written in Go, and makes a virtual environment at a fixed path. This one
asks the runner where to connect and becomes the worker in its own environment. So files that ``--setup_file``
and similar flags stage are not installed, and the log says so.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
import threading
import time
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, Final

from job.terminal import library_output, progress

_ANSWER_S: Final = 60.0
_LOOK_S: Final = 1.0

# A file that every job stages, for people to read.
_NOTED_ONLY: Final = "submission_environment_dependencies.txt"


def main(argv: Sequence[str]) -> int:
    """Be the worker that ``argv`` names, until the runner ends it."""
    parser = argparse.ArgumentParser(prog="python -m job.boot", allow_abbrev=False)
    for name in ("id", "provision_endpoint"):
        parser.add_argument(f"--{name}", required=True)
    for name in ("control_endpoint", "logging_endpoint"):
        parser.add_argument(f"--{name}", default="")
    # The contract has more flags, all of which the runner's answer repeats.
    given, _ = parser.parse_known_args(argv)
    # Prism passes the quotes on that were meant for a shell.
    worker_id = given.id.strip("'\"")
    library_output.hush(debug=False)
    _end_with(os.getppid())
    with library_output.imports():
        from apache_beam.runners.worker import sdk_worker_main
    told = _provision(given.provision_endpoint, worker_id)
    if left_out := _not_installed(told.dependencies):
        progress.say(f"not installed, as this worker has an environment of its own: {left_out}")
    with tempfile.TemporaryDirectory(prefix="beam-worker-") as folder:
        # A large one would not fit into a variable.
        options = Path(folder, "options.json")
        options.write_text(_json(told.pipeline_options), encoding="utf-8")
        os.environ |= {
            "WORKER_ID": worker_id,
            "PIPELINE_OPTIONS_FILE": str(options),
            "SEMI_PERSISTENT_DIRECTORY": folder,
            "RUNNER_CAPABILITIES": " ".join(told.runner_capabilities),
            "CONTROL_API_SERVICE_DESCRIPTOR": _at(told.control_endpoint.url or given.control_endpoint),
            "LOGGING_API_SERVICE_DESCRIPTOR": _at(told.logging_endpoint.url or given.logging_endpoint),
        }
        if told.status_endpoint.url:
            os.environ["STATUS_API_SERVICE_DESCRIPTOR"] = _at(told.status_endpoint.url)
        sdk_worker_main.main([])
    return 0


def _end_with(parent: int) -> None:
    """End this process soon after ``parent``, which may be killed without notice."""

    def look() -> None:
        while os.getppid() == parent:
            time.sleep(_LOOK_S)
        os._exit(1)

    threading.Thread(target=look, name="end-with-parent", daemon=True).start()


def _provision(endpoint: str, worker_id: str) -> Any:
    from apache_beam.portability.api import beam_provision_api_pb2, beam_provision_api_pb2_grpc
    from apache_beam.runners.worker.channel_factory import GRPCChannelFactory

    with GRPCChannelFactory.insecure_channel(endpoint) as channel:
        stub = beam_provision_api_pb2_grpc.ProvisionServiceStub(channel)
        answer = stub.GetProvisionInfo(
            beam_provision_api_pb2.GetProvisionInfoRequest(),
            metadata=[("worker_id", worker_id)],
            timeout=_ANSWER_S,
            wait_for_ready=True,
        )
    return answer.info


def _not_installed(staged: Iterable[Any]) -> str:
    from apache_beam.portability.api import beam_runner_api_pb2

    names = [
        beam_runner_api_pb2.ArtifactStagingToRolePayload.FromString(one.role_payload).staged_name
        for one in staged
    ]
    return ", ".join(name for name in names if name != _NOTED_ONLY)


def _json(options: Any) -> str:
    from google.protobuf import json_format

    return str(json_format.MessageToJson(options))


def _at(url: str) -> str:
    from apache_beam.portability.api import endpoints_pb2
    from google.protobuf import text_format

    return str(text_format.MessageToString(endpoints_pb2.ApiServiceDescriptor(url=url), as_one_line=True))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
