"""Nights from one bucket to another, of either store; in S3 by a user who may do what a test says."""

from __future__ import annotations

import contextlib
import functools
import io
import itertools
import json
import re
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from job.spec import StoreOptions
from tests.support.nights import dense, saved
from tests.support.servers import clients, stores
from tests.support.servers.proxy import Entry, Fault, Proxy, proxy
from tests.support.store_nights import FLAGS, environment, own_clients, shard

ROOT = Path(__file__).parents[2]
INPUT, OUTPUT = "features", "predictions"
SHARDS = 2
USER = "job"
PAYER = "payer"
KMS_KEYS = {
    "s3": "arn:aws:kms:eu-west-1:123456789012:key/0123-recognisable",
    "gs": "projects/p/locations/europe/keyRings/r/cryptoKeys/0123-recognisable",
}
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

    def stop(self, output: str, *flags: str) -> None:
        """Run a night that is stopped before it is published."""
        self.proxy.set(faults=[STOPS[self.scheme]])
        code, _, err = run(*self.args(output, *flags))
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

    def uploads(self) -> list[str]:
        """The keys of S3's uploads that are not finished."""
        return [one["Key"] for one in self.store.list_multipart_uploads(Bucket=OUTPUT).get("Uploads", ())]

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


@dataclass(frozen=True)
class Lived:
    """What the store was asked in an output's life, and what of the output was left in the end."""

    requests: tuple[Entry, ...]
    left: tuple[str, ...]
    uploads: tuple[str, ...]


@functools.cache
def lived(scheme: str) -> Lived:
    """Do all that is done to an output in its life, paid by ``PAYER``, encrypted by ``KMS_KEYS``."""
    flags = (f"--requester_pays={PAYER}", f"--kms_key={KMS_KEYS[scheme]}")
    start = s3_buckets if scheme == "s3" else gs_buckets
    with tempfile.TemporaryDirectory() as folder, start(Path(folder)) as buckets:
        output = buckets.new()
        buckets.stop(output, *flags)
        check(0, "", *buckets.args(output, *flags))
        check(0, "already published", *buckets.args(output, *flags))
        check(0, "", *buckets.args(output, "--compression=lz4", "--if_exists=replace", *flags))
        # Who only reads encrypts nothing.
        check(0, "all is right", "verify", "--sample_rows=all", output, flags[0])
        check(0, "116 scored of 120 read, 4 rejected", "report", output, flags[0])
        buckets.stop(output, "--compression=gzip", "--if_exists=replace", *flags)
        check(0, "removed", "clean", output, *flags)
        left = tuple(buckets.objects(output))
        uploads = buckets.uploads() if scheme == "s3" else []
        _write_in_parts(f"{output}/large")
        return Lived(buckets.proxy.counts().requests, left, tuple(uploads))


def _write_in_parts(path: str) -> None:
    """Write an object that is larger than any of these nights'."""
    from job import storage
    from job.storage import gcs
    from job.storage import objects as storage_objects

    with pytest.MonkeyPatch.context() as patch:
        for module in (gcs, storage_objects):
            patch.setattr(module, "PART_BYTES", 5 << 20)
        sink = storage.create(path)
        sink.write(bytes(6 << 20))
        sink.seal()


def run(*command: str) -> tuple[int, str, str]:
    """Run a command in this process and return exit code, output and error output."""
    from job.cli import main
    from job.storage import objects

    # As a process of its own has it, which knows nothing of the command before.
    objects.configure(StoreOptions())
    with contextlib.redirect_stdout(io.StringIO()) as out, contextlib.redirect_stderr(io.StringIO()) as err:
        code = main.main(list(command))
    return code, out.getvalue(), err.getvalue()


def check(code: int, said: str, *command: str) -> str:
    """Run a command, look at its exit code and at what it says, and return its error output."""
    done, out, err = run(*command)
    assert done == code, err
    assert said in out + err
    return err


def failed(*command: str) -> str:
    """Run a command that must end with exit code 1, and return its one line about that."""
    err = check(1, "", *command)
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
