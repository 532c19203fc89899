"""Prism, Beam's own small engine: where its program is.

Beam takes it from ``--prism_location``, else from its cache, else from the internet; never from ``PATH``.
"""

from __future__ import annotations

import os
from importlib.metadata import version
from typing import TYPE_CHECKING, Any, ClassVar, Final

from job.engines.checks import Check
from job.engines.engine import OneProcess
from job.errors import EngineError

if TYPE_CHECKING:
    from apache_beam.options.pipeline_options import PipelineOptions

_MODULE: Final = "github.com/apache/beam/sdks/v2/go/cmd/prism"


class Prism(OneProcess):
    """Beam's Prism, which it starts itself."""

    title: ClassVar[str] = "Prism"

    def runner(self) -> Any:
        """Check that the program is where the flag says."""
        program(self.options)
        return super().runner()

    def checks(self) -> list[Check]:
        """Return where the program is."""
        found = program(self.options)
        if found:
            return [Check(self.title, True, found)]
        told = "Beam has no program of Prism here, and would download one from github.com"
        return [Check(self.title, None, told, f"`{how_to_build()}`, and --prism_location=$PWD/prism")]


def how_to_build() -> str:
    """Return the command that makes the program of the installed Beam's version."""
    return f"GOBIN=$PWD go install {_MODULE}@v{version('apache-beam')}"


def program(options: PipelineOptions) -> str:
    """Return the path of the program, empty where Beam would first download it.

    Raises:
        EngineError: ``--prism_location`` is a path at which there is none.
    """
    from apache_beam.options.pipeline_options import PrismRunnerOptions
    from apache_beam.runners.portability.prism_runner import PrismJobServer

    given = options.view_as(PrismRunnerOptions).prism_location
    if given:
        if "://" not in given and not os.path.isfile(given):
            raise EngineError(
                f"--runner=PrismRunner: --prism_location={given}: there is no such program; build it by "
                f"`{how_to_build()}`, or correct the path"
            )
        return str(given)
    folder = PrismJobServer.BIN_CACHE
    cached = os.listdir(folder) if os.path.isdir(folder) else []
    found = [one for one in cached if one.startswith(f"apache_beam-v{version('apache-beam')}-prism-")]
    return os.path.join(folder, found[0]) if found else ""
