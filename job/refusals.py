"""What to say where a store does not let a request pass, or nobody knows who asks. No I/O."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

NO_CREDENTIALS: Final[Mapping[str, str]] = {
    "s3": (
        "no credentials were found (tried the environment's AWS_*, ~/.aws, single sign-on, the container's "
        "and the machine's role), and the bucket is not public; configure one of them"
    ),
    "gs": (
        "no credentials were found (tried GOOGLE_APPLICATION_CREDENTIALS, gcloud's own, and the machine's "
        "service account), and the bucket is not public; set one of them up"
    ),
}
# S3 often does not say which action a request takes; Cloud Storage does.
_S3_ACTIONS: Final[Mapping[str, str]] = {
    "head_object": "s3:GetObject, and s3:ListBucket where there may be no such object",
    "get_object": "s3:GetObject, and s3:ListBucket where there may be no such object",
    "list_objects_v2": "s3:ListBucket",
    "list_multipart_uploads": "s3:ListBucketMultipartUploads",
    "list_parts": "s3:ListMultipartUploadParts",
    "abort_multipart_upload": "s3:AbortMultipartUpload",
    "delete_object": "s3:DeleteObject",
    "delete_objects": "s3:DeleteObject",
    "copy_object": "s3:PutObject, and s3:GetObject on what is copied",
}


def denied(operation: str, asked: str = "") -> str:
    """Return what to say of an S3 request that is not allowed, and the permission that it takes.

    ``operation`` is boto3's name for it, ``asked`` that of the request which was refused: for credentials of
    a role others are sent first, and take other permissions.
    """
    if asked and asked.lower() != operation.replace("_", ""):
        return f"{operation} needs credentials, and {asked} is not allowed"
    return f"{operation} is not allowed: it takes {_S3_ACTIONS.get(operation, 's3:PutObject')}"


def no_client(store: str, error: str) -> str:
    """Return what to say where what is configured for a store's client cannot be used."""
    return f"{store}: what the environment or a file configures for it cannot be used: {error}; correct it"
