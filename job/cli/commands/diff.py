"""``diff``: compare two published nights row by row, or two prediction columns of one."""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence

from job import errors, forms
from job.cli.parser import add_flag, configure_stores, output_parser
from job.errors import DataError
from job.terminal import console


def parser() -> argparse.ArgumentParser:
    """Return the parser of its flags."""
    told = "Compare two published nights row by row, or two prediction columns of one."
    parser = output_parser("diff", told, "the folder that night A was published at")
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
    add_flag(parser, "threshold", "X", None, "count the rows that change sides of this value")
    add_flag(parser, "tolerance", "X", "0", "a row has moved if it differs by more than this")
    add_flag(parser, "top", "N", "20", "how many of the biggest movers to show")
    add_flag(parser, "page", "FILE", None, "write it as a page of HTML too")
    parser.add_argument("--json", action="store_true", help="print one JSON object, on one line")
    return parser


def run(args: Sequence[str]) -> int:
    """Compare two nights, or two columns of one; raises ``DataError`` if more rows moved than is allowed."""
    given = parser().parse_args(list(args))
    from job import storage
    from job.compare import diff, diff_report

    names = forms.Names()
    columns = forms.once("columns", given.columns) if given.columns else ""
    asked = diff.Asked(
        keys=names.value("keys", given.keys) if given.keys else (),
        columns=tuple(names.items("columns", columns)) if columns else (),
        threshold=None if given.threshold is None else forms.Signed().parse("threshold", given.threshold),
        tolerance=forms.Number().parse("tolerance", given.tolerance),
        top=forms.Whole().parse("top", given.top),
    )
    most = forms.Share().value("max_change", given.max_change) if given.max_change else None
    configure_stores(given)
    folders = [storage.absolute(one) for one in (given.output, given.other) if one is not None]
    found = diff.diff(folders, asked)
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
