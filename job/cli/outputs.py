"""The commands about outputs: ``report``, ``verify``, ``diff``, ``publish``, ``golden`` and ``clean``."""

from __future__ import annotations

import argparse
import datetime
import json
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Final

from job import errors
from job.errors import DataError, OutputConflictError, UsageError
from job.terminal import console, progress

PROGRAM: Final = "python -m job"


def report(args: Sequence[str]) -> int:
    """Print the report of a published night."""
    given = _report_parser().parse_args(list(args))
    from job import storage
    from job.commit import output
    from job.report.run_report import RunReport

    _configure_stores(given)
    folder = storage.absolute(given.output)
    path = storage.join(folder, output.REPORT_JSON)
    content = storage.read_bytes(path)
    if content is None and storage.read_bytes(storage.join(folder, output.SUCCESS)) is not None:
        raise UsageError(f"{path}: no such file, though {folder} is published; somebody removed it")
    if content is None:
        raise UsageError(f"{path}: no such file; nothing was published at {folder}")
    console.draw(RunReport.from_json(content.decode(errors="replace"), path).summary_table(), needed=True)
    return 0


def _report_parser() -> argparse.ArgumentParser:
    told = "Print the report of the run that was published. The same as a page: OUTPUT/_report.html"
    return _parser("report", told, "the folder that the night was published at")


def clean(args: Sequence[str]) -> int:
    """Remove what abandoned runs left, or free an output from a job."""
    from job import storage
    from job.cli import values as cli_values
    from job.commit import cleaning
    from job.shards import dates

    given = _clean_parser().parse_args(list(args))
    _configure_stores(given)
    age_s = None if given.older_than is None else cli_values.duration_s("older_than", given.older_than)
    dates.check("OUTPUT", given.output)
    if given.release_job is not None:
        if given.dry_run:
            raise UsageError("--release_job and --dry_run exclude each other; leave one of them out")
        output = storage.absolute(given.output)
        cleaning.release(output, given.release_job)
        console.show(f"{output}: job {given.release_job} has it no more; the command of its run resumes it")
        return 0
    if not dates.has_date(given.output):
        _clean_one(storage.absolute(given.output), age_s, dry_run=given.dry_run)
        return 0
    last = dates.yesterday("UTC") + datetime.timedelta(days=1)
    nights = cli_values.count("nights", given.nights, "a whole number of nights from 1")
    seen = 0
    for day in dates.before(last, nights):
        output = storage.absolute(dates.expand(given.output, day))
        try:
            if storage.is_folder(output):
                seen += 1
                _clean_one(output, age_s, dry_run=given.dry_run)
        except OutputConflictError as e:
            # It is the others that were to be cleaned.
            console.show(f"kept: {e}")
    if not seen:
        console.show(f"{given.output}: none of the last {nights} nights has such a folder")
    return 0


def _clean_one(output: str, age_s: float | None, *, dry_run: bool) -> None:
    from job.commit import cleaning

    found = cleaning.clean(output, older_than_s=age_s, dry_run=dry_run, clock=time.time)
    done = "would be removed" if dry_run else "removed"
    for one in found:
        told = f"{one.splits:,} finished splits, {one.size_bytes:,} bytes, {one.age_s / 3600:.1f} h old"
        console.show(f"{output}: run {one.run_id[:12]}: {told}: {f'kept, {one.kept}' if one.kept else done}")
    if not found:
        console.show(f"{output}: nothing was left in staging")


def _clean_parser() -> argparse.ArgumentParser:
    told = "Remove what abandoned runs left in the staging of an output; never a live run's."
    place = "the folder that runs were to publish at; with {ds} in it, those of the last nights"
    parser = _parser("clean", told, place)
    _flag(parser, "nights", "N", "35", "how many nights back, where OUTPUT holds {ds}")
    _flag(parser, "kms_key", "KEY", None, "encrypt the lease that is written to a bucket with this key")
    told = "as in 90m, 12h or 7d; without it, of any age but for what a gate has refused"
    _flag(parser, "older_than", "AGE", None, told)
    told = "only free the output from this job, submitted with --no_wait, that has ended or was cancelled"
    _flag(parser, "release_job", "ID", None, told)
    parser.add_argument("--dry_run", action="store_true", help="only say what would be removed")
    return parser


def publish(args: Sequence[str]) -> int:
    """Publish a night that a gate has refused."""
    given = _publish_parser().parse_args(list(args))
    if not given.run_id:
        raise UsageError(
            "--run_id must be given; the refusal names it, and so does `scoring-job clean --dry_run`"
        )
    from job import storage
    from job.commit import release

    _configure_stores(given)
    report, was_there = release.release(
        storage.absolute(given.output),
        given.run_id,
        replacing=given.if_exists == "replace",
        announce=progress.say,
        clock=time.time,
    )
    if was_there:
        console.show(f"already published: run {report.run_id[:12]} at {report.output}: nothing to do")
    else:
        console.draw(report.summary_table())
    return 0


def _publish_parser() -> argparse.ArgumentParser:
    told = "Publish a night that a gate has refused, as it lies in staging; nothing is scored."
    parser = _parser("publish", told, "the folder that the night was to be published at")
    _flag(parser, "run_id", "ID", None, "of the refused run, or its first digits")
    told = "what to do when the output holds another run"
    parser.add_argument("--if_exists", choices=("fail", "replace"), default="fail", help=told)
    _flag(parser, "kms_key", "KEY", None, "encrypt what is written to a bucket with this key")
    return parser


def golden(args: Sequence[str]) -> int:
    """Make a file of golden rows."""
    given = _golden_parser().parse_args(list(args))
    if not given.to:
        raise UsageError("--to must be given: the file to write, as in golden.parquet")
    from job import storage
    from job.cli import values as cli_values
    from job.compare import golden_rows
    from job.scoring.golden import MOST_ROWS

    rows = cli_values.count("rows", given.rows, f"a whole number of rows from 1 to {MOST_ROWS}")
    if rows > MOST_ROWS:
        raise UsageError(f"--rows={rows}: must be a whole number of rows from 1 to {MOST_ROWS}")
    seed = None if given.seed is None else cli_values.whole("seed", given.seed)
    _configure_stores(given)
    path = storage.absolute(given.to)
    written = golden_rows.pick(storage.absolute(given.output), path, rows=rows, seed=seed)
    console.show(f"{written:,} rows in {path}")
    return 0


def _golden_parser() -> argparse.ArgumentParser:
    told = "Write rows of a published night, with their predictions, for --golden. Verify the night before."
    parser = _parser("golden", told, "the folder that the night was published at")
    _flag(parser, "rows", "ROWS", "100", "how many, drawn at random")
    _flag(parser, "seed", "N", None, "of the sample, to draw the same one again")
    _flag(parser, "to", "FILE", None, "the file to write, which must not be there")
    _flag(parser, "kms_key", "KEY", None, "encrypt what is written to a bucket with this key")
    return parser


def verify(args: Sequence[str]) -> int:
    """Check a published night; raises ``DataError`` where it is not right."""
    given = _verify_parser().parse_args(list(args))
    from job import storage
    from job.binding.tolerance import Tolerance
    from job.cli import values as cli_values
    from job.compare import verify as verifying

    sample = (
        verifying.ALL if given.sample_rows == "all" else cli_values.whole("sample_rows", given.sample_rows)
    )
    seed = None if given.seed is None else cli_values.whole("seed", given.seed)
    tolerance = Tolerance(cli_values.number("rtol", given.rtol), cli_values.number("atol", given.atol))
    _configure_stores(given)
    folder = storage.absolute(given.output)
    found = verifying.verify(folder, sample_rows=sample, seed=seed, tolerance=tolerance)
    told = found.to_json().rstrip().split("\n") if given.json else verifying.lines(found)
    console.show(*told, needed=True)
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


def diff(args: Sequence[str]) -> int:
    """Compare two nights row by row, or two columns of one; raises ``DataError`` if that is asked for."""
    given = _diff_parser().parse_args(list(args))
    from job import storage
    from job.cli import values as cli_values
    from job.compare import diff as comparing

    asked = comparing.Asked(
        keys=cli_values.columns(given, "keys"),
        columns=tuple(cli_values.items(given, "columns")),
        threshold=None if given.threshold is None else cli_values.signed("threshold", given.threshold),
        tolerance=cli_values.number("tolerance", given.tolerance),
        top=cli_values.whole("top", given.top),
    )
    most = cli_values.share(given, "max_change") if given.max_change else None
    _configure_stores(given)
    folders = [storage.absolute(one) for one in (given.output, given.other) if one is not None]
    found = comparing.diff(folders, asked)
    from job.compare import diff_report

    if given.page is not None:
        with errors.of_place(f"--page={given.page}: "):
            storage.write_atomic(
                storage.absolute(given.page), diff_report.page(found).encode(), durable=False
            )
    if given.json:
        console.show(json.dumps(found.fields(), default=str, allow_nan=False), needed=True)
    else:
        for part in diff_report.tables(found):
            console.draw(part, needed=True)
    if most is not None and found.share_moved > most:
        raise DataError(
            f"{found.moved:,} of {found.rows:,} rows moved by more than --tolerance={given.tolerance}: a "
            f"share of {found.share_moved:.4g}, above --max_change={most}"
        )
    return 0


def _diff_parser() -> argparse.ArgumentParser:
    told = "Compare two published nights row by row, or two prediction columns of one."
    parser = _parser("diff", told, "the folder that night A was published at")
    parser.add_argument(
        "other", metavar="B", nargs="?", help="that of night B; without it, columns of OUTPUT"
    )
    # Lists, as the values of score's flags are, whose forms these have.
    for name, form, told in (
        ("keys", "COL,…", "columns that rows are matched by (default: those both carry, else shard and row)"),
        (
            "columns",
            "COL,…",
            "what to compare (default: predictions of both; in one, each with its challenger_…)",
        ),
        ("max_change", "SHARE", "end with 5 if more of the rows have moved"),
    ):
        parser.add_argument(f"--{name}", metavar=form, action="append", default=[], help=told)
    _flag(parser, "threshold", "X", None, "count the rows that change sides of this value")
    _flag(parser, "tolerance", "X", "0", "a row has moved if it differs by more than this")
    _flag(parser, "top", "N", "20", "how many of the biggest movers to show")
    _flag(parser, "page", "FILE", None, "write it as a page of HTML too")
    parser.add_argument("--json", action="store_true", help="print one JSON object, on one line")
    return parser


def _parser(command: str, description: str, output: str) -> argparse.ArgumentParser:
    """Return the parser of a command about one output, with what all of these take."""
    from job.cli.parser import Parser

    parser = Parser(prog=f"{PROGRAM} {command}", description=description, allow_abbrev=False)
    parser.add_argument("output", metavar="OUTPUT", help=output)
    _flag(parser, "requester_pays", "PROJECT", None, "pay for requests to buckets that ask for it")
    parser.add_argument("--debug", action="store_true", help="show tracebacks")
    return parser


def _configure_stores(given: argparse.Namespace) -> None:
    from job.spec import StoreOptions
    from job.storage import objects

    values = {name: getattr(given, name, None) for name in ("requester_pays", "kms_key")}
    for name, value in values.items():
        if value == "":
            raise UsageError(f"--{name}= is empty; give a value, or leave the flag out")
    objects.configure(StoreOptions(**{name: value for name, value in values.items() if value}))


def _flag(parser: argparse.ArgumentParser, name: str, form: str, default: str | None, text: str) -> None:
    shown = f"{text} (default: {default})" if default else text
    parser.add_argument(f"--{name}", metavar=form, default=default, help=shown)


def help_of(command: str) -> Callable[[], str]:
    """Return what gives a command's help; the parser is made when somebody asks."""
    return lambda: _PARSERS[command]().format_help()


_PARSERS: Final[Mapping[str, Callable[[], argparse.ArgumentParser]]] = {
    "report": _report_parser,
    "verify": _verify_parser,
    "diff": _diff_parser,
    "clean": _clean_parser,
    "publish": _publish_parser,
    "golden": _golden_parser,
}
