"""The job's command line, which dies once, by SIGKILL, when its second split is done.

Only in the night ``KILLED_NIGHT``, and only while the file ``KILLED_MARK`` is missing.
"""

from __future__ import annotations

import itertools
import os
import signal
import sys
from pathlib import Path
from typing import Any


def arm(mark: Path) -> None:
    receipts = itertools.count()

    def hook(event: str, args: tuple[Any, ...]) -> None:
        if event == "os.rename" and "/receipts/" in str(args[1]) and next(receipts) == 2:
            mark.touch()
            os.kill(os.getpid(), signal.SIGKILL)

    sys.addaudithook(hook)


if __name__ == "__main__":
    mark = Path(os.environ["KILLED_MARK"])
    if sys.argv[1] == "score" and os.environ["KILLED_NIGHT"] in " ".join(sys.argv) and not mark.exists():
        arm(mark)
    from job.cli.main import main

    sys.exit(main())
