"""The commands that take the flags of ``score``: which flags each of them has, and its parser.

The flags themselves are declared in ``job.spec.ScoringSpec``, and here those that belong to a command line
alone. Their values are read in ``job.cli.options``.
"""

from __future__ import annotations

import argparse
import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Final, NoReturn

from job import environment, forms
from job.cli import usage
from job.errors import UsageError
from job.flags import Flag, Group, declared
from job.report import json_line
from job.spec import ScoringSpec

_EPILOG: Final = """\
examples:
  {program} score --input='features/*.parquet' --model=model.keras \\
      --keys=id --output=predictions
  {program} score --config=night.toml --ds=2026-11-25
  {program} score --input=features --model=models.custom_layer:build \\
      --weights=night.weights.h5 --output=predictions --runner=FlinkRunner

Flags of the engine (--runner, --experiments, --temp_location …) are passed on as they are.
What follows a bare -- is passed on unchecked, for options that only a job server knows.

After a crash the same command resumes: finished splits are not scored again.

exit codes:
  0  published, or already published      4  preflight failed (model, schema, shard)
  1  unexpected, or storage failed        5  too many rejects, or a gate refused; nothing published
  2  wrong usage                          6  the output holds another run
  3  no input                             7  the engine cannot be reached
"""


@dataclass(frozen=True)
class CommandOptions:
    """What a command is told beside its night: where its flags are, and who hears how it ended."""

    config: Annotated[
        str | None,
        Flag(
            Group.NIGHT,
            "a TOML file of flags; those of the command line come first",
            forms.Form("FILE"),
            in_file=False,
            in_template=False,
        ),
    ] = None
    print_config: Annotated[
        bool,
        Flag(
            Group.NIGHT,
            "print all flags that are in force, as such a file, and end",
            forms.Switch(),
            in_file=False,
            in_template=False,
        ),
    ] = False
    json: Annotated[
        bool,
        Flag(
            Group.NOTIFICATIONS,
            "print one JSON line on how it ended, whatever happens, and nothing else",
            forms.Switch(),
            in_file=False,
            in_template=False,
            more="All else goes to standard error. See [notifications](notifications.md).",
        ),
    ] = False
    # Everybody who may look at a template's job sees its parameters, and the address is secret.
    notify_url: Annotated[
        str | None,
        Flag(
            Group.NOTIFICATIONS,
            "post the same to this webhook (better: SCORING_JOB_NOTIFY_URL in the environment)",
            forms.Form("URL"),
            in_template=False,
        ),
    ] = None
    notify_on: Annotated[
        str,
        Flag(
            Group.NOTIFICATIONS,
            "when to post",
            forms.Choice.of(json_line.NOTIFY_ON),
            in_template=False,
        ),
    ] = json_line.NOTIFY_ON[0]


def flags_of(more: type | None = None) -> tuple[Flag, ...]:
    """Return the flags of ``score``, and those that the dataclass ``more`` declares, in the order of help."""
    return declared(ScoringSpec, *([] if more is None else [more]), CommandOptions)


def build(command: str = "score", description: str = "", more: type | None = None) -> argparse.ArgumentParser:
    """Return the parser of a command that takes the flags of ``score``; values are read in ``options``.

    ``description`` says in help what the command does, ``more`` declares flags that only this command has.
    """
    parser = Parser(
        prog=f"{environment.program()} {command}",
        description=description,
        epilog=_EPILOG.format(program=environment.program()),
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
        usage="%(prog)s --input=GLOB --model=MODEL --output=FOLDER [flag …]",
    )
    for group, flags in itertools.groupby(flags_of(more), lambda flag: flag.group):
        told = group.text.replace("{program}", environment.program())
        added = parser.add_argument_group(group.title, told or None)
        for flag in flags:
            _add(added, flag)
    return parser


def help_of(command: str = "score") -> str:
    """Return what somebody types to be told more."""
    return f"{environment.program()} {command} --help"


class Parser(argparse.ArgumentParser):
    """Raises what is wrong as a ``UsageError``, where argparse would print it and exit."""

    def parse_args(  # type: ignore[override]
        self, args: Sequence[str], namespace: argparse.Namespace | None = None
    ) -> argparse.Namespace:
        """Return the values of all arguments.

        Raises:
            UsageError: one is missing, malformed or unknown.
        """
        given, rest = self.parse_known_args(args, namespace)
        if not rest:
            return given
        usage.check_lists(self, args, rest)
        flag = next((arg for arg in rest if arg.startswith("-")), None)
        if flag is None:
            self.error(f"unrecognized arguments: {' '.join(rest)}")
        raise usage.unknown_flag(flag, self._option_string_actions, f"see {self.prog} --help")

    def error(self, message: str) -> NoReturn:
        """Raise ``message`` with the command that tells more."""
        raise UsageError(f"{message.removeprefix('argument ')}; see {self.prog} --help")


def _add(group: argparse._ArgumentGroup, flag: Flag) -> None:
    if isinstance(flag.form, forms.Switch):
        for name, told in zip(flag.names, (flag.help, flag.form.off_text), strict=False):
            group.add_argument(f"--{name}", action="store_true", help=_literal(told))
        return
    # Appended even where one value is wanted, so that a second one is seen, not swallowed.
    group.add_argument(
        f"--{flag.name}", action="append", default=[], metavar=flag.form.metavar, help=_literal(flag.help)
    )


def _literal(text: str) -> str:
    """Return a text as argparse wants it, which fills in what follows a percent sign."""
    return text.replace("%", "%%")
