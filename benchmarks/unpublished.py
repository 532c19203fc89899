"""``python -m benchmarks.unpublished score …``: the job, which dies where it would publish.

What is left is a run whose splits all have receipts. Exit code 0 says that it came so far.
"""

from __future__ import annotations

import sys
from typing import Any, NoReturn
from unittest import mock


class DiedError(Exception):
    """Stands for the end of the process."""


def main() -> int:
    """Run the command line up to publishing."""
    from job.cli import main as cli_main
    from job.commit import protocol

    died: list[bool] = []

    def die(*_: Any, **__: Any) -> NoReturn:
        """Do what a crash does: nothing more."""
        died.append(True)
        raise DiedError

    with mock.patch.object(protocol, "publish", die):
        cli_main.main()
    return 0 if died else 1


if __name__ == "__main__":
    sys.exit(main())
