"""As whom buckets are asked, and who said so. Never what proves it."""

from __future__ import annotations

from job import objects
from job.checks import Check

EXTRAS = {"s3": "s3", "gs": "gcs"}
_STORES = {"s3": "S3", "gs": "Cloud Storage"}
_HOW = {
    "s3": "set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, AWS_PROFILE, or give the machine a role",
    "gs": "set GOOGLE_APPLICATION_CREDENTIALS, run `gcloud auth application-default login`, or give the "
    "machine a service account",
}


def name(scheme: str) -> str:
    """Return what the check is called."""
    return f"{_STORES[scheme]} credentials"


def found(scheme: str) -> str:
    """Return what a store's client finds, empty where its requests are not signed.

    Raises:
        UsageError: the client is not installed.
        StorageError: what is configured for it cannot be used.
    """
    return objects.client(scheme).credentials()


def told(scheme: str, source: str) -> Check:
    """Say where the credentials come from; without any, public buckets can still be read."""
    if source:
        return Check(name(scheme), True, f"found: {source}")
    return Check(name(scheme), None, "none are found: only what everybody may do can be done", _HOW[scheme])
