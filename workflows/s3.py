"""S3 as far as this project needs it: listings, one conditional PUT, and signed URLs for nodes.

Only this module knows boto3, and imports it when first used: a run without S3 does not pay for it.
Whatever S3 answers becomes one message that names operation, bucket and key, and what to do.
"""

import contextlib
import functools
import os
import random
import time
from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from workflows import presign
from workflows.config import Settings, settings
from workflows.errors import CheckpointError, SourceError, UsageError, WorkflowsError
from workflows.node.role import PREFIX
from workflows.remedies import explanation, unreachable
from workflows.store import Stored

if TYPE_CHECKING:
    from mypy_boto3_s3 import S3Client

SCHEME = "s3://"
_TRIES = 6  # of each call, with waits that double up to 20 s; AWS_MAX_ATTEMPTS overrides it
_DELETED_AT_ONCE = 1000


class Place(NamedTuple):
    """A bucket and a key in it, or the prefix of keys."""

    bucket: str
    key: str

    @property
    def url(self) -> str:
        """Return its stable URL: unquoted, as the AWS command line writes it."""
        return f"{SCHEME}{self.bucket}/{self.key}"


def place_of(url: str) -> Place:
    """Return the bucket and key of an ``s3://`` URL.

    >>> place_of("s3://nyc-tlc/trip data/100%+é.csv")
    Place(bucket='nyc-tlc', key='trip data/100%+é.csv')

    Raises:
        UsageError: it names no bucket.
    """
    bucket, _, key = url.removeprefix(SCHEME).partition("/")
    if not url.startswith(SCHEME) or not bucket:
        raise UsageError(f"{url} is no S3 URL: write s3://BUCKET/PREFIX/")
    return Place(bucket, key)


# -- calls ---------------------------------------------------------------------------------------


class _Client:
    """A boto3 client that a fork may inherit: it shares no connection with its parent."""

    def __init__(self, chosen: Settings) -> None:
        import boto3
        from botocore.config import Config

        retries: dict[str, Any] = {"mode": "standard"}
        if "AWS_MAX_ATTEMPTS" not in os.environ:
            retries["total_max_attempts"] = _TRIES
        config = Config(
            signature_version="s3v4",  # presigning for another endpoint defaults to version 2
            s3={"addressing_style": chosen.s3_addressing},  # type: ignore[arg-type]
            retries=retries,  # type: ignore[arg-type]
            max_pool_connections=32,
            connect_timeout=10,
            read_timeout=60,
        )
        session = boto3.session.Session(profile_name=chosen.s3_profile or None)
        self._client = session.client(
            "s3",
            endpoint_url=chosen.s3_endpoint_url or None,
            region_name=chosen.s3_region or session.region_name or "us-east-1",
            config=config,
        )
        self._credentials = session.get_credentials()
        self._signers: dict[tuple[str, str, int], presign.Signer | None] = {}
        self._owner = os.getpid()

    def signer(self, method: str, bucket: str, holds_s: int) -> presign.Signer | None:
        """Return what signs many URLs for a method and a bucket, if that can be done here."""
        asked = (method, bucket, holds_s)
        if asked not in self._signers:
            params = {"Bucket": bucket, "Key": presign.EXAMPLE}
            url = self.get().generate_presigned_url(method, Params=params, ExpiresIn=holds_s)
            verb = {"get_object": "GET", "put_object": "PUT"}[method]
            self._signers[asked] = presign.signer_like(url, verb, self._credentials)
        return self._signers[asked]

    def get(self) -> "S3Client":
        if self._owner != os.getpid():
            self._client.close()  # only the connections: they are the parent's
            self._owner = os.getpid()
        return self._client


_client = functools.lru_cache(maxsize=4)(_Client)


def _s3() -> "S3Client":
    return _client(settings()).get()


@contextlib.contextmanager
def _explained(
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
        why = f"{code} {about.get('Message', '')}".strip()
        raise kind(explanation(operation, place, code, why, region)) from error
    except BotoCoreError as error:
        raise kind(unreachable(operation, place, error)) from error


def _sign(
    method: str, place: Place, kind: type[WorkflowsError] = CheckpointError, **more: Any
) -> str:
    """Return a URL with which whoever has it may do one thing with one object: a secret."""
    with _explained("GetObject" if method == "get_object" else "PutObject", place, kind):
        params = {"Bucket": place.bucket, "Key": place.key, **more}
        holds_s = settings().s3_signature_s
        signer = None if more else _client(settings()).signer(method, place.bucket, holds_s)
        if signer is not None:
            return signer(place.key)
        return _s3().generate_presigned_url(method, Params=params, ExpiresIn=holds_s)


def _for_node(signed: str) -> str:
    """Return what a node is given in place of a signed URL: that, or what it is to sign itself."""
    if settings().s3_nodes != "role":
        return signed
    plain, _, query = signed.partition("?")
    kept = "&".join(part for part in query.split("&") if not part.startswith("X-Amz-"))
    return f"{PREFIX}{_s3().meta.region_name}:{plain}{'?' if kept else ''}{kept}"


def signed(url: str) -> str:
    """Return the URL with which this machine reads a source key: signed if it is in S3."""
    if not url.startswith(SCHEME):
        return url
    return _sign("get_object", place_of(url), SourceError)


def transit(url: str) -> str:
    """Return the URL that a node is given for a source key; it may have to sign it itself."""
    return _for_node(signed(url)) if url.startswith(SCHEME) else url


def listing(place: Place, kind: type[WorkflowsError] = CheckpointError) -> Iterator[Stored]:
    """Yield all objects whose key begins with the place's, sorted; one call for 1,000 of them."""
    with _explained("ListBucket", place, kind):
        pages = _s3().get_paginator("list_objects_v2")
        for page in pages.paginate(Bucket=place.bucket, Prefix=place.key):
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


def read(place: Place, kind: type[WorkflowsError] = CheckpointError) -> bytes | None:
    """Return an object's bytes, or None if there is none; a body that breaks off is read again."""
    from botocore.exceptions import ClientError, HTTPClientError

    with _explained("GetObject", place, kind):
        for attempt in range(_TRIES):
            try:
                answer = _s3().get_object(Bucket=place.bucket, Key=place.key)
                return answer["Body"].read()
            except ClientError as error:
                if error.response.get("Error", {}).get("Code") == "NoSuchKey":
                    return None
                raise
            except HTTPClientError:
                if attempt == _TRIES - 1:
                    raise
                _wait(attempt)
    raise AssertionError("unreachable")


def stream(place: Place, kind: type[WorkflowsError] = CheckpointError) -> Iterator[bytes]:
    """Yield an object's bytes, however many; a body that breaks off is an error."""
    with _explained("GetObject", place, kind):
        answer = _s3().get_object(Bucket=place.bucket, Key=place.key)
        yield from answer["Body"].iter_chunks(1 << 20)


def _wait(attempt: int) -> None:
    time.sleep(random.uniform(0.5, 1.0) * min(0.2 * 2.0**attempt, 10.0))  # noqa: S311 - no secret


# -- the store -----------------------------------------------------------------------------------


class Upload(NamedTuple):
    """A multipart upload that was begun and neither finished nor given up."""

    name: str
    upload_id: str
    started: float


class S3Store:
    """A prefix of a bucket. Data is put there by the nodes themselves, with URLs signed here."""

    def __init__(self, url: str) -> None:
        bucket, prefix = place_of(url)
        prefix = prefix.strip("/")
        self._root = Place(bucket, f"{prefix}/" if prefix else "")
        self.url = self._root.url.rstrip("/")
        self._opaque: set[str] = set()  # uploads that KMS encrypts: their ETags are no MD5s

    def create(self, name: str, chunks: Iterable[bytes], *, lasting: bool = True) -> bool:
        """Write a new small object with one conditional PUT, which has exactly one winner."""
        del lasting  # S3 knows nothing else
        from botocore.exceptions import ClientError

        body = b"".join(chunks)
        place = self._place(name)
        with _explained("PutObject", place):
            for attempt in range(_TRIES):
                try:
                    _s3().put_object(Bucket=place.bucket, Key=place.key, Body=body, IfNoneMatch="*")
                except ClientError as error:
                    about = error.response["ResponseMetadata"]
                    if about["HTTPStatusCode"] == 412:
                        # If an answer was lost, the one who was first may have been ourselves.
                        retried = attempt or about.get("RetryAttempts", 0)
                        return bool(retried) and self.read(name) == body
                    if about["HTTPStatusCode"] != 409 or attempt == _TRIES - 1:
                        raise
                    _wait(attempt)  # somebody else was writing it at this moment
                else:
                    return True
        raise AssertionError("unreachable")

    def read(self, name: str) -> bytes | None:
        """Return an object's bytes, or None if there is none."""
        return read(self._place(name))

    def list(self, prefix: str) -> Iterator[Stored]:
        """Yield all objects below the folder `prefix`, sorted by name."""
        for item in listing(self._place(f"{prefix}/" if prefix else "")):
            yield item._replace(name=item.name.removeprefix(self._root.key))

    def folders(self, prefix: str) -> "Sequence[str]":
        """Return the folders directly below the folder `prefix`."""
        place = self._place(f"{prefix}/")
        with _explained("ListBucket", place):
            pages = _s3().get_paginator("list_objects_v2")
            return [
                found["Prefix"].removeprefix(self._root.key).rstrip("/")
                for page in pages.paginate(Bucket=place.bucket, Prefix=place.key, Delimiter="/")
                for found in page.get("CommonPrefixes", ())
            ]

    def remove(self, prefix: str) -> None:
        """Remove all objects below the folder `prefix`."""
        self._delete([item.name for item in listing(self._place(f"{prefix}/"))])

    def discard(self, names: "Sequence[str]") -> None:
        """Remove these objects."""
        self._delete([self._place(name).key for name in names])

    def _delete(self, keys: "Sequence[str]") -> None:
        place = Place(self._root.bucket, next(iter(keys), ""))
        with _explained("DeleteObject", place):
            for start in range(0, len(keys), _DELETED_AT_ONCE):
                some = [{"Key": key} for key in keys[start : start + _DELETED_AT_ONCE]]
                answer = _s3().delete_objects(
                    Bucket=place.bucket,
                    Delete={"Objects": some, "Quiet": True},  # type: ignore[typeddict-item]
                )
                for refused in answer.get("Errors", ()):
                    code, why = refused.get("Code", ""), refused.get("Message", "")
                    one = Place(place.bucket, refused.get("Key", ""))
                    raise CheckpointError(explanation("DeleteObject", one, code, f"{code} {why}"))

    def sweep(self) -> None:
        """Do nothing: half an object is never seen; `workflows gc` ends uploads that are open."""

    def locate(self, name: str) -> str:
        """Return the stable URL of an object."""
        return self._place(name).url

    def explain(self, operation: str, name: str, code: str, why: str) -> str:
        """Return the message for what a node was answered."""
        return explanation(operation, self._place(name), code, why)

    # -- for nodes ---------------------------------------------------------------------------------

    def sign_get(self, name: str) -> str:
        """Return a URL with which a node may read an object."""
        return _for_node(_sign("get_object", self._place(name)))

    def sign_put(self, name: str) -> str:
        """Return a URL with which a node may write an object."""
        return _for_node(_sign("put_object", self._place(name)))

    def sign_parts(self, name: str, upload_id: str, count: int) -> "Sequence[str]":
        """Return a URL for each part of an upload that `begin` began."""
        place = self._place(name)
        return [
            _for_node(_sign("upload_part", place, UploadId=upload_id, PartNumber=number))
            for number in range(1, count + 1)
        ]

    def begin(self, name: str) -> str:
        """Begin an upload in parts; nothing is seen of it before `finish`."""
        place = self._place(name)
        with _explained("CreateMultipartUpload", place):
            answer = _s3().create_multipart_upload(Bucket=place.bucket, Key=place.key)
            if answer.get("ServerSideEncryption", "AES256") != "AES256":
                self._opaque.add(answer["UploadId"])
            return answer["UploadId"]

    def finish(self, name: str, upload_id: str, md5s: Sequence[str]) -> None:
        """Make one object of the parts, after comparing them with the MD5 that each must have.

        Raises:
            CheckpointError: a part is missing or damaged.
        """
        place = self._place(name)
        whose = {"Bucket": place.bucket, "Key": place.key, "UploadId": upload_id}
        with _explained("CompleteMultipartUpload", place):
            pages = _s3().get_paginator("list_parts").paginate(**whose)  # type: ignore[arg-type]
            parts = {part["PartNumber"]: part["ETag"] for p in pages for part in p.get("Parts", ())}
            ordered = [parts.get(number + 1, "") for number in range(len(md5s))]
            found = [etag.strip('"') for etag in ordered]
            if "" in found or (found != list(md5s) and upload_id not in self._opaque):
                raise CheckpointError(f"{place.url} did not arrive whole; run the same again")
            chosen = [{"PartNumber": n, "ETag": etag} for n, etag in enumerate(ordered, 1)]
            _s3().complete_multipart_upload(
                **whose,  # type: ignore[arg-type]
                MultipartUpload={"Parts": chosen},  # type: ignore[typeddict-item]
            )

    def abort(self, name: str, upload_id: str) -> None:
        """Give up an upload in parts and what it holds; quietly if it is over already."""
        from botocore.exceptions import BotoCoreError, ClientError

        place = self._place(name)
        with contextlib.suppress(BotoCoreError, ClientError):
            _s3().abort_multipart_upload(Bucket=place.bucket, Key=place.key, UploadId=upload_id)

    def uploads(self, prefix: str) -> "Sequence[Upload]":
        """Return the uploads in parts below `prefix` that are open."""
        place = self._place(f"{prefix}/" if prefix else "")
        with _explained("ListBucketMultipartUploads", place):
            pages = _s3().get_paginator("list_multipart_uploads")
            return [
                Upload(
                    item["Key"].removeprefix(self._root.key),
                    item["UploadId"],
                    item["Initiated"].timestamp(),
                )
                for page in pages.paginate(Bucket=place.bucket, Prefix=place.key)
                for item in page.get("Uploads", ())
            ]

    def has_md5_etags(self, name: str) -> bool:
        """Tell whether an object's ETag is made of MD5s: it is not where a key of KMS encrypts."""
        place = self._place(name)
        with _explained("GetObject", place):
            answer = _s3().head_object(Bucket=place.bucket, Key=place.key)
        encrypted = answer.get("ServerSideEncryption", "AES256") != "AES256"
        return not encrypted and "SSECustomerAlgorithm" not in answer

    def _place(self, name: str) -> Place:
        return Place(self._root.bucket, self._root.key + name)
