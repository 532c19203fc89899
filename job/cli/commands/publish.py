"""``publish``: publish a night that a gate has refused."""

from __future__ import annotations

import argparse
import time
from collections.abc import Sequence

from job import environment
from job.cli.parser import add_flag, configure_stores, output_parser
from job.errors import UsageError
from job.terminal import console, progress


def parser() -> argparse.ArgumentParser:
    """Return the parser of its flags."""
    told = "Publish a night that a gate has refused, as it lies in staging; nothing is scored."
    parser = output_parser("publish", told, "the folder that the night was to be published at")
    add_flag(parser, "run_id", "ID", None, "of the refused run, or its first digits")
    told = "what to do when the output holds another run"
    parser.add_argument("--if_exists", choices=("fail", "replace"), default="fail", help=told)
    add_flag(parser, "kms_key", "KEY", None, "encrypt what is written to a bucket with this key")
    return parser


def run(args: Sequence[str]) -> int:
    """Publish a refused night, and print its report."""
    given = parser().parse_args(list(args))
    if not given.run_id:
        clean = f"{environment.program()} clean --dry_run"
        raise UsageError(f"--run_id must be given; the refusal names it, and so does `{clean}`")
    from job import storage
    from job.commit import release

    configure_stores(given)
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
