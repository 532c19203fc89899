"""What can go wrong with a request, and when it does."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass, field
from urllib.parse import unquote

# Status: S3's code, Cloud Storage's reason.
ERRORS = {
    "401": ("AccessDenied", "required"),
    "403": ("AccessDenied", "forbidden"),
    "429": ("SlowDown", "rateLimitExceeded"),
    "500": ("InternalError", "internalError"),
    "503": ("SlowDown", "backendError"),
}
KINDS = (*ERRORS, "lost", "reset", "cut", "slow", "hang", "hold")
_GCS = re.compile(r"/(upload/|download/|batch/)?storage/v1")


@dataclass(frozen=True)
class Fault:
    """One thing that goes wrong with some requests.

    ``matches`` is searched in ``METHOD target``, with the target as it was sent and decoded. Of the requests
    that match, those from number ``at`` (from 0) fail, ``times`` of them (-1: all). Where several faults
    match, each counts the request, and the first one that is due happens. Kinds:

    - "401", "403", "429", "500", "503": answered so, and never forwarded.
    - "lost": forwarded and done; then the connection is closed without an answer.
    - "reset": the connection is reset when the head is read; nothing is forwarded.
    - "cut": the answer ends in the middle of its body, or of its first line where it has no body.
    - "slow": the answer's body comes in steps of ``step_bytes``, each 50 ms after the one before.
    - "hang": no answer, for ``hang_s``; then the connection is closed. Nothing is forwarded.
    - "hold": no answer until the test releases it; then the connection is closed. ``done`` says whether the
      request is forwarded and takes effect before it is held, or never is. With ``late`` as well, the answer
      that the store gave at once is what the client is sent when it is released.
    """

    kind: str
    matches: str = ""
    at: int = 0
    times: int = 1
    step_bytes: int = 1024
    hang_s: float = 30.0
    done: bool = False
    late: bool = False

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise ValueError(f"{self.kind!r} is no kind of fault; there are {', '.join(KINDS)}")
        re.compile(self.matches)


@dataclass
class Plan:
    """Faults, and how many requests each has seen."""

    faults: list[Fault] = field(default_factory=list)
    _seen: list[int] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._seen = [0] * len(self.faults)

    def due(self, method: str, target: str) -> Fault | None:
        """What goes wrong with this request."""
        found = None
        for number, fault in enumerate(self.faults):
            if not any(re.search(fault.matches, f"{method} {one}") for one in (target, unquote(target))):
                continue
            since = self._seen[number] - fault.at
            self._seen[number] += 1
            if found is None and since >= 0 and (fault.times < 0 or since < fault.times):
                found = fault
        return found


def refusal(kind: str, method: str, target: str) -> bytes:
    """The whole answer to a refused request, in the words of the store that it was meant for."""
    code, reason = ERRORS[kind]
    if _GCS.match(target):
        told = {"code": int(kind), "message": reason, "errors": [{"domain": "global", "reason": reason}]}
        body, form = json.dumps({"error": told}), "application/json"
    else:
        told_s3 = f"<Error><Code>{code}</Code><Message>{code}</Message></Error>"
        body, form = f'<?xml version="1.0" encoding="UTF-8"?>\n{told_s3}', "application/xml"
    head = f"HTTP/1.1 {kind} {reason}\r\nContent-Type: {form}\r\nContent-Length: {len(body)}\r\n\r\n"
    return (head if method == "HEAD" else head + body).encode()
