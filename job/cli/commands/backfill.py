"""``backfill``: score many nights, each from its own input."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from typing import TYPE_CHECKING

from job.cli import parser as flags
from job.cli.commands import score
from job.terminal import console, progress

if TYPE_CHECKING:
    from job.launch.backfill import Ending


def parser() -> argparse.ArgumentParser:
    """Return the parser of its flags: those of ``score``, and which nights."""
    return flags.build("backfill")


def run(args: Sequence[str]) -> int:
    """Score each night from ``--start`` to ``--end`` that is not published yet, and print a table of them."""
    from job.cli import options

    with options.parsed(args, "backfill") as asked:
        nights = options.nights(asked)
        from job.launch import backfill
        from job.shards import dates

        days = list(dates.days(nights.start, nights.end))
        backfill.check(asked.template, days)
        if asked.command.print_config:
            return score.print_config(nights.printed() + asked.printed(asked.template))
        at_once = nights.at_once or backfill.AUTO_NIGHTS
        ended: list[Ending] = []
        try:
            for one in backfill.score(
                asked.template, asked.beam_args, days, nights_at_once=at_once, announce=progress.say
            ):
                ended.append(one.noted())
        finally:
            # Where the rest was stopped, the nights that ended are shown too.
            if ended:
                console.draw(backfill.table(ended))
    return backfill.exit_code(ended)
