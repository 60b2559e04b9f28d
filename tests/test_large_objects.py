"""Large objects: sent in parts and fetched in ranges, several at once, whatever the server does."""

import contextlib
import hashlib
import http.server
import os
import pathlib
import secrets
import shutil
import threading
import time
import zlib
from collections.abc import Iterator, Sequence
from typing import Any

import pytest
from faults import small_disk
from s3_servers import Weed, environ_of, started

from workflows.config import settings
from workflows.errors import CheckpointError
from workflows.node import download, push, ranges
from workflows.node.curl import Curl, Transfer
from workflows.node.processes import Groups
from workflows.node.signatures import Signatures
from workflows.node.storage import Storage
from workflows.running.uploads import _etag, _signed, source_of
from workflows.storage.s3store import S3Store

MIB = 1 << 20
BODY = os.urandom(4 * MIB + 12_345)
CRC = zlib.crc32(BODY)
SLOW = b"<Error><Code>SlowDown</Code><Message>Please reduce your rate</Message></Error>"
EXPIRED = b"<Error><Code>ExpiredToken</Code><Message>The token has expired</Message></Error>"


@pytest.fixture(autouse=True)
def _small_is_large(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ranges, "LEAST", MIB)
    monkeypatch.setattr(download, "LARGE", MIB)


# -- a server that misbehaves ----------------------------------------------------------------------


class Server(http.server.ThreadingHTTPServer):
    """Has one object; `plan` says what goes wrong, in turn, for who asks from a byte on."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server_address[1]}/k?secret=1"
        self.plan: dict[int, list[str]] = {}
        self.asked: list[str] = []
        self.body, self.etag, self.knows_ranges = BODY, "v1", True
        self.stored: dict[str, bytes] = {}


class Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: Server

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - the base's name
        return

    def do_GET(self) -> None:
        server, asked = self.server, self.headers.get("Range", "")
        server.asked.append(asked)
        first, last = 0, len(server.body) - 1
        if asked and server.knows_ranges:
            first, last = map(int, asked.removeprefix("bytes=").split("-"))
        plan = server.plan.get(first, [])
        trouble = plan.pop(0) if plan else ""
        if trouble == "slow":
            return self._answer(503, SLOW)
        if trouble == "expired":
            return self._answer(403, EXPIRED)
        if self.headers.get("If-Match", f'"{server.etag}"') != f'"{server.etag}"':
            return self._answer(412, b"<Error><Code>PreconditionFailed</Code></Error>")
        self.send_response(206 if asked and server.knows_ranges else 200)
        self.send_header("Content-Range", f"bytes {first}-{last}/{len(server.body)}")
        self.send_header("Content-Length", str(last + 1 - first))
        self.end_headers()
        self.close_connection = bool(trouble)
        cut = first + 500_000 if trouble else last + 1
        self.wfile.write(server.body[first:cut])
        if trouble == "replaced":
            server.etag = "v2"
        return None

    def do_PUT(self) -> None:
        self.server.asked.append(self.path)
        body = self.rfile.read(int(self.headers["Content-Length"]))
        number = int(self.path.rpartition("=")[2])
        plan = self.server.plan.get(number, [])
        if plan:
            trouble = plan.pop(0)
            return self._answer(503 if trouble == "slow" else 400, EXPIRED)
        self.server.stored[self.path] = body
        return self._answer(200, b"")

    def _answer(self, status: int, body: bytes) -> None:
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)


@pytest.fixture
def server() -> Iterator[Server]:
    with Server() as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        yield server
        server.shutdown()
        thread.join()


# Notes its arguments; one that is old knows nothing of many transfers at once.
WRAPPER = """\
#!/bin/bash
echo "$*" >> NOTED
[[ -z 'OLD' || $* != *--version ]] || { echo 'curl 7.58.0 (x86_64-pc-linux-gnu)'; exit; }
[[ -z 'OLD' || $* != *--parallel* ]] || exit 2
exec CURL "$@" MORE
"""


def wrapped(
    folder: pathlib.Path,
    *,
    old: str = "",
    more: str = "",
    backoff_s: str = "0.01",
    attempts: int = 6,
) -> Curl:
    """Return a curl that notes its arguments, and is given more of them."""
    script = folder / "bin" / "curl"
    script.parent.mkdir()
    said = {"OLD": old, "MORE": more, "NOTED": str(folder / "noted")}
    text = WRAPPER.replace("CURL", shutil.which("curl") or "curl")
    for name, value in said.items():
        text = text.replace(name, value)
    script.write_text(text)
    script.chmod(0o755)
    path = os.pathsep.join([str(script.parent), os.environ["PATH"]])
    patience = {
        "WORKFLOWS_FETCH_BACKOFF_S": backoff_s,
        "WORKFLOWS_FETCH_ATTEMPTS": str(attempts),
    }
    return Curl({**os.environ, **patience, "PATH": path}, Groups())


@pytest.fixture(params=["as it is here", "before 7.75", "without stdbuf"])
def curl(
    request: pytest.FixtureRequest, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> Curl:
    if request.param == "without stdbuf":
        monkeypatch.setattr("workflows.node.curl._buffered", lambda _: [])
    return wrapped(tmp_path, old="yes" if request.param == "before 7.75" else "")


@pytest.fixture
def storage(tmp_path: pathlib.Path) -> Iterator[Storage]:
    with contextlib.closing(Storage(str(tmp_path / "node"))) as storage:
        yield storage


def large(server: Server, folder: pathlib.Path) -> Transfer:
    return Transfer(server.url, str(folder / "k"), len(BODY), etag="v1")


def test_ranges_make_the_file_whole_and_no_url_is_in_an_argument(
    server: Server, curl: Curl, tmp_path: pathlib.Path
) -> None:
    assert ranges.fetch(curl, large(server, tmp_path), str(tmp_path)) == (None, CRC)
    assert (tmp_path / "k").read_bytes() == BODY
    assert len(server.asked) == 4
    assert "secret" not in (tmp_path / "noted").read_text()


def test_a_range_that_is_cut_or_refused_for_now_is_fetched_again_alone_from_where_it_was(
    server: Server, curl: Curl, tmp_path: pathlib.Path
) -> None:
    second = -(-len(BODY) // 4)
    server.plan = {second: ["cut"], second + 500_000: ["slow", "cut"]}

    assert ranges.fetch(curl, large(server, tmp_path), str(tmp_path)) == (None, CRC)
    assert (tmp_path / "k").read_bytes() == BODY
    again = [f"bytes={second + got}-{2 * second - 1}" for got in (0, 500_000, 500_000, 1_000_000)]
    assert [asked for asked in server.asked if asked.endswith(again[0][-8:])] == again
    assert len(server.asked) == 7


def test_a_server_that_knows_no_ranges_gives_the_whole_file_once(
    server: Server, curl: Curl, tmp_path: pathlib.Path
) -> None:
    server.knows_ranges = False

    assert ranges.fetch(curl, large(server, tmp_path), str(tmp_path)) == (None, CRC)
    assert (tmp_path / "k").read_bytes() == BODY
    assert server.asked[-1] == ""


def test_an_object_that_is_replaced_in_the_middle_is_refused(
    server: Server, curl: Curl, tmp_path: pathlib.Path
) -> None:
    server.plan = {0: ["replaced"]}

    trouble, _ = ranges.fetch(curl, large(server, tmp_path), str(tmp_path))

    assert trouble == ("it was replaced after it was committed", 412, "PreconditionFailed")


def test_what_lasts_says_s3s_own_code_and_nothing_is_tried_for_ever(
    server: Server, curl: Curl, tmp_path: pathlib.Path
) -> None:
    server.plan = {0: ["expired"] * 9}
    expired, _ = ranges.fetch(curl, large(server, tmp_path), str(tmp_path))
    server.plan = {0: ["slow"] * 99}
    slow, _ = ranges.fetch(curl, large(server, tmp_path), str(tmp_path))

    assert expired == ("HTTP status 403 ExpiredToken The token has expired", 403, "ExpiredToken")
    assert slow == ("HTTP status 503", 503, "")
    assert len(server.plan[0]) == 99 - 6


def test_a_part_that_is_refused_is_sent_again_alone_and_what_lasts_ends_the_others(
    server: Server, curl: Curl, storage: Storage
) -> None:
    item = kept(storage, BODY)
    urls = [f"{server.url}&n={number}" for number in range(9)]
    asked = {**item, "compress": "", "parts": urls, "part_bytes": MIB}

    server.plan = {1: ["slow"]}
    (sent,) = push.push(storage, "S", [asked], curl, nobody)
    parts = [BODY[at : at + MIB] for at in range(0, len(BODY), MIB)]
    stored = [server.stored[f"/k?secret=1&n={number}"] for number in range(5)]
    server.plan = {number: ["expired"] for number in range(5)}
    (refused,) = push.push(storage, "S", [asked], curl, nobody)

    assert stored == parts
    assert (sent["event"], sent["stored"]) == ("pushed", len(BODY))
    assert sent["md5s"] == [hashlib.md5(part).hexdigest() for part in parts]
    assert (refused["event"], refused["code"]) == ("failed", "ExpiredToken")


def test_a_damaged_output_is_refused_in_parts_too(
    server: Server, curl: Curl, storage: Storage
) -> None:
    item = kept(storage, BODY)
    path = pathlib.Path(storage.path("S", item["id"], item["key"]))
    path.chmod(0o644)
    path.write_bytes(BODY[:-1] + b"?")
    urls = [f"{server.url}&n={number}" for number in range(9)]

    asked = [
        {**item, "compress": "", "parts": urls, "part_bytes": MIB},
        {**item, "compress": "", "url": urls[0]},
        {**item, "compress": "gzip", "url": urls[0]},
    ]
    outcomes = [event for one in asked for event in push.push(storage, "S", [one], curl, nobody)]

    said = [(event["event"], event["why"]) for event in outcomes]
    assert said == [("failed", "is damaged; run: workflows fsck")] * 3


def nobody(asked: Sequence[dict[str, Any]]) -> list[str]:
    raise AssertionError(f"signs {asked}: there are URLs")


def test_what_the_driver_does_not_sign_is_not_sent_and_says_so(
    server: Server, curl: Curl, storage: Storage
) -> None:
    item = kept(storage, BODY)
    ways = [{}, {"part_bytes": MIB}]
    asked = [{**item, "compress": "", **way} for way in ways]
    gone = Signatures(lambda _: gone.close())  # it hangs up instead of an answer

    outcomes = [
        event for one in asked for event in push.push(storage, "S", [one], curl, gone.for_uploads)
    ]

    assert [event["event"] for event in outcomes] == ["failed"] * 2
    assert all("the driver did not sign its URL" in event["why"] for event in outcomes)
    assert server.asked == []


def test_a_node_gets_no_url_for_an_object_that_it_was_not_told_to_send() -> None:
    store: Any = None  # which is never asked
    for one in ({"id": "other", "md5": "0" * 32}, {"id": "mine", "md5": "no digest"}):
        with pytest.raises(CheckpointError, match="asks to write what it was not told to"):
            _signed(store, [one], {"mine": "S/k"}, {})


def kept(storage: Storage, data: bytes, key: str = "k") -> dict[str, Any]:
    """Publish an output; return what a driver knows of it."""
    about: dict[str, Any] = {"key": key, "id": "i" + key, "bytes": len(data)}
    about["crc"] = f"{zlib.crc32(data):08x}"
    scratch = pathlib.Path(storage.scratch())
    (scratch / "file").write_bytes(data)
    record = {**about, "spec": "", "inputs": [], "metrics": {}}
    storage.publish("S", str(scratch / "file"), record)
    scratch.rmdir()
    return about


# -- real servers ----------------------------------------------------------------------------------


@pytest.fixture(params=["seaweedfs", "moto"])
def store(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[S3Store]:
    if request.param == "moto":
        environ = environ_of(request.getfixturevalue("moto"))
    else:
        environ = request.getfixturevalue("weed").environ
    yield from opened(environ, monkeypatch)


def opened(environ: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> Iterator[S3Store]:
    from workflows.storage import s3

    for name, value in environ.items():
        monkeypatch.setenv(name, value)
    settings.cache_clear()
    bucket = "b" + secrets.token_hex(8)
    s3.client(bucket).create_bucket(Bucket=bucket)
    yield S3Store(f"s3://{bucket}/check point")
    settings.cache_clear()


def sent(store: S3Store, storage: Storage, data: bytes, curl: Curl, compress: str) -> Any:
    """Send an output in parts; return its part of a manifest."""
    item = kept(storage, data)
    upload = store.begin("S/k é")
    asked = {**item, "compress": compress, "part_bytes": 5 * MIB}

    def sign(parts: Sequence[dict[str, Any]]) -> list[str]:
        return [store.sign_part("S/k é", upload, one["part"], one["md5"]) for one in parts]

    (event,) = push.push(storage, "S", [asked], curl, sign)
    assert event["event"] == "pushed", event
    store.finish("S/k é", upload, event["md5s"])
    more = {"stored": event["stored"], "etag": _etag(event["md5s"], in_parts=True)}
    return {**item, "object": "S/k é", "compress": compress, **more}


@pytest.mark.parametrize("compress", ["", "gzip"])
def test_what_went_up_in_parts_comes_back_in_ranges_unless_it_was_replaced(
    store: S3Store, storage: Storage, tmp_path: pathlib.Path, compress: str
) -> None:
    data = os.urandom(11 * MIB)
    curl = wrapped(tmp_path)
    part = sent(store, storage, data, curl, compress)
    storage.drop("S", [part["id"]], "to be brought back")
    item = {**part, **source_of(store, part)}

    (brought,) = download.download(storage, "S", [item], curl)
    storage.drop("S", [item["id"]], "for another try")
    (listed,) = store.list("S")
    assert store.create("S/other", [os.urandom(part["stored"])])
    replaced = {**item, "url": store.sign_get("S/other")}
    (refused,) = download.download(storage, "S", [replaced], curl)

    assert brought["event"] == "brought", brought
    assert (listed.size, listed.etag) == (part["stored"], part["etag"])
    assert refused["event"] == "failed"
    assert (refused["why"], refused["status"]) == ("it was replaced after it was committed", 412)
    assert [name for name in os.listdir(storage.tmp) if name != "alive"] == []


def test_a_server_killed_in_the_middle_of_ranges_is_waited_for_and_the_file_is_whole(
    storage: Storage, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = os.urandom(64 * MIB)  # more than what is on its way when the server dies
    slow = wrapped(tmp_path, more="--limit-rate 8M", backoff_s="0.5", attempts=12)
    with started(tmp_path / "weed") as server:
        (store,) = opened_once(server, monkeypatch)
        assert store.create("S/k", [data])
        (listed,) = store.list("S")
        crc = f"{zlib.crc32(data):08x}"
        part = {"key": "k", "id": "ik", "bytes": len(data), "crc": crc, "stored": len(data)}
        part |= {"object": "S/k", "compress": "", "etag": listed.etag, "metrics": {}}
        item = {**part, **source_of(store, part)}
        events: list[dict[str, Any]] = []
        thread = threading.Thread(
            target=lambda: events.extend(download.download(storage, "S", [item], slow))
        )
        thread.start()
        wait_for_headers(pathlib.Path(storage.tmp))
        server.kill()
        visible = storage.listing("S")
        server.start()
        thread.join(120)

    settings.cache_clear()
    assert visible == {}
    assert len((tmp_path / "noted").read_text().splitlines()) > 4
    assert [event["event"] for event in events] == ["brought"], events
    path = storage.path("S", "ik", "k")
    assert pathlib.Path(path).read_bytes() == data


def opened_once(server: Weed, monkeypatch: pytest.MonkeyPatch) -> list[S3Store]:
    for name, value in server.environ.items():
        monkeypatch.setenv(name, value)
    settings.cache_clear()
    server.bucket("bucket")
    return [S3Store("s3://bucket")]


def wait_for_headers(folder: pathlib.Path) -> None:
    """Wait until the server has begun to answer for all ranges."""
    deadline = time.monotonic() + 60
    while sum(path.stat().st_size > 0 for path in folder.glob("*/headers.*")) < 4:
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_a_disk_without_room_is_said_before_bytes_flow(
    server: Server, tmp_path: pathlib.Path
) -> None:
    with small_disk(tmp_path / "disk", "3m") as disk, contextlib.ExitStack() as stack:
        storage = stack.enter_context(contextlib.closing(Storage(str(disk / "node"))))
        item = {"key": "k", "id": "ik", "bytes": len(BODY), "crc": f"{CRC:08x}", "compress": ""}
        item |= {"url": server.url, "stored": len(BODY), "etag": "v1"}

        (event,) = download.download(storage, "S", [item], wrapped(tmp_path))
        left = os.listdir(storage.tmp)

    assert event["event"] == "failed"
    assert "No space left on device" in event["why"]
    assert (server.asked, left) == ([], ["alive"])
