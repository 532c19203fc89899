"""Subcommands, help and what people see: results on standard output, all else on standard error.

A command imports what it needs inside its function, so that help never waits for Beam or
TensorFlow, and so that their start-up noise is silenced before it is made.
"""

from __future__ import annotations

import os
import sys
import time
import traceback
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from job import environment, secrets
from job.cli import outputs
from job.errors import EngineError, JobError, UsageError
from job.report import json_line
from job.terminal import console, library_output, progress, signals

if TYPE_CHECKING:
    from job.spec import ScoringSpec

_HELP: Final = frozenset({"-h", "--help"})


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
    secrets.learn(args)
    try:
        with signals.on_sigterm():
            untold = _HELP & set(args) or "--print_config" in _ours(args)
            if not args or args[0] not in json_line.COMMANDS or untold:
                return _ended(args)[0]
            ended = json_line.begin(args[0], args[1:], os.environ, environment.process_start_unix_s())
            with console.kept_for_the_end(asked=ended.asked.json):
                code, error = _ended(args)
            json_line.tell(ended, error, code, time.time())
            return code
    except KeyboardInterrupt as error:  # once more, while the first one is told of
        return json_line.code_of(error)


def _ended(args: Sequence[str]) -> tuple[int, BaseException | None]:
    """Run one command, and say why it failed; return its exit code and that reason."""
    debug = "--debug" in _ours(args)
    try:
        return _run(args, debug=debug), None
    except KeyboardInterrupt as error:
        progress.say(json_line.line_of(error))
        return json_line.code_of(error), error
    except (Exception, SystemExit) as error:  # noqa: BLE001 - the last resort: one line, as for any other
        if debug:
            progress.say_lines(traceback.format_exc().rstrip())
        hint = "" if debug or isinstance(error, JobError) else "; run again with --debug for the traceback"
        progress.say(f"error: {json_line.line_of(error)}{hint}")
        return json_line.code_of(error), error


def _ours(args: Sequence[str]) -> Sequence[str]:
    """Return what stands before a bare ``--``; the rest is the engine's."""
    return args[: args.index("--")] if "--" in args else args


def _run(args: Sequence[str], *, debug: bool) -> int:
    if not args:
        raise UsageError(f"no command; use one of {', '.join(COMMANDS)}, or {outputs.PROGRAM} --help")
    name, rest = args[0], args[1:]
    if name in _HELP:
        console.show(*_overview().splitlines(), needed=True)
        return 0
    if name not in COMMANDS:
        raise UsageError(
            f"unknown command {name!r}; use one of {', '.join(COMMANDS)}, or {outputs.PROGRAM} --help"
        )
    command = COMMANDS[name]
    if _HELP & set(rest):
        console.show(*command.help().splitlines(), needed=True)
        return 0
    library_output.hush(debug=debug)
    return command.run(rest)


def _overview() -> str:
    width = max(map(len, COMMANDS))
    commands = "\n".join(f"  {name:<{width}}  {command.summary}" for name, command in COMMANDS.items())
    return (
        f"usage: {outputs.PROGRAM} COMMAND [flag …]\n\n"
        "Nightly batch scoring: Parquet shards through a Keras model, back to Parquet.\n\n"
        f"commands:\n{commands}\n\n"
        f"{outputs.PROGRAM} COMMAND --help tells more; with --debug, an error comes with its traceback.\n"
    )


def _score(args: Sequence[str]) -> int:
    from job.cli import options

    with options.parsed(args) as asked:
        if asked.given.print_config:
            return _printed(asked.printed(asked.night))
        return _score_night(asked.night, asked.beam_args)


def _printed(text: str) -> int:
    # Of the file's own lines; what else would break one is escaped in its strings.
    console.show(*secrets.scrub(text).removesuffix("\n").split("\n"), needed=True)
    return 0


def _score_night(spec: ScoringSpec, beam_args: Sequence[str]) -> int:
    # Only now, so that a wrong flag is told at once.
    from job.launch import score

    with json_line.night(spec.output, spec.ds or None, time.time) as night:
        outcome = score.score(spec, beam_args, announce=progress.say)
        night.ends(outcome.published, outcome.job, already_published=outcome.already_published)
    if outcome.job is not None:
        told = f"the night is at {spec.output} when it is there: `{outputs.PROGRAM} report {spec.output}`"
        console.show(f"submitted: run {outcome.job.run[:12]} as {outcome.job}; {told}")
        return 0
    report = outcome.report
    if outcome.kept:
        told = "input, model or options differ from its; --if_exists=replace would score it anew"
        console.show(f"kept: run {report.run_id[:12]} is published at {report.output}; {told}")
    elif outcome.already_published:
        console.show(f"already published: run {report.run_id[:12]} at {report.output}: nothing to do")
    else:
        console.draw(report.summary_table())
    return 0


def _backfill(args: Sequence[str]) -> int:
    from job.cli import options

    with options.parsed(args, "backfill") as asked:
        nights = options.nights(asked)
        from job.launch import backfill
        from job.launch import backfill as launch_backfill
        from job.shards import dates

        days = list(dates.days(nights.start, nights.end))
        backfill.check(asked.template, days)
        if asked.given.print_config:
            return _printed(nights.printed() + asked.printed(asked.template))
        at_once = nights.at_once or backfill.AUTO_NIGHTS
        ended: list[launch_backfill.Ending] = []
        try:
            for one in backfill.score(
                asked.template, asked.beam_args, days, nights_at_once=at_once, announce=progress.say
            ):
                ended.append(one.noted())
        finally:
            # Of those that ended, also where the rest was stopped.
            if ended:
                console.draw(launch_backfill.table(ended))
    return launch_backfill.exit_code(ended)


def _plan(args: Sequence[str]) -> int:
    from job.cli import options

    with options.parsed(args, "plan") as asked:
        if asked.given.print_config:
            return _printed(asked.printed(asked.night))
        from job.launch import forecast

        found = forecast.look(asked.night, announce=progress.say)
    if asked.given.json:
        console.show(found.to_json().rstrip(), needed=True)
    else:
        console.draw(found.table(), needed=True)
    return 0


def _help_of(command: str) -> Callable[[], str]:
    def text() -> str:
        from job.cli import parser

        return parser.build(command).format_help()

    return text


def _doctor(args: Sequence[str]) -> int:
    from job.cli import options

    well = True
    with options.parsed(args, "doctor") as asked:
        if asked.given.print_config:
            return _printed(asked.printed(asked.night))
        from job.doctor import doctor

        for check in doctor.examine(asked.night, asked.beam_args):
            well = well and doctor.is_well(check)
            console.show(*doctor.lines(check), needed=True)
    doctor.leave_what_is_overdue(code := 0 if well else EngineError.exit_code)
    return code


COMMANDS: Final[Mapping[str, Command]] = {
    "score": Command("score shards and publish the predictions", _score, _help_of("score")),
    "backfill": Command("score many nights, each from its own input", _backfill, _help_of("backfill")),
    "plan": Command("look at a night and score a sample of it; write nothing", _plan, _help_of("plan")),
    "doctor": Command("look at engine and paths before a night", _doctor, _help_of("doctor")),
    "report": Command("print the run report of an output", outputs.report, outputs.help_of("report")),
    "verify": Command("check a published night", outputs.verify, outputs.help_of("verify")),
    "diff": Command("compare two published nights row by row", outputs.diff, outputs.help_of("diff")),
    "publish": Command(
        "publish a night that a gate has refused", outputs.publish, outputs.help_of("publish")
    ),
    "golden": Command("make a file of rows for --golden", outputs.golden, outputs.help_of("golden")),
    "clean": Command("remove what abandoned runs left", outputs.clean, outputs.help_of("clean")),
}
