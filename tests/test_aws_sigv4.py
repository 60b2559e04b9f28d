"""Signatures as Amazon documents them, and as botocore makes them, are verified; no others are."""

import calendar
import dataclasses
import hashlib
import time
import urllib.parse
from typing import Any

import boto3
import pytest
from aws import sigv4
from aws.sigv4 import Chunks, Credential, Fault, Request, Unverified, Verified
from botocore.auth import SigV4Auth
from botocore.awsrequest import AWSRequest
from botocore.config import Config
from botocore.credentials import Credentials

# The examples of "Signature Calculations for the Authorization Header" and its neighbours.
KEY = "AKIAIOSFODNN7EXAMPLE"
KEYS = {KEY: Credential("wJalrXUtnFEMI/K7MDENG/bPxRfiCYEXAMPLEKEY")}
DAY = calendar.timegm((2013, 5, 24, 0, 0, 0))
HOST = ("Host", "examplebucket.s3.amazonaws.com")


def authorization(names: str, signature: str) -> tuple[str, str]:
    scope = f"{KEY}/20130524/us-east-1/s3/aws4_request"
    said = f"Credential={scope},SignedHeaders={names},Signature={signature}"
    return ("Authorization", f"AWS4-HMAC-SHA256 {said}")


GET = Request(
    "GET",
    "/test.txt",
    "",
    [
        HOST,
        ("Range", "bytes=0-9"),
        ("x-amz-content-sha256", sigv4.EMPTY),
        ("x-amz-date", "20130524T000000Z"),
        authorization(
            "host;range;x-amz-content-sha256;x-amz-date",
            "f0e8bdb87c964420e857bd35b5d6ed310bd44f0170aba48dd91039c6036bdb41",
        ),
    ],
)
PUT = Request(
    "PUT",
    "/test%24file.text",
    "",
    [
        HOST,
        ("Date", "Fri, 24 May 2013 00:00:00 GMT"),
        ("x-amz-date", "20130524T000000Z"),
        ("x-amz-storage-class", "REDUCED_REDUNDANCY"),
        (
            "x-amz-content-sha256",
            "44ce7dd67c959e0d3524ffac1771dfbba87d2b6b4b4e99e42034a8b803f8b072",
        ),
        authorization(
            "date;host;x-amz-content-sha256;x-amz-date;x-amz-storage-class",
            "98ad721746da40c64f1a55b78f14c238d841ea1380cd77a1b5971af0ece108bd",
        ),
    ],
)
LISTING = Request(
    "GET",
    "/",
    "max-keys=2&prefix=J",
    [
        HOST,
        ("x-amz-date", "20130524T000000Z"),
        ("x-amz-content-sha256", sigv4.EMPTY),
        authorization(
            "host;x-amz-content-sha256;x-amz-date",
            "34b48302e7b5fa45bde8084f4b7868a86f0a534bc59db6670ed5711ef69dc6f7",
        ),
    ],
)
PRESIGNED = Request(
    "GET",
    "/test.txt",
    "X-Amz-Algorithm=AWS4-HMAC-SHA256&X-Amz-Credential=AKIAIOSFODNN7EXAMPLE%2F20130524%2Fus-east-1"
    "%2Fs3%2Faws4_request&X-Amz-Date=20130524T000000Z&X-Amz-Expires=86400&X-Amz-SignedHeaders=host"
    "&X-Amz-Signature=aeeed9bbccd4d02ee5c0109b86d86835f995330da4c265957d157751f604d404",
    [HOST],
)
CHUNKED = Request(
    "PUT",
    "/examplebucket/chunkObject.txt",
    "",
    [
        ("Host", "s3.amazonaws.com"),
        ("x-amz-date", "20130524T000000Z"),
        ("x-amz-storage-class", "REDUCED_REDUNDANCY"),
        ("x-amz-content-sha256", "STREAMING-AWS4-HMAC-SHA256-PAYLOAD"),
        ("Content-Encoding", "aws-chunked"),
        ("x-amz-decoded-content-length", "66560"),
        ("Content-Length", "66824"),
        authorization(
            "content-encoding;content-length;host;x-amz-content-sha256;x-amz-date;"
            "x-amz-decoded-content-length;x-amz-storage-class",
            "4f232c4386841ef735655705268965c44a0e4690baa4adea153f7db9fa80a0a9",
        ),
    ],
)


def verified(request: Request, now: float = DAY, **more: Any) -> Verified:
    given = {"keys": KEYS, "region": "us-east-1", "service": "s3", "now": now, **more}
    return sigv4.verify(request, **given)


def fault(request: Request, now: float = DAY, **more: Any) -> Fault:
    with pytest.raises(Unverified) as caught:
        verified(request, now, **more)
    return caught.value.fault


@pytest.mark.parametrize("request_", [GET, PUT, LISTING, PRESIGNED, CHUNKED])
def test_the_documented_signatures_are_verified(request_: Request) -> None:
    assert verified(request_).signed.key_id == KEY


def changed(request: Request, **fields: Any) -> Request:
    return dataclasses.replace(request, **fields)


@pytest.mark.parametrize("request_", [GET, PUT, LISTING, PRESIGNED])
def test_a_change_of_anything_that_is_signed_is_noticed(request_: Request) -> None:
    others = [("Host", "other.s3.amazonaws.com"), *request_.headers[1:]]
    swapped = "DELETE" if request_.method == "GET" else "GET"

    assert fault(changed(request_, method=swapped)) is Fault.MISMATCH
    assert fault(changed(request_, path=request_.path + "x")) is Fault.MISMATCH
    assert fault(changed(request_, query=request_.query + "&acl")) is Fault.MISMATCH
    assert fault(changed(request_, headers=others)) is Fault.MISMATCH
    assert fault(request_, keys={KEY: Credential("another")}) is Fault.MISMATCH
    assert fault(request_, keys={}) is Fault.UNKNOWN_KEY


@pytest.mark.parametrize("request_", [GET, PRESIGNED])
def test_what_must_be_signed_and_is_not_is_named_and_nothing_else_is(request_: Request) -> None:
    may = [("Range", "bytes=0-1"), ("If-Match", '"e"'), ("If-None-Match", "*"), ("Accept", "*/*")]
    may = [one for one in may if one[0].lower() not in request_.names()]
    must = [("Content-MD5", "xyz=="), ("X-Amz-Meta-A", "b")]

    verified(changed(request_, headers=[*request_.headers, *may]))
    with pytest.raises(Unverified) as caught:
        verified(changed(request_, headers=[*request_.headers, *must]))
    assert caught.value.fault is Fault.UNSIGNED_HEADERS
    assert caught.value.facts == {"HeadersNotSigned": "content-md5, x-amz-meta-a"}


def test_clocks_may_differ_by_a_quarter_of_an_hour_and_urls_hold_as_long_as_they_say() -> None:
    verified(GET, DAY + 900)
    verified(GET, DAY - 900)
    assert fault(GET, DAY + 901) is Fault.SKEWED
    assert fault(GET, DAY - 901) is Fault.SKEWED
    verified(PRESIGNED, DAY + 86_400)
    assert fault(PRESIGNED, DAY + 86_401) is Fault.EXPIRED
    assert fault(PRESIGNED, DAY - 901) is Fault.NOT_YET_VALID
    longer = PRESIGNED.query.replace("86400", "604801")
    assert fault(changed(PRESIGNED, query=longer)) is Fault.TOO_LONG


def test_a_scope_is_for_one_day_region_and_service() -> None:
    other_day = PRESIGNED.query.replace("%2F20130524", "%2F20130525")

    assert fault(GET, region="eu-west-1") is Fault.WRONG_SCOPE
    assert fault(GET, service="ec2") is Fault.WRONG_SCOPE
    assert fault(changed(PRESIGNED, query=other_day)) is Fault.WRONG_SCOPE
    verified(GET, region="")


def test_a_signature_that_cannot_be_read_is_no_mismatch() -> None:
    unsorted_ = PRESIGNED.query.replace("SignedHeaders=host", "SignedHeaders=range%3Bhost")

    assert fault(changed(GET, headers=[HOST])) is Fault.ANONYMOUS
    assert fault(changed(GET, headers=[HOST, ("Authorization", "Basic x")])) is Fault.MALFORMED
    assert fault(changed(PRESIGNED, headers=GET.headers)) is Fault.MALFORMED
    assert fault(changed(PRESIGNED, query=unsorted_)) is Fault.MALFORMED
    assert fault(changed(PRESIGNED, query="X-Amz-Signature=1")) is Fault.MALFORMED


CHUNKS = [
    ("10000", "ad80c730a21e5b8d04586a2213dd63b9a0e99e0e2307b0ade35a65485a288648", b"a" * 65_536),
    ("400", "0055627c9e194cb4542bae2aa5492e3c1575bbb81b612b7d234b86a503ef5497", b"a" * 1024),
    ("0", "b6c6ea8a5354eaf15b3cb7646744f4275b71ea724fed81ceb9323e279d449df9", b""),
]
BODY = b"".join(
    f"{size};chunk-signature={signature}\r\n".encode() + data + b"\r\n"
    for size, signature, data in CHUNKS
)


@pytest.mark.parametrize("step", [1, 7, 1000, len(BODY)])
def test_a_body_in_signed_chunks_is_read_however_it_comes(step: int) -> None:
    chunks = Chunks(verified(CHUNKED))
    pieces = [chunks.feed(BODY[at : at + step]) for at in range(0, len(BODY), step)]
    chunks.end()

    assert b"".join(pieces) == b"a" * 66_560


def test_a_chunk_that_was_changed_or_cut_off_is_noticed() -> None:
    chunks, cut = Chunks(verified(CHUNKED)), Chunks(verified(CHUNKED))
    cut.feed(BODY[:66_000])

    with pytest.raises(sigv4.Broken, match="none of its bytes"):
        chunks.feed(BODY.replace(b"aaa", b"aab", 1))
    with pytest.raises(sigv4.Broken, match="in the middle"):
        cut.end()


def test_an_unsigned_body_with_trailers_gives_its_checksum() -> None:
    unsigned = dataclasses.replace(verified(CHUNKED), payload="STREAMING-UNSIGNED-PAYLOAD-TRAILER")
    chunks = Chunks(unsigned)

    assert chunks.feed(b"5\r\nhello\r\n0\r\nx-amz-checksum-crc32:NhCmhg==\r\n\r\n") == b"hello"
    chunks.end()
    assert chunks.trailers == {"x-amz-checksum-crc32": "NhCmhg=="}


# -- what botocore makes ---------------------------------------------------------------------------

TOKEN = "a/long+token=="
MINE = {"key": Credential("secret", TOKEN, ends=time.time() + 3600)}


@pytest.mark.parametrize("name", ["a", "a b/100%+é.csv", "~/'q\"&=?#*(1)", "//double/./..", "$@:"])
@pytest.mark.parametrize("method", ["get_object", "put_object", "upload_part"])
def test_urls_of_boto3_are_verified(name: str, method: str) -> None:
    session = boto3.session.Session("key", "secret", TOKEN, region_name="eu-west-1")
    client = session.client("s3", config=Config(signature_version="s3v4"))
    more = {"UploadId": "a~b/c+d", "PartNumber": 3} if method == "upload_part" else {}
    url = client.generate_presigned_url(method, Params={"Bucket": "b", "Key": name, **more})
    parts = urllib.parse.urlsplit(url)
    verb = "GET" if method == "get_object" else "PUT"
    request = Request(verb, parts.path, parts.query, [("host", parts.netloc)])

    given: dict[str, Any] = {"region": "eu-west-1", "service": "s3"}
    assert sigv4.verify(request, MINE, now=time.time(), **given).payload == sigv4.UNSIGNED
    later = time.time() + 3601
    gone = {"key": Credential("secret", TOKEN, ends=time.time() - 1)}
    with pytest.raises(Unverified) as over:
        sigv4.verify(request, MINE, now=later, **given)
    with pytest.raises(Unverified) as ended:
        sigv4.verify(request, gone, now=time.time(), **given)
    with pytest.raises(Unverified) as other:
        sigv4.verify(request, {"key": Credential("secret")}, now=time.time(), **given)
    faults = [one.value.fault for one in (over, ended, other)]
    assert faults == [Fault.EXPIRED, Fault.EXPIRED_TOKEN, Fault.INVALID_TOKEN]


def test_a_query_of_ec2_is_verified_with_its_body() -> None:
    body = "Action=DescribeInstances&Version=2016-11-15&Filter.1.Name=tag%3Aa+b"
    made = AWSRequest("POST", "https://ec2.eu-west-1.amazonaws.com/", data=body)
    made.headers["Content-Type"] = "application/x-www-form-urlencoded; charset=utf-8"
    SigV4Auth(Credentials("key", "secret", TOKEN), "ec2", "eu-west-1").add_auth(made)
    headers = [("Host", "ec2.eu-west-1.amazonaws.com"), *made.headers.items()]
    request = Request("POST", "/", "", headers)
    payload = hashlib.sha256(body.encode()).hexdigest()
    other = hashlib.sha256(b"other").hexdigest()
    given: dict[str, Any] = {"region": "eu-west-1", "service": "ec2", "now": time.time()}

    assert sigv4.verify(request, MINE, payload=payload, **given).signed.service == "ec2"
    with pytest.raises(Unverified) as caught:
        sigv4.verify(request, MINE, payload=other, **given)
    assert caught.value.fault is Fault.MISMATCH
