"""For other programs: a spec made of keyword arguments, and a night scored by it. See docs/library.md.

The arguments are the flags of the command line, by the same names: they go through the same parser, so their
values are checked in the same way, and an error is the same line.
"""

from __future__ import annotations

import csv
import io
import logging
import os
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Final

from job import errors, secrets
from job.cli import options
from job.cli.parser import CommandOptions, flags_of
from job.errors import JobError, UsageError
from job.flags import declared
from job.forms import Inputs
from job.spec import ScoringSpec

if TYPE_CHECKING:
    from job.launch.preparation import Outcome

# Flags that tell the command line what to print, and to whom. A program does that with what is returned.
_OF_THE_COMMAND: Final = {"debug", *(flag.name for flag in declared(CommandOptions))} - {"config"}
_FORMS: Final = {name: flag.form for flag in flags_of() for name in flag.names}
_OPPOSITES: Final = {
    name: other
    for flag in flags_of()
    for name, other in zip(flag.names, reversed(flag.names), strict=True)
    if name != other
}


def make_spec(**flags: Any) -> ScoringSpec:
    """Return what is to be scored, for :func:`score`.

    Args:
        flags: the flags of ``python -m job score``. A list stands for a flag with commas (``keys=["id"]``) or
            one that is repeated (``input=[…]``), a mapping for pairs (``cast={"hour": "int64"}``), ``True``
            and ``False`` for a switch (``trust_model=True``). Numbers, dates, paths and texts are taken as
            they are. ``None`` is a flag that is left out. ``config`` names a TOML file of more of them.

    Raises:
        UsageError: a flag is unknown, missing, malformed, at odds with another, or of the command line alone.
    """
    return dated(template(**flags))


def template(**flags: Any) -> ScoringSpec:
    """Return the same with the placeholders, such as ``{ds}``, still in its paths."""
    args = [arg for name, value in flags.items() for arg in _args(name, value)]
    with options.parsed(args) as asked:
        for name in sorted(_OF_THE_COMMAND):
            if getattr(asked.given, name):
                raise UsageError(f"--{name}: a flag of the command line alone; leave it out here")
        if asked.beam_args:
            raise UsageError(
                f"{asked.beam_args[0]}: a flag of the engine; give it as score(spec, beam_args=[…]), or to "
                f"your own pipeline"
            )
        return asked.template


def dated(spec: ScoringSpec) -> ScoringSpec:
    """Return a template with the dates of its night in its paths: of ``ds``, or of yesterday."""
    from job.shards import dates

    return dates.of_night(spec)


def _args(name: str, value: Any) -> Iterator[str]:
    if value is None:
        return
    if isinstance(value, bool):
        if value or name in _OPPOSITES:
            yield f"--{name if value else _OPPOSITES[name]}"
        elif name not in _OF_THE_COMMAND:
            # Not merely left out: a file that ``config`` names may say the opposite.
            yield f"--{name}=false"
    elif isinstance(_FORMS.get(name), Inputs) and not isinstance(value, (str, os.PathLike)):
        yield from (f"--{name}={os.fspath(one)}" for one in value)
    elif isinstance(value, Mapping):
        yield from _listed(name, [f"{key}={one}" for key, one in value.items()])
    elif isinstance(value, Iterable) and not isinstance(value, (str, bytes, os.PathLike)):
        yield from _listed(name, [str(one) for one in value])
    else:
        yield f"--{name}={os.fspath(value) if isinstance(value, os.PathLike) else value}"


def _listed(name: str, items: Sequence[str]) -> Iterator[str]:
    """Yield a flag that lists items; none of them is a flag that is left out."""
    text = io.StringIO()
    # In quotes only where one needs them, for an error shows what was given.
    quoted = any(item != item.strip() for item in items)
    csv.writer(text, lineterminator="", quoting=csv.QUOTE_ALL if quoted else csv.QUOTE_MINIMAL).writerow(
        items
    )
    if items:
        yield f"--{name}={text.getvalue()}"


def log(line: str) -> None:
    """Write a line to the log of this package, as it may be shown."""
    logging.getLogger("job").info("%s", secrets.scrub(line))


def score(
    spec: ScoringSpec, *, beam_args: Sequence[str] = (), announce: Callable[[str], None] = log
) -> Outcome:
    """Score a night on this machine, or on the engine that ``beam_args`` names, and publish it.

    The same spec again does nothing, and after a failure it goes on where that one ended. How far it is,
    is shown on standard error.

    Args:
        spec: see :func:`make_spec`.
        beam_args: Beam's flags, as in ``["--runner=FlinkRunner"]``.
        announce: told, in one line each, what a person may want to know while waiting; the log, if left out.

    Returns:
        Its ``report`` tells what was scored; ``already_published`` says that it was before.

    Raises:
        JobError: the kind and the line that the command line would end with; see :mod:`job.errors`.
    """
    from job.launch import score as launch

    secrets.learn(beam_args)
    return launch.score(spec, beam_args, announce=announce, started_unix_s=time.time())


def find_error(error: BaseException) -> JobError | None:
    """Return the job's own error in what a pipeline of yours has raised, ``None`` where there is none.

    Most engines wrap what a worker raises into an error of their own that holds a traceback as text. This
    finds the line of it that matters.
    """
    seen: BaseException | None = error
    while seen is not None:
        found = seen if isinstance(seen, JobError) else errors.in_text(str(seen))
        if found is not None:
            return found
        seen = seen.__cause__ or seen.__context__
    return None
