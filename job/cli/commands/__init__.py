"""The commands of ``scoring-job``, one module each, under the command's name.

To add a command, write a module here with two functions, and a line in ``COMMANDS``:

``parser()`` returns the ``argparse`` parser of its flags, which is also its help.
``run(args)`` does it: takes the arguments after its name, returns the exit code, raises ``JobError``.

A module is imported when its command is called. What is slow to import, Beam above all, is imported inside
``run``, so that help and wrong flags wait for nothing.

May import: everything.
"""

from __future__ import annotations

import argparse
import importlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final, Protocol, cast


class _Module(Protocol):
    def parser(self) -> argparse.ArgumentParser: ...

    def run(self, args: Sequence[str]) -> int: ...


@dataclass(frozen=True)
class Command:
    """A command: its name, and one line about it for the overview.

    A command that ``scores`` nights takes ``--json`` and ``--notify_url``, which tell how it ended.
    """

    name: str
    summary: str
    scores: bool = False

    def parser(self) -> argparse.ArgumentParser:
        """Return the parser of its flags."""
        return self._module().parser()

    def run(self, args: Sequence[str]) -> int:
        """Run it with the arguments after its name; return its exit code.

        Raises:
            JobError: it failed, or an argument is wrong.
        """
        return self._module().run(args)

    def _module(self) -> _Module:
        return cast(_Module, importlib.import_module(f"{__name__}.{self.name}"))


COMMANDS: Final[Mapping[str, Command]] = {
    command.name: command
    for command in (
        Command("score", "score shards and publish the predictions", scores=True),
        Command("backfill", "score many nights, each from its own input", scores=True),
        Command("plan", "look at a night and score a sample of it; write nothing"),
        Command("doctor", "look at engine and paths before a night"),
        Command("report", "print the run report of an output"),
        Command("verify", "check a published night"),
        Command("diff", "compare two published nights row by row"),
        Command("publish", "publish a night that a gate has refused"),
        Command("golden", "make a file of rows for --golden"),
        Command("clean", "remove what abandoned runs left"),
        Command("completion", "print what lets a shell complete all of these"),
    )
}
