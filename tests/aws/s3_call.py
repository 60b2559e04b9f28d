"""A request as a call of S3: its operation, bucket and key; and what its body must be."""

import base64
import binascii
import dataclasses
import hashlib
import urllib.parse
import zlib
from typing import Any, Protocol

from aws import sigv4
from aws.rule import Rule
from aws.s3_rules import RULES

_OF_BUCKET = {
    ("GET", "uploads"): "ListMultipartUploads",
    ("GET", "location"): "GetBucketLocation",
    ("GET", ""): "ListObjects",
    ("POST", "delete"): "DeleteObjects",
    ("PUT", ""): "CreateBucket",
    ("HEAD", ""): "HeadBucket",
    ("DELETE", ""): "DeleteBucket",
}
_OF_KEY = {
    ("GET", "uploadId"): "ListParts",
    ("GET", ""): "GetObject",
    ("HEAD", ""): "HeadObject",
    ("PUT", "partNumber"): "UploadPart",
    ("PUT", ""): "PutObject",
    ("POST", "uploads"): "CreateMultipartUpload",
    ("POST", "uploadId"): "CompleteMultipartUpload",
    ("DELETE", "uploadId"): "AbortMultipartUpload",
    ("DELETE", ""): "DeleteObject",
}


@dataclasses.dataclass(frozen=True)
class Call:
    """One call: path-style, so that the bucket is the path's first part."""

    request: sigv4.Request
    operation: str
    bucket: str
    key: str
    query: dict[str, str]
    is_presigned: bool


def call_of(request: sigv4.Request) -> Call:
    """Return what a request asks of S3."""
    path = urllib.parse.unquote(request.path, errors="surrogateescape")
    bucket, _, key = path.removeprefix("/").partition("/")
    query = dict(request.parameters())
    known = _OF_KEY if key else _OF_BUCKET
    names = [known.get((request.method, name)) for name in (*query, "")]
    operation = next((name for name in names if name), "Other") if bucket else "ListBuckets"
    if operation == "PutObject" and "x-amz-copy-source" in request.names():
        operation = "CopyObject"
    return Call(request, operation, bucket, key, query, sigv4.is_presigned(request))


class _Hash(Protocol):
    def update(self, data: bytes, /) -> None: ...
    def digest(self) -> bytes: ...


class _Crc32:
    def __init__(self) -> None:
        self._crc = 0

    def update(self, data: bytes, /) -> None:
        self._crc = zlib.crc32(data, self._crc)

    def digest(self) -> bytes:
        return self._crc.to_bytes(4, "big")


# CRC32C and CRC64NVME are let pass: no library here computes them fast.
_CHECKSUMS: dict[str, Any] = {"crc32": _Crc32, "sha1": hashlib.sha1, "sha256": hashlib.sha256}


class Body:
    """Takes a request's body as it passes, and says in the end whether it is the one promised.

    Raises:
        Refusal: it promises what cannot be.
    """

    def __init__(
        self, request: sigv4.Request, verified: sigv4.Verified, *, damages: bool = False
    ) -> None:
        self._request, self._damages = request, damages
        payload = verified.payload
        is_chunked = payload.startswith("STREAMING-")
        self._chunks = sigv4.Chunks(verified) if is_chunked else None
        self._hashes: list[tuple[_Hash, bytes, Rule, dict[str, str]]] = []
        self._trailer: tuple[str, _Hash] | None = None
        if not is_chunked and payload != sigv4.UNSIGNED:
            wanted = bytes.fromhex(payload) if len(payload) == 64 else b""
            self._hashes.append((hashlib.sha256(), wanted, RULES["payload hash"], {}))
        self._expect_md5()
        self._expect_checksums()

    def _expect_md5(self) -> None:
        said = self._request.header("content-md5")
        if said is None:
            return
        wanted = _decoded(said)
        if wanted is None or len(wanted) != 16:
            raise RULES["malformed MD5"].refuse(Content_MD5=said)
        md5 = hashlib.md5(usedforsecurity=False)
        self._hashes.append((md5, wanted, RULES["MD5"], {"ExpectedDigest": said}))

    def _expect_checksums(self) -> None:
        trailer = (self._request.header("x-amz-trailer") or "").lower()
        named = False
        for name, make in _CHECKSUMS.items():
            header = f"x-amz-checksum-{name}"
            said = self._request.header(header)
            if trailer == header:
                self._trailer = (header, make())
            if said is None:
                continue
            named = True
            wanted = _decoded(said)
            if wanted is None or len(wanted) != len(make().digest()):
                raise RULES["malformed checksum"].refuse(header=header)
            facts = {"algorithm": name.upper()}
            self._hashes.append((make(), wanted, RULES["checksum"], facts))
        named = named or any(one.startswith("x-amz-checksum-crc") for one in self._request.names())
        if self._request.header("x-amz-sdk-checksum-algorithm") and not (named or trailer):
            # CreateMultipartUpload says with another header which checksums its parts will have.
            raise RULES["no checksum"].refuse()

    def feed(self, data: bytes) -> None:
        """Take some of the body.

        Raises:
            Refusal: it cannot be read.
        """
        if self._damages and data:
            data = bytes([data[0] ^ 1]) + data[1:]  # as a bad network would
        if self._chunks is not None:
            try:
                data = self._chunks.feed(data)
            except sigv4.Broken as error:
                raise RULES["signature"].refuse() from error
        for hash_, *_ in self._hashes:
            hash_.update(data)
        if self._trailer is not None:
            self._trailer[1].update(data)

    def end(self) -> None:
        """Say that it is over.

        Raises:
            Refusal: it is not what was promised.
        """
        if self._chunks is not None:
            try:
                self._chunks.end()
            except sigv4.Broken as error:
                raise RULES["cut chunks"].refuse() from error
        for hash_, wanted, rule, facts in self._hashes:
            if hash_.digest() != wanted:
                raise rule.refuse(**facts)
        if self._trailer is not None and self._chunks is not None:
            header, hash_ = self._trailer
            if _decoded(self._chunks.trailers.get(header, "")) != hash_.digest():
                raise RULES["checksum"].refuse(algorithm=header.rpartition("-")[2].upper())


def _decoded(said: str) -> bytes | None:
    try:
        return base64.b64decode(said, validate=True)
    except (binascii.Error, ValueError):
        return None
