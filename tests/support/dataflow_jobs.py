"""A stand-in for Dataflow, what was submitted to it, and the job's pipeline run in its place."""

from __future__ import annotations

import contextlib
import importlib
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from job.launch.score import Outcome
from tests.support.servers import stores
from tests.support.store_nights import StoreNight

ROOT = Path(__file__).parents[2]
IMAGE = "europe-docker.pkg.dev/p/r/scoring-job:1"
TIMEOUT_S = 120


@dataclass(frozen=True)
class Dataflow:
    """Dataflow's folder, see ``tests.support.servers.dataflowd``, and a night in Cloud Storage."""

    folder: Path
    proxy: str
    night: StoreNight
    said: list[str] = field(default_factory=list)

    @property
    def env(self) -> dict[str, str]:
        """What leads a command to both, and nowhere else."""
        return {
            **self.night.env,
            "GRPC_DEFAULT_SSL_ROOTS_FILE_PATH": str(self.folder / "ca.pem"),
            "https_proxy": self.proxy,
            "no_proxy": "127.0.0.1,localhost",
        }

    def args(self, name: str, *flags: str) -> list[str]:
        """The command for an output, with what Dataflow needs."""
        usual = {
            "--project": "my-project",
            "--region": "europe-west1",
            "--temp_location": self.night.path("temp"),
            "--sdk_container_image": IMAGE,
        }
        given = {flag.partition("=")[0] for flag in flags}
        needed = [f"{flag}={value}" for flag, value in usual.items() if flag not in given]
        return [*self.night.args(name, *flags), "--runner=DataflowRunner", *needed]

    @contextlib.contextmanager
    def start(self, name: str, *flags: str) -> Iterator[subprocess.Popen[str]]:
        """The command, in a process that ends with the body at the latest."""
        command = [sys.executable, "-m", "job", "score", *self.args(name, *flags)]
        with subprocess.Popen(
            command, cwd=ROOT, env=self.env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        ) as process:
            try:
                yield process
            finally:
                process.kill()

    def score(self, name: str, *flags: str) -> Outcome:
        """The same in this process, which keeps what is said; errors are raised as they are."""
        from job.cli import options
        from job.launch import score as launch_score

        spec, beam_args = options.parse(self.args(name, *flags))
        return launch_score.score(spec, beam_args, announce=self.said.append)

    def tell(self, **files: str) -> None:
        """Let the service answer so from now on."""
        for name, content in files.items():
            (self.folder / name).write_text(content)

    def reset(self) -> None:
        """Let it answer as in the beginning, and forget what was asked."""
        self.said.clear()
        for path in self.folder.iterdir():
            if path.name != "ca.pem":
                path.unlink()

    def requests(self, kind: str) -> dict[str, bytes]:
        """What was asked, by the job's number."""
        return {path.stem: path.read_bytes() for path in sorted(self.folder.glob(f"*.{kind}"))}

    def run(self, job: Any) -> subprocess.CompletedProcess[str]:
        """Run what a job would, from the graph that was staged for it; workers are threads of a process."""
        url = job.environment.sdk_pipeline_options["options"]["pipelineUrl"]
        graph = self.folder / "pipeline.pb"
        graph.write_bytes(self.night.bucket.files(url.removeprefix(self.night.path("")))[""])
        command = [sys.executable, "-m", "tests.support.dataflow_jobs", str(graph)]
        return subprocess.run(
            command, cwd=ROOT, env=self.env, capture_output=True, text=True, check=False, timeout=TIMEOUT_S
        )


def created(content: bytes) -> Any:
    """The job of a request."""
    dataflow: Any = importlib.import_module("google.cloud.dataflow")
    return dataflow.CreateJobRequest.deserialize(content).job


@contextlib.contextmanager
def dataflow(folder: Path, night: StoreNight) -> Iterator[Dataflow]:
    """A Dataflow for a night, to which this process is led as well."""
    command = [sys.executable, "-m", "tests.support.servers.dataflowd", str(folder)]
    with (
        stores.served(command, stores.environment(None, None)) as (proxy, _),
        pytest.MonkeyPatch.context() as patch,
    ):
        one = Dataflow(folder, proxy, night)
        stores.apply(patch, one.env)
        yield one


def run_graph(path: Path) -> None:
    """Run a pipeline whose workers are to be containers in threads of this process instead."""
    from apache_beam.options.pipeline_options import PipelineOptions
    from apache_beam.portability.api import beam_runner_api_pb2
    from apache_beam.runners.portability.fn_api_runner import FnApiRunner
    from apache_beam.transforms.environments import EmbeddedPythonEnvironment

    pipeline = beam_runner_api_pb2.Pipeline.FromString(path.read_bytes())
    here = EmbeddedPythonEnvironment.default().to_runner_api(None)
    for environment in pipeline.components.environments.values():
        environment.CopyFrom(here)
    FnApiRunner().run_via_runner_api(pipeline, PipelineOptions([])).wait_until_finish()


if __name__ == "__main__":
    run_graph(Path(sys.argv[1]))
