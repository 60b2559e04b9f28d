"""S3 as far as this project needs it: listings, objects, and signed URLs for nodes.

boto3 is imported when first used: a run without S3 does not pay for it.
Whatever S3 answers becomes one message that names operation, bucket and key, and what to do.
"""

import contextlib
import dataclasses
import functools
import os
import random
import re
import time
import urllib.parse
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

from workflows.config import Settings, settings
from workflows.errors import CheckpointError, SourceError, WorkflowsError
from workflows.node.role import PREFIX
from workflows.storage import presign
from workflows.storage.place import SCHEME, Place, place_of
from workflows.storage.remedies import explanation, unreachable
from workflows.storage.store import Stored

if TYPE_CHECKING:
    from mypy_boto3_s3 import S3Client

_HEAD = 1 << 16
_AMAZON = re.compile(r"//s3[.-][^/]*amazonaws\.com")
TRIES = 6  # of each call, with waits that double up to 20 s; AWS_MAX_ATTEMPTS overrides it


# -- calls ---------------------------------------------------------------------------------------


class _Client:
    """A boto3 client that a fork may inherit: it shares no connection with its parent."""

    def __init__(self, chosen: Settings) -> None:
        import boto3
        from botocore.config import Config

        retries: dict[str, Any] = {"mode": "standard"}
        if "AWS_MAX_ATTEMPTS" not in os.environ:
            retries["total_max_attempts"] = TRIES
        session = boto3.session.Session(profile_name=chosen.s3_profile or None)
        # boto3 reads AWS_DEFAULT_REGION, but not AWS_REGION as other SDKs do.
        said = chosen.s3_region or os.environ.get("AWS_REGION") or session.region_name

        def made(style: str) -> "S3Client":
            config = Config(
                signature_version="s3v4",  # presigning for another endpoint defaults to version 2
                s3={"addressing_style": style},  # type: ignore[arg-type]
                retries=retries,  # type: ignore[arg-type]
                max_pool_connections=32,
                connect_timeout=10,
                read_timeout=60,
            )
            return session.client(
                "s3",
                endpoint_url=chosen.s3_endpoint_url or None,
                region_name=said or "us-east-1",
                config=config,
            )

        self._client = made(chosen.s3_addressing)
        if chosen.s3_addressing == "auto" and _AMAZON.search(self._client.meta.endpoint_url):
            # With "auto" boto3 signs URLs for the global endpoint, which redirects for a new bucket
            # elsewhere (ansible-collections/community.aws#637), and refuses newer regions
            # (boto/boto3#4768).
            self._client = made("virtual")
        self._credentials = session.get_credentials()
        self._signers: dict[tuple[str, str, int], presign.Signer | None] = {}
        self._owner = os.getpid()

    def signer(self, method: str, bucket: str, holds_s: int) -> presign.Signer | None:
        """Return what signs many URLs for a method and a bucket, if that can be done here."""
        asked = (method, bucket, holds_s)
        if asked not in self._signers:
            params = {"Bucket": bucket, "Key": presign.EXAMPLE}
            if method == "put_object":
                params["ContentMD5"] = presign.EXAMPLE_MD5
            url = self.get().generate_presigned_url(method, Params=params, ExpiresIn=holds_s)
            verb = {"get_object": "GET", "put_object": "PUT"}[method]
            self._signers[asked] = presign.signer_like(url, verb, self._credentials)
        return self._signers[asked]

    def get(self) -> "S3Client":
        if self._owner != os.getpid():
            self._client.close()  # only the connections: they are the parent's
            self._owner = os.getpid()
        return self._client


_client = functools.lru_cache(maxsize=8)(_Client)


# Where buckets are, as Amazon says with each listing, or is asked for before the first URL. boto3
# finds that out by itself for calls, yet signs URLs for the region it was given.
_regions: dict[str, str] = {}


def _connected(bucket: str) -> _Client:
    chosen = _client(settings())
    region = _regions.get(bucket)
    if region is None or region == chosen.get().meta.region_name:
        return chosen
    return _client(dataclasses.replace(settings(), s3_region=region))


def _find(bucket: str) -> None:
    """Learn where a bucket is, unless that is known: Amazon says so even if it denies access."""
    from botocore.exceptions import ClientError

    if bucket in _regions:
        return
    there = _client(settings()).get()
    try:
        said = there.head_bucket(Bucket=bucket)["ResponseMetadata"]["HTTPHeaders"]
    except ClientError as error:
        said = error.response["ResponseMetadata"]["HTTPHeaders"]
    _regions[bucket] = said.get("x-amz-bucket-region") or there.meta.region_name


def client(bucket: str) -> "S3Client":
    """Return the client for a bucket that the settings of this moment describe."""
    return _connected(bucket).get()


@contextlib.contextmanager
def explained(
    operation: str, place: Place, kind: type[WorkflowsError] = CheckpointError
) -> Iterator[None]:
    """Turn what boto3 raises into one message that says what to do."""
    from botocore.exceptions import BotoCoreError, ClientError

    try:
        yield
    except ClientError as error:
        about = error.response.get("Error", {})
        code = str(about.get("Code", ""))
        headers = error.response.get("ResponseMetadata", {}).get("HTTPHeaders", {})
        region = str(about.get("Region") or headers.get("x-amz-bucket-region", ""))
        if region == client(place.bucket).meta.region_name:
            region = ""  # it was asked where the bucket is: that is not the fault
        why = f"{code} {about.get('Message', '')}".strip()
        raise kind(explanation(operation, place, code, why, region)) from error
    except BotoCoreError as error:
        raise kind(unreachable(operation, place, error)) from error


def sign(
    method: str,
    place: Place,
    kind: type[WorkflowsError] = CheckpointError,
    md5: str = "",
    **more: Any,
) -> str:
    """Return a URL with which whoever has it may do one thing with one object: a secret.

    An upload is signed for the MD5 of its body, in base64: it is refused with another Content-MD5,
    and with one if none is signed.
    """
    with explained("GetObject" if method == "get_object" else "PutObject", place, kind):
        params = {"Bucket": place.bucket, "Key": place.key, **more}
        params |= {"ContentMD5": md5} if md5 else {}
        holds_s = settings().s3_signature_s
        _find(place.bucket)
        signer = None if more else _connected(place.bucket).signer(method, place.bucket, holds_s)
        if signer is not None:
            return signer(place.key, md5)
        return client(place.bucket).generate_presigned_url(method, Params=params, ExpiresIn=holds_s)


def for_node(signed: str) -> str:
    """Return what a node is given in place of a signed URL: that, or what it is to sign itself."""
    if settings().s3_nodes != "role":
        return signed
    plain, _, query = signed.partition("?")
    region = urllib.parse.parse_qs(query)["X-Amz-Credential"][0].split("/")[-3]
    kept = "&".join(part for part in query.split("&") if not part.startswith("X-Amz-"))
    return f"{PREFIX}{region}:{plain}{'?' if kept else ''}{kept}"


def signed(url: str) -> str:
    """Return the URL with which this machine reads a source key: signed if it is in S3."""
    if not url.startswith(SCHEME):
        return url
    return sign("get_object", place_of(url), SourceError)


def transit(url: str) -> str:
    """Return the URL that a node is given for a source key; it may have to sign it itself."""
    return for_node(signed(url)) if url.startswith(SCHEME) else url


def listing(place: Place, kind: type[WorkflowsError] = CheckpointError) -> Iterator[Stored]:
    """Yield all objects whose key begins with the place's, sorted; one call for 1,000 of them."""
    with explained("ListBucket", place, kind):
        pages = client(place.bucket).get_paginator("list_objects_v2")
        for page in pages.paginate(Bucket=place.bucket, Prefix=place.key):
            said = page["ResponseMetadata"]["HTTPHeaders"].get("x-amz-bucket-region")
            if said:
                _regions[place.bucket] = said
            for item in page.get("Contents", ()):
                etag = item["ETag"].strip('"')
                yield Stored(item["Key"], item["Size"], item["LastModified"].timestamp(), etag)


def status(place: Place) -> Stored | None:
    """Return what there is at exactly this key, or None.

    Raises:
        SourceError: it cannot be asked for.
    """
    found = next(listing(place, SourceError), None)  # a HEAD would not say why it is refused
    return found if found is not None and found.name == place.key else None


def read(
    place: Place,
    kind: type[WorkflowsError] = CheckpointError,
    look: Callable[[bytes, int | None], None] | None = None,
) -> bytes | None:
    """Return an object's bytes, or None if there is none; a body that breaks off is read again.

    `look` is given the first bytes and the size, and may refuse the rest.
    """
    from botocore.exceptions import ClientError, HTTPClientError

    with explained("GetObject", place, kind):
        for attempt in range(TRIES):
            try:
                answer = client(place.bucket).get_object(Bucket=place.bucket, Key=place.key)
                with contextlib.closing(answer["Body"]) as body:
                    head = body.read(_HEAD) if look else b""
                    if look:
                        look(head, answer["ContentLength"])
                    return head + body.read()
            except ClientError as error:
                if error.response.get("Error", {}).get("Code") == "NoSuchKey":
                    return None
                raise
            except HTTPClientError:
                if attempt == TRIES - 1:
                    raise
                wait(attempt)
    raise AssertionError("unreachable")


def stream(place: Place, kind: type[WorkflowsError] = CheckpointError) -> Iterator[bytes]:
    """Yield an object's bytes, however many; a body that breaks off is an error."""
    with explained("GetObject", place, kind):
        answer = client(place.bucket).get_object(Bucket=place.bucket, Key=place.key)
        yield from answer["Body"].iter_chunks(1 << 20)


def wait(attempt: int) -> None:
    """Wait before something is tried again, the longer the more often it was."""
    time.sleep(random.uniform(0.5, 1.0) * min(0.2 * 2.0**attempt, 10.0))  # noqa: S311 - no secret
