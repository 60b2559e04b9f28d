"""What a user is told of S3's answers: the right cause first, and never the wrong one."""

from collections.abc import Iterator
from typing import Any

import botocore.exceptions
import pytest

from workflows.config import settings
from workflows.errors import CheckpointError
from workflows.storage import remedies, s3
from workflows.storage.place import Place

PLACE = Place("bucket", "key")


@pytest.fixture(autouse=True)
def _plain(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setenv("AWS_CONFIG_FILE", "/dev/null")
    monkeypatch.setattr(s3, "_regions", {})  # what other tests have learned
    settings.cache_clear()
    yield
    settings.cache_clear()


def told(code: str, message: str = "", region: str = "") -> str:
    said = remedies.explanation("PutObject", PLACE, code, f"{code} {message}".strip(), region)
    return said.partition("\n  ")[2]


@pytest.mark.parametrize(
    ("code", "message"),
    [
        ("HeadersNotSigned", ""),
        ("AccessDenied", "There were headers present in the request which were not signed"),
        ("InvalidArgument", "Invalid Argument"),
        ("InvalidParameterValue", "any"),
        ("InvalidParameter", "any"),
        ("InvalidParameterCombination", "any"),
        ("MalformedXML", ""),
        ("EntityTooSmall", ""),
        ("SignatureDoesNotMatch", ""),
    ],
)
def test_our_own_faults_are_to_be_reported_and_no_right_is_asked_for(
    code: str, message: str
) -> None:
    said = told(code, message)

    assert "please report this" in said.lower()
    assert "grant" not in said


@pytest.mark.parametrize(
    ("code", "message"),
    [
        ("ExpiredToken", "The provided token has expired."),
        ("RequestExpired", "Request has expired"),
        ("AccessDenied", "Request has expired"),
        ("TokenRefreshRequired", ""),
        ("400", ""),
    ],
)
def test_what_expired_names_the_login_first_and_the_clock_second(code: str, message: str) -> None:
    said = told(code, message)

    assert 0 < said.index("aws sso login") < said.index("clock")
    assert "grant" not in said


def test_http_400_is_another_region_only_if_s3_names_one() -> None:
    assert "set [s3] region = eu-west-1" in told("400", region="eu-west-1")
    assert not told("400").startswith("the bucket is in another region")


@pytest.mark.parametrize(
    "code", ["AuthorizationHeaderMalformed", "AuthorizationQueryParametersError"]
)
def test_the_region_that_s3_expects_is_read_from_its_message(code: str) -> None:
    wrong = "the region 'us-east-1' is wrong; expecting 'eu-west-1'"

    assert told(code, wrong) == "the bucket is in another region: set [s3] region = eu-west-1"
    assert "AWS_ACCESS_KEY_ID" in told(code, "the Credential is mal-formed")


def test_each_right_has_its_own_name() -> None:
    def asked(operation: str) -> str:
        return remedies.explanation(operation, PLACE, "AccessDenied", "AccessDenied")

    assert "grant s3:PutObject " in asked("CompleteMultipartUpload")
    assert "grant s3:ListBucketMultipartUploads " in asked("ListBucketMultipartUploads")


def refused(status: int, code: str, region: str = "") -> str:
    """Return what is told of an answer that boto3 has read."""
    answer: Any = {
        "Error": {"Code": code, "Message": ""},
        "ResponseMetadata": {
            "HTTPStatusCode": status,
            "HTTPHeaders": {"x-amz-bucket-region": region},
        },
    }
    with pytest.raises(CheckpointError) as caught, s3.explained("GetObject", PLACE):
        raise botocore.exceptions.ClientError(answer, "HeadObject")
    return str(caught.value)


def test_a_head_without_a_body_is_no_other_region_if_the_bucket_is_where_it_was_asked(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("WORKFLOWS_S3_REGION", "eu-west-1")
    settings.cache_clear()

    assert "S3 gives no reason. Most often the credentials" in refused(400, "400", "eu-west-1")
    assert "set [s3] region = eu-west-3" in refused(400, "400", "eu-west-3")


@pytest.mark.parametrize("bucket", ["new-bucket", "with.dots"])
def test_urls_for_amazon_name_the_buckets_own_region(
    monkeypatch: pytest.MonkeyPatch, bucket: str
) -> None:
    for name in ("AWS_ENDPOINT_URL", "AWS_ENDPOINT_URL_S3", "WORKFLOWS_S3_ENDPOINT_URL"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "key")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "secret")
    monkeypatch.setenv("WORKFLOWS_S3_REGION", "eu-west-1")
    monkeypatch.setitem(s3._regions, bucket, "eu-north-1")
    settings.cache_clear()

    put = s3.sign("put_object", Place(bucket, "k"), md5="1B2M2Y8AsgTpgAmY7PhCfg==")
    part = s3.sign("upload_part", Place(bucket, "k"), UploadId="u", PartNumber=1)

    for url in (put, part):
        assert "s3.eu-north-1.amazonaws.com/" in url.partition("?")[0]
        assert "%2Feu-north-1%2Fs3%2F" in url


def test_a_server_of_ones_own_keeps_the_addresses_that_it_knows(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "key")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "secret")
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:1")
    monkeypatch.delenv("WORKFLOWS_S3_ENDPOINT_URL", raising=False)
    monkeypatch.setitem(s3._regions, "bucket", "us-east-1")
    settings.cache_clear()

    url = s3.sign("get_object", PLACE)

    assert url.startswith("http://127.0.0.1:1/bucket/key?")
