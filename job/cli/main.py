"""From the arguments of the process to its exit code: help, errors in one line, signals.

Results go to standard output, all else to standard error. What a command does is in :mod:`job.cli.commands`.
"""

from __future__ import annotations

import difflib
import os
import sys
import time
import traceback
from collections.abc import Sequence
from typing import Final

from job import environment, secrets
from job.cli.commands import COMMANDS
from job.errors import JobError, UsageError
from job.report import notices
from job.terminal import console, library_output, progress, signals

_HELP: Final = frozenset({"-h", "--help"})
_VERSION: Final = "--version"


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code; no error leaves it.

    ``argv`` is without the program's name and defaults to the process's arguments.
    """
    args = list(sys.argv[1:] if argv is None else argv)
    if args[:1] == ["help"]:
        args = [*args[1:], "--help"]
    secrets.learn(args)
    try:
        with signals.on_sigterm():
            command = COMMANDS.get(args[0]) if args else None
            untold = _HELP & set(args) or "--print_config" in _ours(args)
            if command is None or not command.scores or untold:
                return _ended(args)[0]
            ended = notices.begin(args[0], args[1:], os.environ, environment.process_start_unix_s())
            with console.kept_for_the_end(asked=ended.asked.json):
                code, error = _ended(args)
            notices.tell(ended, error, code, time.time())
            return code
    except KeyboardInterrupt as error:  # a second Ctrl-C, while the first is reported
        return notices.code_of(error)


def _ended(args: Sequence[str]) -> tuple[int, BaseException | None]:
    """Run one command and print its error if it fails; return its exit code and the error."""
    debug = "--debug" in _ours(args)
    try:
        return _run(args, debug=debug), None
    except KeyboardInterrupt as error:
        progress.say(notices.line_of(error))
        return notices.code_of(error), error
    except (Exception, SystemExit) as error:  # noqa: BLE001 - the last resort: one line, as for any other
        if debug:
            progress.say_lines(traceback.format_exc().rstrip())
        hint = "" if debug or isinstance(error, JobError) else "; run again with --debug for the traceback"
        progress.say(f"error: {notices.line_of(error)}{hint}")
        return notices.code_of(error), error


def _ours(args: Sequence[str]) -> Sequence[str]:
    """Return the arguments before a bare ``--``; those behind it are the engine's."""
    return args[: args.index("--")] if "--" in args else args


def _run(args: Sequence[str], *, debug: bool) -> int:
    if not args:
        raise UsageError(f"no command; use one of {', '.join(COMMANDS)}, or {environment.program()} --help")
    name, rest = args[0], args[1:]
    if name in _HELP:
        console.show(*_overview().splitlines(), needed=True)
        return 0
    if name == _VERSION:
        console.show(*(f"{package} {version}" for package, version in _versions().items()), needed=True)
        return 0
    if name not in COMMANDS:
        raise _unknown_command(name)
    command = COMMANDS[name]
    if _HELP & set(rest):
        console.show(*command.parser().format_help().splitlines(), needed=True)
        return 0
    library_output.hush(debug=debug)
    return command.run(rest)


def _unknown_command(name: str) -> UsageError:
    program = environment.program()
    if name.startswith("-"):
        return UsageError(f"{name}: a command comes before its flags; see {program} --help")
    if near := difflib.get_close_matches(name, COMMANDS, n=1):
        return UsageError(f"unknown command {name!r}; did you mean {near[0]}? See {program} --help")
    return UsageError(f"unknown command {name!r}; use one of {', '.join(COMMANDS)}, or {program} --help")


def _overview() -> str:
    width = max(map(len, COMMANDS))
    program = environment.program()
    commands = "\n".join(f"  {name:<{width}}  {command.summary}" for name, command in COMMANDS.items())
    return (
        f"usage: {program} COMMAND [flag …]\n\n"
        "Nightly batch scoring: Parquet shards through a Keras model, back to Parquet.\n\n"
        f"commands:\n{commands}\n\n"
        f"{program} help COMMAND, or COMMAND --help, tells more; {program} --version tells the versions;\n"
        "with --debug, an error comes with its traceback.\n"
    )


def _versions() -> dict[str, str]:
    """Return the versions of the job and of the packages below it, without those that are not installed."""
    from job import __version__

    # A checkout need not be installed; its version is in its source.
    return {"scoring-job": __version__} | dict(environment.versions())
