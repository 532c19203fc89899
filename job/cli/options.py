"""Turns the command line of ``score`` into a validated :class:`~job.spec.ScoringSpec`.

The job's own flags are taken out. What is left must be Beam's flags and is passed on unchanged. A flag that
neither knows is an error: a night must not be scored without a setting that somebody believes to be in force.
Beam is imported only if something is left.
"""

from __future__ import annotations

import argparse
import contextlib
import shlex
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import NoReturn

from job.cli import config, parser
from job.cli.parser import CommandOptions
from job.errors import UsageError, as_flag
from job.flags import declared, values
from job.model import artifact, builder, challenger_spec
from job.report import notices
from job.shards import dates
from job.spec import ScoringSpec
from job.terminal import library_output


@dataclass(frozen=True)
class Asked:
    """What a command line asks for.

    Attributes:
        given: the texts of the job's flags by name.
        command: the values of the flags that are not part of the spec.
        template: the spec; its paths may hold placeholders such as ``{ds}``.
        checked: flags for Beam that Beam knows.
        unchecked: what follows a bare ``--``, for Beam too.
    """

    given: argparse.Namespace
    command: CommandOptions
    template: ScoringSpec
    checked: tuple[str, ...]
    unchecked: tuple[str, ...]

    @property
    def beam_args(self) -> tuple[str, ...]:
        """All flags for Beam, in their order."""
        return (*self.checked, *self.unchecked)

    @property
    def night(self) -> ScoringSpec:
        """The spec of the night that ``--ds`` names, without placeholders."""
        return dates.of_night(self.template)

    def printed(self, spec: ScoringSpec) -> str:
        """Return all flags that are in force for ``spec`` as a configuration file."""
        told = f"# and unchecked: {shlex.join(self.unchecked)}\n" if self.unchecked else ""
        return config.rendered(self.given, spec, self.checked) + told


@contextlib.contextmanager
def parsed(argv: Sequence[str], own: argparse.ArgumentParser | None = None) -> Iterator[Asked]:
    """Yield what a command line asks for.

    ``own`` is the command's parser, made by ``parser.build``; by default it is that of ``score``. If the body
    raises an error whose message begins with a flag of the configuration file, it gets the file and the line.

    Raises:
        UsageError: a flag is unknown, missing, repeated or malformed, or contradicts another.
    """
    checked, unchecked = _split_at_dashes(argv)
    own = own or parser.build()
    with config.merged(checked, own) as merged:
        given, rest = own.parse_known_args(merged)
        if rest:
            _check_beam_args(own, checked, rest)
        options = CommandOptions(**values(CommandOptions, vars(given)))
        # First, so that errors of other flags are reported to the webhook of the configuration file.
        notices.ask(options.notify_url, options.notify_on)
        spec = _spec(given)
        asked = Asked(given, options, spec, tuple(rest), tuple(unchecked))
        if asked.beam_args:
            # It imports Beam.
            from job.engines import choice

            choice.check_runner(asked.beam_args)
        yield asked


def parse(argv: Sequence[str]) -> tuple[ScoringSpec, tuple[str, ...]]:
    """Return the spec of a night and the flags for Beam; raises the errors of :func:`parsed`."""
    with parsed(argv) as asked:
        return asked.night, asked.beam_args


def _split_at_dashes(argv: Sequence[str]) -> tuple[list[str], list[str]]:
    args = list(argv)
    at = args.index("--") if "--" in args else len(args)
    return args[:at], args[at + 1 :]


def _spec(given: argparse.Namespace) -> ScoringSpec:
    _check_required(given)
    for flag in declared(ScoringSpec):
        if flag.form.dated:
            for text in getattr(given, flag.name):
                dates.check(flag.name, text)
    spec = ScoringSpec(**values(ScoringSpec, vars(given)))
    spec = replace(spec, output_template=spec.output)
    if spec.weights is not None and not builder.BUILDER.fullmatch(spec.model):
        raise artifact.misplaced_weights(spec.model, spec.weights)
    if spec.on_null == "nan":
        spec = _keeping_nan(spec, is_asked=bool(given.on_nonfinite))
    _check_no_clash(spec)
    return spec


def _keeping_nan(spec: ScoringSpec, *, is_asked: bool) -> ScoringSpec:
    """Return a spec that keeps values that are not finite, as ``--on_null=nan`` makes NaN of nulls.

    Raises:
        UsageError: ``--on_nonfinite`` says otherwise.
    """
    if is_asked and spec.on_nonfinite != "keep":
        raise UsageError(
            f"--on_nonfinite={spec.on_nonfinite}: --on_null=nan makes values that are not finite; "
            f"leave one of the two out"
        )
    return replace(spec, on_nonfinite="keep")


def _check_required(given: argparse.Namespace) -> None:
    required = [flag.name for flag in declared(ScoringSpec) if flag.required]
    missing = [f"--{name}" for name in required if not any(getattr(given, name))]
    if missing:
        raise UsageError(f"{', '.join(missing)} must be given; see {parser.help_of()}")
    if given.wait and given.no_wait:
        raise UsageError("--wait and --no_wait are both given; leave one of them out")


def _check_no_clash(spec: ScoringSpec) -> None:
    challenger_spec.check(spec)
    for flag, names in (("keys", spec.keys), ("features", spec.features), ("cast", dict(spec.casts))):
        if both := [name for name in spec.ignore if name in names]:
            raise UsageError(f"{as_flag('ignore', *both)}: also in --{flag}; leave it out of one of them")
    both = [name for name in spec.prediction_columns if name in spec.keys]
    if both:
        raise UsageError(f"--prediction_columns={','.join(both)}: also in --keys; choose another name")


def _check_beam_args(own: argparse.ArgumentParser, given: Sequence[str], args: list[str]) -> None:
    """Refuse arguments that neither the job nor Beam knows.

    ``own`` is the command's parser, ``given`` the command line, ``args`` what the parser left of it.
    """
    from job.engines import choice

    with library_output.imports():
        choice.learn_flags(args)
    beam = _beam_parser()
    unknown = beam.parse_known_args(args)[1]
    parser.check_lists(own, given, unknown)
    flag = next((arg for arg in unknown if arg.startswith("-")), None)
    if unknown and flag is None:
        raise UsageError(
            f"{unknown[0]!r} belongs to no flag; put a glob in quotes so that the shell leaves it alone, "
            "and repeat --input for several"
        )
    if flag is None:
        return
    # The job's flags come first: they win if one of Beam's is equally near.
    known = [*own._option_string_actions, *beam._option_string_actions]
    hint = f"see {own.prog} --help, or pass it unchecked after a bare --"
    raise parser.unknown_flag(flag, known, hint)


def _beam_parser() -> argparse.ArgumentParser:
    with library_output.imports():
        from apache_beam.options.pipeline_options import PipelineOptions, _BeamArgumentParser

    class BeamParser(_BeamArgumentParser):
        def error(self, message: str) -> NoReturn:
            raise UsageError(f"{message.removeprefix('argument ')} (a flag of the engine)")

    # "resolve", because a subclass of PipelineOptions may be registered twice.
    settings = {"allow_abbrev": False, "add_help": False, "conflict_handler": "resolve"}
    beam: argparse.ArgumentParser = BeamParser(**settings)
    for options in PipelineOptions.__subclasses__():
        options._add_argparse_args(beam)
    return beam
