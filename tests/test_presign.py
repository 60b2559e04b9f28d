"""URLs that are signed in large numbers: exactly those that boto3 makes, or none."""

import calendar
import os
import time
import urllib.parse
from typing import Any

import boto3
import pytest
from botocore.config import Config

from workflows.config import Settings
from workflows.storage import presign, s3

KEYS = ["a", "a b/100%+é.csv", "~/'q\"&=?#*(1)", "//double/./..", "e\u0301", "x" * 900]


def session(token: str = "") -> Any:
    return boto3.session.Session("key", "secret", token or None, region_name="eu-west-1")


def client(endpoint: str, version: str = "s3v4", token: str = "") -> Any:
    config = Config(signature_version=version)
    return session(token).client("s3", endpoint_url=endpoint or None, config=config)


def parts(url: str) -> tuple[str, dict[str, str]]:
    address, _, query = url.partition("?")
    return address, dict(urllib.parse.parse_qsl(query))


@pytest.mark.parametrize("token", ["", "a/long+token=="])
@pytest.mark.parametrize("endpoint", ["", "http://127.0.0.1:8333"])
@pytest.mark.parametrize(("method", "verb"), [("get_object", "GET"), ("put_object", "PUT")])
def test_signed_urls_are_those_of_boto3(method: str, verb: str, endpoint: str, token: str) -> None:
    made = client(endpoint, token=token)

    def theirs(key: str) -> str:
        given = {"Bucket": "bucket", "Key": key}
        given |= {"ContentMD5": presign.EXAMPLE_MD5} if verb == "PUT" else {}
        return str(made.generate_presigned_url(method, Params=given, ExpiresIn=777))

    credentials = session(token).get_credentials()
    signer = presign.signer_like(theirs(presign.EXAMPLE), verb, credentials)

    assert signer is not None
    md5 = presign.EXAMPLE_MD5 if verb == "PUT" else ""
    for key in KEYS:
        url = theirs(key)
        at = time.strptime(parts(url)[1]["X-Amz-Date"], "%Y%m%dT%H%M%SZ")
        assert parts(signer(key, md5, calendar.timegm(at))) == parts(url)


def test_what_cannot_be_signed_alike_is_left_to_boto3() -> None:
    given = {"Bucket": "bucket", "Key": presign.EXAMPLE}
    example = client("").generate_presigned_url("get_object", Params=given)
    old = client("", "s3").generate_presigned_url("get_object", Params=given)
    other = boto3.session.Session("key", "another").get_credentials()

    assert presign.signer_like(example, "GET", session().get_credentials()) is not None
    assert presign.signer_like(example, "PUT", session().get_credentials()) is None
    assert presign.signer_like(example, "GET", other) is None
    assert presign.signer_like(example, "GET", None) is None
    assert presign.signer_like(old, "GET", session().get_credentials()) is None


def test_credentials_that_were_renewed_sign_the_next_url() -> None:
    given = {"Bucket": "bucket", "Key": presign.EXAMPLE}
    example = client("").generate_presigned_url("get_object", Params=given)
    credentials = session().get_credentials()
    signer = presign.signer_like(example, "GET", credentials)
    assert signer is not None

    before = parts(signer("a", now=0))[1]["X-Amz-Credential"]
    credentials.access_key = "renewed"
    after = parts(signer("a", now=0))[1]["X-Amz-Credential"]

    assert (before.split("/")[0], after.split("/")[0]) == ("key", "renewed")


AMAZON = [
    ("us-east-1", "rides", "https://rides.s3.amazonaws.com/"),
    ("eu-central-2", "rides", "https://rides.s3.eu-central-2.amazonaws.com/"),
    ("cn-north-1", "rides", "https://rides.s3.cn-north-1.amazonaws.com.cn/"),
    ("us-gov-west-1", "rides", "https://rides.s3.us-gov-west-1.amazonaws.com/"),
    # No certificate is good for a name with a dot before s3.
    ("eu-west-1", "my.rides", "https://s3.eu-west-1.amazonaws.com/my.rides/"),
]


@pytest.mark.parametrize(("region", "bucket", "address"), AMAZON)
@pytest.mark.parametrize("dual", ["false", "true"])
def test_amazons_buckets_are_addressed_in_their_region_by_a_name_that_tls_can_prove(
    monkeypatch: pytest.MonkeyPatch, region: str, bucket: str, address: str, dual: str
) -> None:
    monkeypatch.setenv("AWS_CONFIG_FILE", os.devnull)
    for name, value in {"ACCESS_KEY_ID": "key", "SECRET_ACCESS_KEY": "secret"}.items():
        monkeypatch.setenv(f"AWS_{name}", value)
    monkeypatch.setenv("AWS_USE_DUALSTACK_ENDPOINT", dual)
    monkeypatch.setenv("AWS_DEFAULT_REGION", "ap-south-1")
    monkeypatch.setenv("AWS_REGION", region)  # which other SDKs heed first
    made = s3._Client(Settings())

    signer = made.signer("put_object", bucket, 60)

    if dual == "true":
        address = address.replace("s3.amazonaws", f"s3.{region}.amazonaws")
        address = address.replace(f"s3.{region}.", f"s3.dualstack.{region}.")
    assert signer is not None
    assert signer("a b", presign.EXAMPLE_MD5).startswith(f"{address}a%20b?")
    assert f"%2F{region}%2Fs3%2F" in signer("a b")
