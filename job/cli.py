"""Subcommands, help and what people see: results on standard output, all else on standard error.

A command imports what it needs inside its function, so that help never waits for Beam or
TensorFlow, and so that their start-up noise is silenced before it is made.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
import traceback
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from job import progress, quiet, redaction
from job.errors import DataError, EngineError, JobError, UsageError, one_line

if TYPE_CHECKING:
    from rich.table import Table

INTERRUPTED: Final = 130  # 128 + SIGINT, as shells report it
PROGRAM: Final = "python -m job"


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
        raise UsageError(f"no command; use one of {', '.join(COMMANDS)}, or {PROGRAM} --help")
    name, rest = args[0], args[1:]
    if name in {"-h", "--help"}:
        _print(_overview())
        return 0
    if name not in COMMANDS:
        raise UsageError(f"unknown command {name!r}; use one of {', '.join(COMMANDS)}, or {PROGRAM} --help")
    command = COMMANDS[name]
    if {"-h", "--help"} & set(rest):
        _print(command.help())
        return 0
    quiet.hush(debug=debug)
    return command.run(rest)


def _overview() -> str:
    width = max(map(len, COMMANDS))
    commands = "\n".join(f"  {name:<{width}}  {command.summary}" for name, command in COMMANDS.items())
    return (
        f"usage: {PROGRAM} COMMAND [flag …]\n\n"
        "Nightly batch scoring: Parquet shards through a Keras model, back to Parquet.\n\n"
        f"commands:\n{commands}\n\n"
        f"{PROGRAM} COMMAND --help tells more; with --debug, an error comes with its traceback.\n"
    )


def _score(args: Sequence[str]) -> int:
    from job import options

    spec, beam_args = options.parse(args)
    if beam_args:
        from job import engines

        engines.check_runner(beam_args)
    # Only now, so that a wrong flag is told at once.
    from job import launch

    outcome = launch.score(spec, beam_args, announce=progress.say)
    if outcome.job is not None:
        told = f"the night is at {spec.output} when it is there: `{PROGRAM} report {spec.output}`"
        _print(f"submitted: run {outcome.job.run[:12]} as {outcome.job}; {told}\n")
        return 0
    report = outcome.report
    if outcome.already_published:
        _print(f"already published: run {report.run_id[:12]} at {report.output}: nothing to do\n")
    else:
        _print(report.summary_table())
    return 0


def _score_help() -> str:
    from job import options

    return options.build_parser().format_help()


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
        _print("".join(f"{line}\n" for line in doctor.lines(check)))
    doctor.leave_what_is_overdue(code := 0 if well else EngineError.exit_code)
    return code


def _doctor_help() -> str:
    from job import options

    return options.build_parser("doctor").format_help()


def _report(args: Sequence[str]) -> int:
    given = _report_parser().parse_args(list(args))
    from job import output, storage
    from job.report import RunReport

    _configure_stores(given)
    folder = storage.absolute(given.output)
    path = storage.join(folder, output.REPORT_JSON)
    content = storage.read_bytes(path)
    if content is None and storage.read_bytes(storage.join(folder, output.SUCCESS)) is not None:
        raise UsageError(f"{path}: no such file, though {folder} is published; somebody removed it")
    if content is None:
        raise UsageError(f"{path}: no such file; nothing was published at {folder}")
    _print(RunReport.from_json(content.decode(errors="replace"), path).summary_table())
    return 0


def _report_parser() -> argparse.ArgumentParser:
    told = "Print the report of the run that was published. The same as a page: OUTPUT/_report.html"
    return _parser("report", told, "the folder that the night was published at")


def _clean(args: Sequence[str]) -> int:
    from job import cleaning, flags, storage

    given = _clean_parser().parse_args(list(args))
    _configure_stores(given)
    age_s = flags.age_s("older_than", given.older_than)
    output = storage.absolute(given.output)
    if given.release_job is not None:
        if given.dry_run:
            raise UsageError("--release_job and --dry_run exclude each other; leave one of them out")
        cleaning.release(output, given.release_job)
        _print(f"{output}: job {given.release_job} has it no more; the command of its run resumes it\n")
        return 0
    found = cleaning.clean(output, older_than_s=age_s, dry_run=given.dry_run, clock=time.time)
    done = "would be removed" if given.dry_run else "removed"
    for one in found:
        told = f"{one.splits:,} finished splits, {one.size_bytes:,} bytes, {one.age_s / 3600:.1f} h old"
        _print(f"run {one.run_id[:12]}: {told}: {f'kept, {one.kept}' if one.kept else done}\n")
    if not found:
        _print(f"{output}: nothing was left in staging\n")
    return 0


def _clean_parser() -> argparse.ArgumentParser:
    told = "Remove what abandoned runs left in the staging of an output; never a live run's."
    parser = _parser("clean", told, "the folder that runs were to publish at")
    _flag(parser, "kms_key", "KEY", None, "encrypt the lease that is written to a bucket with this key")
    _flag(parser, "older_than", "AGE", "0h", "as in 90m, 12h or 7d")
    told = "only free the output from this job, submitted with --no_wait, that has ended or was cancelled"
    _flag(parser, "release_job", "ID", None, told)
    parser.add_argument("--dry_run", action="store_true", help="only say what would be removed")
    return parser


def _verify(args: Sequence[str]) -> int:
    given = _verify_parser().parse_args(list(args))
    from job import flags, storage, verify
    from job.rescoring import Tolerance

    sample = verify.ALL if given.sample_rows == "all" else flags.whole("sample_rows", given.sample_rows)
    seed = None if given.seed is None else flags.whole("seed", given.seed)
    tolerance = Tolerance(flags.number("rtol", given.rtol), flags.number("atol", given.atol))
    _configure_stores(given)
    folder = storage.absolute(given.output)
    found = verify.verify(folder, sample_rows=sample, seed=seed, tolerance=tolerance)
    _print(found.to_json() if given.json else "".join(f"{line}\n" for line in verify.lines(found)))
    if not found.is_right:
        told = (
            f"{len(found.findings):,} findings, {found.rows_different:,} of {found.rows_again:,} rows differ"
        )
        raise DataError(f"{folder}: it is not the night that its manifest tells of: {told}")
    return 0


def _verify_parser() -> argparse.ArgumentParser:
    told = "Check a published night: files, checksums, counts; score a sample of its rows again."
    parser = _parser("verify", told, "the folder that the night was published at")
    _flag(parser, "sample_rows", "ROWS|all", "1000", "rows to score again; 0 looks at the output alone")
    _flag(parser, "seed", "N", None, "of the sample, to draw the same one again")
    _flag(parser, "rtol", "X", "1e-5", "predictions may differ by this share of themselves")
    _flag(parser, "atol", "X", "1e-6", "and by this much, times their median magnitude if that is above 1")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    return parser


def _parser(command: str, description: str, output: str) -> argparse.ArgumentParser:
    """Return the parser of a command about one output, with what all of these take."""
    from job.options import Parser

    parser = Parser(prog=f"{PROGRAM} {command}", description=description, allow_abbrev=False)
    parser.add_argument("output", metavar="OUTPUT", help=output)
    _flag(parser, "requester_pays", "PROJECT", None, "pay for requests to buckets that ask for it")
    parser.add_argument("--debug", action="store_true", help="show tracebacks")
    return parser


def _configure_stores(given: argparse.Namespace) -> None:
    from job import objects
    from job.spec import StoreOptions

    values = {name: getattr(given, name, None) for name in ("requester_pays", "kms_key")}
    for name, value in values.items():
        if value == "":
            raise UsageError(f"--{name}= is empty; give a value, or leave the flag out")
    objects.configure(StoreOptions(**{name: value for name, value in values.items() if value}))


def _flag(parser: argparse.ArgumentParser, name: str, form: str, default: str | None, text: str) -> None:
    shown = f"{text} (default: {default})" if default else text
    parser.add_argument(f"--{name}", metavar=form, default=default, help=shown)


def _print(what: str | Table) -> None:
    """Write a result to standard output; a reader that has left does not turn success into failure."""
    try:
        if isinstance(what, str):
            sys.stdout.write(what)
        else:
            from rich.console import Console

            Console(highlight=False).print(what)
        sys.stdout.flush()
    except BrokenPipeError:
        # Python flushes once more at exit; let that go nowhere.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _fail(message: str, exit_code: int, *, debug: bool) -> int:
    if debug:
        sys.stderr.write(redaction.scrub(traceback.format_exc()))
    progress.say(f"error: {' '.join(message.split())}")
    return exit_code


COMMANDS: Final[Mapping[str, Command]] = {
    "score": Command("score shards and publish the predictions", _score, _score_help),
    "doctor": Command("look at engine and paths before a night", _doctor, _doctor_help),
    "report": Command("print the run report of an output", _report, lambda: _report_parser().format_help()),
    "verify": Command("check a published night", _verify, lambda: _verify_parser().format_help()),
    "clean": Command("remove what abandoned runs left", _clean, lambda: _clean_parser().format_help()),
}
