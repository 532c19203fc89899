"""The flags of commands, as parsers: of those that take the flags of ``score``, and of those about an output.

The flags of ``score`` are declared in ``job.spec.ScoringSpec``, and here those that belong to a command line
alone. Their values are read in ``job.cli.options``. A word that no flag knows is an error with the fix: a
name gets the nearest one that exists, and a list with blanks the same list with commas.
"""

from __future__ import annotations

import argparse
import csv
import difflib
import itertools
import shlex
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from typing import Annotated, Final, NoReturn

from job import environment, forms
from job.errors import UsageError, as_flag
from job.flags import Flag, Group, declared
from job.report import notices
from job.spec import ScoringSpec

# A flag that lists things shows so in its form, as in COL,….
_LISTS: Final = ",…"

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
            forms.Choice.of(notices.NOTIFY_ON),
            in_template=False,
        ),
    ] = notices.NOTIFY_ON[0]


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
        check_lists(self, args, rest)
        flag = next((arg for arg in rest if arg.startswith("-")), None)
        if flag is None:
            self.error(f"unrecognized arguments: {' '.join(rest)}")
        raise unknown_flag(flag, self._option_string_actions, f"see {self.prog} --help")

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


# A word that no flag knows.


def unknown_flag(arg: str, known: Iterable[str], otherwise: str) -> UsageError:
    """Return the error of a flag that does not exist, given as ``--name`` or ``--name=value``.

    ``known`` are flags with their dashes. The first of those that are equally near is named; where none is
    near, the message ends with ``otherwise``.
    """
    name = arg.partition("=")[0]
    # Dashes, which all have, would make short names look alike.
    flags = {flag.lstrip("-"): flag for flag in reversed(list(known))}
    near = difflib.get_close_matches(name.lstrip("-"), [*reversed(flags)], n=1)
    return UsageError(f"unknown flag {name}; {f'did you mean {flags[near[0]]}?' if near else otherwise}")


def check_lists(parser: argparse.ArgumentParser, args: Sequence[str], unknown: Collection[str]) -> None:
    """Refuse items of a list with blanks between them.

    ``unknown`` are the arguments of ``args`` that belong to nothing.

    Raises:
        UsageError: some of these follow the value of a flag that takes a list; the message has it right.
    """
    lists = {
        name
        for action in parser._actions
        if isinstance(action.metavar, str) and _LISTS in action.metavar
        for name in action.option_strings
    }
    for at, arg in enumerate(args):
        name, is_whole, value = arg.partition("=")
        if name not in lists:
            continue
        words = [value] if is_whole else []
        for word in args[at + 1 :]:
            if word.startswith("-"):
                break
            words.append(word)
        if words[1:] and set(words[1:]) <= set(unknown):
            items = [item for row in csv.reader(words, skipinitialspace=True) for item in row if item]
            right = as_flag(name.removeprefix("--"), *items)
            raise UsageError(f"{name} {shlex.join(words)}: a list has commas and no blanks; use {right}")


# Commands about a published output: they take OUTPUT, how its store is asked, and --debug.


def output_parser(command: str, description: str, output: str) -> argparse.ArgumentParser:
    """Return the parser of a command about one output, with the arguments that all of these take.

    ``output`` is the help of the argument ``OUTPUT``.
    """
    made = Parser(prog=f"{environment.program()} {command}", description=description, allow_abbrev=False)
    made.add_argument("output", metavar="OUTPUT", help=output)
    add_flag(made, "requester_pays", "PROJECT", None, "pay for requests to buckets that ask for it")
    made.add_argument("--debug", action="store_true", help="show tracebacks")
    return made


def add_flag(parser: argparse.ArgumentParser, name: str, form: str, default: str | None, text: str) -> None:
    """Add a flag with a value, whose help is ``text`` and the default, and shows the value as ``form``."""
    shown = f"{text} (default: {default})" if default else text
    parser.add_argument(f"--{name}", metavar=form, default=default, help=shown)


def configure_stores(given: argparse.Namespace) -> None:
    """Set how object stores are asked, before the first file is read.

    Raises:
        UsageError: a flag is given without a value.
    """
    from job.spec import StoreOptions
    from job.storage import objects

    values = {name: getattr(given, name, None) for name in ("requester_pays", "kms_key")}
    for name, value in values.items():
        if value == "":
            raise UsageError(f"--{name}= is empty; give a value, or leave the flag out")
    objects.configure(StoreOptions(**{name: value for name, value in values.items() if value}))
