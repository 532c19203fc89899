"""Who asks Cloud Storage, and where: found as Google's own tools find it, or told in one line.

Where ``STORAGE_EMULATOR_HOST`` is set, Google's client looks for no credentials. ``API_ENDPOINT_OVERRIDE``,
which it knows as well, leads to another server and leaves the rest as it is; so that is what leads here.
"""

from __future__ import annotations

import base64
import json
import os
import subprocess
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs

import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import rsa
from google.auth.exceptions import RefreshError

from job import storage
from job.errors import StorageError
from job.storage import objects
from job.storage.buckets import TransientError
from tests.support.permissions import ROOT, failed, in_this_process
from tests.support.servers import stores
from tests.support.servers.clients import BUCKET, Way, gcs_way
from tests.support.servers.proxy import Fault
from tests.support.servers.scripted import Answer, Answers, Asked, answering

CONTENT = b"anything"
ACCOUNT = "night@test.example"
OWN = ("GOOGLE_CLOUD_PROJECT", "CLOUDSDK_CONFIG")
PATH = f"gs://{BUCKET}/there"


@dataclass(frozen=True)
class Home:
    """A person's environment, in which nothing is configured but where the store is."""

    way: Way
    folder: Path

    def env(self, **settings: str) -> dict[str, str]:
        base = stores.environment(None, None)
        bare = {name: value for name, value in base.items() if name not in OWN}
        # A folder of gcloud's own without anything in it.
        bare |= {"CLOUDSDK_CONFIG": str(self.folder), "API_ENDPOINT_OVERRIDE": self.way.proxy.endpoint}
        return {**bare, **settings}

    def write(self, name: str, content: object) -> str:
        path = self.folder / name
        path.write_text(content if isinstance(content, str) else json.dumps(content))
        return str(path)

    def signed(self, env: Mapping[str, str]) -> set[str]:
        """Write, read, look at, list and remove objects; returns how these requests were signed."""
        self.way.proxy.reset()
        with in_this_process(env):
            assert storage.read_bytes(PATH) == CONTENT
            storage.write_atomic(f"gs://{BUCKET}/new", b"")
            assert storage.size_bytes(f"gs://{BUCKET}/new") == 0
            assert storage.names(f"gs://{BUCKET}") == ["new", "there"]
            storage.remove(f"gs://{BUCKET}/new")
        assert len(self.way.proxy.counts().requests) == 5
        return self.signatures()

    def signatures(self) -> set[str]:
        return {one.fields.get("authorization", "") for one in self.way.proxy.counts().requests}

    def job(self, env: Mapping[str, str], *args: str) -> tuple[int, str]:
        """Run a command in a process of its own: Google's library reads some variables only once."""
        command = [sys.executable, "-m", "job", *args]
        done = subprocess.run(command, env=env, cwd=ROOT, capture_output=True, text=True, timeout=60)
        return done.returncode, done.stderr


@pytest.fixture(scope="module")
def way() -> Iterator[Way]:
    with gcs_way() as one:
        one.client.blob("there").upload_from_string(CONTENT)
        yield one


@pytest.fixture
def home(way: Way, tmp_path: Path) -> Home:
    way.proxy.reset()
    return Home(way, tmp_path)


@pytest.fixture
def tokens() -> Iterator[Answers]:
    """Gives everybody a token: the number of tokens that it gave."""
    count = iter(range(1, 100))
    given = {"expires_in": 3600, "token_type": "Bearer"}
    json_form = {"Content-Type": "application/json"}
    with answering(
        lambda asked: Answer({"access_token": f"token{next(count)}", **given}, fields=json_form)
    ) as server:
        yield server


@pytest.fixture(scope="module")
def private_key() -> str:
    made = rsa.generate_private_key(public_exponent=65537, key_size=2048)
    form = (serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    return made.private_bytes(*form).decode()


def key_file(private_key: str, token_uri: str) -> dict[str, Any]:
    """A service account's key, as the cloud hands it out."""
    named = {"type": "service_account", "client_email": ACCOUNT, "client_id": "1", "private_key_id": "2"}
    return {**named, "private_key": private_key, "token_uri": f"{token_uri}/token"}


def issuer(asked: Asked) -> str:
    """Who asks for a token."""
    claims = parse_qs(asked.body.decode())["assertion"][0].split(".")[1]
    return str(json.loads(base64.urlsafe_b64decode(claims + "=="))["iss"])


def test_a_key_file_of_a_service_account(home: Home, tokens: Answers, private_key: str) -> None:
    """It tells of no project, and the job needs none."""
    path = home.write("key.json", key_file(private_key, tokens.endpoint))
    assert home.signed(home.env(GOOGLE_APPLICATION_CREDENTIALS=path)) == {"Bearer token1"}
    assert [issuer(one) for one in tokens.asked] == [ACCOUNT]


def test_what_gcloud_has_written(home: Home, tokens: Answers, private_key: str) -> None:
    home.write("application_default_credentials.json", key_file(private_key, tokens.endpoint))
    assert home.signed(home.env()) == {"Bearer token1"}


def test_a_token_that_has_expired_is_replaced(home: Home, tokens: Answers, private_key: str) -> None:
    path = home.write("key.json", key_file(private_key, tokens.endpoint))
    with in_this_process(home.env(GOOGLE_APPLICATION_CREDENTIALS=path)):
        assert storage.read_bytes(PATH) == CONTENT
        home.way.proxy.set(faults=[Fault("401")])
        assert storage.read_bytes(PATH) == CONTENT
    assert home.signatures() == {"Bearer token1", "Bearer token2"}


def test_the_service_account_of_a_machine(home: Home) -> None:
    """The server plays the machine's metadata as well; nobody else has this token."""
    address = home.way.store.removeprefix("http://")
    env = home.env(GCE_METADATA_HOST=address, GCE_METADATA_IP=address)
    del env["NO_GCE_CHECK"]
    code, err = home.job(env, "report", f"gs://{BUCKET}/out")
    assert (code, "nothing was published" in err) == (2, True), err
    assert home.signatures() == {"Bearer fake"}


def test_nobody_asks_without_a_signature(home: Home) -> None:
    code, err = home.job(home.env(), "report", f"gs://{BUCKET}/out")
    assert (code, "nothing was published" in err) == (2, True), err
    assert home.signatures() == {""}


@pytest.mark.parametrize("status", ["401", "403"])
def test_nobody_may_read_what_is_not_public(home: Home, status: str) -> None:
    home.way.proxy.set(faults=[Fault(status, times=-1)])
    code, err = home.job(home.env(), "report", f"gs://{BUCKET}/out")
    assert code == 1
    assert err.startswith(
        f"error: gs://{BUCKET}/out/_report.json: it is not allowed: no credentials were found"
    )
    for tried in ("GOOGLE_APPLICATION_CREDENTIALS", "gcloud's own", "the machine's service account"):
        assert tried in err
    assert err.count("\n") == 1


@pytest.mark.parametrize("scheme", ["http://", ""])
def test_an_emulator_is_asked_without_a_signature(home: Home, scheme: str) -> None:
    address = home.way.proxy.endpoint.removeprefix("http://")
    env = home.env(STORAGE_EMULATOR_HOST=f"{scheme}{address}")
    del env["API_ENDPOINT_OVERRIDE"]
    assert home.signed(env) == {""}


@pytest.mark.parametrize(
    ("content", "told"),
    [
        ("{ no such form", "is not a valid json file"),
        (None, "was not found"),
        ({"type": "nobody"}, "'gdch_service_account').; correct it"),
        ({"type": "service_account", "client_email": ACCOUNT}, "Failed to load service account credentials"),
    ],
)
def test_what_is_configured_wrongly_is_told_before_anybody_is_asked(
    home: Home, content: object, told: str
) -> None:
    """Nobody goes unsigned who meant to sign."""
    path = str(home.folder / "key.json") if content is None else home.write("key.json", content)
    for env in (home.env(GOOGLE_APPLICATION_CREDENTIALS=path), gclouds(home, content)):
        if env is None:
            continue
        with in_this_process(env):
            line = failed("report", f"gs://{BUCKET}/out")
        assert line.startswith(
            "error: gs://: what the environment or a file configures for it cannot be used: "
        )
        assert told in line
    assert home.way.proxy.counts().requests == ()


def gclouds(home: Home, content: object) -> dict[str, str] | None:
    if content is None:
        return None
    home.write("application_default_credentials.json", content)
    return home.env()


def test_an_account_that_is_refused(home: Home, private_key: str) -> None:
    refusal = {"error": "invalid_grant", "error_description": "Invalid JWT Signature."}
    with answering(lambda asked: Answer(refusal, 400, {"Content-Type": "application/json"})) as server:
        path = home.write("key.json", key_file(private_key, server.endpoint))
        with in_this_process(home.env(GOOGLE_APPLICATION_CREDENTIALS=path)):
            line = failed("report", f"gs://{BUCKET}/out")
    assert line.startswith(f"error: gs://{BUCKET}/out/_report.json: it failed: RefreshError")
    assert "invalid_grant" in line
    assert private_key.splitlines()[1] not in line
    assert home.way.proxy.counts().requests == ()


def test_a_token_that_cannot_be_had_just_now_is_asked_for_again(home: Home) -> None:
    env = home.env(STORAGE_EMULATOR_HOST=home.way.proxy.endpoint)
    with in_this_process(env):
        client: Any = objects.store("gs")._client
        for retryable, kind in ((True, TransientError), (False, StorageError)):
            assert type(client._told("there", RefreshError("503", retryable=retryable))) is kind


def test_an_account_that_may_not(home: Home, tokens: Answers, private_key: str) -> None:
    """Whoever is known is not told to look for credentials."""
    path = home.write("key.json", key_file(private_key, tokens.endpoint))
    home.way.proxy.set(faults=[Fault("403", times=-1)])
    with in_this_process(home.env(GOOGLE_APPLICATION_CREDENTIALS=path)):
        line = failed("report", f"gs://{BUCKET}/out")
    assert line.startswith(f"error: gs://{BUCKET}/out/_report.json: it failed: Forbidden: 403")
    assert "credentials" not in line
    assert os.path.basename(path) not in line
