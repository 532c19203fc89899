"""The run report as a page of HTML, without links to other files."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape
from typing import Final

from job import escapes

_PAGE: Final = """\
<!doctype html>
<html lang="en">
<meta charset="utf-8">
<title>Scoring run {run}</title>
<style>
:root {{ color-scheme: light dark; font: 16px/1.5 system-ui, sans-serif; }}
body {{ max-width: 60rem; margin: 2rem auto; padding: 0 1rem; }}
table {{ border-collapse: collapse; width: 100%; margin-bottom: 2rem; }}
th, td {{ text-align: left; vertical-align: top; padding: .25rem 1rem .25rem 0; overflow-wrap: anywhere; }}
th {{ font-weight: 600; white-space: nowrap; }}
tr {{ border-bottom: 1px solid #8884; }}
.bar {{ width: 60%; }}
.bar i {{ display: block; height: 1rem; margin-top: .25rem; background: #47a; }}
</style>
<h1>Scoring run {run}</h1>
<table>
{rows}
</table>
<h2>Seconds of work by stage, summed over threads</h2>
<table>
{bars}
</table>
<h2>Model loads</h2>
<table>
{loads}
</table>
</html>
"""


def escaped(text: str) -> str:
    """Return a text for HTML: its markup and its control characters are shown, not obeyed."""
    return escape(escapes.visible(text))


def render(
    run_id: str,
    lines: Mapping[str, str],
    seconds: Mapping[str, float],
    loads: Sequence[tuple[str, str, float]],
) -> str:
    """Return the page, with all values escaped.

    Args:
        run_id: the id of the run.
        lines: the lines of the summary, value by label.
        seconds: seconds of work by stage, summed over threads.
        loads: for each load of the model its id, its worker, and its seconds.
    """
    rows = "\n".join(
        f"<tr><th>{escaped(label)}</th><td>{escaped(value)}</td></tr>" for label, value in lines.items()
    )
    whole_s = sum(seconds.values())
    bars = "\n".join(
        f"<tr><th>{stage}</th><td>{value:.1f} s</td>"
        f'<td class="bar"><i style="width:{100 * value / whole_s if whole_s else 0:.1f}%"></i></td></tr>'
        for stage, value in seconds.items()
    )
    loadings = "\n".join(
        f"<tr><th>{escaped(load)}</th><td>{escaped(worker)}</td><td>{load_s:.1f} s</td></tr>"
        for load, worker, load_s in loads
    )
    return _PAGE.format(run=escaped(run_id[:12]), rows=rows, bars=bars, loads=loadings)
