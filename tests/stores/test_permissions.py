"""The permissions of the documentation: enough for all that the job does, and not one too many."""

from __future__ import annotations

import json
import re
from collections import defaultdict
from collections.abc import Iterator

import pytest

from tests.support.permissions import (
    INPUT,
    OUTPUT,
    ROOT,
    SHARDS,
    Buckets,
    Policy,
    check,
    failed,
    granting,
    grants,
    lived,
    policy,
    s3_buckets,
)
from tests.support.servers.proxy import Entry

WHOLE, READING = policy("s3.json"), policy("s3-read.json")
# What S3 asks for where a key is given, and the server does not: whoever uses --kms_key grants them besides.
NOT_ENFORCED = ("kms:GenerateDataKey", "kms:Decrypt")
# The others are missed when a night is scored.
MISSED_BY_CLEAN = ("s3:ListBucketMultipartUploads", "s3:AbortMultipartUpload")


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Buckets]:
    with s3_buckets(tmp_path_factory.mktemp("night")) as one:
        yield one


@pytest.fixture
def buckets(shared: Buckets) -> Buckets:
    """Both buckets, and a user who may do what the documentation says."""
    shared.proxy.reset()
    shared.allow(WHOLE)
    return shared


def without(of: Policy, missing: tuple[str, str]) -> Policy:
    return granting([one for one in grants(of) if one != missing])


def told(pairs: list[tuple[str, str]]) -> list[str]:
    return [f"{action} {resource.removeprefix('arn:aws:s3:::')}" for action, resource in pairs]


def test_the_policy_is_enough() -> None:
    """For a night that is stopped, resumed, repeated, replaced, verified and reported, and for cleaning."""
    life = lived("s3")
    assert not any("/_staging/" in name for name in life.left)
    assert len(life.left) == SHARDS + 1 + len(("_SUCCESS", "_manifest.json", "_report.json", "_report.html"))
    assert life.uploads == ()


@pytest.mark.parametrize("missing", grants(WHOLE), ids=told(grants(WHOLE)))
def test_none_of_it_is_too_much(buckets: Buckets, missing: tuple[str, str]) -> None:
    action, resource = missing
    output = buckets.new()
    command = buckets.args(output)
    if action in MISSED_BY_CLEAN:
        buckets.stop(output)
        command = ["clean", output]
    buckets.allow(without(WHOLE, missing))
    line = failed(*command)
    assert f"s3://{resource.removeprefix('arn:aws:s3:::').removesuffix('/*')}/" in line
    assert f"it takes {action}" in line or f"and {action} where" in line
    # Whoever gets what was missing goes on where this one stopped.
    buckets.allow(WHOLE)
    free_the_lease(buckets, output)
    check(0, "", *command)
    assert buckets.uploads() == []


def free_the_lease(buckets: Buckets, output: str) -> None:
    """One that could not be removed, or read, is held by this process, as by the next try."""
    buckets.store.delete_object(Bucket=OUTPUT, Key=f"{output.rpartition('/')[2]}/_staging/lease")


def test_what_the_server_does_not_ask_for(buckets: Buckets) -> None:
    assert not {action for action, _ in grants(WHOLE)} & {*NOT_ENFORCED}
    check(0, "", *buckets.args(buckets.new(), "--kms_key=alias/nobody"))
    told = (ROOT / "docs" / "object-stores.md").read_text()
    assert all(action in told for action in NOT_ENFORCED)


def test_who_may_only_read_can_verify_and_report(buckets: Buckets) -> None:
    output, unseen = buckets.new(), ("s3:ListBucket", f"arn:aws:s3:::{INPUT}")
    check(0, "", *buckets.args(output))
    buckets.allow(READING)
    check(0, "all is right", "verify", "--sample_rows=all", output)
    check(0, "rows ", "report", output)
    assert "it takes s3:PutObject" in failed("clean", output)
    for missing in grants(READING):
        buckets.allow(without(READING, missing))
        if missing != unseen:
            line = failed("verify", output)
            assert f"s3://{missing[1].removeprefix('arn:aws:s3:::').removesuffix('/*')}/" in line
            assert missing[0] in line
    # Only who may list is told that a shard is gone, and not that it is secret.
    key = "in/part-1.parquet"
    shard = buckets.store.get_object(Bucket=INPUT, Key=key)["Body"].read()
    buckets.store.delete_object(Bucket=INPUT, Key=key)
    buckets.allow(READING)
    check(5, f"s3://{INPUT}/{key}: the shard is gone", "verify", output)
    buckets.allow(without(READING, unseen))
    assert f"s3://{INPUT}/{key}: get_object is not allowed" in failed("verify", output)
    buckets.put(key, shard)


def test_cloud_storage_is_asked_for_what_the_roles_allow() -> None:
    """The server checks nothing, so what Google documents for each request is what counts."""
    needed: dict[str, set[str]] = defaultdict(set)
    for one in lived("gs").requests:
        for bucket, permission in permissions_of(one):
            needed[bucket].add(permission)
    assert needed == {INPUT: role("gcs-read.json"), OUTPUT: role("gcs.json")}


def role(name: str) -> set[str]:
    """The permissions of a role, in the form that ``gcloud iam roles create --file`` takes."""
    content = json.loads((ROOT / "docs" / "iam" / name).read_text())
    assert content.keys() == {"title", "description", "stage", "includedPermissions"}
    assert content["includedPermissions"] == sorted(content["includedPermissions"])
    return set(content["includedPermissions"])


# https://cloud.google.com/storage/docs/access-control/iam-json. To write takes storage.objects.delete as well
# where an object is replaced; the job may delete what it writes in any case.
DOCUMENTED = (
    ("GET /storage/v1/b/[^/]+/o", "storage.objects.list"),
    ("GET (/download)?/storage/v1/b/[^/]+/o/[^/]+", "storage.objects.get"),
    ("DELETE /storage/v1/b/[^/]+/o/[^/]+", "storage.objects.delete"),
    ("(POST|PUT) /upload/storage/v1/b/[^/]+/o", "storage.objects.create"),
    ("POST /storage/v1/b/[^/]+/o/[^/]+/rewriteTo/b/[^/]+/o/[^/]+", "storage.objects.create"),
)


def permissions_of(request: Entry) -> list[tuple[str, str]]:
    """Buckets and what a request takes there; all of them are known, so none takes storage.buckets.get."""
    asked = f"{request.method} {request.target.partition('?')[0]}"
    found = [permission for form, permission in DOCUMENTED if re.fullmatch(form, asked)]
    assert len(found) == 1, asked
    pairs = [(request.key.partition("/")[0], found[0])]
    if "/rewriteTo/" in asked:
        pairs.append((asked.split("/")[4], "storage.objects.get"))
    return pairs
