"""``backfill``: score many nights, each from its own input."""

from __future__ import annotations

import argparse
import datetime
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Annotated

from job import forms
from job.cli import parser as flags
from job.cli.commands import score
from job.errors import UsageError
from job.flags import Flag, Group, values
from job.terminal import console, progress

if TYPE_CHECKING:
    from job.cli.options import Asked
    from job.launch.backfill import Ending


@dataclass(frozen=True)
class BackfillOptions:
    """The flags that only ``backfill`` has; empty if they are not given."""

    start: Annotated[
        str,
        Flag(Group.NIGHT, "the first night of a backfill", forms.Day(), in_file=False, in_template=False),
    ] = ""
    end: Annotated[
        str,
        Flag(Group.NIGHT, "the last one (default: yesterday)", forms.Day(), in_file=False, in_template=False),
    ] = ""
    parallel: Annotated[
        int | None,
        Flag(
            Group.NIGHT,
            "nights that go through the engine together",
            forms.Count.or_auto("nights"),
            in_file=False,
            in_template=False,
        ),
    ] = None


@dataclass(frozen=True)
class Nights:
    """Which nights ``backfill`` is asked for."""

    start: datetime.date
    end: datetime.date
    at_once: int | None

    def printed(self) -> str:
        """Return them as a comment, for a configuration's file has none of them."""
        at_once = self.at_once or "auto"
        return f"# on the command line: --start={self.start} --end={self.end} --parallel={at_once}\n"


def parser() -> argparse.ArgumentParser:
    """Return the parser of its flags: those of ``score``, and which nights."""
    told = "Score each night from --start to --end by the flags of score; skip those that are there."
    return flags.build("backfill", told, BackfillOptions)


def run(args: Sequence[str]) -> int:
    """Score each night from ``--start`` to ``--end`` that is not published yet, and print a table of them."""
    from job.cli import options

    with options.parsed(args, parser()) as asked:
        wanted = nights(asked)
        from job.launch import backfill
        from job.shards import dates

        days = list(dates.days(wanted.start, wanted.end))
        template = asked.template
        if not asked.given.if_exists:
            # A published night was right when it was scored, though the newest model may be another by now.
            template = replace(template, if_exists="keep")
        backfill.check(template, days)
        if asked.command.print_config:
            return score.print_config(wanted.printed() + asked.printed(template))
        at_once = wanted.at_once or backfill.AUTO_NIGHTS
        ended: list[Ending] = []
        try:
            for one in backfill.score(
                template, asked.beam_args, days, nights_at_once=at_once, announce=progress.say
            ):
                ended.append(one.noted())
        finally:
            # Where the rest was stopped, the nights that ended are shown too.
            if ended:
                console.draw(backfill.table(ended))
    return backfill.exit_code(ended)


def nights(asked: Asked) -> Nights:
    """Return the nights of a backfill.

    Raises:
        UsageError: one of its flags is missing or malformed.
    """
    from job.shards import dates

    given = BackfillOptions(**values(BackfillOptions, vars(asked.given)))
    if not given.start:
        raise UsageError(f"--start must be given; see {flags.help_of('backfill')}")
    first = forms.day("start", given.start)
    last = forms.day("end", given.end) if given.end else dates.yesterday(asked.template.timezone)
    if last < first:
        raise UsageError(f"--end={last}: it lies before --start={first}; exchange them")
    return Nights(first, last, given.parallel)
