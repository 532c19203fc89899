"""What ``job doctor`` asks a worker. It is sent there as source, see ``job.doctor.probe``.

A worker may lack this package, or hold one that fails when it is imported, or run another Python. So nothing
of the package is imported but within ``answer``, and what fails there is part of the answer.
"""

from __future__ import annotations

import base64
import json
import os
import platform
import socket
from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, version
from typing import Any

# Around an answer in the text of an error, which an engine may have put into any other text.
MARK = "doctor-of-scoring-job:"


def answer(told: dict[str, Any]) -> dict[str, Any]:
    """Return who this worker is, what it has, and what it finds at the night's paths.

    ``package`` is what fails when this package is imported; without that, ``worker_paths`` tells the rest.
    """
    found = {
        "worker": f"{socket.gethostname()}:{os.getpid()}",
        "versions": versions(told["packages"]),
        "memory_bytes": 0,
        "package": "",
    }
    try:
        from job.doctor import worker_paths
    except Exception as e:  # noqa: BLE001 - whatever is wrong there is what was asked for
        found["package"] = f"{type(e).__name__}: {e}"
        return found
    return worker_paths.find(told, found)


def versions(packages: Sequence[str]) -> dict[str, str]:
    """Return the versions of Python and of packages, empty for those that are not installed."""
    found = {"python": platform.python_version()}
    for package in packages:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            found[package] = ""
    return found


def to_the_output(told: dict[str, Any]) -> list[Any]:
    """Leave the answer where the launcher looks for it; raise an error that holds it where that fails."""
    found = answer(told)
    if not found["package"] and not found["output"]:
        return []
    raise RuntimeError(MARK + base64.urlsafe_b64encode(json.dumps(found).encode()).decode() + ":")
