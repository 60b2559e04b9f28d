"""Nodes that use S3 with credentials of their own; a stand-in for EC2's metadata gives them."""

import calendar
import http.server
import json
import secrets
import threading
import time
import urllib.parse
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import pytest
from aws.sigv4 import Credential
from botocore.auth import S3SigV4QueryAuth
from botocore.awsrequest import AWSRequest
from botocore.credentials import Credentials
from s3_servers import ADMIN, READER, STEPS, Weed

from workflows.node import role

if TYPE_CHECKING:
    from conftest import Done, Place


class Metadata(http.server.ThreadingHTTPServer):
    """IMDSv2: it answers nobody without a token, and has the credentials of one role."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Answer)
        self.url = f"http://127.0.0.1:{self.server_address[1]}"
        self.key, self.token, self.lasts_s, self.given = ADMIN, "", 3600.0, 0


class Answer(http.server.BaseHTTPRequestHandler):
    server: Metadata

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - the base's name
        return

    def do_PUT(self) -> None:
        is_asked = self.path == "/latest/api/token"
        self._say("a token" if is_asked else "", 200 if is_asked else 404)

    def do_GET(self) -> None:
        top = "/latest/meta-data/iam/security-credentials/"
        if self.headers.get("X-aws-ec2-metadata-token") != "a token":
            self._say("", 401)
        elif self.path == top:
            self._say("rides-role\n")
        elif self.path == top + "rides-role":
            self.server.given += 1
            key, secret = self.server.key
            ends = time.gmtime(time.time() + self.server.lasts_s)
            found = {"AccessKeyId": key, "SecretAccessKey": secret, "Token": self.server.token}
            found["Expiration"] = time.strftime("%Y-%m-%dT%H:%M:%SZ", ends)
            self._say(json.dumps(found))
        else:
            self._say("", 404)

    def _say(self, text: str, status: int = 200) -> None:
        self.send_response(status)
        self.send_header("Content-Length", str(len(text)))
        self.end_headers()
        self.wfile.write(text.encode())


@pytest.fixture
def metadata() -> Iterator[Metadata]:
    with Metadata() as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        yield server
        server.shutdown()
        thread.join()


class Pipeline:
    """Steps over a bucket whose nodes have a role."""

    def __init__(self, weed: Weed, place: "Place", metadata: str) -> None:
        self.place = place
        self.bucket = "b" + secrets.token_hex(8)
        self.client = weed.bucket(self.bucket)
        self.environ: dict[str, Any] = {
            **weed.environ,
            "WORKFLOWS_S3_NODES": "role",
            "AWS_EC2_METADATA_SERVICE_ENDPOINT": metadata,
            "WORKFLOWS_FETCH_ATTEMPTS": "2",
        }
        place.module(STEPS.format(last="sed s/^/x/"))

    def put(self, name: str, data: bytes) -> None:
        self.client.put_object(Bucket=self.bucket, Key=f"trip data/{name}", Body=data)

    def run(self, task: str, **env: str) -> "Done":
        words = ["--source", f"s3://{self.bucket}/trip data/", "--pattern", "*"]
        words += ["--checkpoint", f"s3://{self.bucket}/out put", "--fleet", "local:2"]
        return self.place.luigi(task, *words, **{**self.environ, **env})

    def results(self) -> dict[str, bytes]:
        """Return name -> bytes of what was committed of the last step."""
        found = self.client.list_objects_v2(Bucket=self.bucket, Prefix="out put/Last/")
        names = [item["Key"] for item in found["Contents"] if "/data/" in item["Key"]]
        bodies = [self.client.get_object(Bucket=self.bucket, Key=name)["Body"] for name in names]
        return {
            name.split("/data/")[1].split("/", 1)[1]: body.read()
            for name, body in zip(names, bodies, strict=True)
        }


def test_nodes_with_a_role_fetch_send_and_bring_back_by_themselves(
    weed: Weed, place: "Place", metadata: Metadata
) -> None:
    # The credentials of a role always have a token, and Amazon refuses them without it.
    metadata.key, metadata.token = ("role", "role-secret"), "a/long+token=="
    weed.strict.keys["role"] = Credential("role-secret", metadata.token)
    made = Pipeline(weed, place, metadata.url)
    for name in ("a b.txt", "100%+é.txt", "deep/q'\"&=?#.txt"):
        made.put(name, b"aba\n")
    made.put("large", b"a" * 12_000_000 + b"\n")

    first = made.run("Kept", WORKFLOWS_S3_MULTIPART_MB="5")
    for path in (place.state / "nodes").iterdir():
        path.rename(place.path / f"lost {path.name}")
    done = made.run("Last")

    assert (first.code, done.code) == (0, 0), (first, done)
    assert made.results() == {
        **dict.fromkeys(("a b.txt", "100%+é.txt", "deep/q'\"&=?#.txt"), b"xbbb\n"),
        "large": b"x" + b"b" * 12_000_000 + b"\n",
    }
    assert place.ledger("Fetch") == []
    assert 2 <= metadata.given <= 8  # a few times for each runtime, not for each key
    sent = [call for call in weed.strict.seen if call.bucket == made.bucket and call.is_presigned]
    uploads = [call for call in sent if call.request.method == "PUT"]
    assert {call.operation for call in uploads} == {"PutObject", "UploadPart"}
    assert all("role" in call.query["X-Amz-Credential"] for call in sent)
    assert {call.query["X-Amz-SignedHeaders"] for call in uploads} == {"content-md5;host"}


def test_a_node_without_a_role_says_so_and_what_to_do(weed: Weed, place: "Place") -> None:
    made = Pipeline(weed, place, "http://127.0.0.1:1")
    made.put("a", b"aba\n")

    done = made.run("Kept")

    assert done.code == 30, done
    assert "Fetch of a on node 0: this node has no role of its own (http://127.0.0.1:1" in done.err
    assert "give it an instance profile (profile: in the fleet's file), or set [s3]" in done.err
    assert "Traceback" not in done.err


def test_a_role_that_may_only_read_is_refused_with_the_object_and_the_right_that_is_missing(
    weed: Weed, place: "Place", metadata: Metadata
) -> None:
    metadata.key = READER
    made = Pipeline(weed, place, metadata.url)
    made.put("a", b"aba\n")

    done = made.run("Kept")

    assert done.code == 30, done
    assert f"PutObject of s3://{made.bucket}/out put/Kept/" in done.err
    assert "(from node 0)" in done.err
    assert "grant s3:PutObject" in done.err


@pytest.mark.parametrize("md5", ["", "1B2M2Y8AsgTpgAmY7PhCfg=="])
@pytest.mark.parametrize("token", ["", "a/long+token=="])
@pytest.mark.parametrize(
    "url",
    [
        "http://127.0.0.1:8333/b/a%20b/100%25%2B%C3%A9.txt",
        "https://b.s3.eu-west-1.amazonaws.com/k?partNumber=3&uploadId=a~b%2Fc_d",
    ],
)
def test_a_signature_of_a_node_is_the_one_that_botocore_makes(
    url: str, token: str, md5: str
) -> None:
    given = Credentials("key", "secret", token or None)
    request = AWSRequest(method="PUT", url=url, headers={"Content-MD5": md5} if md5 else {})
    S3SigV4QueryAuth(given, "s3", "eu-west-1", expires=3600).add_auth(request)
    expected = dict(urllib.parse.parse_qsl(urllib.parse.urlsplit(str(request.url)).query))
    at = time.strptime(expected["X-Amz-Date"], "%Y%m%dT%H%M%SZ")
    mine = role.Credentials("key", "secret", token, 0)
    ours = role.presigned("PUT", url, "eu-west-1", mine, calendar.timegm(at), md5=md5)

    assert dict(urllib.parse.parse_qsl(urllib.parse.urlsplit(ours).query)) == expected
    assert ours.partition("?")[0] == url.partition("?")[0]


def test_credentials_are_asked_for_again_before_they_end(
    metadata: Metadata, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AWS_EC2_METADATA_SERVICE_ENDPOINT", metadata.url)
    monkeypatch.setattr(role, "_held", [])
    metadata.lasts_s = 200

    soon = [role.credentials() for _ in range(2)]
    metadata.lasts_s = 3600
    later = [role.credentials() for _ in range(3)]

    assert metadata.given == 3
    assert {one.key for one in [*soon, *later]} == {ADMIN[0]}
