"""``completion``: print a script by which a shell completes commands, flags and their values.

shtab writes it, from the parsers of all commands.
"""

from __future__ import annotations

import argparse
import re
from collections.abc import Sequence
from typing import Final

from job import environment
from job.cli import commands
from job.cli.parser import Parser
from job.errors import UsageError
from job.terminal import console

# ``python -m job`` cannot be completed: to the shell it is a flag of python.
_PROGRAM: Final = "scoring-job"
_SHELLS: Final = ("bash", "zsh", "tcsh")
_FILES: Final = ("FILE", "GLOB", "MODEL")
_FOLDERS: Final = ("FOLDER", "OUTPUT", "B")
_WORD: Final = re.compile("[a-z][a-z0-9_]*")

# shtab expects ``--flag value``, and bash makes three words of ``--flag=value``.
_BASH_EQUALS: Final = """

_scoring_job() {
  local at cword=$COMP_CWORD words=()
  for at in "${!COMP_WORDS[@]}"; do
    if [[ ${COMP_WORDS[at]} != '=' ]]; then
      words+=("${COMP_WORDS[at]}")
    elif (( at == COMP_CWORD )); then
      words+=("")
    elif (( at < COMP_CWORD )); then
      (( cword -= 1 ))
    fi
  done
  local COMP_WORDS=("${words[@]}") COMP_CWORD=$cword
  _shtab_scoring_job
}

complete -o bashdefault -F _scoring_job scoring-job
"""


def parser() -> argparse.ArgumentParser:
    """Return the parser of its flags."""
    told = f"Print a script by which a shell completes {_PROGRAM}. See docs/completion.md."
    parser = Parser(prog=f"{environment.program()} completion", description=told, allow_abbrev=False)
    parser.add_argument("shell", choices=_SHELLS, help="the shell that is to read it")
    parser.add_argument("--debug", action="store_true", help="show tracebacks")
    return parser


def run(args: Sequence[str]) -> int:
    """Print the script of one shell."""
    given = parser().parse_args(args)
    try:
        import shtab
    except ImportError as e:
        raise UsageError(
            "completion needs a package that is not installed: pip install 'scoring-job[completion]'"
        ) from e
    script = shtab.complete(_all_commands(given.shell), given.shell)
    if given.shell == "bash":
        script += _BASH_EQUALS
    console.show(*script.splitlines(), needed=True)
    return 0


def _all_commands(shell: str) -> argparse.ArgumentParser:
    """Return one parser with all commands below it, of which shtab makes a script for ``shell``."""
    program = argparse.ArgumentParser(prog=_PROGRAM, description="Nightly batch scoring.")
    program.add_argument("--version", action="store_true", help="print the versions")
    below = program.add_subparsers()
    for command in commands.COMMANDS.values():
        own = command.parser()
        for action in own._actions:
            _complete(action, shell)
        below.add_parser(command.name, parents=[own], add_help=False, help=command.summary)
    names = below.add_parser("help", help="tell more of a command")
    names.add_argument("command", choices=tuple(commands.COMMANDS), help="which one")
    return program


def _complete(action: argparse.Action, shell: str) -> None:
    """Say what the values of a flag are: words, files or folders, as its form in the help says."""
    import shtab

    form = action.metavar if isinstance(action.metavar, str) else ""
    words = [word for word in form.split("|") if _WORD.fullmatch(word)]
    if words and not action.choices:
        action.choices = words
    elif form in _FILES:
        action.complete = shtab.FILE  # type: ignore[attr-defined]
    elif form in _FOLDERS:
        action.complete = shtab.DIRECTORY  # type: ignore[attr-defined]
    if shell == "zsh" and action.nargs != 0:
        # With it, zsh takes the value after ``=`` too, not only as the next word.
        action.option_strings = [f"{name}=" for name in action.option_strings]
