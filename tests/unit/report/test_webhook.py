"""Webhooks: what is posted where, when it is tried again, and what is told of it."""

from __future__ import annotations

import json
import re
import socket
from collections.abc import Callable
from datetime import UTC, datetime
from urllib.parse import urlsplit

import pytest

from job.errors import UsageError
from job.report import webhook
from tests.support.servers.scripted import Answer, Asked, answering

SECRET = "/services/T012/B345/wJalrXUtnFEMIK7MDENG"
MESSAGE = {"text": "scoring: published", "rows": 3}


class Time:
    """A clock that a sleep moves on, and what was slept."""

    def __init__(self) -> None:
        self.now_s = 0.0
        self.slept: list[float] = []

    def sleep(self, seconds: float) -> None:
        self.slept.append(seconds)
        self.now_s += seconds


def send(url: str, time: Time | None = None, most_s: float = webhook.MOST_S) -> Time:
    time = time or Time()
    webhook.send(url, MESSAGE, most_s=most_s, clock=lambda: time.now_s, sleep=time.sleep)
    return time


def one_by_one(*answers: Answer) -> Callable[[Asked], Answer]:
    left = list(answers)
    return lambda _: left.pop(0)


def test_the_message_is_posted_once_and_nothing_is_said(capsys: pytest.CaptureFixture[str]) -> None:
    with answering(lambda _: Answer("ok")) as server:
        time = send(f"{server.endpoint}{SECRET}?key=7")
    (asked,) = server.asked
    assert (asked.method, asked.path) == ("POST", f"{SECRET}?key=7")
    assert json.loads(asked.body) == MESSAGE
    assert asked.fields["content-type"] == "application/json"
    assert asked.fields["user-agent"] == "scoring-job"
    assert "authorization" not in asked.fields
    assert (time.slept, capsys.readouterr()) == ([], ("", ""))


def test_a_user_in_the_address_goes_into_the_fields(capsys: pytest.CaptureFixture[str]) -> None:
    with answering(lambda _: Answer()) as server:
        send(server.endpoint.replace("://", "://me:p%40ss@"))
    # printf me:p@ss | base64
    assert server.asked[0].fields["authorization"] == "Basic bWU6cEBzcw=="
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize(
    ("answers", "asked", "slept", "told"),
    [
        ([Answer(status=500), Answer(status=503), Answer()], 3, [1.0, 4.0], ""),
        ([Answer(status=502)] * 3, 3, [1.0, 4.0], "HTTP 502; tried 3 times"),
        ([Answer(status=429, fields={"Retry-After": "7"}), Answer()], 2, [7.0], ""),
        ([Answer(status=503, fields={"Retry-After": "0"}), Answer()], 2, [1.0], ""),
        (
            [Answer(status=429, fields={"Retry-After": "3600"})],
            1,
            [],
            "HTTP 429; the next try, in 3600 s, would be too late (all may take 60 s)",
        ),
        ([Answer(status=404)], 1, [], "HTTP 404"),
        ([Answer(status=400, fields={"Retry-After": "1"})], 1, [], "HTTP 400"),
    ],
)
def test_what_may_pass_is_tried_again(
    answers: list[Answer], asked: int, slept: list[float], told: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with answering(one_by_one(*answers)) as server:
        time = send(f"{server.endpoint.replace('://', '://me:hunter22@')}{SECRET}?key=7")
    assert (len(server.asked), time.slept) == (asked, slept)
    host = server.endpoint.removeprefix("http://")
    assert capsys.readouterr() == ("", f"not notified: {host}: {told}\n" if told else "")


def test_nobody_there_is_tried_again(capsys: pytest.CaptureFixture[str]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as closed:
        port = closed.getsockname()[1]
    time = send(f"http://127.0.0.1:{port}{SECRET}")
    assert time.slept == [1.0, 4.0]
    err = capsys.readouterr().err
    assert err.startswith(f"not notified: 127.0.0.1:{port}: URLError: ")
    assert "Connection refused" in err
    assert err.endswith("; tried 3 times\n")
    assert SECRET not in err


def test_a_server_that_does_not_answer_is_not_waited_for(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(webhook, "_TRY_S", 0.2)
    # Connections are taken by the system, and nobody answers.
    with socket.create_server(("127.0.0.1", 0)) as silent:
        time = send(f"http://127.0.0.1:{silent.getsockname()[1]}{SECRET}")
    assert time.slept == [1.0, 4.0]
    assert re.search(r": (no answer within 0 s|.*timed out.*); tried 3 times\n", capsys.readouterr().err)


@pytest.mark.parametrize("status", [301, 302, 307, 308])
def test_a_redirection_on_the_same_host_gets_the_message_too(
    status: int, capsys: pytest.CaptureFixture[str]
) -> None:
    there = Answer(status=status, fields={"Location": "/new"})
    with answering(one_by_one(there, Answer())) as server:
        send(f"{server.endpoint}{SECRET}")
    assert [(one.method, one.path) for one in server.asked] == [("POST", SECRET), ("POST", "/new")]
    assert json.loads(server.asked[1].body) == MESSAGE
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize("status", [301, 302, 307, 308])
@pytest.mark.parametrize("name", ["127.0.0.1", "localhost"])
def test_a_redirection_elsewhere_is_not_followed(
    status: int, name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with answering(lambda _: Answer()) as other:
        elsewhere = Answer(status=status, fields={"Location": other.endpoint.replace("127.0.0.1", name)})
        with answering(lambda _: elsewhere) as server:
            send(f"{server.endpoint}{SECRET}")
    assert (len(server.asked), len(other.asked)) == (1, 0)
    assert f"HTTP {status}, which leads elsewhere\n" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("old", "new", "same"),
    [
        ("http://h/a", "http://h:80/b", True),
        ("http://h/a", "https://h/a", True),
        ("https://h/a", "http://h/a", False),
        ("http://h:8080/a", "https://h/a", False),
        ("https://h/a", "https://h:444/a", False),
        ("https://h/a", "https://h.example.org/a", False),
        ("http://h/a", "ftp://h/a", False),
    ],
)
def test_the_same_place_is_the_same_host_and_port_or_its_safe_one(old: str, new: str, same: bool) -> None:
    assert webhook._is_same_place(urlsplit(old), urlsplit(new)) is same


@pytest.mark.parametrize(
    "url",
    [
        *(
            "",
            "hooks.example.org/x",
            "ftp://h/x",
            "file:///etc/passwd",
            "http://",
            "https:///x",
            "http://h:x/",
        ),
        *("http://h:99999/", "http://h/a b", "http://h/a\nb", "http://h/ä", "http://[::1/"),
    ],
)
def test_what_is_no_webhook_is_refused_without_being_shown(url: str) -> None:
    with pytest.raises(UsageError) as refused:
        webhook.check(url, "--notify_url")
    expected = "--notify_url (not shown): must be http://HOST… or https://HOST…, in printable ASCII"
    assert str(refused.value) == expected


@pytest.mark.parametrize("url", ["http://h", "https://u:p@h:8443/x?y=z", "http://[::1]:80/x"])
def test_what_is_one_is_taken(url: str) -> None:
    webhook.check(url, "--notify_url")


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        (None, 0.0),
        ("", 0.0),
        (" 12 ", 12.0),
        ("-3", 0.0),
        ("soon", 0.0),
        ("٣", 0.0),
        ("Thu, 01 Jan 2026 00:01:00 GMT", 60.0),
        ("Wed, 31 Dec 2025 23:59:59 GMT", 0.0),
        ("Thu, 01 Jan 2026 00:01:00", 0.0),
    ],
)
def test_how_long_a_server_wants_to_be_left_alone(text: str | None, seconds: float) -> None:
    assert webhook.retry_after_s(text, datetime(2026, 1, 1, tzinfo=UTC)) == seconds
