"""The default engine: Beam's ``FnApiRunner`` in this process.

It needs no download and no server. It has one worker thread per core, and all share one model. Beam's own
default, ``DirectRunner``, would first try to download another engine.

Worker processes of this runner (``--direct_running_mode=multi_processing``) do not get the pipeline's
options, so no option can set their log level. They are started by a command that sets it.
"""

from __future__ import annotations

import os
import shlex
import sys
from collections.abc import Collection
from typing import Any, Final

from job.engines.engine import Engine, Fit, cores
from job.errors import JobError
from job.terminal import library_output

NAME: Final = "FnApiRunner"

# The runner's error when the connection to a worker process ends.
_WORKER_DIED: Final = "Channel closed prematurely"

_QUIET_WORKER: Final = (
    "from job.terminal import library_output as quiet; quiet.hush(debug=False); "
    "from apache_beam.runners.worker import sdk_worker_main; sdk_worker_main.main([])"
)


class Embedded(Engine):
    """Beam's ``FnApiRunner``, with threads or with processes as workers."""

    def fill(self, given: Collection[str], /) -> None:
        """Use threads, one per core, unless flags say otherwise."""
        from apache_beam.options.pipeline_options import StandardOptions

        self.options.view_as(StandardOptions).runner = NAME
        direct = self._direct()
        if "--direct_running_mode" not in given:
            direct.direct_running_mode = "multi_threading"
        if "--direct_num_workers" not in given:
            direct.direct_num_workers = cores()

    def fit(self, key: str = "") -> Fit:
        """Return the threads and, for worker processes, whether they share one model; threads always do."""
        return Fit(self.threads(), here=True, machine="" if self._is_one_process() else key)

    def threads(self) -> int:
        """Return each worker's share of the cores."""
        direct = self._direct()
        workers = 1 if direct.direct_running_mode == "in_memory" else direct.direct_num_workers or cores()
        return max(1, cores() // workers)

    def reads_footers(self) -> bool:
        """Say whether there are worker processes."""
        return not self._is_one_process()

    def runner(self) -> Any:
        """Return a runner with quiet worker processes; ``None`` if it has no worker processes."""
        direct = self._direct()
        if direct.direct_running_mode != "multi_processing" or os.environ.get(library_output.TF_LEVEL) == "0":
            return None
        from apache_beam.runners.portability.fn_api_runner import FnApiRunner
        from apache_beam.transforms.environments import SubprocessSDKEnvironment

        # With multi_processing, Beam would replace this command by its own.
        direct.direct_running_mode = "in_memory"
        command = shlex.join([sys.executable, "-c", _QUIET_WORKER])
        return FnApiRunner(default_environment=SubprocessSDKEnvironment.from_command_string(command))

    def told(self, error: Exception) -> Exception:
        """Return a worker's error unchanged; a worker that died left none, so say what to do."""
        if _WORKER_DIED not in str(error):
            return error
        return JobError(
            "a worker process died in mid-run; the kernel kills one when memory is short; run again to "
            "resume, with fewer of them (--direct_num_workers) if it recurs"
        )

    def described(self) -> str:
        """Return the runner's name, and the number and kind of its workers."""
        direct = self._direct()
        return f"{self.name}, {direct.direct_num_workers} workers by {direct.direct_running_mode}"

    def _direct(self) -> Any:
        from apache_beam.options.pipeline_options import DirectOptions

        return self.options.view_as(DirectOptions)

    def _is_one_process(self) -> bool:
        """Say whether all rows are scored in this process. Valid only before :meth:`runner`."""
        return bool(self._direct().direct_running_mode != "multi_processing")
