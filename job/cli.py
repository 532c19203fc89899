"""Subcommands, help and what people see: results on standard output, all else on standard error.

A command imports what it needs inside its function, so that help never waits for Beam or
TensorFlow, and so that their start-up noise is silenced before it is made.
"""

from __future__ import annotations

import sys
import traceback
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from job import console, progress, published, quiet, redaction
from job.errors import EngineError, JobError, UsageError, one_line

if TYPE_CHECKING:
    pass

INTERRUPTED: Final = 130  # 128 + SIGINT, as shells report it


@dataclass(frozen=True)
class Command:
    """A subcommand: one line about it, and two functions of its own arguments."""

    summary: str
    run: Callable[[Sequence[str]], int]
    help: Callable[[], str]


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code; nothing is raised.

    ``argv`` is without the program's name and defaults to the process's arguments.
    """
    args = list(sys.argv[1:] if argv is None else argv)
    debug = "--debug" in args
    redaction.learn(args)
    try:
        return _run(args, debug=debug)
    except JobError as error:
        return _fail(str(error), error.exit_code, debug=debug)
    except KeyboardInterrupt:
        progress.say("interrupted; the same command resumes where this one stopped")
        return INTERRUPTED
    except Exception as error:  # noqa: BLE001 - the last resort: one line, as for any other error
        hint = "" if debug else "; run again with --debug for the traceback"
        return _fail(f"{one_line(error)}{hint}", 1, debug=debug)


def _run(args: Sequence[str], *, debug: bool) -> int:
    if not args:
        raise UsageError(f"no command; use one of {', '.join(COMMANDS)}, or {published.PROGRAM} --help")
    name, rest = args[0], args[1:]
    if name in {"-h", "--help"}:
        console.show(_overview())
        return 0
    if name not in COMMANDS:
        raise UsageError(
            f"unknown command {name!r}; use one of {', '.join(COMMANDS)}, or {published.PROGRAM} --help"
        )
    command = COMMANDS[name]
    if {"-h", "--help"} & set(rest):
        console.show(command.help())
        return 0
    quiet.hush(debug=debug)
    return command.run(rest)


def _overview() -> str:
    width = max(map(len, COMMANDS))
    commands = "\n".join(f"  {name:<{width}}  {command.summary}" for name, command in COMMANDS.items())
    return (
        f"usage: {published.PROGRAM} COMMAND [flag …]\n\n"
        "Nightly batch scoring: Parquet shards through a Keras model, back to Parquet.\n\n"
        f"commands:\n{commands}\n\n"
        f"{published.PROGRAM} COMMAND --help tells more; with --debug, an error comes with its traceback.\n"
    )


def _score(args: Sequence[str]) -> int:
    from job import options

    if "--print_config" in args:
        console.show(redaction.scrub(options.effective(args)))
        return 0
    spec, beam_args = options.parse(args)
    if beam_args:
        from job import engines

        engines.check_runner(beam_args)
    # Only now, so that a wrong flag is told at once.
    from job import launch

    outcome = launch.score(spec, beam_args, announce=progress.say)
    if outcome.job is not None:
        told = f"the night is at {spec.output} when it is there: `{published.PROGRAM} report {spec.output}`"
        console.show(f"submitted: run {outcome.job.run[:12]} as {outcome.job}; {told}\n")
        return 0
    report = outcome.report
    if outcome.already_published:
        console.show(f"already published: run {report.run_id[:12]} at {report.output}: nothing to do\n")
    else:
        console.show(report.summary_table())
    return 0


def _backfill(args: Sequence[str]) -> int:
    from job import options

    asked = options.parse_backfill(args)
    from job import backfill, endings, nightly

    backfill.check(asked.template)
    if asked.beam_args:
        from job import engines

        engines.check_runner(asked.beam_args)
    ended = list(
        backfill.score(
            asked.template,
            asked.beam_args,
            nightly.days(asked.start, asked.end),
            nights_at_once=asked.nights_at_once or backfill.AUTO_NIGHTS,
            announce=progress.say,
        )
    )
    console.show(endings.table(ended))
    return endings.exit_code(ended)


def _help_of(command: str) -> Callable[[], str]:
    def text() -> str:
        from job import parser

        return parser.build(command).format_help()

    return text


def _doctor(args: Sequence[str]) -> int:
    from job import options

    spec, beam_args = options.parse(args)
    if beam_args:
        from job import engines

        engines.check_runner(beam_args)
    from job import doctor

    well = True
    for check in doctor.examine(spec, beam_args):
        well = well and doctor.is_well(check)
        console.show("".join(f"{line}\n" for line in doctor.lines(check)))
    doctor.leave_what_is_overdue(code := 0 if well else EngineError.exit_code)
    return code


def _fail(message: str, exit_code: int, *, debug: bool) -> int:
    if debug:
        sys.stderr.write(redaction.scrub(traceback.format_exc()))
    progress.say(f"error: {' '.join(message.split())}")
    return exit_code


COMMANDS: Final[Mapping[str, Command]] = {
    "score": Command("score shards and publish the predictions", _score, _help_of("score")),
    "backfill": Command("score many nights, each from its own input", _backfill, _help_of("backfill")),
    "doctor": Command("look at engine and paths before a night", _doctor, _help_of("doctor")),
    "report": Command("print the run report of an output", published.report, published.help_of("report")),
    "verify": Command("check a published night", published.verify, published.help_of("verify")),
    "publish": Command(
        "publish a night that a gate has refused", published.publish, published.help_of("publish")
    ),
    "golden": Command("make a file of rows for --golden", published.golden, published.help_of("golden")),
    "clean": Command("remove what abandoned runs left", published.clean, published.help_of("clean")),
}
