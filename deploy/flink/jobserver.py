"""Where the jar of Beam's job server is: given, downloaded before, or downloaded now."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Final

from deploy.flink.distribution import VERSION, DeployError
from job.engines.flink import job_server

VARIABLE: Final = "FLINK_JOB_SERVER_JAR"


def found(*, fetch: bool) -> Path:
    """Return the jar; ``fetch`` it if it is not on this machine.

    Raises:
        DeployError: it is not to be had; in one line, which file, and how to give it.
    """
    from apache_beam.options.pipeline_options import PipelineOptions

    given = os.environ.get(VARIABLE)
    if given and not Path(given).is_file():
        raise DeployError(f"{VARIABLE}={given}: no such file")
    if given:
        return Path(given)
    options = PipelineOptions([f"--flink_version={VERSION.rpartition('.')[0]}"])
    if fetch:
        look = job_server.jar(options, fetch=True)
        if not look.ok:
            raise DeployError(f"{look.told}; fetch it elsewhere and give {VARIABLE}=PATH")
    there = job_server.local(options)
    if there is None:
        name = job_server.published(options).rpartition("/")[2]
        raise DeployError(f"Beam's job server {name} is not on this machine; give {VARIABLE}=PATH")
    return there
