"""Posts a message to a webhook as JSON. It retries if that may help, and never makes a command fail.

The address of a webhook is a secret: whoever has it can write to the channel. So messages show only its host,
and it may come from the environment, which the list of processes does not show.
"""

from __future__ import annotations

import base64
import json
import queue
import threading
import time
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from http import HTTPStatus
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import SplitResult, unquote, urlsplit

from job.errors import UsageError, one_line
from job.terminal import progress

if TYPE_CHECKING:
    from urllib.request import Request

URL_IN_ENVIRONMENT: Final = "SCORING_JOB_NOTIFY_URL"

TRIES: Final = 3
_TRY_S: Final = 10.0
_PAUSES_S: Final = (1.0, 4.0)
# The end of a night is not delayed longer. Kubernetes kills a process 30 s after it has asked it to stop.
MOST_S: Final = 60.0
MOST_WHEN_STOPPED_S: Final = 15.0

_PORTS: Final = {"http": 80, "https": 443}


class _NotTakenError(Exception):
    """A try failed. ``again`` says whether another may succeed, ``after_s`` how long to wait for it."""

    def __init__(self, told: str, *, again: bool, after_s: float = 0.0) -> None:
        super().__init__(told)
        self.again, self.after_s = again, after_s


def check(url: str, name: str) -> None:
    """Check the address of a webhook. An error names the flag or the variable ``name``, not the address.

    Raises:
        UsageError: it is not of the form ``http(s)://HOST…``.
    """
    try:
        parts = urlsplit(url)
        is_one = parts.scheme in _PORTS and bool(parts.hostname) and parts.port != 0
    except ValueError:
        is_one = False
    # If urllib refused a character that cannot be printed, its error would show the path.
    if not is_one or not url.isascii() or any(ord(c) <= 32 or ord(c) == 127 for c in url):
        raise UsageError(f"{name} (not shown): must be http://HOST… or https://HOST…, in printable ASCII")


def shown(url: str) -> str:
    """Return the host of a webhook's address, without the parts that may be secret.

    >>> shown("https://me:pw@hooks.example.org:8443/services/T0/B0?key=1")
    'hooks.example.org:8443'
    """
    return urlsplit(url).netloc.rpartition("@")[2]


def send(
    url: str,
    message: Mapping[str, Any],
    *,
    most_s: float = MOST_S,
    clock: Callable[[], float] = time.monotonic,
    sleep: Callable[[float], object] = time.sleep,
) -> None:
    """Post a message; if it is not accepted, say so in one line on standard error.

    Args:
        url: an address that :func:`check` has accepted.
        message: the fields of the JSON object.
        most_s: the limit for all tries and pauses together, in seconds.
        clock: returns a time in seconds.
        sleep: waits for a number of seconds.
    """
    try:
        _send(url, json.dumps(message).encode(), most_s, clock, sleep)
    except _NotTakenError as e:
        progress.say(f"not notified: {shown(url)}: {e}")
    except KeyboardInterrupt:
        progress.say(f"not notified: {shown(url)}: stopped while it was tried")
    except Exception as e:  # noqa: BLE001 - the night's exit code must stay what it is
        progress.say(f"not notified: {shown(url)}: {type(e).__name__}")


def _send(
    url: str, body: bytes, most_s: float, clock: Callable[[], float], sleep: Callable[[float], object]
) -> None:
    end_s = clock() + most_s
    for tried in range(1, TRIES + 1):
        try:
            _post_within(min(_TRY_S, max(0.1, end_s - clock())), url, body)
        except _NotTakenError as e:
            if not e.again:
                raise
            if tried == TRIES:
                raise _NotTakenError(f"{e}; tried {TRIES} times", again=False) from e
            pause_s = max(e.after_s, _PAUSES_S[tried - 1])
            if clock() + pause_s >= end_s:
                late = f"the next try, in {pause_s:.0f} s, would be too late (all may take {most_s:.0f} s)"
                raise _NotTakenError(f"{e}; {late}", again=False) from e
            sleep(pause_s)
        else:
            return


def _post_within(seconds: float, url: str, body: bytes) -> None:
    """Post in a thread with a time limit: urllib's own does not cover name look-ups and slow answers."""
    ended: queue.SimpleQueue[_NotTakenError | None] = queue.SimpleQueue()

    def run() -> None:
        try:
            _post(_request(url, body), seconds)
            ended.put(None)
        except _NotTakenError as e:
            ended.put(e)
        except Exception as e:  # noqa: BLE001 - the waiting thread raises it
            ended.put(_NotTakenError(type(e).__name__, again=False))

    threading.Thread(target=run, name="notify", daemon=True).start()
    try:
        failed = ended.get(timeout=seconds)
    except queue.Empty:
        raise _NotTakenError(f"no answer within {seconds:.0f} s", again=True) from None
    if failed is not None:
        raise failed


def _request(url: str, body: bytes) -> Request:
    from urllib.request import Request

    parts = urlsplit(url)
    # Some firewalls refuse urllib's default User-Agent.
    fields = {"Content-Type": "application/json", "User-Agent": "scoring-job"}
    user, at, host = parts.netloc.rpartition("@")
    if at:
        fields["Authorization"] = f"Basic {base64.b64encode(unquote(user).encode()).decode()}"
    return Request(parts._replace(netloc=host).geturl(), body, fields, method="POST")


def _post(request: Request, timeout_s: float) -> None:
    from http.client import HTTPException
    from urllib.error import HTTPError
    from urllib.request import build_opener

    try:
        with build_opener(_redirects()).open(request, timeout=timeout_s):
            return
    except HTTPError as e:
        with e:
            if 300 <= e.code < 400:
                raise _NotTakenError(f"HTTP {e.code}, which leads elsewhere", again=False) from e
            again = e.code == HTTPStatus.TOO_MANY_REQUESTS or e.code >= 500
            after_s = retry_after_s(e.headers.get("Retry-After"), datetime.now(UTC)) if again else 0.0
            raise _NotTakenError(f"HTTP {e.code}", again=again, after_s=after_s) from e
    except (OSError, HTTPException) as e:
        # None of these messages shows the address: it was checked to be printable.
        raise _NotTakenError(one_line(e), again=True) from e


def _redirects() -> Any:
    from urllib.request import HTTPRedirectHandler, Request

    class SameHost(HTTPRedirectHandler):
        """Follows redirects within a host and repeats the POST; by default urllib would send an empty GET."""

        def redirect_request(self, req: Request, *answer: Any) -> Request | None:
            _, code, _, _, newurl = answer
            if code == HTTPStatus.SEE_OTHER or not _is_same_place(urlsplit(req.full_url), urlsplit(newurl)):
                return None
            return Request(newurl, req.data, req.headers, method="POST")

    return SameHost()


def _is_same_place(old: SplitResult, new: SplitResult) -> bool:
    def place(url: SplitResult) -> tuple[str, str | None, int | None]:
        return url.scheme, url.hostname, url.port or _PORTS.get(url.scheme)

    if place(old) == place(new):
        return True
    return place(old) == ("http", new.hostname, 80) and place(new) == ("https", old.hostname, 443)


def retry_after_s(text: str | None, now: datetime) -> float:
    """Return the seconds to wait by a ``Retry-After`` header, which holds seconds or a date; 0 without one.

    >>> retry_after_s("7", datetime(2026, 1, 1, tzinfo=UTC))
    7.0
    >>> retry_after_s("Thu, 01 Jan 2026 00:00:20 GMT", datetime(2026, 1, 1, tzinfo=UTC))
    20.0
    """
    if not text:
        return 0.0
    if text.strip().isascii() and text.strip().isdigit():
        return float(text)
    from email.utils import parsedate_to_datetime

    try:
        when = parsedate_to_datetime(text)
        return max(0.0, (when - now).total_seconds())
    except (ValueError, TypeError):
        return 0.0
