"""What the commands about a published output have in common: ``OUTPUT``, stores, ``--debug``."""

from __future__ import annotations

import argparse

from job import environment
from job.cli.parser import Parser
from job.errors import UsageError


def parser(command: str, description: str, output: str) -> argparse.ArgumentParser:
    """Return the parser of a command about one output, with the arguments that all of these take.

    ``output`` is the help of the argument ``OUTPUT``.
    """
    made = Parser(prog=f"{environment.program()} {command}", description=description, allow_abbrev=False)
    made.add_argument("output", metavar="OUTPUT", help=output)
    flag(made, "requester_pays", "PROJECT", None, "pay for requests to buckets that ask for it")
    made.add_argument("--debug", action="store_true", help="show tracebacks")
    return made


def flag(parser: argparse.ArgumentParser, name: str, form: str, default: str | None, text: str) -> None:
    """Add a flag with a value, whose help is ``text`` and the default, and shows the value as ``form``."""
    shown = f"{text} (default: {default})" if default else text
    parser.add_argument(f"--{name}", metavar=form, default=default, help=shown)


def configure_stores(given: argparse.Namespace) -> None:
    """Set how object stores are asked, before the first file is read.

    Raises:
        UsageError: a flag is given without a value.
    """
    from job.spec import StoreOptions
    from job.storage import objects

    values = {name: getattr(given, name, None) for name in ("requester_pays", "kms_key")}
    for name, value in values.items():
        if value == "":
            raise UsageError(f"--{name}= is empty; give a value, or leave the flag out")
    objects.configure(StoreOptions(**{name: value for name, value in values.items() if value}))
