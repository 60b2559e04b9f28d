"""Sources on servers: each version is told from the next, and no secret is shown or stored."""

import base64
import contextlib
import email.utils
import hashlib
import http.server
import json
import pathlib
import threading
import time
from collections.abc import Callable, Iterator

import pytest
from conftest import Place
from scriptnode import Node

from workflows.errors import SourceError, UsageError
from workflows.model import SourceKey
from workflows.node.signatures import Signatures
from workflows.node.urls import expires, scrubbed, shown, unsigned
from workflows.node.work import KeyFailed
from workflows.planning import sourceweb
from workflows.planning.dataset import load
from workflows.planning.source import conceal, list_source, look_at
from workflows.storage.store import DirectoryStore

LARGE = 64 << 20
PASSWORD, TOKEN = "pa55word", "t0ken"
LOGIN = f"ann:{PASSWORD}"


class Site(http.server.ThreadingHTTPServer):
    """Serves bodies by path, with the headers and the oddities that a test sets."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.bodies: dict[str, bytes] = {}
        self.head: int | str = 200  # a status, or what HEAD says of the length
        self.knows_ranges = True
        self.says: dict[str, str] = {}
        self.login = ""
        self.asked: list[tuple[str, str]] = []
        self.sent = 0
        self.place = f"127.0.0.1:{self.server_address[1]}"
        self.url = f"http://{self.place}"


class Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: Site

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - the base's name
        return

    def version_string(self) -> str:
        return "site"

    def send_response(self, code: int, message: str | None = None) -> None:
        self.send_response_only(code, message)  # no Date, unless a test says one

    def start(self, status: int, length: int | str) -> None:
        self.send_response(status)
        for name, value in self.server.says.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(length))
        self.end_headers()

    def body(self) -> bytes | None:
        self.server.asked.append((self.command, self.path))
        wanted = "Basic " + base64.b64encode(self.server.login.encode()).decode()
        if self.server.login and self.headers.get("Authorization") != wanted:
            self.start(401, 0)
            return None
        return self.server.bodies[self.path.partition("?")[0]]

    def do_HEAD(self) -> None:
        body, head = self.body(), self.server.head
        if body is not None:
            self.start(200 if isinstance(head, str) else head, head if head == "0" else len(body))

    def do_GET(self) -> None:
        body = self.body()
        if body is None:
            return
        if self.headers.get("Range") == "bytes=0-0" and self.server.knows_ranges:
            self.send_response(206 if body else 416)
            self.send_header("Content-Range", f"bytes {'0-0' if body else '*'}/{len(body)}")
            body = body[:1]
            for name, value in self.server.says.items():
                self.send_header(name, value)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
        else:
            self.start(200, len(body))
        with contextlib.suppress(OSError):
            for at in range(0, len(body), 1 << 16):
                self.wfile.write(body[at : at + (1 << 16)])
                self.server.sent += len(body[at : at + (1 << 16)])


@pytest.fixture
def site() -> Iterator[Site]:
    with Site() as one:
        thread = threading.Thread(target=one.serve_forever, args=(0.01,))
        thread.start()
        yield one
        one.shutdown()
        thread.join()


@pytest.fixture
def key(site: Site, tmp_path: pathlib.Path) -> Callable[[], SourceKey]:
    """Return what lists one URL, and returns its key."""
    site.bodies["/x.csv"] = b"before"
    listed = tmp_path / "listed"

    def ask() -> SourceKey:
        listed.write_text(f"{site.url}/x.csv\n")
        (found,) = list_source(str(listed), "*")
        return found

    return ask


# -- versions --------------------------------------------------------------------------------------


@pytest.mark.parametrize("status", [400, 403, 404, 405, 501])
def test_where_head_is_not_allowed_the_first_byte_tells_size_and_version(
    site: Site, key: Callable[[], SourceKey], status: int
) -> None:
    site.head, site.says = status, {"ETag": '"v1"'}

    found = key()

    assert (found.size, found.etag) == (6, '"v1"')
    assert site.asked == [("HEAD", "/x.csv"), ("GET", "/x.csv")]
    assert site.sent <= 1


def test_a_server_without_head_and_ranges_is_not_made_to_send_all_of_it(
    site: Site, key: Callable[[], SourceKey]
) -> None:
    site.bodies["/x.csv"] = bytes(LARGE)
    site.head, site.knows_ranges, site.says = 405, False, {"ETag": '"v1"'}

    assert key().size == LARGE
    assert site.sent < LARGE / 4


def test_an_answer_to_head_that_counts_no_bytes_is_not_believed(
    site: Site, key: Callable[[], SourceKey]
) -> None:
    site.head, site.says = "0", {"ETag": '"v1"'}
    assert key().size == 6

    site.bodies["/x.csv"] = b""
    assert key().size == 0


def test_a_body_of_the_same_length_is_told_from_the_one_before_by_its_content(
    site: Site, key: Callable[[], SourceKey], tmp_path: pathlib.Path
) -> None:
    before, same = key(), key()
    site.bodies["/x.csv"] = b"after!"
    after = key()

    assert before == same
    assert before.size == after.size == 6
    assert before.identity != after.identity
    (note,) = look_at(str(tmp_path / "listed"), "*").notes
    assert note == (
        f"1 URLs, such as {site.url}/x.csv, come without an ETag or a Last-Modified to trust:"
        " read whole to list them, 0.0 MB, and compared by their content"
    )


def test_a_time_that_the_next_change_may_share_is_not_trusted(
    site: Site, key: Callable[[], SourceKey]
) -> None:
    now = time.time()
    date = email.utils.formatdate
    site.says = {"Date": date(now, usegmt=True), "Last-Modified": date(now, usegmt=True)}
    before = key()
    site.bodies["/x.csv"] = b"after!"

    assert before.etag == "sha256:" + hashlib.sha256(b"before").hexdigest()
    assert key().identity != before.identity
    site.says["Last-Modified"] = date(now - 60, usegmt=True)
    assert key().etag == date(now - 60, usegmt=True)


@pytest.mark.parametrize(
    "says",
    [
        {"ETag": '""'},
        {"ETag": 'W/""'},
        {"ETag": "  "},
        {"Last-Modified": "yesterday"},
        {"Last-Modified": "0"},
        {"Last-Modified": "-1"},
        {"Last-Modified": "Mon, 01 Jan 2018 00:00:00 +0000"},
        {"Last-Modified": "Thu, 01 Jan 1970 00:00:00 GMT"},
        {"Last-Modified": "Thu, 01 Jan 1970 00:00:01 GMT", "Date": "Mon, 01 Jan 2018 00:00:00 GMT"},
        {"Last-Modified": "now"},  # and no Date
        {"Last-Modified": "Mon, 01 Jan 2018 00:00:00 GMT", "Date": "Sun, 31 Dec 2017 00:00:00 GMT"},
    ],
)
def test_what_a_server_states_that_is_no_version_is_not_taken_for_one(
    site: Site, key: Callable[[], SourceKey], says: dict[str, str]
) -> None:
    if says.get("Last-Modified") == "now":
        says = {"Last-Modified": email.utils.formatdate(time.time() - 60, usegmt=True)}
    site.says = says
    before = key()
    site.bodies["/x.csv"] = b"after!"

    assert before.etag.startswith("sha256:")
    assert key().identity != before.identity


def test_a_time_of_long_ago_is_a_version_though_the_server_does_not_say_its_own(
    site: Site, key: Callable[[], SourceKey]
) -> None:
    site.says = {"ETag": '""', "Last-Modified": "Mon, 01 Jan 2018 00:00:00 GMT"}

    assert key().etag == "Mon, 01 Jan 2018 00:00:00 GMT"


def test_what_changed_after_it_was_listed_by_its_content_is_not_passed_on(
    site: Site, key: Callable[[], SourceKey], tmp_path: pathlib.Path
) -> None:
    found = key()
    (tmp_path / "node").mkdir()
    node = Node(tmp_path / "node")
    known = {"WORKFLOWS_ETAG": found.etag, "WORKFLOWS_SIZE": str(found.size)}

    right = node.run("bash fetch.sh", found.url, **known)
    site.bodies["/x.csv"] = b"after!"
    wrong = node.run("bash fetch.sh", found.url, **known)

    assert (right.code, right.out, right.err) == (0, "before", "")
    assert (wrong.code, wrong.out) == (1, "")
    assert wrong.err.endswith("x.csv: it has changed since it was listed: run the same again\n")


def test_a_body_that_breaks_off_while_it_is_read_to_compare_it_is_read_again(
    site: Site, key: Callable[[], SourceKey], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sourceweb, "_wait_s", lambda *_: 0)
    lengths = iter([60, 6])
    start = Handler.start

    def lie(self: Handler, status: int, length: int | str) -> None:
        start(self, status, length if self.command == "HEAD" else next(lengths))
        self.close_connection = True

    monkeypatch.setattr(Handler, "start", lie)

    assert key().size == 6


# -- secrets ---------------------------------------------------------------------------------------


def test_user_and_password_are_used_and_not_a_part_of_what_is_shown_kept_or_compared(
    site: Site, tmp_path: pathlib.Path
) -> None:
    site.bodies, site.login, site.says = {"/x.csv": b"1"}, LOGIN, {"ETag": '"v1"'}
    listed = tmp_path / "listed"
    listed.write_text(f"http://{LOGIN}@{site.place}/x.csv?token={TOKEN}\n")

    found = load(str(listed), "*", 1, DirectoryStore(str(tmp_path / "store")))
    (kept,) = (tmp_path / "store").rglob("*.json")

    assert PASSWORD not in kept.read_text()
    assert TOKEN not in kept.read_text()
    assert json.loads(kept.read_text())["keys"][0][1] == f"{site.url}/x.csv"
    other = found.keys[0]._replace(url=f"http://bob:other@{site.place}/x.csv?token={TOKEN}")
    assert other.identity == found.keys[0].identity


@pytest.mark.parametrize("sign", "/?#")
def test_a_password_that_is_not_quoted_is_not_shown_as_a_host(
    tmp_path: pathlib.Path, sign: str
) -> None:
    (tmp_path / "listed").write_text(f"https://ann:{PASSWORD}{sign}{PASSWORD}@h/x.csv\n")

    with pytest.raises(SourceError, match="line 1: this is not a URL: its host or port is") as e:
        list_source(str(tmp_path / "listed"), "*")

    assert PASSWORD not in str(e.value)
    with pytest.raises(UsageError, match="this is not a URL"):
        conceal(f"https://ann:{PASSWORD}{sign}{PASSWORD}@h/list")


def test_what_a_server_refuses_is_said_without_password_and_query(
    site: Site, tmp_path: pathlib.Path
) -> None:
    site.bodies, site.login = {"/x.csv": b"1"}, "somebody:else"
    (tmp_path / "listed").write_text(f"http://{LOGIN}@{site.place}/x.csv?token={TOKEN}\n")

    with pytest.raises(SourceError) as caught:
        list_source(str(tmp_path / "listed"), "*")

    assert f"{site.url}/x.csv answers 401" in str(caught.value)
    assert PASSWORD not in str(caught.value)
    assert TOKEN not in str(caught.value)


def test_what_cannot_be_reached_is_said_without_password_and_query(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sourceweb, "_wait_s", lambda *_: 0)
    (tmp_path / "listed").write_text(f"http://{LOGIN}@127.0.0.1:9/x.csv?token={TOKEN}\n")

    with pytest.raises(SourceError, match=r"http://127\.0\.0\.1:9/x\.csv cannot be reached") as one:
        list_source(str(tmp_path / "listed"), "*")

    assert PASSWORD not in str(one.value)
    assert TOKEN not in str(one.value)


def test_nothing_that_a_run_a_plan_or_a_repro_says_or_leaves_holds_a_secret(
    site: Site, place: Place
) -> None:
    site.bodies = {"/list": b"x.csv\n", "/x.csv": b"1\n2\n"}
    site.login = LOGIN
    place.module(
        "from workflows.steps import Map\n"
        "class Copy(Map):\n"
        '    command = \'read -r url; echo "from $url" >&2; tee seen <<< "$url" > /dev/null;'
        ' curl --silent --fail "$url"; exit 3\'\n'
        "class Good(Map):\n"
        "    files = ('fetch.sh',)\n"
        "    command = '. ./fetch.sh'\n"
        "    durable = True\n"
    )
    scripts = pathlib.Path(__file__).resolve().parents[2] / "workflows/scripts"
    (place.path / "fetch.sh").write_bytes((scripts / "fetch.sh").read_bytes())
    secret = f"http://{LOGIN}@{site.place}/list?token={TOKEN}"

    good = place.luigi("Good", "--source", secret, "--pattern", "*")
    bad = place.luigi("Copy", "--source", secret, "--pattern", "*")
    words = ("--module", "mine", "Good", "--pattern", "*")
    plan = place.run("workflows", "plan", *words, WORKFLOWS_SOURCE=secret)
    blind = place.run("workflows", "repro", "Good", "x.csv")
    repro = place.run("workflows", "repro", "Good", "x.csv", WORKFLOWS_SOURCE=secret)
    config = place.run("workflows", "config", WORKFLOWS_SOURCE=secret)

    assert (good.code, bad.code, plan.code, repro.code) == (0, 30, 0, 0)
    assert repro.out == "1\n2\n"
    assert f"from {site.url}/x.csv" in bad.err, "the command's own words are kept, but the secret"
    assert "nothing to run" in plan.out
    assert blind.code != 0
    assert "WORKFLOWS_SOURCE" in blind.err
    assert f"url = {site.url}/list\n" in config.out
    for said in (good, bad, plan, blind, repro, config):
        assert PASSWORD not in said.out + said.err
        assert TOKEN not in said.out + said.err
    left = [path for path in place.path.rglob("*") if path.is_file()]
    holding = [path for path in left if PASSWORD.encode() in path.read_bytes()]
    assert holding == []
    assert [path for path in left if TOKEN.encode() in path.read_bytes()] == []
    assert len(left) > 10


def test_two_sources_that_differ_in_their_query_are_two_and_those_of_two_users_refused() -> None:
    one, other = conceal("https://h/list?month=1"), conceal("https://h/list?month=2")

    assert one != other
    assert one.startswith("https://h/list?hidden-")
    assert conceal(one) == one
    assert conceal("HTTPS://h/list") == "https://h/list"
    conceal("https://ann:1@h/mine")
    with pytest.raises(UsageError, match="given with two users"):
        conceal("https://bob:1@h/mine")


def test_every_url_in_a_commands_words_is_cut_to_what_may_be_shown() -> None:
    text = f"curl: (22) HTTPS://{LOGIN}@h:81/a@b?x={TOKEN}#y, 'ftp://{LOGIN}@h/z' http://h/plain."

    assert scrubbed(text) == "curl: (22) HTTPS://h:81/a@b 'ftp://h/z' http://h/plain."


# -- signatures ------------------------------------------------------------------------------------

AT = 1735787445  # 2025-01-02 03:10:45 UTC
POLICY = base64.b64encode(
    b'{"Statement":[{"Condition":{"DateLessThan":{"AWS:EpochTime":1735787445}}}]}'
).translate(bytes.maketrans(b"+=/", b"-_~"))
SIGNED = {
    "S3": "X-Amz-Date=20250102T030405Z&X-Amz-Expires=400&X-Amz-Signature=a",
    "S3, old": f"AWSAccessKeyId=b&Signature=a&Expires={AT}",
    "Google": "X-Goog-Date=20250102T030405Z&X-Goog-Expires=400&X-Goog-Signature=a",
    "Google, old": f"GoogleAccessId=b&Expires={AT}&Signature=a",
    "CloudFront": f"Expires={AT}&Signature=a&Key-Pair-Id=b",
    "CloudFront policy": f"Policy={POLICY.decode()}&Signature=a&Key-Pair-Id=b",
    "Azure": "sv=2024-01-01&sr=b&sp=r&se=2025-01-02T03%3A10%3A45Z&sig=a",
}


@pytest.mark.parametrize("kind", SIGNED)
def test_a_signature_that_is_over_is_refused_before_anything_is_asked_and_its_end_named(
    tmp_path: pathlib.Path, kind: str
) -> None:
    url = f"http://127.0.0.1:9/x.csv?part=7&{SIGNED[kind]}"
    (tmp_path / "listed").write_text(url)

    with pytest.raises(SourceError) as caught:
        list_source(str(tmp_path / "listed"), "*")
    with pytest.raises(SourceError, match="expired at"):
        list_source(url, "*")

    end = "2025-01-02 03:10:45 UTC"
    said = f"line 1: the signature of http://127.0.0.1:9/x.csv expired at {end}; sign"
    assert said in str(caught.value)
    assert "part" not in str(caught.value)
    assert unsigned(url) == "http://127.0.0.1:9/x.csv?part=7"
    assert shown(url) == "http://127.0.0.1:9/x.csv"
    assert expires(url) == AT


def test_a_signature_that_would_end_within_a_minute_is_refused(tmp_path: pathlib.Path) -> None:
    ends = int(time.time()) + 50
    url = f"http://127.0.0.1:9/x.csv?Expires={ends}&Signature=a&Key-Pair-Id=b"
    (tmp_path / "listed").write_text(url)

    with pytest.raises(SourceError, match=r"x\.csv ends at .* UTC, in \d+ s, which no run can"):
        list_source(str(tmp_path / "listed"), "*")


def test_a_key_whose_signature_ended_before_its_turn_is_not_tried_and_says_so() -> None:
    url = f"https://h/x.csv?{SIGNED['CloudFront']}"
    item = {"key": "x.csv", "source": {"url": url, "was": ["https://h/x.csv", 1, ""]}}

    with pytest.raises(
        KeyFailed, match=r"source https://h/x\.csv ended at 2025-01-02 03:10:45 UTC"
    ):
        Signatures(lambda _: None).refreshed("Fetch", item)
    item["source"] = {"url": url.replace(str(AT), "4102444800"), "was": ["https://h/x.csv", 1, ""]}
    assert Signatures(lambda _: None).refreshed("Fetch", item) == item


@pytest.mark.parametrize("query", ["Expires=1", "se=2020-01-01", "X-Amz-Date=x&Signature=a", "a=b"])
def test_what_is_not_signed_or_states_no_end_has_none(query: str) -> None:
    assert expires(f"https://h/k?{query}") is None
