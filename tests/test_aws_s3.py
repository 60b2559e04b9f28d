"""The stand-in for S3 refuses what Amazon refuses, rule by rule, and nothing else."""

import base64
import concurrent.futures
import dataclasses
import functools
import hashlib
import html
import http.client
import os
import re
import secrets
import time
import urllib.parse
import zlib
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import pytest
from aws.s3 import StrictS3
from aws.s3_rules import RULES
from aws.sigv4 import Credential
from botocore.auth import S3SigV4Auth, S3SigV4QueryAuth
from botocore.awsrequest import AWSRequest
from botocore.credentials import Credentials
from botocore.exceptions import ClientError
from s3_servers import ADMIN, Weed, client_of, strict_before

MIB = 1 << 20
ABC_MD5 = base64.b64encode(hashlib.md5(b"abc").digest()).decode()
OTHER_MD5 = base64.b64encode(hashlib.md5(b"abd").digest()).decode()


class Answer(NamedTuple):
    status: int
    headers: dict[str, str]
    body: str

    def element(self, name: str) -> str:
        found = re.search(f"<{name}>([^<]*)</{name}>", self.body)
        return html.unescape(found[1]) if found else ""


class Asker:
    """Asks a strict server for this and that, in its own bucket, with any mistake."""

    def __init__(self, strict: StrictS3) -> None:
        self.strict = strict
        self.bucket = "b" + secrets.token_hex(8)
        self.client = client_of(strict.url)
        self.client.create_bucket(Bucket=self.bucket)

    def put(self, name: str = "k", body: bytes = b"abc", **headers: str) -> Answer:
        return self.ask("PUT", f"/{self.bucket}/{name}", body=body, headers=headers)

    def ask(
        self,
        method: str,
        path: str,
        query: str = "",
        *,
        body: bytes = b"",
        headers: dict[str, str] | None = None,
        late: dict[str, str] | None = None,
        key: tuple[str, str, str | None] = (*ADMIN, None),
        region: str = "us-east-1",
        holds_s: int | None = None,
        instead: bytes = b"",
    ) -> Answer:
        """Sign and send; `late` headers are not signed; with `holds_s` the query is signed.

        With `instead` another body is signed than is sent.
        """
        url = f"{self.strict.url}{path}" + (f"?{query}" if query else "")
        given = {k.replace("_", "-"): v for k, v in (headers or {}).items()}
        data = body if holds_s is None else b""  # a query does not sign it
        request = AWSRequest(method=method, url=url, headers=given, data=instead or data)
        if holds_s is None:
            S3SigV4Auth(Credentials(*key), "s3", region).add_auth(request)
        else:
            auth = S3SigV4QueryAuth(Credentials(*key), "s3", region, expires=holds_s)
            auth.add_auth(request)
        sent = {**dict(request.headers.items()), **(late or {})}
        return self.send(method, str(request.url), sent, body)

    def send(self, method: str, url: str, headers: dict[str, str], body: bytes = b"") -> Answer:
        parts = urllib.parse.urlsplit(url)
        there = http.client.HTTPConnection("127.0.0.1", self.strict.port, timeout=30)
        there.putrequest(method, parts.path + (f"?{parts.query}" if parts.query else ""))
        if "Transfer-Encoding" not in headers and headers.pop("No-Length", None) is None:
            headers = {"Content-Length": str(len(body)), **headers}
        for name, value in headers.items():
            there.putheader(name, value)
        there.endheaders(body or None)
        response = there.getresponse()
        said = response.read().decode()
        there.close()
        return Answer(response.status, dict(response.getheaders()), said)

    def upload(self, sizes: list[int], order: list[int], etag: str = "") -> Answer:
        """Send parts of these sizes, and complete the upload with some in this order."""
        target = {"Bucket": self.bucket, "Key": "large"}
        upload = self.client.create_multipart_upload(**target)["UploadId"]
        etags = [
            self.client.upload_part(**target, UploadId=upload, PartNumber=n, Body=bytes(size))
            for n, size in enumerate(sizes, 1)
        ]
        named = "".join(
            f"<Part><PartNumber>{n}</PartNumber>"
            f"<ETag>{etag or etags[n - 1]['ETag'].replace(chr(34), '&quot;')}</ETag></Part>"
            for n in order
        )
        body = f"<CompleteMultipartUpload>{named}</CompleteMultipartUpload>".encode()
        query = "uploadId=" + urllib.parse.quote(upload, safe="")
        return self.ask("POST", f"/{self.bucket}/large", query, body=body)

    def refused(self, rule: str) -> Answer:
        with self.strict.refusing(rule, lambda call: call.key == "k", times=1):
            return self.ask("GET", f"/{self.bucket}/k")


@pytest.fixture
def asker(weed: Weed) -> Iterator[Asker]:
    strict = strict_before(("127.0.0.1", weed.ports["s3"]))
    strict.keys["session"] = Credential(ADMIN[1], "a token", time.time() + 60)
    yield Asker(strict)
    strict.close()


SESSION = ("session", ADMIN[1], "a token")


def at(asker: Asker, ahead_s: float, ask: Callable[[], Answer]) -> Answer:
    asker.strict.clock_s = ahead_s
    return ask()


def with_(asker: Asker, ask: Callable[[], Answer], **setup: Any) -> Answer:
    for name, value in setup.items():
        setattr(asker.strict.bucket(asker.bucket), name, value)
    return ask()


def conflict(asker: Asker) -> Answer:
    """Write with a condition while somebody else writes the same key."""
    other = dataclasses.replace(asker.strict.seen[-1], bucket=asker.bucket, key="k")
    over = asker.strict.writing.begin(other, is_conditional=False)
    try:
        return asker.put(If_None_Match="*")
    finally:
        over()


def deletion(*keys: str) -> bytes:
    objects = "".join(f"<Object><Key>{key}</Key></Object>" for key in keys)
    return f"<Delete>{objects}</Delete>".encode()


def digest_of(body: bytes) -> dict[str, str]:
    return {"Content-MD5": base64.b64encode(hashlib.md5(body).digest()).decode()}


def delete(asker: Asker, *keys: str) -> Answer:
    body = deletion(*keys)
    return asker.ask("POST", f"/{asker.bucket}", "delete", body=body, headers=digest_of(body))


def object_path(asker: Asker) -> str:
    return f"/{asker.bucket}/k"


def get(asker: Asker, **more: Any) -> Answer:
    return asker.ask("GET", object_path(asker), **more)


def redirected(asker: Asker) -> Answer:
    asker.strict.redirects = True
    return with_(asker, lambda: get(asker), region="eu-west-1")


def cut_chunks(asker: Asker) -> Answer:
    headers = {
        "x-amz-content-sha256": "STREAMING-UNSIGNED-PAYLOAD-TRAILER",
        "x-amz-decoded-content-length": "9",
        "x-amz-trailer": "x-amz-checksum-crc32",
        "Content-Encoding": "aws-chunked",
    }
    return asker.ask("PUT", object_path(asker), body=b"9\r\nabc", headers=headers, holds_s=60)


BITES: dict[str, Callable[[Asker], Answer]] = {
    "anonymous": lambda a: a.send("GET", object_path(a), {}),
    "malformed header": lambda a: a.send("GET", object_path(a), {"Authorization": "AWS4 x"}),
    "malformed query": lambda a: a.send("GET", object_path(a) + "?X-Amz-Signature=1", {}),
    "unknown key": lambda a: get(a, key=("nobody", "x", None)),
    "signature": lambda a: get(a, key=(ADMIN[0], "wrong", None), holds_s=60),
    "headers not signed": lambda a: a.ask(
        "PUT", object_path(a), body=b"abc", holds_s=60, late={"Content-MD5": ABC_MD5}
    ),
    "expired": lambda a: at(a, 61, lambda: get(a, holds_s=60)),
    "not yet valid": lambda a: at(a, -901, lambda: get(a, holds_s=60)),
    "skewed": lambda a: at(a, 901, lambda: get(a)),
    "too long": lambda a: get(a, holds_s=604_801),
    "expired token": lambda a: at(a, 61, lambda: get(a, key=SESSION)),
    "invalid token": lambda a: get(a, key=("session", ADMIN[1], "another")),
    "no payload hash": lambda a: a.send(
        "GET",
        object_path(a),
        {
            "Authorization": "AWS4-HMAC-SHA256 Credential=writer/"
            + time.strftime("%Y%m%d", time.gmtime())
            + "/us-east-1/s3/aws4_request, SignedHeaders=host;x-amz-date, Signature=0",
            "X-Amz-Date": time.strftime("%Y%m%dT%H%M%SZ", time.gmtime()),
        },
    ),
    "payload hash": lambda a: a.ask("PUT", object_path(a), body=b"abc", instead=b"abd"),
    "region": lambda a: with_(a, lambda: get(a), region="eu-west-1"),
    "region of a query": lambda a: with_(a, lambda: get(a, holds_s=60), region="eu-west-1"),
    "redirect": redirected,
    "bucket name": lambda a: a.ask("GET", "/Upper_Case/k"),
    "young bucket": lambda a: with_(a, lambda: get(a), young=1),
    "requester pays": lambda a: with_(a, lambda: get(a), requester_pays=True),
    "object lock": lambda a: with_(a, a.put, object_lock=True),
    "long key": lambda a: a.put("x/" * 512 + "x"),
    "part number": lambda a: a.ask(
        "PUT", object_path(a), "partNumber=10001&uploadId=1", body=b"abc"
    ),
    "max keys": lambda a: a.ask("GET", f"/{a.bucket}", "list-type=2&max-keys="),
    "large head": lambda a: a.put(x_amz_meta_a="x" * 8192),
    "transfer encoding": lambda a: a.ask(
        "PUT",
        object_path(a),
        body=b"3\r\nabc\r\n0\r\n\r\n",
        holds_s=60,
        late={"Transfer-Encoding": "chunked"},
    ),
    "no length": lambda a: a.ask("PUT", object_path(a), holds_s=60, late={"No-Length": "1"}),
    "malformed MD5": lambda a: a.put(Content_MD5="abc"),
    "MD5": lambda a: a.put(Content_MD5=OTHER_MD5),
    "malformed checksum": lambda a: a.put(x_amz_checksum_crc32="abc"),
    "checksum": lambda a: a.put(x_amz_checksum_crc32="AAAAAA=="),
    "no checksum": lambda a: a.put(x_amz_sdk_checksum_algorithm="CRC32"),
    "large body": lambda a: a.ask(
        "PUT",
        object_path(a),
        holds_s=60,
        late={"Content-Length": str((5 << 30) + 1), "Expect": "100-continue"},
    ),
    "cut chunks": cut_chunks,
    "condition": lambda a: [a.put(), a.put(If_None_Match="*")][1],
    "conflict": conflict,
    "other condition": lambda a: a.put(If_None_Match=f'"{"0" * 32}"'),
    "small part": lambda a: a.upload([5 * MIB - 1, 1], [1, 2]),
    "part order": lambda a: a.upload([5 * MIB, 1], [2, 1]),
    "part": lambda a: a.upload([1], [1], etag="0" * 32),
    "delete without digest": lambda a: a.ask("POST", f"/{a.bucket}", "delete", body=deletion("k")),
    "many deletes": lambda a: delete(a, *map(str, range(1001))),
}
ASKED = ("slow down", "internal error", "denied", "denied key", "invalid argument", "bad request")
BITES |= {name: functools.partial(Asker.refused, rule=name) for name in ASKED}


@pytest.mark.parametrize("name", RULES)
def test_each_rule_bites_with_amazons_answer(asker: Asker, name: str) -> None:
    rule = RULES[name]

    answer = BITES[name](asker)

    assert (answer.status, answer.element("Code")) == (rule.status, rule.code), answer
    pattern = ".+".join(map(re.escape, re.split(r"\{\w+\}", rule.message)))
    if name != "condition":  # which the server behind answers by itself, in its own words
        assert re.fullmatch(pattern, answer.element("Message")), answer
    assert rule.source


def test_what_was_not_signed_and_the_right_region_are_named(asker: Asker) -> None:
    late = {"Content-MD5": ABC_MD5, "x-amz-meta-a": "b"}
    path = object_path(asker)

    unsigned = asker.ask("PUT", path, body=b"abc", holds_s=60, late=late)
    asker.strict.bucket(asker.bucket).region = "eu-west-1"
    elsewhere = get(asker)
    head = asker.ask("HEAD", path)

    assert unsigned.element("HeadersNotSigned") == "content-md5, x-amz-meta-a"
    assert elsewhere.element("Region") == "eu-west-1"
    assert "expecting 'eu-west-1'" in elsewhere.element("Message")
    assert (head.status, head.body) == (400, "")
    assert head.headers["x-amz-bucket-region"] == "eu-west-1"


def test_what_amazon_lets_pass_passes(asker: Asker) -> None:
    crc = base64.b64encode(zlib.crc32(b"abc").to_bytes(4, "big")).decode()
    late = {"Range": "bytes=1-1", "If-Match": f'"{hashlib.md5(b"abc").hexdigest()}"'}

    signed = asker.ask(
        "PUT", object_path(asker), body=b"abc", holds_s=60, headers={"Content-MD5": ABC_MD5}
    )
    summed = asker.put("other", x_amz_checksum_crc32=crc, x_amz_sdk_checksum_algorithm="CRC32")
    part = get(asker, holds_s=60, late=late)
    session = get(asker, key=SESSION)
    in_query = get(asker, key=SESSION, holds_s=60)
    asker.strict.clock_s = 800
    skewed = get(asker)

    assert (signed.status, summed.status) == (200, 200), (signed, summed)
    assert (part.status, part.body) == (206, "b"), part
    assert [one.body for one in (session, in_query, skewed)] == ["abc"] * 3
    assert asker.upload([5 * MIB, 1], [1, 2]).status == 200


def test_a_bucket_with_a_key_of_kms_has_etags_that_are_no_md5_everywhere_the_same(
    asker: Asker,
) -> None:
    asker.strict.bucket(asker.bucket).kms = True
    target = {"Bucket": asker.bucket, "Key": "k"}

    put = asker.client.put_object(**target, Body=b"abc")
    head = asker.client.head_object(**target)
    listed = asker.client.list_objects_v2(Bucket=asker.bucket)["Contents"][0]
    same = get(asker, holds_s=60, late={"If-Match": put["ETag"]})
    other = get(asker, holds_s=60, late={"If-Match": f'"{hashlib.md5(b"abc").hexdigest()}"'})
    upload = asker.upload([5 * MIB, 1], [1, 2])
    whole = asker.client.head_object(Bucket=asker.bucket, Key="large")

    assert put["ServerSideEncryption"] == head["ServerSideEncryption"] == "aws:kms"
    assert put["ETag"] == head["ETag"] == listed["ETag"]
    assert put["ETag"].strip('"') != hashlib.md5(b"abc").hexdigest()
    assert (same.body, other.status) == ("abc", 412)
    assert (upload.status, upload.element("ETag")) == (200, whole["ETag"])


def test_some_of_many_keys_may_not_be_deleted_and_are_named(asker: Asker) -> None:
    for name in "abc":
        asker.put(name)
    asker.strict.failing["b"] = ("SlowDown", 1)

    first, second = delete(asker, "a", "b", "c"), delete(asker, "b")

    assert (first.element("Key"), first.element("Code")) == ("b", "SlowDown")
    assert "Error" not in second.body
    assert "Contents" not in asker.client.list_objects_v2(Bucket=asker.bucket)


def test_large_bodies_pass_whole_and_a_damaged_one_leaves_nothing(asker: Asker) -> None:
    body = os.urandom(9 * MIB)
    right = base64.b64encode(hashlib.md5(body).digest()).decode()
    target = {"Bucket": asker.bucket, "Key": "large"}

    refused = asker.put("large", body, Content_MD5=ABC_MD5)
    with pytest.raises(ClientError):
        asker.client.head_object(**target)
    sent = asker.put("large", body, Content_MD5=right)

    assert (refused.status, refused.element("Code")) == (400, "BadDigest")
    assert sent.status == 200
    assert asker.client.get_object(**target)["Body"].read() == body


def test_many_connections_are_served_at_once(asker: Asker) -> None:
    asker.put()
    with concurrent.futures.ThreadPoolExecutor(16) as pool:
        bodies = list(pool.map(lambda _: get(asker).body, range(64)))

    assert bodies == ["abc"] * 64
