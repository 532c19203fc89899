"""The default engine: Beam's ``FnApiRunner`` in this process.

There is no download and no server. It has one worker thread per core, and all share one model. It is named
rather than left to ``DirectRunner``, which first tries to download another engine and runs on that.

Worker processes of that runner (``--direct_running_mode=multi_processing``) get none of the pipeline's
options, so their log level cannot be set by one: they are started by a command that silences them.
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

# What the runner says when a worker's connection ends.
_WORKER_DIED: Final = "Channel closed prematurely"

_QUIET_WORKER: Final = (
    "from job.terminal import library_output as quiet; quiet.hush(debug=False); "
    "from apache_beam.runners.worker import sdk_worker_main; sdk_worker_main.main([])"
)


class Embedded(Engine):
    """Beam's runner in this process, with threads or with processes for workers."""

    def fill(self, given: Collection[str], /) -> None:
        """Take threads, one for each core, where no flag says otherwise."""
        from apache_beam.options.pipeline_options import StandardOptions

        self.options.view_as(StandardOptions).runner = NAME
        direct = self._direct()
        if "--direct_running_mode" not in given:
            direct.direct_running_mode = "multi_threading"
        if "--direct_num_workers" not in given:
            direct.direct_num_workers = cores()

    def fit(self, key: str = "") -> Fit:
        """Return threads and, for processes, the one model; threads of one process share a model anyway."""
        return Fit(self.threads(), here=True, machine="" if self._is_one_process() else key)

    def threads(self) -> int:
        """Return the cores' share of each worker."""
        direct = self._direct()
        workers = 1 if direct.direct_running_mode == "in_memory" else direct.direct_num_workers or cores()
        return max(1, cores() // workers)

    def reads_footers(self) -> bool:
        """Say whether there are worker processes."""
        return not self._is_one_process()

    def runner(self) -> Any:
        """Return a runner whose worker processes are quiet, ``None`` where it has none."""
        direct = self._direct()
        if direct.direct_running_mode != "multi_processing" or os.environ.get(library_output.TF_LEVEL) == "0":
            return None
        from apache_beam.runners.portability.fn_api_runner import FnApiRunner
        from apache_beam.transforms.environments import SubprocessSDKEnvironment

        # Left at multi_processing, the mode would put Beam's own command in the place of this one.
        direct.direct_running_mode = "in_memory"
        command = shlex.join([sys.executable, "-c", _QUIET_WORKER])
        return FnApiRunner(default_environment=SubprocessSDKEnvironment.from_command_string(command))

    def told(self, error: Exception) -> Exception:
        """Return the error of a worker as it is; only one that died left none."""
        if _WORKER_DIED not in str(error):
            return error
        return JobError(
            "a worker process died in mid-run; the kernel kills one when memory is short; run again to "
            "resume, with fewer of them (--direct_num_workers) if it recurs"
        )

    def described(self) -> str:
        """Return the workers' number and kind."""
        direct = self._direct()
        return f"{self.name}, {direct.direct_num_workers} workers by {direct.direct_running_mode}"

    def _direct(self) -> Any:
        from apache_beam.options.pipeline_options import DirectOptions

        return self.options.view_as(DirectOptions)

    def _is_one_process(self) -> bool:
        """Say whether all rows are scored in this process; to be asked before :meth:`runner`."""
        return bool(self._direct().direct_running_mode != "multi_processing")
