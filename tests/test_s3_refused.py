"""What a user is told when S3 refuses a node: a proxy before a real server refuses for it."""

import contextlib
import http.client
import http.server
import random
import shutil
import threading
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import pytest
from aws.s3_call import Call
from s3_servers import STEPS, Weed

if TYPE_CHECKING:
    from conftest import Done, Place

BODY = "<?xml version='1.0'?><Error><Code>{code}</Code><Message>as asked</Message></Error>"
REMEDIES = {
    "ExpiredToken": "the credentials have expired: log in again",
    "AccessDenied": "grant s3:GetObject on it",
    "SlowDown": "run the same again later",
    "PermanentRedirect": "set [s3] region",
}
STATUS = {"ExpiredToken": 400, "AccessDenied": 403, "SlowDown": 503, "PermanentRedirect": 301}


class Refusing(http.server.ThreadingHTTPServer):
    """Passes on what is asked of S3; refuses nodes' signed GETs of a part of the keys."""

    def __init__(self, weed: Weed) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.weed, self.url = weed, f"http://127.0.0.1:{self.server_address[1]}"
        self.code, self.part, self.is_once = "", "", False
        self.damaged, self.is_read_only = "", False
        self.refused: set[str] = set()
        threading.Thread(target=self.serve_forever, daemon=True).start()

    def refuse(self, code: str, part: str, *, once: bool = False) -> None:
        """Refuse the keys that have `part` in their path; `once`: each the first time only."""
        self.code, self.part, self.is_once = code, part, once

    def takes(self, method: str, path: str) -> bool:
        """Tell whether a request is refused."""
        if self.is_read_only and method == "PUT":
            self.code = "AccessDenied"
            return True
        key, _, query = path.partition("?")
        if not self.code or method != "GET" or "X-Amz-Signature" not in query:
            return False
        is_refused = self.part in key and not (self.is_once and key in self.refused)
        self.refused.update([key] if is_refused else [])
        return is_refused


class Handler(http.server.BaseHTTPRequestHandler):
    """One connection to the proxy."""

    protocol_version = "HTTP/1.1"
    server: Refusing

    def pass_on(self) -> None:
        """Answer one request."""
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        if self.server.takes(self.command, self.path):
            code = self.server.code
            self.answer(STATUS[code], BODY.format(code=code).encode(), {})
            return
        there = http.client.HTTPConnection("127.0.0.1", self.server.weed.strict.port)
        with contextlib.closing(there):
            there.putrequest(self.command, self.path, skip_host=True, skip_accept_encoding=True)
            for name, value in self.headers.items():
                if name.lower() != "expect":
                    there.putheader(name, value)
            there.endheaders(body or None)
            found = there.getresponse()
            body = found.read()
            key, _, query = self.path.partition("?")
            if self.server.damaged and key.endswith(self.server.damaged) and "Signature" in query:
                body, self.server.damaged = bytes(len(body)), ""
            self.answer(found.status, body, dict(found.getheaders()))

    def answer(self, status: int, body: bytes, headers: dict[str, str]) -> None:
        """Send an answer with its body's length."""
        self.send_response(status)
        length = headers.get("Content-Length", "0") if self.command == "HEAD" else str(len(body))
        for name, value in headers.items():
            if name.lower() not in ("content-length", "transfer-encoding", "connection"):
                self.send_header(name, value)
        self.send_header("Content-Length", length)
        self.end_headers()
        self.wfile.write(b"" if self.command == "HEAD" else body)

    def log_message(self, *_: Any) -> None:
        """Say nothing."""


for _method in ("GET", "PUT", "POST", "HEAD", "DELETE"):
    setattr(Handler, f"do_{_method}", Handler.pass_on)


@pytest.fixture
def refusing(weed: Weed) -> Iterator[Refusing]:
    one = Refusing(weed)
    yield one
    one.shutdown()
    one.server_close()


class Pipeline:
    """Two durable steps over three keys in a bucket behind the proxy."""

    def __init__(self, weed: Weed, place: "Place", refusing: Refusing) -> None:
        self.place, self.bucket = place, "r" + refusing.url.rpartition(":")[2]
        self.environ: dict[str, Any] = weed.environ | {"WORKFLOWS_S3_ENDPOINT_URL": refusing.url}
        self.client = weed.bucket(self.bucket)
        for name in "abc":
            self.client.put_object(Bucket=self.bucket, Key=f"in/{name}", Body=name.encode())

    def names(self) -> list[str]:
        """Return the names of all objects."""
        found = self.client.list_objects_v2(Bucket=self.bucket).get("Contents", ())
        return [item["Key"] for item in found]

    def location(self, end: str) -> str:
        """Return the URL of the one object of the first durable step whose name ends so."""
        (name,) = [one for one in self.names() if "/Kept/" in one and one.endswith(end)]
        return f"s3://{self.bucket}/{name}"

    def run(self, command: str = "cat", words: tuple[str, ...] = ()) -> "Done":
        self.place.module(STEPS.format(last=command))
        if "--source" not in words:
            words = ("--source", f"s3://{self.bucket}/in/", *words)
        words = (*words, "--checkpoint", f"s3://{self.bucket}/kept")
        return self.place.luigi(
            "Last", *words, "--pattern", "*", WORKFLOWS_FETCH_BACKOFF_S="0", **self.environ
        )


@pytest.fixture
def pipeline(weed: Weed, place: "Place", refusing: Refusing) -> Pipeline:
    return Pipeline(weed, place, refusing)


@pytest.mark.parametrize(("code", "remedy"), REMEDIES.items())
def test_a_node_that_may_not_read_a_source_says_what_s3_said_and_what_to_do(
    pipeline: Pipeline, refusing: Refusing, code: str, remedy: str
) -> None:
    refusing.refuse(code, "/in/b")

    done = pipeline.run()

    assert done.code == 30, done
    assert f"/{pipeline.bucket}/in/b" in done.err, done
    assert code in done.err, done
    assert remedy in done.err, done
    assert "X-Amz" not in done.err, done


@pytest.mark.parametrize(("code", "remedy"), REMEDIES.items())
def test_a_node_that_may_not_restore_a_key_names_the_object_and_what_to_do(
    pipeline: Pipeline, refusing: Refusing, code: str, remedy: str
) -> None:
    assert pipeline.run().code == 0
    refusing.refuse(code, "/kept/Kept/")
    shutil.rmtree(pipeline.place.state)

    done = pipeline.run("rev")  # reads what is kept, which the nodes have lost

    assert done.code == 30, done
    assert f"GetObject of s3://{pipeline.bucket}/kept/Kept/" in done.err, done
    assert code in done.err, done
    assert remedy in done.err, done
    assert "workflows repro" not in done.err, done
    assert "X-Amz" not in done.err, done


def test_what_is_restored_is_signed_anew_once_where_the_signature_came_of_age(
    pipeline: Pipeline, refusing: Refusing
) -> None:
    assert pipeline.run().code == 0
    shutil.rmtree(pipeline.place.state)
    refusing.refuse("ExpiredToken", "/kept/Kept/", once=True)

    done = pipeline.run("rev")

    assert done.code == 0, done
    assert len(refusing.refused) == 3


@pytest.mark.parametrize("redirects", [False, True])
def test_buckets_in_other_regions_than_the_settings_are_signed_for_where_they_are(
    pipeline: Pipeline, weed: Weed, redirects: bool
) -> None:
    pipeline.place.key("a", b"1\n")
    weed.strict.bucket(pipeline.bucket).region = "eu-north-1"
    weed.strict.redirects = redirects

    done = pipeline.run(words=("--source", "source"))  # so that no listing says where it is
    shutil.rmtree(pipeline.place.state)
    again = pipeline.run("rev")
    weed.strict.redirects = False

    assert (done.code, again.code) == (0, 0), (done, again)


@pytest.mark.parametrize("compress", ["none", "gzip"])
def test_what_comes_damaged_once_is_brought_again_in_the_same_run(
    pipeline: Pipeline, refusing: Refusing, compress: str
) -> None:
    pipeline.environ["WORKFLOWS_S3_COMPRESS"] = compress
    refusing.damaged = "/in/b"

    done = pipeline.run()
    was_read = not refusing.damaged
    shutil.rmtree(pipeline.place.state)
    refusing.damaged = "/b.gz" if compress == "gzip" else "/b"
    restored = pipeline.run("rev")

    assert (done.code, was_read) == (0, True), done
    assert (restored.code, refusing.damaged) == (0, ""), restored
    assert pipeline.place.outputs("Last") == {"a": b"b", "b": b"b", "c": b"c"}
    assert pipeline.place.ledger("Fetch") == []


def test_a_checkpoint_in_its_own_source_is_no_source(pipeline: Pipeline) -> None:
    words = ("--source", f"s3://{pipeline.bucket}/")

    done = pipeline.run(words=words)
    again = pipeline.run(words=words)

    assert (done.code, again.code) == (0, 0), (done, again)
    assert sorted(pipeline.place.outputs("Last")) == ["in/a", "in/b", "in/c"]
    assert "Last" not in again.err, "nothing ran"


def test_credentials_that_may_only_read_find_a_result_whatever_the_fleet(
    pipeline: Pipeline, refusing: Refusing
) -> None:
    assert pipeline.run().code == 0
    refusing.is_read_only = True

    same = pipeline.run(words=("--fleet", "local:2"))
    other = pipeline.run("rev", words=("--fleet", "local:2"))

    assert same.code == 0, same
    assert other.code not in (0, 30), "nothing is begun that could not be kept"
    assert f"PutObject of s3://{pipeline.bucket}/kept/datasets/" in other.err
    assert "grant s3:PutObject" in other.err


# -- what Amazon refuses of uploads and sources ----------------------------------------------------

OURS = "bug in workflows, not of your credentials. Please report this"
UPLOADS = {
    "headers not signed": OURS,
    "invalid argument": OURS,
    "signature": "workflows signs this one wrongly: please report this",
    "denied": "grant s3:PutObject on it",
    "denied key": "grant them kms:GenerateDataKey and kms:Decrypt on that key",
    "expired": "log in again (aws sso login), then run the same. If the login is fresh, set this",
    "expired token": "log in again (aws sso login), then run the same. If the login is fresh, set",
    "not yet valid": "the clock of the machine that signs is wrong",
    "region of a query": "the bucket is in another region: set [s3] region = eu-north-1",
}


@pytest.mark.parametrize("rule", UPLOADS)
def test_an_upload_that_is_refused_is_explained_by_what_amazon_says_of_it(
    pipeline: Pipeline, weed: Weed, rule: str
) -> None:
    def is_upload(call: Call) -> bool:
        return call.bucket == pipeline.bucket and call.is_presigned and "/Kept/" in call.key

    pipeline.place.key("a", b"1\n")
    facts: dict[str, Any] = {"why": "the region 'us-east-1' is wrong; expecting 'eu-north-1'"}
    facts = facts if rule == "region of a query" else {}
    if rule == "headers not signed":
        facts["HeadersNotSigned"] = "content-md5"
    with weed.strict.refusing(rule, is_upload, **facts):
        done = pipeline.run(words=("--source", "source"))

    assert done.code == 30, done
    assert f"PutObject of s3://{pipeline.bucket}/kept/Kept/" in done.err
    assert UPLOADS[rule] in done.err, done
    assert ("grant s3:" in done.err) == (rule == "denied"), done
    assert ("report this" in done.err) == ("report this" in UPLOADS[rule]), done


SOURCES = {
    "headers not signed": "no right is missing: if workflows signed this URL, please report this",
    "signature": "no right is missing: if workflows signed this URL, please report this",
    "expired": "the credentials have expired: log in again (aws sso login), then run the same. If",
    "denied key": "grant kms:Decrypt on it",
    "denied": "grant s3:GetObject on it",
}


@pytest.mark.parametrize("rule", SOURCES)
def test_a_source_that_is_refused_is_explained_by_what_amazon_says_of_it(
    pipeline: Pipeline, weed: Weed, rule: str
) -> None:
    with weed.strict.refusing(rule, lambda call: call.key == "in/b" and call.is_presigned):
        done = pipeline.run()

    assert done.code == 30, done
    assert SOURCES[rule] in done.err, done
    assert ("grant s3:" in done.err) == (rule == "denied"), done
    assert "access denied, or" not in done.err


def test_what_a_bucket_with_a_key_of_kms_or_object_lock_gets_is_proved_by_its_signed_md5(
    pipeline: Pipeline, weed: Weed, place: "Place"
) -> None:
    made = weed.strict.bucket(pipeline.bucket)
    made.kms = made.object_lock = True
    data = random.Random(0).randbytes(3 << 20).hex().encode()
    place.key("large", data)
    place.key("small", b"1\n")
    pipeline.environ |= {"WORKFLOWS_S3_MULTIPART_MB": "5", "WORKFLOWS_S3_COMPRESS": "none"}
    words = ("--source", "source")

    done = pipeline.run(words=words)
    sent = [call for call in weed.strict.seen if call.bucket == pipeline.bucket]
    sent = [call for call in sent if call.key.startswith("kept/")]
    shutil.rmtree(place.state)
    again = pipeline.run("rev", words=words)
    shown = place.run("workflows", "why", pipeline.location("/large"), **pipeline.environ)

    assert (done.code, again.code) == (0, 0), (done, again)
    assert shown.code == 0, shown
    uploads = [call for call in sent if call.operation in {"PutObject", "UploadPart"}]
    assert {call.operation for call in uploads} == {"PutObject", "UploadPart"}
    for call in uploads:
        assert call.request.header("content-md5"), call
        signed = call.query.get("X-Amz-SignedHeaders", "content-md5")
        assert "content-md5" in signed


@pytest.mark.parametrize("kind", ["small", "large"])
def test_an_upload_that_is_damaged_on_its_way_every_time_is_never_committed(
    pipeline: Pipeline, weed: Weed, kind: str
) -> None:
    pipeline.place.key(kind, b"1\n" if kind == "small" else bytes(6 << 20))
    pipeline.environ |= {"WORKFLOWS_S3_MULTIPART_MB": "5", "WORKFLOWS_S3_COMPRESS": "none"}
    weed.strict.bucket(pipeline.bucket).kms = True

    with weed.strict.damaging(lambda call: call.is_presigned and call.request.method == "PUT"):
        done = pipeline.run(words=("--source", "source"))

    assert done.code == 30, done
    assert "BadDigest" in done.err, done
    assert "the bytes changed on their way" in done.err, done
    assert "_SUCCESS" not in "".join(pipeline.names())
