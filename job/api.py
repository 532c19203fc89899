"""For other programs: a spec made of keyword arguments, and a night scored by it. See docs/library.md.

The arguments are the flags of the command line, by the same names: they go through the same parser, so their
values are checked in the same way, and an error is the same line.
"""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from job import errors, secrets
from job.cli import options
from job.cli.parser import CommandOptions, flags_of
from job.errors import JobError, UsageError
from job.flags import declared
from job.forms import Switch, WrongTypeError
from job.spec import ScoringSpec

if TYPE_CHECKING:
    from job.launch.preparation import Outcome


def make_spec(**flags: Any) -> ScoringSpec:
    """Return what is to be scored, for :func:`score`.

    Args:
        flags: the flags of ``scoring-job score``, with values as in its TOML file: a list for a flag with
            commas (``keys=["id"]``) or one that is repeated (``input=[…]``), a dict for pairs
            (``cast={"hour": "int64"}``), ``True`` and ``False`` for a switch (``trust_model=True``), else a
            text or a number. Paths may be ``os.PathLike``. ``None`` is a flag that is left out. ``config``
            names a TOML file of more of them.

    Raises:
        UsageError: a flag is unknown, missing, malformed, at odds with another, or of the command line alone.
    """
    return dated(template(**flags))


def template(**flags: Any) -> ScoringSpec:
    """Return the same with the placeholders, such as ``{ds}``, still in its paths."""
    args = [arg for name, value in flags.items() for arg in _args(name, value)]
    with options.parsed(args) as asked:
        # A program prints and tells what it likes of what is returned.
        for name in ("debug", *(flag.name for flag in declared(CommandOptions) if flag.name != "config")):
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


def _args(name: str, value: Any) -> list[str]:
    """Return a keyword argument as a command line has it.

    Raises:
        UsageError: the value is of a type that the flag cannot have.
    """
    flag = next((one for one in flags_of() if name in one.names), None)
    if value is None:
        return []
    if flag is None:
        # The parser says so, and names the nearest one.
        return [f"--{name}={value}"]
    try:
        texts = flag.form.texts(_plain(value))
    except WrongTypeError as e:
        told = f"must be {e.wanted}" if e.wanted else f"is no value that --{name} could have"
        raise UsageError(f"--{name}: {e.value!r} {told}") from e
    if not isinstance(flag.form, Switch):
        return [f"--{name}={text}" for text in texts]
    if texts:
        return [f"--{name}"]
    # Not merely left out: a file that ``config`` names may say the opposite.
    opposites = [f"--{one}" for one in flag.names if one != name]
    return opposites or ([f"--{name}=false"] if flag.in_file else [])


def _plain(value: Any) -> Any:
    """Return a value as a TOML file has it: texts for paths, lists, dicts."""
    if isinstance(value, os.PathLike):
        return os.fspath(value)
    if isinstance(value, Mapping):
        return dict(value)
    if isinstance(value, Iterable) and not isinstance(value, (str, bytes)):
        return [_plain(one) for one in value]
    return value


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
