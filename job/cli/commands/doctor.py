"""``doctor``: look at engine, workers and paths before a night."""

from __future__ import annotations

import argparse
from collections.abc import Sequence

from job.cli import parser as flags
from job.cli.commands import score
from job.errors import EngineError
from job.terminal import console


def parser() -> argparse.ArgumentParser:
    """Return the parser of its flags, which are those of ``score``."""
    told = "Look, with the flags of score, at its engine and paths; 0 if all is well, else 7."
    return flags.build("doctor", told)


def run(args: Sequence[str]) -> int:
    """Print each check as it ends; return 0 if all are well, else 7."""
    from job.cli import options

    well = True
    with options.parsed(args, parser()) as asked:
        if asked.command.print_config:
            return score.print_config(asked.printed(asked.night))
        from job.doctor import doctor

        for check in doctor.examine(asked.night, asked.beam_args):
            well = well and doctor.is_well(check)
            console.show(*doctor.lines(check), needed=True)
    doctor.exit_if_overdue(code := 0 if well else EngineError.exit_code)
    return code
