"""What every request must carry is there: who pays, and what to encrypt with. Secrets are nowhere else."""

from __future__ import annotations

import base64
import bz2
import os
import re
import subprocess
import sys
from collections.abc import Iterator, Sequence
from typing import Any
from urllib.parse import parse_qs

import pytest

from tests.support.permissions import (
    KMS_KEYS,
    OUTPUT,
    PAYER,
    ROOT,
    Buckets,
    check,
    failed,
    gs_buckets,
    in_this_process,
    lived,
    run,
    s3_buckets,
)
from tests.support.servers import stores
from tests.support.servers.proxy import Entry
from tests.support.store_nights import SCHEMES, environment

# What Beam makes of everything that it hands to workers: pickled, squeezed, and written in letters.
PICKLED = re.compile(rb"QlpoO[A-Za-z0-9+/]+=*")


@pytest.fixture(scope="module", params=SCHEMES)
def shared(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Buckets]:
    start = s3_buckets if request.param == "s3" else gs_buckets
    with start(tmp_path_factory.mktemp("night")) as buckets:
        yield buckets


@pytest.fixture
def buckets(shared: Buckets) -> Buckets:
    shared.proxy.reset()
    return shared


def asked(one: Entry) -> dict[str, str]:
    """The parameters of a request."""
    query = parse_qs(one.target.partition("?")[2], keep_blank_values=True)
    return {name: values[0] for name, values in query.items()}


def is_paid(one: Entry) -> bool:
    # The address of an upload's parts is what the store answered to the request that began it.
    if one.target.startswith(("/upload/", "/storage/", "/download/")):
        return asked(one).get("userProject") == PAYER or "upload_id" in asked(one)
    return one.fields.get("x-amz-request-payer") == "requester"


def key_of(one: Entry) -> tuple[str, str | None] | None:
    """How a request makes an object, and with which key; ``None`` for those that make none."""
    words = asked(one)
    if one.target.startswith("/upload/") and one.method == "POST":
        return words["uploadType"], words.get("kmsKeyName")
    if "/rewriteTo/" in one.target:
        return "copy", words.get("destinationKmsKeyName")
    if one.target.startswith(("/upload/", "/storage/", "/download/")):
        return None
    begins = one.method == "POST" and "uploads" in words
    if begins or (one.method == "PUT" and "partNumber" not in words):
        kind = "begin" if begins else "copy" if "x-amz-copy-source" in one.fields else "put"
        kms = one.fields.get("x-amz-server-side-encryption") == "aws:kms"
        return kind, one.fields.get("x-amz-server-side-encryption-aws-kms-key-id") if kms else None
    return None


@pytest.mark.parametrize("scheme", SCHEMES)
def test_every_request_is_paid_and_every_object_encrypted(scheme: str) -> None:
    requests = lived(scheme).requests
    assert [one for one in requests if not is_paid(one)] == []
    made = [found for one in requests if (found := key_of(one))]
    assert {with_key for _, with_key in made} == {KMS_KEYS[scheme]}
    kinds = {"s3": {"begin", "copy", "put"}, "gs": {"multipart", "resumable", "copy"}}
    assert {how for how, _ in made} == kinds[scheme]


def test_nothing_is_paid_or_encrypted_unasked(buckets: Buckets) -> None:
    check(0, "", *buckets.args(buckets.new()))
    requests = buckets.proxy.counts().requests
    assert not any(is_paid(one) for one in requests)
    assert {found[1] for one in requests if (found := key_of(one))} == {None}


SESSION, WORD, USERINFO = "a-session-to-be-kept", "a-word-to-be-kept", "a-user-to-be-kept"


@pytest.fixture
def secrets(buckets: Buckets) -> Iterator[tuple[bytes, ...]]:
    """Secrets that are in the environment and in the store's address, while a test runs."""
    address = buckets.proxy.endpoint.replace("://", f"://me:{USERINFO}@")
    env = {**environment(buckets.scheme, address), **buckets.user, "CLOUD_ACCESS_TOKEN": SESSION}
    with in_this_process({**env, "STORE_PASSWORD": WORD}):
        yield tuple(one.encode() for one in (SESSION, WORD, USERINFO, os.environ["AWS_SECRET_ACCESS_KEY"]))


@pytest.fixture
def pipelines(monkeypatch: pytest.MonkeyPatch) -> list[bytes]:
    """All that is in the pipelines that are run meanwhile, their options included."""
    import apache_beam

    run, seen = apache_beam.Pipeline.run, list[bytes]()

    def noted(pipeline: Any, *args: Any, **kwargs: Any) -> Any:
        graph = pipeline.to_runner_api().SerializeToString()
        pickles = [bz2.decompress(base64.b64decode(found)) for found in PICKLED.findall(graph)]
        seen.append(b"".join([graph, *pickles, repr(pipeline._options.get_all_options()).encode()]))
        return run(pipeline, *args, **kwargs)

    monkeypatch.setattr(apache_beam.Pipeline, "run", noted)
    return seen


def hold(content: bytes, secrets: Sequence[bytes]) -> list[bytes]:
    """The secrets that are in a text, as they are or as they are sent."""
    return [one for one in secrets if one in content or base64.b64encode(one)[:-4] in content]


def test_secrets_are_in_no_object_and_not_in_the_pipeline(
    buckets: Buckets, secrets: Sequence[bytes], pipelines: list[bytes]
) -> None:
    key, output = KMS_KEYS[buckets.scheme], buckets.new()
    buckets.stop(output, f"--kms_key={key}")
    objects = {f"before {name}": content for name, content in buckets.objects(output).items()}
    _, out, err = run(*buckets.args(output, f"--kms_key={key}"))
    objects |= buckets.objects(output)
    # All kinds of objects were looked at, and everything in the pipelines.
    for part in (
        "/plan.jsonl",
        "/receipts/",
        "/_report.json",
        "/_report.html",
        "/_manifest.json",
        "/_SUCCESS",
    ):
        assert any(part in name for name in objects), part
    assert len(pipelines) == 2
    assert all(output.encode() in one for one in pipelines)
    texts = {**objects, "said": f"{out}{err}".encode(), **dict(zip("12", pipelines, strict=True))}
    assert {name: found for name, content in texts.items() if (found := hold(content, secrets))} == {}
    # The name of a key is no secret: workers must know it. Yet it stands nowhere else.
    assert [name for name, content in texts.items() if key.encode() in content] == ["1", "2"]


def test_secrets_are_not_logged_even_where_everything_is(
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    """From one store to the other, so that the clients of both have their say."""
    folder = tmp_path_factory.mktemp("both")
    with s3_buckets(folder) as to, gs_buckets(folder) as source:
        output = to.new()
        flags = source.args(output, "--debug", "--requester_pays=yes")
        addresses = [one.proxy.endpoint.replace("://", f"://me:{USERINFO}@") for one in (to, source)]
        env = {**stores.environment(*addresses), **to.user, "STORE_PASSWORD": WORD}
        command = [sys.executable, "-m", "job", *flags]
        done = subprocess.run(command, env=env, cwd=ROOT, capture_output=True, check=False, timeout=120)
        assert done.returncode == 0, done.stderr
        assert any(name.endswith("/_SUCCESS") for name in to.objects(output))
    secrets = [one.encode() for one in (WORD, USERINFO, to.user["AWS_SECRET_ACCESS_KEY"])]
    assert b"INFO" in done.stderr
    assert hold(done.stdout + done.stderr, secrets) == []


def test_the_address_of_a_store_that_does_not_answer_is_told_without_its_secret(
    buckets: Buckets, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("job.storage.buckets.BUDGET_S", 0.1)
    with in_this_process(environment(buckets.scheme, f"http://me:{USERINFO}@127.0.0.1:9")):
        line = failed("report", f"{buckets.scheme}://{OUTPUT}/out")
    assert hold(line.encode(), [USERINFO.encode()]) == []
    # Google's client leaves a user out by itself.
    assert ("***@127.0.0.1:9" if buckets.scheme == "s3" else "port=9") in line
