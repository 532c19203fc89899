"""``score``: score shards and publish the predictions."""

from __future__ import annotations

import argparse
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING

from job import environment, secrets
from job.cli import parser as flags
from job.report import notices
from job.terminal import console, progress

if TYPE_CHECKING:
    from job.spec import ScoringSpec


def parser() -> argparse.ArgumentParser:
    """Return the parser of its flags."""
    told = "Score Parquet shards with a Keras model and write the predictions as Parquet."
    return flags.build("score", told)


def run(args: Sequence[str]) -> int:
    """Score one night, or print its flags as a configuration."""
    from job.cli import options

    with options.parsed(args, parser()) as asked:
        if asked.command.print_config:
            return print_config(asked.printed(asked.night))
        return _score(asked.night, asked.beam_args)


def print_config(text: str) -> int:
    """Print the text of a configuration, without what is secret; return the exit code."""
    # The lines are the file's own: a line break inside a value is escaped there.
    console.show(*secrets.scrub(text).removesuffix("\n").split("\n"), needed=True)
    return 0


def _score(spec: ScoringSpec, beam_args: Sequence[str]) -> int:
    # Imported now, so that a wrong flag is told at once.
    from job.launch import score

    with notices.night(spec.output, spec.ds or None, time.time) as night:
        outcome = score.score(spec, beam_args, announce=progress.say)
        night.ends(outcome.published, outcome.job, already_published=outcome.already_published)
    if outcome.job is not None:
        told = (
            f"the night is at {spec.output} when it is there: `{environment.program()} report {spec.output}`"
        )
        console.show(f"submitted: run {outcome.job.run[:12]} as {outcome.job}; {told}")
        return 0
    report = outcome.report
    if outcome.kept:
        told = "input, model or options differ from its; --if_exists=replace would score it anew"
        console.show(f"kept: run {report.run_id[:12]} is published at {report.output}; {told}")
    elif outcome.already_published:
        console.show(f"already published: run {report.run_id[:12]} at {report.output}: nothing to do")
    else:
        console.draw(report.summary_table())
    return 0
