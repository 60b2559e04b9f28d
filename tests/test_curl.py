"""What a node does when S3 does not: storms, cuts, refusals; with a server that misbehaves."""

import hashlib
import http.server
import os
import pathlib
import shutil
import socket
import threading
from collections.abc import Iterator

import pytest

from workflows.node.curl import Curl, Transfer
from workflows.node.processes import Groups

BODY = os.urandom(3_000_000)
SLOW = b"<Error><Code>SlowDown</Code><Message>Please reduce your rate</Message></Error>"
EXPIRED = b"<Error><Code>ExpiredToken</Code><Message>The token has expired</Message></Error>"


class Server(http.server.ThreadingHTTPServer):
    """Says in turn what is planned for a path; when nothing is, all goes well."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server_address[1]}"
        self.plan: dict[str, list[str]] = {}
        self.asked: list[tuple[str, str]] = []
        self.stored: dict[str, bytes] = {}


class Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: Server

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - the base's name
        return

    def do_GET(self) -> None:
        trouble = self._trouble()
        start = int(self.headers.get("Range", "bytes=0-").split("=")[1].rstrip("-"))
        if trouble and trouble != "cut":
            return self._answer(*self._error(trouble))
        self.send_response(206 if start else 200)
        if start:
            self.send_header("Content-Range", f"bytes {start}-{len(BODY) - 1}/{len(BODY)}")
        self.send_header("Content-Length", str(len(BODY) - start))
        self.end_headers()
        self.wfile.write(BODY[start : start + 1_000_000] if trouble else BODY[start:])
        self.close_connection = bool(trouble)
        return None

    def do_PUT(self) -> None:
        trouble = self._trouble()
        if trouble == "cut":
            self.rfile.read(4)
            self.close_connection = True
            self.connection.shutdown(socket.SHUT_RDWR)
            return
        body = self.rfile.read(int(self.headers["Content-Length"]))
        if trouble:
            self._answer(*self._error(trouble))
            return
        self.server.stored[self.path] = body
        self._answer(200, b"")

    def _trouble(self) -> str:
        self.server.asked.append((self.path, self.headers.get("Range", "")))
        plan = self.server.plan.get(self.path.split("?")[0], [])
        return plan.pop(0) if plan else ""

    def _error(self, name: str) -> tuple[int, bytes]:
        known = {"slow": (503, SLOW), "expired": (400, EXPIRED), "gone": (404, b"no")}
        return known.get(name) or (409, f"<Error><Code>{name}</Code></Error>\n".encode())

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


# What Ubuntu 20.04 has: it knows no exit codes of single transfers, and says so.
OLD = """\
#!/bin/bash
[[ $* != *--version ]] || { echo 'curl 7.68.0 (x86_64-pc-linux-gnu) libcurl/7.68.0'; exit; }
[[ $* != *--parallel* ]] || { echo 'many at once, and none would say how it ended' >&2; exit 2; }
sed 's/ %{exitcode} %{errormsg}/  /' | "$REAL_CURL" "$@"
status=$?
echo "curl: unknown --write-out variable: 'exitcode'" >&2
exit $status
"""


@pytest.fixture(params=["as it is here", "before 7.75"])
def curl(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Curl:
    env = dict(os.environ, WORKFLOWS_FETCH_BACKOFF_S="0.01")
    if request.param == "before 7.75":
        script = tmp_path_factory.mktemp("old") / "curl"
        script.write_text(OLD)
        script.chmod(0o755)
        env["REAL_CURL"] = shutil.which("curl") or "curl"
        env["PATH"] = os.pathsep.join([str(script.parent), env["PATH"]])
    return Curl(env, Groups())


def get(server: Server, folder: pathlib.Path, name: str) -> Transfer:
    return Transfer(f"{server.url}/{name}?secret=1", str(folder / name), len(BODY))


def put(server: Server, folder: pathlib.Path, name: str, data: bytes) -> Transfer:
    path = folder / name
    path.write_bytes(data)
    md5 = hashlib.md5(data, usedforsecurity=False).hexdigest()
    return Transfer(f"{server.url}/{name}?secret=1", str(path), len(data), md5)


def test_a_storm_of_slow_down_is_outlasted_and_no_error_page_gets_into_the_data(
    server: Server, curl: Curl, tmp_path: pathlib.Path
) -> None:
    server.plan = {"/a": ["slow", "slow", "slow"], "/b": ["slow"], "/c": []}

    assert curl.run([get(server, tmp_path, name) for name in "abc"], str(tmp_path)) == [None] * 3
    assert [(tmp_path / name).read_bytes() == BODY for name in "abc"] == [True] * 3
    assert len(server.asked) == 7


def test_a_download_that_is_cut_goes_on_from_where_it_was(
    server: Server, curl: Curl, tmp_path: pathlib.Path
) -> None:
    server.plan = {"/a": ["cut", "slow", "cut"]}

    assert curl.run([get(server, tmp_path, "a")], str(tmp_path)) == [None]
    assert (tmp_path / "a").read_bytes() == BODY
    assert [where for _, where in server.asked] == [
        "",
        "bytes=1000000-",
        "bytes=1000000-",
        "bytes=2000000-",
    ]


def test_an_upload_that_is_cut_or_refused_for_now_is_sent_again_whole(
    server: Server, curl: Curl, tmp_path: pathlib.Path
) -> None:
    server.plan = {"/a": ["cut", "slow"]}
    names = ["a", *(f"k{number} é\"\\'" for number in range(40))]

    sent = [put(server, tmp_path, name, name.encode() * 9) for name in names]
    sent = [one._replace(url=f"{server.url}/{n or 'a'}?secret=1") for n, one in enumerate(sent)]

    assert curl.run(sent, str(tmp_path)) == [None] * 41
    assert set(server.stored.values()) == {name.encode() * 9 for name in names}


def test_what_lasts_is_not_tried_again_and_says_s3s_own_code_and_no_url(
    server: Server, curl: Curl, tmp_path: pathlib.Path
) -> None:
    server.plan = {"/a": ["expired"] * 9, "/b": ["gone"] * 9}
    transfers = [put(server, tmp_path, "a", b"x"), get(server, tmp_path, "b")]

    expired, gone = curl.run(transfers, str(tmp_path))

    assert expired == ("HTTP status 400 ExpiredToken The token has expired", 400, "ExpiredToken")
    assert gone == ("HTTP status 404", 404, "")
    assert len(server.asked) == 2
    assert (tmp_path / "b").read_bytes() == b""


def test_each_of_many_that_are_refused_at_once_has_its_own_answer(
    server: Server, curl: Curl, tmp_path: pathlib.Path
) -> None:
    names = [f"k{number}" for number in range(60)]
    server.plan = {f"/{name}": [f"Code.{name}"] for name in names[::2]}

    troubles = curl.run([put(server, tmp_path, name, b"x" * 9) for name in names], str(tmp_path))

    assert [one.code if one else "" for one in troubles] == [
        "" if number % 2 else f"Code.k{number}" for number in range(60)
    ]
    assert sorted(os.listdir(tmp_path)) == sorted(names)


def test_a_server_that_is_not_there_is_said_without_the_secret(
    curl: Curl, tmp_path: pathlib.Path
) -> None:
    transfer = Transfer("http://127.0.0.1:1/x?secret=1", str(tmp_path / "x"), 1)

    (trouble,) = curl.run([transfer], str(tmp_path))

    assert trouble is not None
    assert "127.0.0.1" in trouble.why
    assert "secret" not in trouble.why
