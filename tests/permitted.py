"""Nights from one bucket to another, of either store; in S3 by a user who may do what a test says."""

from __future__ import annotations

import contextlib
import io
import itertools
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from tests.nights import dense, run_cli, saved
from tests.servers import clients, stores
from tests.servers.proxy import Fault, Proxy, proxy
from tests.store_nights import FLAGS, environment, own_clients, shard

ROOT = Path(__file__).parents[1]
INPUT, OUTPUT = "features", "predictions"
SHARDS = 2
USER = "job"
# So many requests are not asked for permissions: they make the one who may do everything.
UNASKED = 3
# What stops a night when its splits are scored and nothing is published yet.
STOPS = {"s3": Fault("403", r"^PUT .*/publishing\.json"), "gs": Fault("403", "^POST /upload/", at=4)}
_outputs = (f"night{number}" for number in itertools.count())

Policy = dict[str, Any]


@dataclass(frozen=True)
class Buckets:
    """Two buckets behind a proxy; the job in this process goes through it."""

    scheme: str
    proxy: Proxy
    # Of one who may do everything, past the proxy: boto3's clients, or google-cloud-storage's.
    store: Any
    iam: Any
    # The environment's own of the job's user.
    user: Mapping[str, str]

    def new(self) -> str:
        return f"{self.scheme}://{OUTPUT}/{next(_outputs)}"

    def allow(self, policy: Policy) -> None:
        """Let the job's user do this, and no more."""
        self.iam.put_user_policy(UserName=USER, PolicyName="job", PolicyDocument=json.dumps(policy))

    def args(self, output: str, *flags: str) -> list[str]:
        top = f"{self.scheme}://{INPUT}"
        return ["score", f"--input={top}/in", f"--model={top}/m.keras", f"--output={output}", *FLAGS, *flags]

    def stop(self, capfd: pytest.CaptureFixture[str], output: str, *flags: str) -> None:
        """Run a night that is stopped before it is published."""
        self.proxy.set(faults=[STOPS[self.scheme]])
        code, _, err = run_cli(capfd, *self.args(output, *flags))
        self.proxy.set(faults=[])
        assert code == 1, err

    def objects(self, output: str) -> dict[str, bytes]:
        """All objects of an output, staging included."""
        prefix = f"{output.removeprefix(f'{self.scheme}://{OUTPUT}/')}/"
        if self.scheme == "s3":
            listed = self.store.list_objects_v2(Bucket=OUTPUT, Prefix=prefix).get("Contents", ())
            keys = [one["Key"] for one in listed]
            return {key: self.store.get_object(Bucket=OUTPUT, Key=key)["Body"].read() for key in keys}
        return {blob.name: blob.download_as_bytes() for blob in self.store.list_blobs(OUTPUT, prefix=prefix)}

    def put(self, key: str, content: bytes) -> None:
        if self.scheme == "s3":
            self.store.put_object(Bucket=INPUT, Key=key, Body=content)
        else:
            self.store.bucket(INPUT).blob(key).upload_from_string(content)

    def fill(self, folder: Path) -> None:
        """Make both buckets, and put shards and a model into the first."""
        for bucket in (INPUT, OUTPUT):
            if self.scheme == "s3":
                self.store.create_bucket(Bucket=bucket)
            else:
                self.store.bucket(bucket).create()
        for number in range(SHARDS):
            content = io.BytesIO()
            pq.write_table(shard(number), content, row_group_size=20)
            self.put(f"in/part-{number}.parquet", content.getvalue())
        self.put("m.keras", saved(dense(), folder / "m.keras").read_bytes())


def life(buckets: Buckets, capfd: pytest.CaptureFixture[str], *flags: str) -> str:
    """All that is done to an output in its life, by commands with these flags; returns it."""
    output = buckets.new()
    # Who only reads encrypts nothing.
    reading = [flag for flag in flags if not flag.startswith("--kms_key")]
    buckets.stop(capfd, output, *flags)
    check(capfd, 0, "", *buckets.args(output, *flags))
    check(capfd, 0, "already published", *buckets.args(output, *flags))
    check(capfd, 0, "", *buckets.args(output, "--compression=lz4", "--if_exists=replace", *flags))
    check(capfd, 0, "all is right", "verify", "--sample_rows=all", output, *reading)
    check(capfd, 0, "116 scored of 120 read, 4 rejected", "report", output, *reading)
    buckets.stop(capfd, output, "--compression=gzip", "--if_exists=replace", *flags)
    check(capfd, 0, "removed", "clean", output, *flags)
    return output


def check(capfd: pytest.CaptureFixture[str], code: int, said: str, *command: str) -> str:
    """Run a command, look at its exit code and at what it says, and return its error output."""
    done, out, err = run_cli(capfd, *command)
    assert done == code, err
    assert said in out + err
    return err


def failed(capfd: pytest.CaptureFixture[str], *command: str) -> str:
    """Run a command that must end with exit code 1, and return its one line about that."""
    err = check(capfd, 1, "", *command)
    (line,) = [line for line in err.splitlines() if line.startswith("error: ")]
    assert "Traceback" not in err
    return line


def policy(name: str) -> Policy:
    """A policy of the documentation, for these buckets."""
    text = (ROOT / "docs" / "iam" / name).read_text()
    return dict(json.loads(re.sub(r":::(INPUT|OUTPUT)", lambda found: f":::{globals()[found[1]]}", text)))


def grants(of: Policy) -> list[tuple[str, str]]:
    """Every pair of an action and the resource that it is allowed on."""
    pairs = [itertools.product(one["Action"], one["Resource"]) for one in of["Statement"]]
    return list(itertools.chain.from_iterable(pairs))


def granting(pairs: Sequence[tuple[str, str]]) -> Policy:
    """The policy that allows these."""
    statements = [{"Effect": "Allow", "Action": action, "Resource": on} for action, on in pairs]
    return {"Version": "2012-10-17", "Statement": statements}


@contextlib.contextmanager
def s3_buckets(folder: Path) -> Iterator[Buckets]:
    """An S3 that asks IAM about every request."""
    with (
        stores.s3_server(INITIAL_NO_AUTH_ACTION_COUNT=str(UNASKED)) as store,
        proxy(store) as way,
        contextlib.ExitStack() as stack,
    ):
        maker = _client("iam", store, {"AWS_ACCESS_KEY_ID": "k", "AWS_SECRET_ACCESS_KEY": "s"})
        maker.create_user(UserName="admin")
        everything = json.dumps(granting([("*", "*")]))
        maker.put_user_policy(UserName="admin", PolicyName="all", PolicyDocument=everything)
        admin = _key(maker, "admin")
        iam, s3 = (_client(service, store, admin) for service in ("iam", "s3"))
        for client in (maker, iam, s3):
            stack.callback(client.close)
        iam.create_user(UserName=USER)
        buckets = Buckets("s3", way, s3, iam, _key(iam, USER))
        buckets.allow(policy("s3.json"))
        buckets.fill(folder)
        with in_this_process({**environment("s3", way.endpoint), **buckets.user}):
            yield buckets


@contextlib.contextmanager
def gs_buckets(folder: Path) -> Iterator[Buckets]:
    """A Cloud Storage, which asks for nothing."""
    with stores.gcs_server() as store, proxy(store) as way:
        client = clients.gcs_bucket(store).client
        buckets = Buckets("gs", way, client, None, {})
        buckets.fill(folder)
        with in_this_process(environment("gs", way.endpoint)):
            yield buckets
        client.close()


@contextlib.contextmanager
def in_this_process(env: Mapping[str, str]) -> Iterator[None]:
    """In the body, this is the environment, and the job's clients are made from it."""
    with pytest.MonkeyPatch.context() as patch:
        stores.apply(patch, env)
        with own_clients():
            yield


def _key(iam: Any, user: str) -> dict[str, str]:
    made = iam.create_access_key(UserName=user)["AccessKey"]
    return {"AWS_ACCESS_KEY_ID": made["AccessKeyId"], "AWS_SECRET_ACCESS_KEY": made["SecretAccessKey"]}


def _client(service: str, endpoint: str, key: Mapping[str, str]) -> Any:
    named = {name.lower(): value for name, value in key.items()}
    session = clients.boto3.session.Session(region_name="us-east-1", **named)
    return session.client(service, endpoint_url=endpoint)
