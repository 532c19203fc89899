"""Exit codes only: ``python -m job`` and the console script ``scoring-job``."""

from __future__ import annotations

import sys

from job.cli import main as cli_main


def main() -> None:
    """Run the command line and leave the process with its exit code."""
    sys.exit(cli_main.main())


if __name__ == "__main__":
    main()
