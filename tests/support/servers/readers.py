"""Readers of Parquet, in an environment of their own, ``build/readers``, of ``servers/readers.lock``.

``python -m tests.support.servers.readers`` makes it ahead of the tests.
"""

from __future__ import annotations

from pathlib import Path

from tests.support.servers import virtualenv
from tests.support.servers.stores import ROOT

LOCK = ROOT / "tests" / "support" / "servers" / "readers.lock"
HOME = ROOT / "build" / "readers"


def built() -> Path:
    """Their Python, with the locked versions; made again where the lock has changed."""
    return virtualenv.built(HOME, LOCK)


if __name__ == "__main__":
    print(built())
