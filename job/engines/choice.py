"""The list of engines, and the one that the flags choose."""

from __future__ import annotations

import difflib
import importlib
import pkgutil
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from job.engines import embedded
from job.engines.engine import Engine
from job.errors import UsageError, one_line
from job.terminal import library_output

if TYPE_CHECKING:
    from apache_beam.options.pipeline_options import PipelineOptions


@dataclass(frozen=True)
class Registration:
    """An engine in the list. Its module is imported only if the engine is used.

    Attributes:
        runner: Beam's name of the runner.
        engine: the subclass of ``Engine``, as ``module:Class``.
        path: the runner's class as ``module.Class``, if Beam does not know it by its name.
        extra: the extra of this package that installs the runner, if Beam alone does not.
    """

    runner: str
    engine: str
    path: str = ""
    extra: str = ""

    @property
    def short(self) -> str:
        """The name in lower case without ``Runner``; the engine's own flags begin with it."""
        return self.runner.lower().removesuffix("runner")

    def of(self, options: PipelineOptions) -> Engine:
        """Return the engine for these options."""
        return self.kind()(self.runner, options)

    def kind(self) -> type[Engine]:
        """Return the engine's class."""
        found: type[Engine] = pkgutil.resolve_name(self.engine)
        return found


# Any other runner is a plain ``Engine``.
ENGINES: Final[tuple[Registration, ...]] = (
    Registration(embedded.NAME, "job.engines.embedded:Embedded"),
    Registration("FlinkRunner", "job.engines.flink.engine:Flink"),
    Registration("DataflowRunner", "job.engines.dataflow:Dataflow"),
    Registration(
        "DaskRunner",
        "job.engines.dask:Dask",
        path="apache_beam.runners.dask.dask_runner.DaskRunner",
        extra="dask",
    ),
    Registration("PrismRunner", "job.engines.prism:Prism"),
    Registration("DirectRunner", "job.engines.engine:OneProcess"),
    Registration("BundleBasedDirectRunner", "job.engines.engine:OneProcess"),
    Registration("PortableRunner", "job.engines.engine:JobServer"),
    Registration("SparkRunner", "job.engines.engine:JobServer"),
)


def name(options: PipelineOptions) -> str:
    """Return the runner's name as Beam spells it; flags may use any case and leave ``Runner`` out."""
    from apache_beam.options.pipeline_options import StandardOptions

    given = str(options.view_as(StandardOptions).runner or embedded.NAME)
    for path in (*StandardOptions.ALL_KNOWN_RUNNERS, *(one.path or one.runner for one in ENGINES)):
        known = str(path.rpartition(".")[2])
        if given == path or given.lower() in (known.lower(), known.lower().removesuffix("runner")):
            return known
    return given


def engine(options: PipelineOptions) -> Engine:
    """Return the engine that the options name."""
    return registration(name(options)).of(options)


def registration(runner: str) -> Registration:
    """Return the entry of a runner, by its name as Beam spells it; a new one if it is not in the list."""
    found = (one for one in ENGINES if one.runner == runner)
    return next(found, Registration(runner, "job.engines.engine:Engine"))


def check_runner(beam_args: Sequence[str]) -> None:
    """Refuse a runner that does not exist.

    Raises:
        UsageError: ``--runner`` is neither one of Beam's nor the path of a class that can be imported.
    """
    with library_output.imports():
        from apache_beam.options.pipeline_options import PipelineOptions, StandardOptions

    known = list(dict.fromkeys([*StandardOptions.KNOWN_RUNNER_NAMES, *(one.runner for one in ENGINES)]))
    given = name(PipelineOptions(list(beam_args)))
    if given in known:
        return
    module, _, kind = given.rpartition(".")
    if module:
        try:
            with library_output.imports():
                if hasattr(importlib.import_module(module), kind):
                    return
            reason = f"{module} has no {kind}"
        except ImportError as e:
            reason = one_line(e)
        raise UsageError(f"--runner={given}: {reason}; give module.Class, or leave --runner out")
    # Without ``Runner``, which would make all names look alike.
    close = {other.lower().removesuffix("runner"): other for other in known}
    near = difflib.get_close_matches(given.lower().removesuffix("runner"), list(close), n=1)
    hint = f"did you mean {close[near[0]]}?" if near else f"use one of {', '.join(known)}, or module.Class"
    raise UsageError(f"--runner={given}: no such runner; {hint}")


def beam_options(beam_args: Sequence[str]) -> PipelineOptions:
    """Return Beam's options for these flags, with defaults that suit the engine."""
    from apache_beam.options.pipeline_options import PipelineOptions, StandardOptions

    options = PipelineOptions(list(beam_args))
    found = registration(name(options))
    if found.path:
        options.view_as(StandardOptions).runner = found.path
    # Beam's options do not say whether a flag was given, so the flags themselves are looked at.
    found.of(options).fill({arg.partition("=")[0] for arg in beam_args})
    return options


def learn_flags(beam_args: Sequence[str]) -> None:
    """Register an engine's own flags with Beam, if some are given and Beam does not have them by itself.

    Raises:
        EngineError: the engine is not installed.
    """
    for one in ENGINES:
        if one.path and any(arg.startswith(f"--{one.short}") for arg in beam_args):
            one.kind().learn_flags()


def extras(beam_args: Sequence[str]) -> Iterator[str]:
    """Yield the extras of this package that these flags need."""
    for one in ENGINES:
        starts = f"--{one.short}_", f"--runner={one.short}", one.short
        if one.extra and any(arg.lower().startswith(starts) for arg in beam_args):
            yield one.extra
