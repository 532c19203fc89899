"""How a worker answers ``job doctor``. The source of this module is sent to it, see ``job.doctor.probe``.

A worker may not have this package, or have one that cannot be imported, or run another Python. So only
``answer`` imports from the package, and if that fails, the failure is part of the answer.
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

# Stands around an answer in the text of an error. An engine may put other text before and after it.
MARK = "doctor-of-scoring-job:"


def answer(told: dict[str, Any]) -> dict[str, Any]:
    """Return the worker's name, its versions, and what it finds at the night's paths.

    ``package`` is the error of importing this package. If there is none, ``worker_paths`` adds the paths.
    """
    found = {
        "worker": f"{socket.gethostname()}:{os.getpid()}",
        "versions": versions(told["packages"]),
        "memory_bytes": 0,
        "package": "",
    }
    try:
        from job.doctor import worker_paths
    except Exception as e:  # noqa: BLE001 - any error is part of the answer
        found["package"] = f"{type(e).__name__}: {e}"
        return found
    return worker_paths.find(told, found)


def versions(packages: Sequence[str]) -> dict[str, str]:
    """Return the versions of Python and of packages; "" for one that is not installed."""
    found = {"python": platform.python_version()}
    for package in packages:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            found[package] = ""
    return found


def write_answer(told: dict[str, Any]) -> list[Any]:
    """Write the answer into the output's staging folder; raise it inside an error if that fails."""
    found = answer(told)
    if not found["package"] and not found["output"]:
        return []
    raise RuntimeError(MARK + base64.urlsafe_b64encode(json.dumps(found).encode()).decode() + ":")
