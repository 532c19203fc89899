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
_KEY = {"aws_access_key_id": "none", "aws_secret_access_key": "none"}
# A client's own modules and descriptions come with the first one; it asks nobody.
boto3.session.Session(**_KEY, region_name="us-east-1").client("s3").close()
