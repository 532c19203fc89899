"""The entry point of the Flex Template: what a launch gives as ``--name=value`` becomes flags of ``score``.

A template's parameters all have values; switches have none, so ``--trust_model=true`` becomes
``--trust_model``, and ``--trust_model=false`` nothing. A parameter that is left empty is left out.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator

from job.cli import parser
from job.cli.main import main


def flags(given: Iterable[str]) -> Iterator[str]:
    """Yield the flags of ``score`` for a launch's parameters."""
    actions = parser.build()._option_string_actions
    for one in given:
        name, with_value, value = one.partition("=")
        if name in actions and actions[name].nargs == 0 and value in ("true", "false"):
            if value == "true":
                yield name
        elif value or not with_value or name not in actions:
            yield one


if __name__ == "__main__":
    sys.exit(main(["score", *flags(sys.argv[1:])]))
