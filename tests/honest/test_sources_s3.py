"""A prefix of a bucket as a source: every object once, and what is left out is named."""

import secrets
from collections.abc import Iterator
from typing import TYPE_CHECKING

import boto3
import pytest
from moto import mock_aws

from workflows.config import settings
from workflows.errors import KeyNameError, SourceError, UsageError
from workflows.planning.source import list_source, look_at
from workflows.storage import s3

if TYPE_CHECKING:
    from mypy_boto3_s3 import S3Client


class Bucket:
    """A bucket of moto."""

    def __init__(self, client: "S3Client") -> None:
        self.name = "b" + secrets.token_hex(8)
        self.client = client
        client.create_bucket(Bucket=self.name)

    def put(self, *keys: str, body: bytes = b"x") -> None:
        for key in keys:
            self.client.put_object(Bucket=self.name, Key=key, Body=body)

    def names(self, prefix: str, pattern: str = "*") -> list[str]:
        return [key.name for key in list_source(f"s3://{self.name}/{prefix}", pattern)]


@pytest.fixture
def bucket(monkeypatch: pytest.MonkeyPatch) -> Iterator[Bucket]:
    """Return a bucket of moto inside this process: its server knows no keys with a newline."""
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.setenv(name, "testing")
    settings.cache_clear()
    s3._client.cache_clear()
    with mock_aws():
        yield Bucket(boto3.client("s3", region_name="us-east-1"))
    settings.cache_clear()
    s3._client.cache_clear()


def test_an_object_that_could_be_no_key_matters_only_if_it_matches(bucket: Bucket) -> None:
    bucket.put("p/a.csv", "p//b.csv", "p/new\nline.csv", "p/\x1b.csv")

    assert bucket.names("p/", "a*") == ["a.csv"]
    assert bucket.names("p/", "\x1b*") == ["\x1b.csv"]
    with pytest.raises(KeyNameError, match=r"'/b\.csv' cannot be a key"):
        bucket.names("p/", "b*")
    with pytest.raises(SourceError) as caught:
        bucket.names("p/")
    assert str(caught.value).startswith(f"2 names in s3://{bucket.name}/p/ cannot be read:\n")
    assert r"'new\nline.csv' cannot be a key" in str(caught.value)


def test_an_empty_object_that_stands_for_a_folder_is_no_key_and_one_with_bytes_is_named(
    bucket: Bucket,
) -> None:
    bucket.put("p/", "p/sub/", body=b"")
    bucket.put("p/sub/a.csv")
    assert bucket.names("p/") == ["sub/a.csv"]

    bucket.put("p/data/")
    assert bucket.names("p/", "*.csv") == ["sub/a.csv"]
    with pytest.raises(KeyNameError, match=r"'data/' cannot be a key"):
        bucket.names("p/")


def test_a_checkpoint_inside_the_source_is_left_out_and_named(bucket: Bucket) -> None:
    bucket.put("p/a.csv", "p/kept/Last/1/_SUCCESS", "p/kept2/b.csv")
    kept = f"s3://{bucket.name}/p/kept"

    found = look_at(f"S3://{bucket.name}/p/", "*", kept)

    assert [key.name for key in found.keys] == ["a.csv", "kept2/b.csv"]
    assert found.notes == [f"left out of s3://{bucket.name}/p/: the checkpoint: {kept}"]
    assert look_at(f"s3://{bucket.name}/p/kept2/", "*", kept).notes == []


def test_an_object_of_data_is_not_taken_for_a_list(bucket: Bucket) -> None:
    bucket.put("p/rides.csv", body=b"vendor,fare\n1,2\n")

    with pytest.raises(UsageError) as caught:
        bucket.names("p/rides.csv")

    remedy = f"to read it: --source s3://{bucket.name}/p/ --pattern rides.csv"
    assert str(caught.value).endswith(f"looks like data, not a list of URLs; {remedy}")


def test_a_list_in_a_bucket_names_no_file_of_this_machine(bucket: Bucket) -> None:
    bucket.put("p/a.csv")
    bucket.put("list", body=f"s3://{bucket.name}/p/a.csv\n".encode())
    assert bucket.names("list") == ["a.csv"]

    for line in ("/etc/passwd", "file:///etc/passwd", "a.csv", "s3:/b/a.csv", "s3://b/p/"):
        bucket.put("bad", body=f"s3://{bucket.name}/p/a.csv\n{line}\n".encode())
        with pytest.raises(SourceError, match=f"s3://{bucket.name}/bad, line 2: "):
            bucket.names("bad")
