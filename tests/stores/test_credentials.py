"""Who asks S3, where and in which region: found as Amazon's own tools find it, or told in one line."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import pytest

from job import storage
from job.errors import StorageError
from tests.support.permissions import OUTPUT, Buckets, failed, in_this_process, s3_buckets
from tests.support.servers import stores
from tests.support.servers.clients import BUCKET, Way, s3_way
from tests.support.servers.proxy import Entry
from tests.support.servers.scripted import Answer, Asked, answering

SECRET = "wJalrXUtnFEMI/K7MDENG/bPxRfiCYEXAMPLEKEY"
CONTENT = b"anything"
# Set by the tests' own environment, and in the way here.
KEY = ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY")
OWN = (*KEY, "AWS_DEFAULT_REGION", "AWS_CONFIG_FILE", "AWS_SHARED_CREDENTIALS_FILE")
SIGNED = re.compile(r"AWS4-HMAC-SHA256 Credential=([^/]+)/\d+/([^/]+)/s3/aws4_request, .*")


@dataclass(frozen=True)
class Signed:
    """How a request was signed: with which key, for which region, and perhaps with a session's token."""

    key: str
    region: str
    token: str = ""


@dataclass(frozen=True)
class Home:
    """A person's home and environment, in which nothing is configured but where the store is."""

    way: Way
    folder: Path

    def write(self, name: str, text: str) -> str:
        path = self.folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
        return str(path)

    def env(self, **settings: str) -> dict[str, str]:
        base = stores.environment(self.way.proxy.endpoint, None)
        # No machine has a role here, unless a test says so.
        bare = {name: value for name, value in base.items() if name not in OWN}
        bare |= {"AWS_ENDPOINT_URL": self.way.proxy.endpoint, "AWS_EC2_METADATA_DISABLED": "true"}
        return {**bare, "HOME": str(self.folder), **settings}

    def signed(self, env: Mapping[str, str]) -> Signed | None:
        """Read an object, and return how that was signed."""
        self.way.proxy.reset()
        with in_this_process(env):
            assert storage.read_bytes(f"s3://{BUCKET}/there") == CONTENT
        (request,) = self.way.proxy.counts().requests
        return signature(request)


def signature(request: Entry) -> Signed | None:
    told = request.fields.get("authorization")
    if told is None:
        return None
    found = SIGNED.fullmatch(told)
    assert found, told
    return Signed(found[1], found[2], request.fields.get("x-amz-security-token", ""))


@pytest.fixture(scope="module")
def way() -> Iterator[Way]:
    with s3_way() as one:
        one.client.put_object(Bucket=BUCKET, Key="there", Body=CONTENT, ACL="public-read")
        yield one


@pytest.fixture
def home(way: Way, tmp_path: Path) -> Home:
    return Home(way, tmp_path)


@pytest.fixture(scope="module")
def guarded(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Buckets]:
    """Buckets that are not public."""
    with s3_buckets(tmp_path_factory.mktemp("guarded")) as one:
        yield one


def keys(name: str) -> str:
    return f"aws_access_key_id = {name}\naws_secret_access_key = {SECRET}\n"


def test_the_environment(home: Home) -> None:
    env = home.env(AWS_ACCESS_KEY_ID="AKENV", AWS_SECRET_ACCESS_KEY=SECRET)
    assert home.signed(env) == Signed("AKENV", "us-east-1")
    assert home.signed({**env, "AWS_SESSION_TOKEN": "short"}) == Signed("AKENV", "us-east-1", "short")


def test_files_in_the_home_and_a_profile(home: Home) -> None:
    home.write(".aws/credentials", f"[default]\n{keys('AKDEFAULT')}[night]\n{keys('AKNIGHT')}")
    home.write(".aws/config", "[default]\nregion = eu-west-1\n[profile night]\nregion = eu-west-3\n")
    assert home.signed(home.env()) == Signed("AKDEFAULT", "eu-west-1")
    assert home.signed(home.env(AWS_PROFILE="night")) == Signed("AKNIGHT", "eu-west-3")
    elsewhere = home.write("elsewhere", f"[night]\n{keys('AKELSE')}")
    env = home.env(AWS_PROFILE="night", AWS_SHARED_CREDENTIALS_FILE=elsewhere)
    assert home.signed(env) == Signed("AKELSE", "eu-west-3")


def role(key: str) -> Mapping[str, str]:
    times = {"Expiration": "2099-01-01T00:00:00Z", "LastUpdated": "2026-01-01T00:00:00Z"}
    named = {"AccessKeyId": key, "SecretAccessKey": SECRET, "Token": "of-the-role"}
    return {**named, **times, "Code": "Success"}


def test_the_role_of_a_container(home: Home) -> None:
    with answering(lambda asked: Answer(role("AKCONTAINER"))) as server:
        env = home.env(AWS_CONTAINER_CREDENTIALS_FULL_URI=f"{server.endpoint}/role")
        assert home.signed(env) == Signed("AKCONTAINER", "us-east-1", "of-the-role")
    assert [one.path for one in server.asked] == ["/role"]


def test_the_role_of_a_machine(home: Home) -> None:
    def answer(asked: Asked) -> Answer:
        if asked.path == "/latest/api/token":
            return Answer("session", fields={"x-aws-ec2-metadata-token-ttl-seconds": "21600"})
        assert asked.fields["x-aws-ec2-metadata-token"] == "session"
        return Answer(role("AKMACHINE") if asked.path.endswith("/night") else "night")

    with answering(answer) as server:
        env = home.env(AWS_EC2_METADATA_SERVICE_ENDPOINT=server.endpoint, AWS_EC2_METADATA_DISABLED="false")
        assert home.signed(env) == Signed("AKMACHINE", "us-east-1", "of-the-role")


def test_a_role_for_the_token_of_a_cluster(home: Home) -> None:
    env = home.env(
        AWS_ROLE_ARN="arn:aws:iam::123456789012:role/night",
        AWS_WEB_IDENTITY_TOKEN_FILE=home.write("token", "of-the-cluster"),
        AWS_ENDPOINT_URL_STS=home.way.store,
        AWS_DEFAULT_REGION="us-east-1",
    )
    signed = home.signed(env)
    assert signed is not None
    # What the store made up for this role.
    assert (signed.key[:4], signed.region, bool(signed.token)) == ("ASIA", "us-east-1", True)


def test_nobody_asks_without_a_signature(home: Home) -> None:
    assert home.signed(home.env()) is None


@pytest.mark.parametrize(
    ("settings", "region"),
    [
        ({"AWS_DEFAULT_REGION": "eu-north-1"}, "eu-north-1"),
        ({"AWS_REGION": "eu-south-1"}, "eu-south-1"),
        ({"AWS_REGION": "eu-south-1", "AWS_DEFAULT_REGION": "eu-north-1"}, "eu-south-1"),
        ({"AWS_PROFILE": "night"}, "eu-west-3"),
        ({"AWS_PROFILE": "night", "AWS_REGION": "eu-south-1"}, "eu-south-1"),
        ({}, "us-east-1"),
    ],
)
def test_the_region(home: Home, settings: dict[str, str], region: str) -> None:
    home.write(".aws/config", "[profile night]\nregion = eu-west-3\n")
    credentials = home.write("keys", f"[default]\n{keys('AK')}[night]\n{keys('AK')}")
    env = home.env(AWS_SHARED_CREDENTIALS_FILE=credentials, **settings)
    assert home.signed(env) == Signed("AK", region)


def test_a_bucket_of_another_region_is_asked_there(home: Home) -> None:
    def answer(asked: Asked) -> Answer:
        there = {"x-amz-bucket-region": "eu-central-1"}
        if "/eu-central-1/s3/" in asked.fields["authorization"]:
            return Answer(CONTENT, fields={"ETag": '"1"', **there})
        told = "<Error><Code>PermanentRedirect</Code><Region>eu-central-1</Region></Error>"
        return Answer(told, 301, {"Content-Type": "application/xml", **there})

    with answering(answer) as server:
        named = {"AWS_ACCESS_KEY_ID": "AK", "AWS_SECRET_ACCESS_KEY": SECRET}
        with in_this_process(home.env(AWS_ENDPOINT_URL=server.endpoint, **named)):
            assert storage.read_bytes(f"s3://{BUCKET}/there") == CONTENT
    assert len(server.asked) >= 2


def test_where_the_store_is(home: Home) -> None:
    nowhere = "http://127.0.0.1:9"
    env = home.env(AWS_ENDPOINT_URL=nowhere, AWS_ENDPOINT_URL_S3=home.way.proxy.endpoint)
    assert home.signed(env) is None
    home.write(".aws/config", f"[default]\nendpoint_url = {home.way.proxy.endpoint}\n")
    env = home.env()
    del env["AWS_ENDPOINT_URL"]
    assert home.signed(env) is None


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        ({"AWS_PROFILE": "nobody"}, r"ProfileNotFound: .*\(nobody\) could not be found"),
        ({"AWS_ACCESS_KEY_ID": "AK"}, "PartialCredentialsError: .* missing: AWS_SECRET_ACCESS_KEY"),
        ({"AWS_CONFIG_FILE": "broken"}, "ConfigParseError: Unable to parse config file: .*broken"),
        ({"AWS_ENDPOINT_URL": "127.0.0.1:9"}, "ValueError: Invalid endpoint: 127.0.0.1:9"),
        ({"AWS_REGION": "-not/a region"}, "InvalidRegionError: .*'-not/a region'"),
        ({"AWS_CONTAINER_CREDENTIALS_FULL_URI": "http://203.0.113.1/"}, "Unsupported host '203.0.113.1'"),
    ],
)
def test_what_is_configured_wrongly_is_told_before_anybody_is_asked(
    home: Home, settings: dict[str, str], told: str
) -> None:
    if settings.get("AWS_CONFIG_FILE"):
        settings = {"AWS_CONFIG_FILE": home.write("broken", "{ no such form")}
    home.way.proxy.reset()
    with in_this_process(home.env(**settings)):
        line = failed("report", f"s3://{BUCKET}/out")
    assert re.search(rf"^error: s3://: what the environment or a file configures .*{told}", line)
    assert home.way.proxy.counts().requests == ()


def test_a_token_that_is_not_there_is_no_object_that_is_not_there(home: Home) -> None:
    """Both are a FileNotFoundError, and only one of them is the store's word."""
    missing = str(home.folder / "token")
    named = {"AWS_ROLE_ARN": "arn:aws:iam::123456789012:role/night", "AWS_WEB_IDENTITY_TOKEN_FILE": missing}
    with in_this_process(home.env(**named, AWS_DEFAULT_REGION="us-east-1")):
        line = failed("report", f"s3://{BUCKET}/out")
        assert f"s3://{BUCKET}/out/_report.json" in line
        assert missing in line
        with pytest.raises(StorageError, match=missing):
            storage.size_bytes(f"s3://{BUCKET}/there")


def test_a_role_that_is_refused(home: Home) -> None:
    told = (
        "<ErrorResponse><Error><Code>AccessDenied</Code><Message>no trust</Message></Error></ErrorResponse>"
    )
    with answering(lambda asked: Answer(told, 403, {"Content-Type": "text/xml"})) as server:
        named = {"AWS_ROLE_ARN": "arn:aws:iam::123456789012:role/night", "AWS_DEFAULT_REGION": "us-east-1"}
        token = home.write("token", "of-the-cluster")
        settings = {"AWS_WEB_IDENTITY_TOKEN_FILE": token, "AWS_ENDPOINT_URL_STS": server.endpoint}
        with in_this_process(home.env(**named, **settings)):
            line = failed("report", f"s3://{BUCKET}/out")
    assert "get_object needs credentials, and AssumeRoleWithWebIdentity is not allowed" in line
    assert "of-the-cluster" not in line


def test_nobody_may_read_what_is_not_public(guarded: Buckets) -> None:
    env = {name: value for name, value in os.environ.items() if name not in KEY}
    with in_this_process(env):
        line = failed(*guarded.args(guarded.new()))
        assert failed("report", f"s3://{OUTPUT}/out").count("no credentials were found") == 1
    assert "s3://features/in" in line
    for tried in ("the environment's AWS_*", "~/.aws", "single sign-on", "the container's", "the machine's"):
        assert tried in line


def test_a_wrong_secret(guarded: Buckets) -> None:
    with in_this_process({**os.environ, "AWS_SECRET_ACCESS_KEY": SECRET}):
        line = failed(*guarded.args(guarded.new()))
        assert "s3://features/in" in line
        assert "SignatureDoesNotMatch" in line
        assert SECRET not in line
    with in_this_process({**os.environ, "AWS_ACCESS_KEY_ID": "AKIANOBODY"}):
        assert "InvalidAccessKeyId" in failed(*guarded.args(guarded.new()))


@pytest.mark.parametrize("code", ["ExpiredToken", "InvalidToken", "RequestTimeTooSkewed"])
def test_a_token_that_has_expired_is_told_at_once(home: Home, code: str) -> None:
    told = f"<Error><Code>{code}</Code><Message>The provided token is of no use.</Message></Error>"
    with answering(lambda asked: Answer(told, 400, {"Content-Type": "application/xml"})) as server:
        named = {"AWS_ACCESS_KEY_ID": "AK", "AWS_SECRET_ACCESS_KEY": SECRET, "AWS_SESSION_TOKEN": "short"}
        with in_this_process(home.env(AWS_ENDPOINT_URL=server.endpoint, **named)):
            lines = [failed(command, f"s3://{BUCKET}/out") for command in ("report", "verify")]
    for line in lines:
        assert f"s3://{BUCKET}/out/_" in line
        assert code in line
    # Nothing twice; but the answer to a HEAD cannot say so, and botocore then looks at the bucket's region.
    gets = [one.path for one in server.asked if one.method == "GET"]
    assert len(gets) == len(set(gets))
    assert "HEAD" in {one.method for one in server.asked}
