"""Results on standard output."""

from __future__ import annotations

import os
import sys
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.table import Table


def show(what: str | Table) -> None:
    """Write a result to standard output; a reader that has left does not turn success into failure."""
    try:
        if isinstance(what, str):
            sys.stdout.write(what)
        else:
            from rich.console import Console

            Console(highlight=False).print(what)
        sys.stdout.flush()
    except BrokenPipeError:
        # Python flushes once more at exit; let that go nowhere.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
