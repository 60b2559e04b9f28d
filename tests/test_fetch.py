"""The script that reads a source, run as a node runs it, against servers that fail on purpose."""

import hashlib
import os
import pathlib
import shutil
import signal
import subprocess
import sys
import threading
import time
import urllib.parse
from collections.abc import Iterator, Sequence

import pytest
from rough_server import BODY, PARQUET, PART, Server, serving
from scriptnode import Done, Node

HOSTILE = [
    *("plain.csv", "two words.csv", 'it\'s "q".csv', "100%25.csv", "é ü.csv", "-n", "a\\nb", "&;|"),
    *(
        "$(touch x)",
        "`id`",
        "*",
        "~",
        "#x",
        "?q=1",
        " lead",
        "trail ",
        "[1-3]{a,b}",
        "\udcff\udc80",
    ),
]
SECRET = "X-Signature=5ecre7"


@pytest.fixture
def key(tmp_path: pathlib.Path) -> Node:
    path = tmp_path / "key"
    path.mkdir()
    return Node(path)


def fetch(node: Node, source: str, **env: str) -> Done:
    return node.run("bash fetch.sh > got", source, **{"WORKFLOWS_FETCH_BACKOFF_S": "0", **env})


def got(node: Node) -> bytes:
    return (node.path / "got").read_bytes()


@pytest.mark.parametrize("newline", ["\n", ""])
@pytest.mark.parametrize("name", HOSTILE)
def test_a_local_file_is_copied_whatever_its_name(
    key: Node, tmp_path: pathlib.Path, name: str, newline: str
) -> None:
    path = tmp_path / name
    path.write_bytes(BODY)

    done = fetch(key, f"{path}{newline}")

    assert (done.code, done.err) == (0, "")
    assert got(key) == BODY


@pytest.mark.parametrize("name", HOSTILE)
def test_a_file_url_is_decoded(key: Node, tmp_path: pathlib.Path, name: str) -> None:
    path = tmp_path / name
    path.write_bytes(BODY)

    done = fetch(key, f"file://{urllib.parse.quote(os.fsencode(path))}\n")

    assert (done.code, done.err) == (0, "")
    assert got(key) == BODY


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("", "no source on stdin"),
        ("/a\n/b\n", "more than one line"),
        ("relative.csv\n", "relative.csv: neither an absolute path nor"),
        ("-\n", "-: neither an absolute path nor"),
        (f"s3://bucket/key?{SECRET}\n", "s3://bucket/key: neither an absolute path nor"),
        ("file:///a%zz\n", "not a percent-encoded URL"),
        ("file:///a%0\n", "not a percent-encoded URL"),
        ("file:///a%00b\n", "not a percent-encoded URL"),
    ],
)
def test_a_line_that_is_no_source_is_a_usage_error(key: Node, source: str, message: str) -> None:
    done = fetch(key, source)

    assert done.code == 2
    assert message in done.err
    assert SECRET not in done.err


@pytest.mark.parametrize("source", ["/no/such file", "/"])
def test_a_path_that_cannot_be_read_fails_and_is_named(key: Node, source: str) -> None:
    done = fetch(key, source)

    assert done.code != 0
    assert f"{source}: " in done.err.replace("'", "")


@pytest.fixture
def server() -> Iterator[Server]:
    with serving() as server:
        yield server


@pytest.fixture(params=["curl", "python3"])
def client(request: pytest.FixtureRequest, tmp_path: pathlib.Path) -> dict[str, str]:
    """Return an environment in which only one of the two programs is there."""
    return {"PATH": path_with(tmp_path, request.param)}


def path_with(tmp_path: pathlib.Path, *programs: str) -> str:
    directory = tmp_path / "bin"
    directory.mkdir()
    for program in ("bash", "cat", "rm", "sleep", *programs):
        # Not a shim by that name, which may need more than is on this PATH.
        found = sys.executable if program == "python3" else shutil.which(program)
        assert found, f"{program} is needed to test fetch.sh"
        (directory / program).symlink_to(os.path.realpath(found))
    return str(directory)


@pytest.mark.parametrize(
    "path", ["ok/x", "redirect/x", "ok/a b?c=d e", 'ok/"q"\\', "ok/[1-3]{a,b}"]
)
def test_a_url_is_fetched(key: Node, server: Server, client: dict[str, str], path: str) -> None:
    done = fetch(key, f"{server.url}/{path}\n", **client)

    assert (done.code, done.err) == (0, "")
    assert got(key) == BODY


def test_an_empty_answer_is_an_empty_key(key: Node, server: Server, client: dict[str, str]) -> None:
    assert fetch(key, f"{server.url}/empty/x", **client).code == 0
    assert got(key) == b""


@pytest.mark.parametrize("what", ["cut", "chunkcut", "500", "503", "429"])
def test_a_passing_trouble_is_retried_and_no_byte_comes_twice(
    key: Node, server: Server, client: dict[str, str], what: str
) -> None:
    done = fetch(key, f"{server.url}/{what}/2/x", **client)

    assert (done.code, done.err) == (0, "")
    assert got(key) == BODY
    assert len(server.asked) == 3


@pytest.mark.parametrize("what", ["cut", "chunkcut"])
def test_a_connection_that_is_always_cut_half_way_is_never_half_a_success(
    key: Node, server: Server, client: dict[str, str], what: str
) -> None:
    done = fetch(key, f"{server.url}/{what}/x?{SECRET}", WORKFLOWS_FETCH_ATTEMPTS="3", **client)

    assert done.code == 1
    assert got(key) == b""
    assert len(server.asked) == 3
    assert f"{server.url}/{what}/x: " in done.err
    assert "(attempt 3 of 3)" in done.err


@pytest.mark.parametrize(("status", "attempts"), [(403, 2), (404, 1), (410, 1), (500, 2), (503, 2)])
def test_an_http_error_names_status_and_url_but_not_its_secrets(
    key: Node, server: Server, client: dict[str, str], status: int, attempts: int
) -> None:
    url = server.url.replace("//", "//user:pa55@")

    done = fetch(key, f"{url}/{status}/x?{SECRET}#y", WORKFLOWS_FETCH_ATTEMPTS="2", **client)

    assert done.code == 1
    hint = ": too many requests, or there is no such file" if status == 403 else ""
    assert done.err == (
        f"fetch: {server.url}/{status}/x: HTTP status {status}{hint} (attempt {attempts} of 2)\n"
    )
    assert got(key) == b""
    assert len(server.asked) == attempts


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("page/2018-07.csv", "an error page instead of data; it begins with: <?xml version="),
        ("page/2018-07.parquet", "not a whole Parquet file; it begins with:  <?xml version="),
        ("ok/2018-07.parquet", "not a whole Parquet file; it begins with: "),
        ("ok/2018-07.csv.gz", "not a gzip file; it begins with: "),
    ],
)
def test_an_error_page_is_not_taken_for_data_and_the_month_is_named(
    key: Node, server: Server, name: str, said: str
) -> None:
    done = fetch(key, f"{server.url}/{name}?{SECRET}")

    assert done.code == 1
    assert f"fetch: {server.url}/{name}: {said}" in done.err
    assert got(key) == b""


def test_a_page_that_was_asked_for_is_data(key: Node, server: Server) -> None:
    assert fetch(key, f"{server.url}/page/x.xml").code == 0


def test_a_server_that_is_not_there_fails_and_is_named(key: Node, client: dict[str, str]) -> None:
    done = fetch(key, f"http://127.0.0.1:1/x?{SECRET}", WORKFLOWS_FETCH_ATTEMPTS="2", **client)

    assert done.code == 1
    assert done.err.startswith("fetch: http://127.0.0.1:1/x: ")
    assert done.err.count("\n") == 1
    assert SECRET not in done.err


def test_a_redirect_to_a_local_file_is_not_followed(
    key: Node, server: Server, client: dict[str, str]
) -> None:
    done = fetch(key, f"{server.url}/escape/x", WORKFLOWS_FETCH_ATTEMPTS="1", **client)

    assert done.code == 1
    assert got(key) == b""


def test_the_url_is_in_nobodys_argv(key: Node, server: Server, client: dict[str, str]) -> None:
    results: list[Done] = []
    url = f"{server.url}/hang/x?{SECRET}"
    thread = threading.Thread(target=lambda: results.append(fetch(key, url, **client)))
    thread.start()

    deadline = time.monotonic() + 20
    while not server.asked and time.monotonic() < deadline:
        time.sleep(0.01)
    seen = argvs()
    server.released.set()
    thread.join()

    assert any("fetch.sh" in argv for argv in seen)
    assert [argv for argv in seen if SECRET in argv] == []
    assert results[0].code == 0
    assert got(key) == BODY


def argvs() -> list[str]:
    """Return the command line of every process there is."""
    found = []
    for path in pathlib.Path("/proc").glob("[0-9]*/cmdline"):
        try:
            found.append(path.read_bytes().decode("utf-8", "replace"))
        except OSError:  # it has ended meanwhile
            continue
    return found


def test_without_curl_and_python_a_url_cannot_be_fetched_and_that_is_said(
    key: Node, tmp_path: pathlib.Path
) -> None:
    done = fetch(key, f"http://127.0.0.1:1/x?{SECRET}", PATH=path_with(tmp_path))

    assert done.code == 127
    assert done.err == (
        "fetch: http://127.0.0.1:1/x: this node has neither curl nor python3 to fetch it with\n"
    )


def test_a_users_curlrc_changes_nothing(key: Node, server: Server) -> None:
    (key.path / ".curlrc").write_text("--output elsewhere\n")

    done = fetch(key, f"{server.url}/ok/x", HOME=str(key.path))

    assert done.code == 0
    assert got(key) == BODY


# --- streams: what a source's ETag is known of is passed on as it comes


def test_bytes_are_passed_on_before_the_last_of_them_is_here(key: Node, server: Server) -> None:
    process = subprocess.Popen(
        ["bash", "fetch.sh"],
        cwd=key.path,
        env={**os.environ, "WORKFLOWS_ETAG": '"v1"'},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    assert process.stdin is not None
    assert process.stdout is not None
    process.stdin.write(f"{server.url}/half/x\n".encode())
    process.stdin.close()

    with process, process.stdout as copy:
        first = copy.read(PART)  # of the half that came; some may still be in buffers
        is_over = process.poll() is not None
        server.released.set()
        rest = copy.read()

    assert first + rest == BODY
    assert (is_over, process.returncode) == (False, 0)


def test_a_stream_that_is_cut_goes_on_from_there_as_often_as_some_of_it_comes(
    key: Node, server: Server
) -> None:
    known = {"WORKFLOWS_ETAG": '"v1"', "WORKFLOWS_SIZE": str(len(BODY))}

    done = fetch(key, f"{server.url}/stream/x\n", WORKFLOWS_FETCH_ATTEMPTS="2", **known)

    assert (done.code, done.err) == (0, "")
    assert got(key) == BODY
    assert len(server.asked) == -(-len(BODY) // PART) > 2
    assert [path.name for path in key.path.glob("fetch.*")] == ["fetch.sh"]


@pytest.mark.parametrize(
    ("what", "size", "asked"),
    [
        pytest.param("cut", len(BODY), [2], id="no ranges"),
        pytest.param("chunkcut", "", [1], id="no length"),
        pytest.param("chunkcut", len(BODY), [2], id="no ranges, no length"),
        pytest.param("badchunk", len(BODY), range(2, 100), id="damaged chunk"),
        pytest.param("badchunk", "", [1], id="damaged chunk, no length"),
        pytest.param("cut301", len(BODY), [1], id="body of a redirect"),
        pytest.param("nolength", len(BODY), [2], id="answer that ends early without a length"),
    ],
)
def test_a_stream_that_is_cut_and_cannot_go_on_asks_to_begin_anew(
    key: Node, server: Server, what: str, size: int | str, asked: Sequence[int]
) -> None:
    url = f"{server.url}/{what}/x"

    done = fetch(key, f"{url}?{SECRET}", WORKFLOWS_ETAG='"v1"', WORKFLOWS_SIZE=str(size))

    assert done.code == 75, done.err
    assert done.err.startswith(f"fetch: {url}: ")
    assert 0 < len(got(key)) != len(BODY)
    assert len(server.asked) in asked


@pytest.mark.parametrize("what", ["other", "spliced"])
def test_another_version_than_the_listed_one_is_refused(
    key: Node, server: Server, what: str
) -> None:
    """Also where a server goes on with it in the middle, and it is as long."""
    known = {"WORKFLOWS_ETAG": '"v1"', "WORKFLOWS_SIZE": str(len(BODY))}

    done = fetch(key, f"{server.url}/{what}/x?{SECRET}", **known)

    assert done.code == 1
    said = "it has changed since it was listed: run the same again"
    assert done.err == f"fetch: {server.url}/{what}/x: {said}\n"


@pytest.mark.parametrize("what", ["empty", "stump"])
@pytest.mark.parametrize("etag", ["v1", hashlib.md5(BODY).hexdigest()])
def test_an_answer_without_its_body_is_no_empty_key(
    key: Node, server: Server, what: str, etag: str
) -> None:
    url = f"{server.url}/{what}/x?X-Amz-Signature=5ecre7"

    whole = fetch(key, url, WORKFLOWS_ETAG=etag, WORKFLOWS_SIZE=str(len(BODY)))
    unknown = fetch(key, url, WORKFLOWS_ETAG=etag)

    assert whole.code == 75, whole.err
    assert f"came with 0 of {len(BODY)} bytes" in whole.err
    assert unknown.code == (0 if etag == "v1" else 75)


def test_a_size_is_compared_without_an_etag_too(key: Node, server: Server) -> None:
    done = fetch(key, f"{server.url}/ok/x", WORKFLOWS_SIZE=str(len(BODY) + 1))

    assert (done.code, got(key)) == (75, b"")
    assert f"came with {len(BODY)} of {len(BODY) + 1} bytes" in done.err


@pytest.mark.parametrize("program", ["tee", "md5sum"])
def test_what_cannot_be_compared_with_its_md5_fails_and_does_not_hang(
    key: Node, server: Server, tmp_path: pathlib.Path, program: str
) -> None:
    programs = {"curl", "dd", "tee", "md5sum", "tail", "tr"} - {program}
    url = f"{server.url}/ok/x?X-Amz-Signature=5ecre7"
    md5 = hashlib.md5(BODY).hexdigest()

    done = fetch(key, url, WORKFLOWS_ETAG=md5, PATH=path_with(tmp_path, *programs))

    assert done.code != 0
    assert program in done.err or "MD5" in done.err


@pytest.mark.parametrize("etag", ['W/"v1"', "Wed, 21 Oct 2015 07:28:00 GMT"])
def test_a_signed_source_with_a_weak_etag_or_a_date_is_asked_for_without_a_condition(
    key: Node, server: Server, etag: str
) -> None:
    done = fetch(key, f"{server.url}/ok/x?X-Amz-Signature=5ecre7", WORKFLOWS_ETAG=etag)

    assert (done.code, done.err, server.conditions) == (0, "", [""])


def test_without_curl_a_stream_that_is_cut_asks_to_begin_anew(
    key: Node, server: Server, tmp_path: pathlib.Path
) -> None:
    path = path_with(tmp_path, "python3", "dd")

    done = fetch(key, f"{server.url}/stream/x", WORKFLOWS_ETAG='"v1"', PATH=path)

    assert (done.code, len(server.asked)) == (75, 1), done.err
    assert f"the connection ended after {PART} of {len(BODY)} bytes" in done.err
    assert got(key) == BODY[:PART]


@pytest.mark.parametrize("status", ["500", "503", "429"])
def test_a_stream_of_which_nothing_came_is_retried(key: Node, server: Server, status: str) -> None:
    done = fetch(key, f"{server.url}/{status}/2/x", WORKFLOWS_ETAG='"v1"')

    assert (done.code, done.err) == (0, "")
    assert got(key) == BODY
    assert len(server.asked) == 3


@pytest.mark.parametrize("name", ["404/x", "page/x.csv", "page/x.parquet", "empty/x.parquet"])
def test_of_what_is_no_data_a_stream_passes_nothing_on(
    key: Node, server: Server, name: str
) -> None:
    done = fetch(key, f"{server.url}/{name}?{SECRET}", WORKFLOWS_ETAG='"v1"')

    assert (done.code, got(key)) == (1, b"")
    assert done.err.startswith(f"fetch: {server.url}/{name}: ")
    assert done.err.count("\n") == 1


@pytest.mark.parametrize("etag", ["", '"v1"'])
def test_a_redirect_to_nowhere_is_no_success(key: Node, server: Server, etag: str) -> None:
    done = fetch(key, f"{server.url}/nowhere/x?{SECRET}", WORKFLOWS_ETAG=etag)

    assert done.code == (75 if etag else 1)
    assert done.err.startswith(f"fetch: {server.url}/nowhere/x: HTTP status 301")


@pytest.mark.parametrize("etag", ["", '"v1"'])
def test_a_parquet_file_whose_end_is_missing_is_refused(
    key: Node, server: Server, etag: str
) -> None:
    url = f"{server.url}/cutoff/x.parquet"

    done = fetch(key, url, WORKFLOWS_ETAG=etag)

    assert done.code == 1
    assert done.err == f"fetch: {url}: not a whole Parquet file: its end is missing\n"


@pytest.mark.parametrize("quote", ["", '"'])
def test_bytes_that_are_not_those_of_their_md5_ask_to_begin_anew(
    key: Node, server: Server, quote: str
) -> None:
    md5 = hashlib.md5(BODY).hexdigest()
    url = f"{server.url}/ok/x?X-Amz-Signature=5ecre7"

    right = fetch(key, url, WORKFLOWS_ETAG=f"{quote}{md5}{quote}")
    wrong = fetch(key, url, WORKFLOWS_ETAG=f"{quote}{'0' * 32}{quote}")

    assert (right.code, right.err) == (0, "")
    assert wrong.code == 75
    assert f"damaged on the way: its MD5 is {md5}, the ETag {'0' * 32}" in wrong.err
    assert server.conditions == [f'"{md5}"', f'"{"0" * 32}"']


@pytest.mark.parametrize("programs", [("curl",), ("python3",)])
def test_a_stream_that_nobody_reads_any_longer_ends_at_once(
    key: Node, server: Server, tmp_path: pathlib.Path, programs: tuple[str, ...]
) -> None:
    done = key.run(
        "bash fetch.sh | head -c 10 > got",
        f"{server.url}/ok/x\n",
        WORKFLOWS_ETAG='"v1"',
        WORKFLOWS_FETCH_BACKOFF_S="60",
        PATH=path_with(tmp_path, "dd", "head", *programs),
    )

    assert (done.code, done.err) == (128 + signal.SIGPIPE, "")
    assert got(key) == BODY[:10]
    assert len(server.asked) == 1


def test_of_a_signed_parquet_file_both_the_end_and_the_md5_are_compared(
    key: Node, server: Server
) -> None:
    name = "x.parquet?X-Amz-Signature=5ecre7"
    cut_off = hashlib.md5(b"PAR1" * 99 + b"half").hexdigest()

    right = fetch(
        key, f"{server.url}/parquet/{name}", WORKFLOWS_ETAG=hashlib.md5(PARQUET).hexdigest()
    )
    copy = got(key)
    damaged = fetch(key, f"{server.url}/parquet/{name}", WORKFLOWS_ETAG="0" * 32)
    no_end = fetch(key, f"{server.url}/cutoff/{name}", WORKFLOWS_ETAG=cut_off)

    assert (right.code, right.err, copy) == (0, "", PARQUET)
    assert (damaged.code, "damaged on the way" in damaged.err) == (75, True)
    assert (no_end.code, "its end is missing" in no_end.err) == (1, True)


def test_an_etag_that_is_no_md5_since_kms_made_it_is_not_compared(
    key: Node, server: Server
) -> None:
    done = fetch(key, f"{server.url}/kms/x?X-Amz-Signature=5ecre7", WORKFLOWS_ETAG="0" * 32)

    assert (done.code, done.err) == (0, "")
    assert got(key) == BODY
