"""``clean``: remove what abandoned runs left, or free an output from a job."""

from __future__ import annotations

import argparse
import datetime
import time
from collections.abc import Sequence

from job import forms
from job.cli.parser import add_flag, configure_stores, output_parser
from job.errors import OutputConflictError, UsageError
from job.terminal import console


def parser() -> argparse.ArgumentParser:
    """Return the parser of its flags."""
    told = "Remove what abandoned runs left in the staging of an output; never a live run's."
    place = "the folder that runs were to publish at; with {ds} in it, those of the last nights"
    parser = output_parser("clean", told, place)
    add_flag(parser, "nights", "N", "35", "how many nights back, where OUTPUT holds {ds}")
    add_flag(parser, "kms_key", "KEY", None, "encrypt the lease that is written to a bucket with this key")
    told = "as in 90m, 12h or 7d; without it, of any age but for what a gate has refused"
    add_flag(parser, "older_than", "AGE", None, told)
    told = "only free the output from this job, submitted with --no_wait, that has ended or was cancelled"
    add_flag(parser, "release_job", "ID", None, told)
    parser.add_argument("--dry_run", action="store_true", help="only say what would be removed")
    return parser


def run(args: Sequence[str]) -> int:
    """Clean one output, or those of the last nights; or free one from a job."""
    from job import storage
    from job.commit import cleaning
    from job.shards import dates

    given = parser().parse_args(list(args))
    configure_stores(given)
    age_s = None if given.older_than is None else forms.Duration().parse("older_than", given.older_than)
    dates.check("OUTPUT", given.output)
    if given.release_job is not None:
        if given.dry_run:
            raise UsageError("--release_job and --dry_run exclude each other; leave one of them out")
        output = storage.absolute(given.output)
        cleaning.release(output, given.release_job)
        console.show(f"{output}: job {given.release_job} has it no more; the command of its run resumes it")
    elif dates.has_date(given.output):
        nights = forms.Count(of="nights").parse("nights", given.nights)
        _clean_nights(given.output, nights, age_s, dry_run=given.dry_run)
    else:
        _clean_one(storage.absolute(given.output), age_s, dry_run=given.dry_run)
    return 0


def _clean_nights(template: str, nights: int, age_s: float | None, *, dry_run: bool) -> None:
    from job import storage
    from job.shards import dates

    last = dates.yesterday("UTC") + datetime.timedelta(days=1)
    seen = 0
    for day in dates.before(last, nights):
        output = storage.absolute(dates.expand(template, day))
        try:
            if storage.is_folder(output):
                seen += 1
                _clean_one(output, age_s, dry_run=dry_run)
        except OutputConflictError as e:
            # The other nights are still to be cleaned.
            console.show(f"kept: {e}")
    if not seen:
        console.show(f"{template}: none of the last {nights} nights has such a folder")


def _clean_one(output: str, age_s: float | None, *, dry_run: bool) -> None:
    from job.commit import cleaning

    found = cleaning.clean(output, older_than_s=age_s, dry_run=dry_run, clock=time.time)
    done = "would be removed" if dry_run else "removed"
    for one in found:
        told = f"{one.splits:,} finished splits, {one.size_bytes:,} bytes, {one.age_s / 3600:.1f} h old"
        console.show(f"{output}: run {one.run_id[:12]}: {told}: {f'kept, {one.kept}' if one.kept else done}")
    if not found:
        console.show(f"{output}: nothing was left in staging")
