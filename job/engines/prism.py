"""Prism, Beam's own small engine: finds its program.

Beam takes the program from ``--prism_location``, from its cache, or from the internet, in this order, and
never from ``PATH``.
"""

from __future__ import annotations

import os
from importlib.metadata import version
from typing import TYPE_CHECKING, Any, ClassVar, Final

from job.engines.engine import Check, OneProcess
from job.errors import EngineError

if TYPE_CHECKING:
    from apache_beam.options.pipeline_options import PipelineOptions

_MODULE: Final = "github.com/apache/beam/sdks/v2/go/cmd/prism"


class Prism(OneProcess):
    """Prism, started by Beam."""

    title: ClassVar[str] = "Prism"

    def runner(self) -> Any:
        """Check that the program is where ``--prism_location`` says."""
        program(self.options)
        return super().runner()

    def checks(self) -> list[Check]:
        """Return the check that names the program."""
        found = program(self.options)
        if found:
            return [Check(self.title, True, found)]
        told = "Beam has no program of Prism here, and would download one from github.com"
        return [Check(self.title, None, told, f"`{how_to_build()}`, and --prism_location=$PWD/prism")]


def how_to_build() -> str:
    """Return the command that builds the program for the installed version of Beam."""
    return f"GOBIN=$PWD go install {_MODULE}@v{version('apache-beam')}"


def program(options: PipelineOptions) -> str:
    """Return the path of the program; empty if Beam would download it.

    Raises:
        EngineError: there is no program at ``--prism_location``.
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
