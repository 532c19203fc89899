"""``python -m benchmarks.run``: measure the cases, show them as a table, keep every number.

Every run is a fresh process; sides take turns; a finding is a median. Each measurement and each
finding is appended to ``results.jsonl`` as one line with the machine and the versions, so that two
lines from different days can be compared. Exit code 1 says that a limit was not kept.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Sequence
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path

from rich.console import Console
from rich.table import Table

from benchmarks.cases import CASES, Bench, Finding
from benchmarks.measure import Measured, environment

# Above this, the runs of one side differ too much for a close call to mean anything.
NOISY = 1.15
# Wide enough for the table also where the output is a file.
WIDTH = 120


def main(argv: Sequence[str] | None = None) -> int:
    """Run the cases that were asked for; 1 where a limit was not kept."""
    asked = _parser().parse_args(argv)
    machine = environment()
    asked.root.mkdir(parents=True, exist_ok=True)
    results = asked.root / "results.jsonl"
    console = Console(width=WIDTH, highlight=False)
    console.print(f"{machine['cpu']}, {machine['cores']} cores; results in {results}", style="dim")
    found: dict[str, list[Finding]] = {}
    for name in asked.case or CASES:
        common = {"case": name, "scale": asked.scale, "environment": machine}

        def record(side: str, run: int, measured: Measured, common: dict[str, object] = common) -> None:
            numbers = {key: value for key, value in asdict(measured).items() if key != "stdout"}
            _append(results, {**common, "side": side, "run": run, "load_1m": os.getloadavg()[0], **numbers})
            peak_gb = measured.peak_rss_bytes / 1e9
            console.print(
                f"{common['case']} {side} {run + 1}: {measured.wall_s:.2f} s, {peak_gb:.2f} GB", style="dim"
            )

        found[name] = CASES[name](Bench(asked.root.resolve(), asked.runs, asked.scale, record))
        for finding in found[name]:
            _append(results, {**common, "runs": asked.runs, **asdict(finding), "kept": finding.kept})
    console.print(_table(found))
    return 0 if all(finding.kept for findings in found.values() for finding in findings) else 1


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.run", description="The job against a loop.")
    parser.add_argument("--case", action="append", choices=tuple(CASES), help="repeatable; default all")
    parser.add_argument("--runs", type=_positive, default=3, help="of each side; the median counts")
    parser.add_argument("--scale", type=float, default=1.0, help="share of the shards, for a quick try")
    parser.add_argument("--root", type=Path, default=Path("data/bench"), help="where data and results lie")
    return parser


def _positive(text: str) -> int:
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"must be at least 1, got {number}")
    return number


def _append(results: Path, line: dict[str, object]) -> None:
    at = datetime.now(UTC).isoformat(timespec="seconds")
    with results.open("a") as file:
        file.write(json.dumps({"at": at, **line}) + "\n")


def _table(found: dict[str, list[Finding]]) -> Table:
    table = Table("case", "what")
    for heading in ("value", "limit", "max/min"):
        table.add_column(heading, justify="right")
    table.add_column("verdict")
    table.add_column("detail")
    for name, findings in found.items():
        for finding in findings:
            noisy = finding.spread > NOISY
            table.add_row(
                name,
                finding.what,
                f"{finding.value:.2f} {finding.unit}",
                "" if finding.limit is None else f"{finding.limit:g} {finding.unit}",
                f"{finding.spread:.2f}",
                _verdict(finding) + (" (noisy)" if noisy else ""),
                finding.detail,
                style="dim" if noisy and finding.kept else None,
            )
        table.add_section()
    return table


def _verdict(finding: Finding) -> str:
    if finding.limit is None:
        return ""
    return "[green]kept[/]" if finding.kept else "[red]not kept[/]"


if __name__ == "__main__":
    sys.exit(main())
