"""The real Airflow, in an environment of its own: ``build/airflow``, of ``deploy/airflow/requirements.lock``.

``python -m tests.support.servers.airflow`` makes it ahead of the tests.
"""

from __future__ import annotations

from pathlib import Path

from tests.support.servers import virtualenv
from tests.support.servers.stores import ROOT

LOCK = ROOT / "deploy" / "airflow" / "requirements.lock"
HOME = ROOT / "build" / "airflow"
PYTHON = HOME / "bin" / "python"


def built() -> Path:
    """Its Python, with the locked versions; made again where the lock has changed."""
    return virtualenv.built(HOME, LOCK)


if __name__ == "__main__":
    print(built())
