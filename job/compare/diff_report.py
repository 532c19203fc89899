"""What ``diff`` found, as people read it: a table, and a page of HTML that needs nothing from elsewhere."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any, Final

from job.compare.diff import Difference
from job.report.page import escaped
from job.terminal import console

if TYPE_CHECKING:
    from rich.console import RenderableType

_PAGE: Final = """\
<!doctype html>
<html lang="en">
<meta charset="utf-8">
<title>Difference of {title}</title>
<style>
:root {{ color-scheme: light dark; font: 16px/1.5 system-ui, sans-serif; }}
body {{ max-width: 60rem; margin: 2rem auto; padding: 0 1rem; }}
table {{ border-collapse: collapse; width: 100%; margin-bottom: 2rem; }}
th, td {{ text-align: left; vertical-align: top; padding: .25rem 1rem .25rem 0; overflow-wrap: anywhere; }}
th {{ font-weight: 600; white-space: nowrap; }}
tr {{ border-bottom: 1px solid #8884; }}
td.bar {{ width: 60%; }}
.bar i {{ display: block; height: 1rem; margin-top: .25rem; background: #47a; }}
</style>
<h1>Difference of {title}</h1>
{body}
</html>
"""


def summary(found: Difference) -> Mapping[str, str]:
    """Return label and value of every line about all rows."""
    fields = found.fields()
    names = ("A", "B") if len(found.nights) > 1 else ("output",)
    lines = {}
    for name, night in zip(names, fields["nights"], strict=True):
        ds = f", {night['ds']}" if night["ds"] else ""
        rejected = f", {night['rejected']:,} rejected" if night["rejected"] else ""
        lines[name] = f"{night['output']} (run {night['run_id'][:12]}{ds}; {night['rows']:,} rows{rejected})"
    if len(found.nights) > 1:
        lines["matched by"] = ", ".join(found.matched_by)
        lines["rows"] = f"{found.rows:,} in both, {found.only_a:,} only in A, {found.only_b:,} only in B"
    else:
        lines["rows"] = f"{found.rows:,}"
    by = f" by more than {found.asked.tolerance:g}" if found.asked.tolerance else ""
    lines["moved"] = f"{found.moved:,} rows ({_share(found.moved, found.rows)}){by}"
    return lines


def lines(column: Mapping[str, Any], threshold: float | None) -> Iterator[tuple[str, str]]:
    """Yield label and value of every line about one column."""
    rows = column["rows"]
    moved = f", {column['moved']:,} moved" if column["moved"] != rows - column["equal"] else ""
    yield "equal", f"{column['equal']:,} of {rows:,} ({_share(column['equal'], rows)}){moved}"
    if column["kind"] == "text":
        return
    if column["not_finite"]:
        yield "not finite", f"{column['not_finite']:,} on one side alone"
    if column["mean_abs"] is None:
        return
    sizes = [f"{name} {column[f'{name}_abs']:.4g}" for name in ("mean", "median", "p95", "p99", "max")]
    yield "absolute", ", ".join(sizes)
    yield "signed", f"mean {column['mean']:+.4g}, from {column['mean_a']:.6g} to {column['mean_b']:.6g}"
    correlation = "none" if column["correlation"] is None else f"{column['correlation']:.6f}"
    yield "alike", f"correlation {correlation}, PSI {column['psi']:.4f}"
    if threshold is not None:
        up, down = column["flips_up"], column["flips_down"]
        flips = f"{up + down:,} ({_share(up + down, rows)}): {up:,} up, {down:,} down"
        yield f"flips at {threshold:g}", flips


def tables(found: Difference) -> Iterator[RenderableType]:
    """Yield what a terminal shows: all rows, then each column and what changed most in it."""
    from rich.table import Table

    yield console.grid(summary(found))
    for column in found.columns:
        yield ""
        yield console.cell(column["column"], "bold underline")
        yield console.grid(dict(lines(column, found.asked.threshold)))
        header, body = _changes(column)
        if body:
            made = Table(box=None, padding=(0, 2, 0, 0))
            for name in header:
                made.add_column(console.cell(name))
            for row in body:
                made.add_row(*map(console.cell, row))
            yield made


def page(found: Difference) -> str:
    """Return the page, all values escaped."""
    title = " and ".join(night.folder for night in found.nights)
    parts = [_grid(summary(found))]
    for column in found.columns:
        parts.append(f"<h2>{escaped(column['column'])}</h2>")
        parts.append(_grid(dict(lines(column, found.asked.threshold))))
        if bars := column.get("histogram"):
            parts += ["<h3>Differences, B - A</h3>", _bars(bars, column["rows"])]
        header, body = _changes(column)
        if body:
            parts.append(f"<h3>{'Biggest movers' if column['kind'] == 'number' else 'Changes'}</h3>")
            parts.append(_rows(header, body))
    return _PAGE.format(title=escaped(title), body="\n".join(parts))


def _changes(column: Mapping[str, Any]) -> tuple[list[str], list[list[str]]]:
    """Return the rows that moved most, or the commonest changes of a text, as cells below a header."""
    if column["kind"] == "text":
        body = [[_cell(one["a"]), _cell(one["b"]), f"{one['rows']:,}"] for one in column["changes"]]
        return ["A", "B", "rows"], body
    movers = column["movers"]
    header = [*(movers[0]["keys"] if movers else ()), "A", "B", "B - A"]
    body = [
        [
            *(_cell(value) for value in one["keys"].values()),
            *(_number(one[name]) for name in ("a", "b")),
            "" if one["difference"] is None else f"{one['difference']:+.6g}",
        ]
        for one in movers
    ]
    return header, body


def _bars(bars: list[dict[str, Any]], rows: int) -> str:
    most = max(bar["rows"] for bar in bars)
    cells = []
    for bar in bars:
        name = "0" if bar["from"] == bar["to"] else f"{bar['from']:+g} … {bar['to']:+g}"
        width = 100 * bar["rows"] / most if most else 0
        share = _share(bar["rows"], rows)
        cells.append(
            f"<tr><th>{name}</th><td>{bar['rows']:,}</td><td>{share}</td>"
            f'<td class="bar"><i style="width:{width:.1f}%"></i></td></tr>'
        )
    return "<table>\n" + "\n".join(cells) + "\n</table>"


def _grid(told: Mapping[str, str]) -> str:
    rows = (f"<tr><th>{escaped(label)}</th><td>{escaped(value)}</td></tr>" for label, value in told.items())
    return "<table>\n" + "\n".join(rows) + "\n</table>"


def _rows(header: list[str], body: list[list[str]]) -> str:
    head = "".join(f"<th>{escaped(name)}</th>" for name in header)
    rows = ("<tr>" + "".join(f"<td>{escaped(cell)}</td>" for cell in row) + "</tr>" for row in body)
    return f"<table>\n<tr>{head}</tr>\n" + "\n".join(rows) + "\n</table>"


def _share(part: int, whole: int) -> str:
    return f"{100 * part / whole:.2f}%" if whole else "0%"


def _cell(value: object) -> str:
    return "" if value is None else value.hex() if isinstance(value, bytes) else str(value)


def _number(value: float | None) -> str:
    return "none" if value is None else f"{value:.6g}"
