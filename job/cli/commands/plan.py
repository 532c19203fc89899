"""``plan``: look at a night, score a sample of it, write nothing."""

from __future__ import annotations

import argparse
from collections.abc import Sequence

from job.cli import parser as flags
from job.cli.commands import score
from job.terminal import console, progress


def parser() -> argparse.ArgumentParser:
    """Return the parser of its flags, which are those of ``score``."""
    told = "Look, with the flags of score, at shards, model and output; score a sample; write nothing."
    return flags.build("plan", told)


def run(args: Sequence[str]) -> int:
    """Print what ``score`` would do with the same flags, and how long it would take."""
    from job.cli import options

    with options.parsed(args, parser()) as asked:
        if asked.command.print_config:
            return score.print_config(asked.printed(asked.night))
        from job.launch import forecast

        found = forecast.look(asked.night, announce=progress.say)
    if asked.command.json:
        console.show(found.to_json().rstrip(), needed=True)
    else:
        console.draw(found.table(), needed=True)
    return 0
