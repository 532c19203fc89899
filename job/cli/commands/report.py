"""``report``: print the run report of an output."""

from __future__ import annotations

import argparse
from collections.abc import Sequence

from job.cli.parser import configure_stores, output_parser
from job.errors import UsageError
from job.terminal import console


def parser() -> argparse.ArgumentParser:
    """Return the parser of its flags."""
    told = "Print the report of the run that was published. The same as a page: OUTPUT/_report.html"
    return output_parser("report", told, "the folder that the night was published at")


def run(args: Sequence[str]) -> int:
    """Print the report of a published night."""
    given = parser().parse_args(list(args))
    from job import storage
    from job.commit import output
    from job.report.run_report import RunReport

    configure_stores(given)
    folder = storage.absolute(given.output)
    path = storage.join(folder, output.REPORT_JSON)
    content = storage.read_bytes(path)
    if content is None and storage.read_bytes(storage.join(folder, output.SUCCESS)) is not None:
        raise UsageError(f"{path}: no such file, though {folder} is published; somebody removed it")
    if content is None:
        raise UsageError(f"{path}: no such file; nothing was published at {folder}")
    console.draw(RunReport.from_json(content.decode(errors="replace"), path).summary_table(), needed=True)
    return 0
