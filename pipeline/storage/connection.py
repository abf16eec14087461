"""Connections to object stores: credentials, endpoints, retries, and what their errors mean to a user.

The requests are made by `obstore` (the Rust crate object_store): one interface for S3 and Google Cloud Storage with
conditional writes, ranges, multipart uploads and retries. Credentials are
found by boto3 and google-auth, so that everything works here that works for `aws` and `gcloud`: environment
variables, profiles, single sign-on, roles of instances, containers and pods, service accounts, federation.
"""

import errno
import os
import re
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from functools import lru_cache
from typing import TYPE_CHECKING, Any, TypeVar

from pipeline.errors import BuildError

if TYPE_CHECKING:  # an extra brings it, and who has no object store needs none
    from obstore.store import GCSStore, S3Store

PATIENCE = 120
"""Seconds for which a request that fails for a passing reason is made again, with growing pauses."""
REQUEST = 60
"""Seconds that one request may take before it counts as lost: a part of 8 MiB at 140 kB/s. Far fewer than the patience,
of which one answer that never comes may not eat the whole."""

EXTRAS = {"s3": "s3", "gs": "gcs"}
"""The extra of this package that brings what a scheme needs."""

_GCS_SCOPE = "https://www.googleapis.com/auth/devstorage.read_write"
# botocore keeps temporary credentials valid for ten minutes after it hands them out, not for obstore's half an hour.
_CREDENTIALS_LIFE = timedelta(minutes=5)

Answer = TypeVar("Answer")


@lru_cache(maxsize=64)
def connect(scheme: str, bucket: str, patience: float = PATIENCE) -> "S3Store | GCSStore":
    """The bucket's store; one a process, made at its first use. BuildError where a package or credentials are
    missing, or where there is no such bucket."""
    where = f"{scheme}://{bucket}"
    try:
        return _connect_s3(bucket, patience) if scheme == "s3" else _connect_gcs(bucket, patience)
    except ImportError as error:
        raise BuildError(
            f"{where}: needs {error.name}; `pip install 'longspan[{EXTRAS[scheme]}]'` brings it"
        ) from error


def _connect_s3(bucket: str, patience: float) -> "S3Store":
    import boto3
    import botocore
    from botocore.config import Config
    from botocore.exceptions import BotoCoreError, ClientError
    from obstore.auth.boto3 import Boto3CredentialProvider
    from obstore.store import S3Store

    where = f"s3://{bucket}"
    public = os.environ.get("AWS_SKIP_SIGNATURE", "").lower() in ("true", "1")
    try:
        session = boto3.Session()
        client = session.client("s3", config=Config(signature_version=botocore.UNSIGNED) if public else None)
        if not public and session.get_credentials() is None:
            raise BuildError(
                f"{where}: no credentials; expected AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, a profile "
                "(AWS_PROFILE), a role of this machine, or AWS_SKIP_SIGNATURE=true for a public bucket"
            )
        answer = client.head_bucket(Bucket=bucket)
    except ClientError as error:
        answer = error.response
        if answer["ResponseMetadata"]["HTTPStatusCode"] == 404:
            raise BuildError(f"{where}: there is no such bucket") from error
    except BotoCoreError as error:
        raise BuildError(f"{where}: {first_line(error)}") from error
    # Requests to another region than the bucket's are refused, and few people know it by heart.
    region = answer["ResponseMetadata"]["HTTPHeaders"].get("x-amz-bucket-region") or session.region_name
    config: dict[str, Any] = {"region": region or "us-east-1"}
    endpoint = client.meta.endpoint_url
    if not re.search(r"\.amazonaws\.com(\.cn)?$", endpoint):
        config["endpoint"] = endpoint
    provider = (
        {} if public else {"credential_provider": Boto3CredentialProvider(session, ttl=_CREDENTIALS_LIFE)}
    )
    return S3Store(bucket, config=config, **_transport(endpoint, patience), **provider)  # type: ignore[arg-type]


def _connect_gcs(bucket: str, patience: float) -> "GCSStore":
    from obstore.store import GCSStore

    endpoint = os.environ.get("STORAGE_EMULATOR_HOST")  # as Google's own libraries have it
    if endpoint:
        endpoint = endpoint if "://" in endpoint else f"http://{endpoint}"
        return GCSStore(
            bucket,
            config={"base_url": endpoint.rstrip("/")},
            credential_provider=_no_credentials,
            **_transport(endpoint, patience),
        )
    import google.auth
    from google.auth.exceptions import GoogleAuthError
    from obstore.auth.google import GoogleCredentialProvider

    try:
        credentials, _ = google.auth.default(scopes=[_GCS_SCOPE])
    except GoogleAuthError as error:
        raise BuildError(f"gs://{bucket}: {first_line(error)}") from error
    provider = GoogleCredentialProvider(credentials)
    return GCSStore(bucket, credential_provider=provider, **_transport("https://", patience))


def _no_credentials() -> Any:
    return {"token": "emulator", "expires_at": None}


def _transport(endpoint: str, patience: float) -> Any:
    return {
        "client_options": {
            "allow_http": endpoint.startswith("http://"),
            "timeout": timedelta(seconds=min(REQUEST, patience / 2)),
            "connect_timeout": timedelta(seconds=min(10.0, patience / 2)),
        },
        "retry_config": {"max_retries": 10, "retry_timeout": timedelta(seconds=patience)},
    }


def repeated(where: str, request: Callable[[], Answer], patience: float | None = None) -> Answer:
    """What `request` returns; it is made again while it fails for a passing reason, within the patience. Errors as of
    `errors_named`.

    obstore repeats lost reads, and for a few seconds what was refused or answered with 5xx. It does not repeat a
    conditional write or a removal whose answer was lost, since that may have been done. So `request` must be one that
    may be made twice, and whoever calls this must take a failed condition for what it may be: the first's success.
    """
    from obstore.exceptions import GenericError

    end = time.monotonic() + (PATIENCE if patience is None else patience)
    pause = 0.1
    while True:
        with errors_named(where):
            try:
                return request()
            except GenericError as error:
                if not _passing(error) or time.monotonic() + pause > end:
                    raise
        time.sleep(pause)
        pause = min(2 * pause, 10.0)


def _passing(error: Exception) -> bool:
    """Whether the store was busy or its answer was lost: in object_store's words, which has no class for it. One that
    did not even connect at any of its own retries cannot be reached."""
    message = first_line(error)
    if re.search(r"status code: (5\d\d|429)", message):
        return True
    return "HTTP error: " in message and not re.search(r", after (\d+) retries, max_retries: \1,", message)


@contextmanager
def errors_named(where: str) -> Iterator[None]:
    """Errors of the store as ours, which say what place they are about: FileNotFoundError where there is no such
    object, BuildError where the store refuses or cannot be reached. Those of conditions pass."""
    from obstore import exceptions

    try:
        yield
    except (exceptions.AlreadyExistsError, exceptions.PreconditionError):
        raise
    except FileNotFoundError as error:
        raise FileNotFoundError(errno.ENOENT, "no such object", where) from error
    except (exceptions.PermissionDeniedError, exceptions.UnauthenticatedError) as error:
        raise BuildError(
            f"{where}: the store refuses access with these credentials; expected some that may list, read, write "
            f"and delete there. It says: {first_line(error)}"
        ) from error
    except exceptions.BaseError as error:
        raise BuildError(f"{where}: {first_line(error)}") from error


def first_line(error: BaseException) -> str:
    """The part of a message that people read, without names and passwords that an endpoint may have in it."""
    line = (str(error).strip() or type(error).__name__).splitlines()[0]
    return re.sub(r"//[^/@\s]*@", "//", line)[:500]
