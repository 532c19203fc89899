"""``python -m benchmarks.unsafe score …``: the job without what makes it safe, to see what that costs.

No digest of what is written, no flush to the disk, no receipts read or written, no recount of footers. Never
to be used for a night: after a crash it leaves what nobody can tell from a good one.
"""

from __future__ import annotations

import hashlib
import sys
from collections.abc import Iterable
from typing import Any
from unittest import mock


class NoDigest:
    """Takes bytes and forgets them."""

    def update(self, _: bytes | memoryview) -> None:
        """Do nothing."""

    def hexdigest(self) -> str:
        """Return what no file has."""
        return "0" * 64


def main() -> int:
    """Run the command line and return its exit code."""
    from job import storage
    from job.cli import main as cli_main
    from job.commit import reconciliation, staging
    from job.storage import sinks

    def nothing(*_: Any, **__: Any) -> None:
        """Do nothing."""

    def flush_nothing(paths: Iterable[str]) -> None:
        """Let the paths be named, and flush none."""
        list(paths)

    digests = mock.Mock(wraps=hashlib, sha256=NoDigest)
    with (
        mock.patch.object(sinks, "hashlib", digests),
        mock.patch.object(storage, "sync_files", flush_nothing),
        mock.patch.object(storage, "sync_folder", nothing),
        mock.patch.object(staging, "write_receipt", lambda _, receipt: receipt),
        mock.patch.object(staging, "read_receipt", nothing),
        mock.patch.object(reconciliation, "recount", nothing),
    ):
        return cli_main.main()


if __name__ == "__main__":
    sys.exit(main())
