"""boto3's descriptions of its services, read once a process: 0.3 s of JSON, which every client reads anew.

Whoever makes many clients imports this first, the shared zygote for all jobs that it will fork.
"""

from __future__ import annotations

import functools
import importlib
from typing import Any

# By name: they ship no types, and none of their own are needed here.
boto3: Any = importlib.import_module("boto3")
_session: Any = importlib.import_module("botocore.session")
_session.create_loader = functools.cache(_session.create_loader)
# By no client: that would look at the settings of whoever runs the tests.
_loader = _session.create_loader(None)
for _kind in ("service-2", "endpoint-rule-set-1", "paginators-1"):
    _loader.load_service_model("s3", _kind)
_loader.load_data("endpoints")
