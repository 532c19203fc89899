"""Draws the packages of ``job`` and their imports into ``docs/architecture.md``, as a Mermaid diagram.

``python -m docs.architecture`` writes the picture, ``--check`` only says whether it is true. An
arrow says that a package imports another; arrows that follow from others are left out.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping
from pathlib import Path

import grimp

PAGE = Path(__file__).with_name("architecture.md")
BEGIN, END = "<!-- drawn by docs/architecture.py -->", "<!-- end of the drawing -->"
# Imported nearly everywhere: their arrows would hide the others.
EVERYWHERE = frozenset({"errors", "escapes", "spec", "flags", "forms", "secrets", "environment"})


def imports() -> dict[str, set[str]]:
    """Return which packages (or top modules) of ``job`` each of them imports."""
    graph = grimp.build_graph("job", exclude_type_checking_imports=True)
    found: dict[str, set[str]] = {}
    for module in graph.modules:
        one = _package(module)
        found.setdefault(one, set())
        for other in graph.find_modules_directly_imported_by(module):
            if _package(other) not in {one, ""}:
                found[one].add(_package(other))
    return {one: others - EVERYWHERE for one, others in found.items() if one not in {"", *EVERYWHERE}}


def _package(module: str) -> str:
    return module.split(".")[1] if "." in module else ""


def reduced(graph: Mapping[str, set[str]]) -> dict[str, set[str]]:
    """Return a graph without circles without the arrows that follow from the others."""

    def reachable(one: str) -> set[str]:
        return {one}.union(*(reachable(other) for other in graph[one]))

    return {
        one: {other for other in others if not any(other in reachable(via) for via in others - {other})}
        for one, others in graph.items()
    }


def picture() -> str:
    """Return the diagram as Markdown."""
    graph = reduced(imports())
    arrows = [f"    {one} --> {other}" for one in sorted(graph) for other in sorted(graph[one])]
    return "\n".join([BEGIN, "```mermaid", "flowchart TD", *arrows, "```", END])


def main() -> int:
    """Write the picture, or compare it with the one that is there; returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--check", action="store_true", help="write nothing; exit 1 where the picture is old")
    check = parser.parse_args().check
    text = PAGE.read_text(encoding="utf-8")
    before, _, rest = text.partition(BEGIN)
    drawn = before + picture() + rest.partition(END)[2]
    if check and drawn != text:
        print(f"{PAGE.name}: the picture is not what the imports are: run python -m docs.architecture")
        return 1
    if not check:
        PAGE.write_text(drawn, encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
