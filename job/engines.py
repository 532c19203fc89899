"""Which engine runs the pipeline, and how its workers are configured.

The default is Beam's ``FnApiRunner`` in this process: no download, no server, one worker thread per
core, all sharing one model. It is named rather than left to ``DirectRunner``, which first tries to
download another engine and runs on that.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from apache_beam.options.pipeline_options import PipelineOptions

EMBEDDED = "FnApiRunner"


def cores() -> int:
    """Return how many cores this process may use."""
    return len(os.sched_getaffinity(0))


def is_embedded(beam_args: Sequence[str]) -> bool:
    """Say whether these flags leave the work to this process."""
    from apache_beam.options.pipeline_options import PipelineOptions, StandardOptions

    runner = PipelineOptions(list(beam_args)).view_as(StandardOptions).runner
    return runner in (None, EMBEDDED)


def beam_options(beam_args: Sequence[str]) -> PipelineOptions:
    """Return the pipeline options for these flags, with the embedded engine's defaults filled in."""
    from apache_beam.options.pipeline_options import DirectOptions, PipelineOptions, StandardOptions

    options = PipelineOptions(list(beam_args))
    if is_embedded(beam_args):
        options.view_as(StandardOptions).runner = EMBEDDED
        direct = options.view_as(DirectOptions)
        # Beam cannot tell a flag that was left out from one that asks for Beam's default.
        given = {arg.partition("=")[0] for arg in beam_args}
        if "--direct_running_mode" not in given:
            direct.direct_running_mode = "multi_threading"
        if "--direct_num_workers" not in given:
            direct.direct_num_workers = cores()
    return options


def tensorflow_threads(options: PipelineOptions) -> int:
    """Return TensorFlow's threads within one operation, so that all workers together use every core once.

    0 leaves the choice to TensorFlow, where this process does not know the workers.
    """
    from apache_beam.options.pipeline_options import DirectOptions, StandardOptions

    if options.view_as(StandardOptions).runner != EMBEDDED:
        return 0
    direct = options.view_as(DirectOptions)
    workers = 1 if direct.direct_running_mode == "in_memory" else direct.direct_num_workers or cores()
    return max(1, cores() // workers)
