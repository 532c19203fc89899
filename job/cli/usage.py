"""What to say of a word on the command line that no command and no flag knows.

A name gets the nearest one that exists. A word after the value of a flag that lists things gets the same list
with commas.
"""

from __future__ import annotations

import csv
import difflib
import shlex
from collections.abc import Collection, Iterable, Sequence
from typing import TYPE_CHECKING, Final

from job import environment
from job.errors import UsageError, as_flag

if TYPE_CHECKING:
    import argparse

# A flag that lists things shows so in its form, as in COL,….
_LISTS: Final = ",…"


def unknown_command(name: str, commands: Iterable[str]) -> UsageError:
    """Return the error of a command that does not exist."""
    program = environment.program()
    if name.startswith("-"):
        return UsageError(f"{name}: a command comes before its flags; see {program} --help")
    known = list(commands)
    if near := difflib.get_close_matches(name, known, n=1):
        return UsageError(f"unknown command {name!r}; did you mean {near[0]}? See {program} --help")
    return UsageError(f"unknown command {name!r}; use one of {', '.join(known)}, or {program} --help")


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
