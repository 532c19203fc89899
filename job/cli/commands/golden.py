"""``golden``: make a file of rows with known predictions, for ``--golden``."""

from __future__ import annotations

import argparse
from collections.abc import Sequence

from job import forms
from job.cli.parser import add_flag, configure_stores, output_parser
from job.errors import UsageError
from job.terminal import console


def parser() -> argparse.ArgumentParser:
    """Return the parser of its flags."""
    told = "Write rows of a published night, with their predictions, for --golden. Verify the night before."
    parser = output_parser("golden", told, "the folder that the night was published at")
    add_flag(parser, "rows", "ROWS", "100", "how many, drawn at random")
    add_flag(parser, "seed", "N", None, "of the sample, to draw the same one again")
    add_flag(parser, "to", "FILE", None, "the file to write, which must not be there")
    add_flag(parser, "kms_key", "KEY", None, "encrypt what is written to a bucket with this key")
    return parser


def run(args: Sequence[str]) -> int:
    """Write a file of golden rows."""
    given = parser().parse_args(list(args))
    if not given.to:
        raise UsageError("--to must be given: the file to write, as in golden.parquet")
    from job import storage
    from job.compare import golden_rows
    from job.scoring.golden import MOST_ROWS

    rows = forms.Count(most=MOST_ROWS).parse("rows", given.rows)
    seed = None if given.seed is None else forms.Whole().parse("seed", given.seed)
    configure_stores(given)
    path = storage.absolute(given.to)
    written = golden_rows.pick(storage.absolute(given.output), path, rows=rows, seed=seed)
    console.show(f"{written:,} rows in {path}")
    return 0
