"""``python -m benchmarks.threads N score …``: the job with N threads of TensorFlow's in every process.

Whatever the number of processes: to see what the wrong number costs. 0 leaves it to TensorFlow.
"""

from __future__ import annotations

import sys
from unittest import mock


def main() -> int:
    """Run the command line and return its exit code."""
    from job.cli import main as cli_main
    from job.engines.embedded import Embedded

    with mock.patch.object(Embedded, "threads", return_value=int(sys.argv[1])):
        return cli_main.main(sys.argv[2:])


if __name__ == "__main__":
    sys.exit(main())
