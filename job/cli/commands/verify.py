"""``verify``: check a published night."""

from __future__ import annotations

import argparse
from collections.abc import Sequence

from job import forms
from job.cli.parser import add_flag, configure_stores, output_parser
from job.errors import DataError
from job.terminal import console


def parser() -> argparse.ArgumentParser:
    """Return the parser of its flags."""
    told = "Check a published night: files, checksums, counts; score a sample of its rows again."
    parser = output_parser("verify", told, "the folder that the night was published at")
    add_flag(parser, "sample_rows", "ROWS|all", "1000", "rows to score again; 0 looks at the output alone")
    add_flag(parser, "seed", "N", None, "of the sample, to draw the same one again")
    add_flag(parser, "rtol", "X", "1e-5", "predictions may differ by this share of themselves")
    told = "and by this much, times their median magnitude if that is above 1"
    add_flag(parser, "atol", "X", "1e-6", told)
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    return parser


def run(args: Sequence[str]) -> int:
    """Check a published night; raises ``DataError`` where it is not right."""
    given = parser().parse_args(list(args))
    from job import storage
    from job.binding.predictions import Tolerance
    from job.compare import verify

    whole, number = forms.Whole(), forms.Number()
    sample = verify.ALL if given.sample_rows == "all" else whole.parse("sample_rows", given.sample_rows)
    seed = None if given.seed is None else whole.parse("seed", given.seed)
    tolerance = Tolerance(number.parse("rtol", given.rtol), number.parse("atol", given.atol))
    configure_stores(given)
    folder = storage.absolute(given.output)
    found = verify.verify(folder, sample_rows=sample, seed=seed, tolerance=tolerance)
    told = found.to_json().rstrip().split("\n") if given.json else verify.lines(found)
    console.show(*told, needed=True)
    if not found.is_right:
        told = (
            f"{len(found.findings):,} findings, {found.rows_different:,} of {found.rows_again:,} rows differ"
        )
        raise DataError(f"{folder}: it is not the night that its manifest tells of: {told}")
    return 0
