"""A prefix of a bucket as a store of checkpoints, and the URLs with which nodes fill it."""

import base64
import contextlib
import hashlib
from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from workflows.errors import CheckpointError
from workflows.node.curl import in_base64
from workflows.storage.place import Place, place_of
from workflows.storage.remedies import explanation
from workflows.storage.s3 import TRIES, client, explained, for_node, listing, read, sign, wait
from workflows.storage.store import Stored

if TYPE_CHECKING:
    from mypy_boto3_s3 import S3Client

_DELETED_AT_ONCE = 1000
# Of single keys among many that are deleted with one call, which boto3 does not try again.
_PASSING = {"SlowDown", "InternalError", "ServiceUnavailable", "OperationAborted", "RequestTimeout"}


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
        digest = base64.b64encode(hashlib.md5(body, usedforsecurity=False).digest()).decode()
        place = self._place(name)
        with explained("PutObject", place):
            for attempt in range(TRIES):
                try:
                    self._s3.put_object(
                        Bucket=place.bucket,
                        Key=place.key,
                        Body=body,
                        ContentMD5=digest,
                        IfNoneMatch="*",
                    )
                except ClientError as error:
                    about = error.response["ResponseMetadata"]
                    if about["HTTPStatusCode"] == 412:
                        # If an answer was lost, the one who was first may have been ourselves.
                        retried = attempt or about.get("RetryAttempts", 0)
                        return bool(retried) and self.read(name) == body
                    if about["HTTPStatusCode"] != 409 or attempt == TRIES - 1:
                        raise
                    wait(attempt)  # somebody else was writing it at this moment
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
        with explained("ListBucket", place):
            pages = self._s3.get_paginator("list_objects_v2")
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
        with explained("DeleteObject", place):
            for start in range(0, len(keys), _DELETED_AT_ONCE):
                left = keys[start : start + _DELETED_AT_ONCE]
                for attempt in range(TRIES):
                    left = self._delete_some(left, is_last=attempt == TRIES - 1)
                    if not left:
                        break
                    wait(attempt)

    def _delete_some(self, keys: "Sequence[str]", *, is_last: bool) -> "Sequence[str]":
        """Delete some objects with one call; return those to try again: S3 says it of each.

        Raises:
            CheckpointError: one may not be deleted, or still not the last time.
        """
        answer = self._s3.delete_objects(
            Bucket=self._root.bucket,
            Delete={"Objects": [{"Key": key} for key in keys], "Quiet": True},
        )
        errors = answer.get("Errors", ())
        for refused in errors:
            code, why = refused.get("Code", ""), refused.get("Message", "")
            if is_last or code not in _PASSING:
                one = Place(self._root.bucket, refused.get("Key", ""))
                raise CheckpointError(explanation("DeleteObject", one, code, f"{code} {why}"))
        return [refused["Key"] for refused in errors]

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
        return for_node(sign("get_object", self._place(name)))

    def sign_put(self, name: str, md5: str = "") -> str:
        """Return a URL with which a node may write an object, whose MD5, in hex, is this."""
        return for_node(sign("put_object", self._place(name), md5=in_base64(md5)))

    def sign_part(self, name: str, upload_id: str, number: int, md5: str = "") -> str:
        """Return the same for a part, from 1 on, of an upload that `begin` began."""
        more: dict[str, Any] = {"UploadId": upload_id, "PartNumber": number}
        return for_node(sign("upload_part", self._place(name), md5=in_base64(md5), **more))

    def begin(self, name: str) -> str:
        """Begin an upload in parts; nothing is seen of it before `finish`."""
        place = self._place(name)
        with explained("CreateMultipartUpload", place):
            answer = self._s3.create_multipart_upload(Bucket=place.bucket, Key=place.key)
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
        with explained("CompleteMultipartUpload", place):
            pages = self._s3.get_paginator("list_parts").paginate(**whose)  # type: ignore[arg-type]
            parts = {part["PartNumber"]: part["ETag"] for p in pages for part in p.get("Parts", ())}
            ordered = [parts.get(number + 1, "") for number in range(len(md5s))]
            found = [etag.strip('"') for etag in ordered]
            if "" in found or (found != list(md5s) and upload_id not in self._opaque):
                raise CheckpointError(f"{place.url} did not arrive whole; run the same again")
            chosen = [{"PartNumber": n, "ETag": etag} for n, etag in enumerate(ordered, 1)]
            self._s3.complete_multipart_upload(
                **whose,  # type: ignore[arg-type]
                MultipartUpload={"Parts": chosen},  # type: ignore[typeddict-item]
            )

    def abort(self, name: str, upload_id: str) -> None:
        """Give up an upload in parts and what it holds; quietly if it has ended."""
        from botocore.exceptions import BotoCoreError, ClientError

        place = self._place(name)
        with contextlib.suppress(BotoCoreError, ClientError):
            self._s3.abort_multipart_upload(Bucket=place.bucket, Key=place.key, UploadId=upload_id)

    def uploads(self, prefix: str) -> "Sequence[Upload]":
        """Return the uploads in parts below `prefix` that are open."""
        place = self._place(f"{prefix}/" if prefix else "")
        with explained("ListBucketMultipartUploads", place):
            pages = self._s3.get_paginator("list_multipart_uploads")
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
        with explained("GetObject", place):
            answer = self._s3.head_object(Bucket=place.bucket, Key=place.key)
        encrypted = answer.get("ServerSideEncryption", "AES256") != "AES256"
        return not encrypted and "SSECustomerAlgorithm" not in answer

    @property
    def _s3(self) -> "S3Client":
        return client(self._root.bucket)

    def _place(self, name: str) -> Place:
        return Place(self._root.bucket, self._root.key + name)
