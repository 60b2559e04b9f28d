"""A server of sources that fails on purpose: the path says how, and how often."""

import contextlib
import http.server
import threading
import urllib.parse
from collections.abc import Iterator

BODY = bytes(range(256)) * 4000
PART = 300_000
PARQUET = b"PAR1" * 50_000


class Server(http.server.ThreadingHTTPServer):
    """Serves BODY; the path says what goes wrong on the way, and how often."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.asked: list[str] = []
        self.conditions: list[str] = []
        self.released = threading.Event()
        self.url = f"http://127.0.0.1:{self.server_address[1]}"


class Handler(http.server.BaseHTTPRequestHandler):
    """GET /what[/how-often]/name: after that many times, all goes well."""

    protocol_version = "HTTP/1.1"
    server: Server

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - the base's name
        return

    def do_HEAD(self) -> None:
        self.server.asked.append(self.path)
        self.send_response(200)
        self.send_header("Content-Length", str(len(BODY)))
        self.send_header("ETag", '"v1"')
        self.end_headers()

    def do_GET(self) -> None:
        self.server.asked.append(self.path)
        self.server.conditions.append(self.headers.get("If-Match", ""))
        _, what, times, *_ = [*urllib.parse.urlsplit(self.path).path.split("/"), "0"]
        troubles = int(times) if times.isdigit() else 0
        if len(self.server.asked) > troubles:
            what = "ok" if troubles else what
        getattr(self, f"answer_{what}", self.answer_status)(what)

    def answer_stream(self, _: str) -> None:
        """Send a part of what is left, if the client knows what it goes on from."""
        known, start = self.headers.get("If-Range", '"v1"') == '"v1"', 0
        if known and "Range" in self.headers:
            start = int(self.headers["Range"].removeprefix("bytes=").rstrip("-"))
        self.send_response(206 if start else 200)
        if start:
            self.send_header("Content-Range", f"bytes {start}-{len(BODY) - 1}/{len(BODY)}")
        self.send_header("Content-Length", str(len(BODY) - start))
        self.end_headers()
        self.wfile.write(BODY[start : start + PART])
        self.close_connection = True

    def answer_half(self, _: str) -> None:
        """Send the second half only when the test has seen the first one."""
        self.send_response(200)
        self.send_header("ETag", '"v1"')
        self.send_header("Content-Length", str(len(BODY)))
        self.end_headers()
        self.wfile.write(BODY[: len(BODY) // 2])
        self.wfile.flush()
        if self.server.released.wait(30):
            self.wfile.write(BODY[len(BODY) // 2 :])

    def send(self, status: int, body: bytes, **headers: str) -> None:
        """Send an answer as it should be, but for its headers perhaps."""
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def answer_status(self, what: str) -> None:
        self.send(int(what), b"sorry\n")

    def answer_ok(self, _: str) -> None:
        """Send all of it; or what is called a list is one of URLs."""
        self.send(200, b"/ok/x\n" if self.path.endswith("/list") else BODY)

    def answer_page(self, _: str) -> None:
        self.send(200, b"\n<?xml version='1.0'?><Error><Code>AccessDenied</Code></Error>")

    def answer_cutoff(self, _: str) -> None:
        self.send(200, b"PAR1" * 99 + b"half")

    def answer_parquet(self, _: str) -> None:
        self.send(200, PARQUET)

    def answer_kms(self, _: str) -> None:
        self.send(200, BODY, **{"x-amz-server-side-encryption": "aws:kms"})

    def answer_empty(self, _: str) -> None:
        self.send(200, b"")

    def answer_cut(self, _: str) -> None:
        body = b"/ok/x\n/ok/y\n" if self.path.endswith("/list") else BODY
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body[: len(body) // 2])
        self.close_connection = True

    def answer_chunkcut(self, _: str) -> None:
        self.send_response(200)
        self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()
        self.wfile.write(b"1000\r\n" + BODY[:4096] + b"\r\n")
        self.close_connection = True

    def answer_badchunk(self, _: str) -> None:
        """Send a part in chunks, the last of them damaged; if asked again, go on as asked."""
        if "Range" in self.headers:
            start = int(self.headers["Range"].removeprefix("bytes=").rstrip("-"))
            where = f"bytes {start}-{len(BODY) - 1}/{len(BODY)}"
            self.send(206, BODY[start:], **{"Content-Range": where})
            return
        self.send_response(200)
        self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()
        for at in range(0, 40_960, 4096):
            self.wfile.write(b"1000\r\n" + BODY[at : at + 4096] + b"\r\n")
        self.wfile.write(b"1000\r\n" + BODY[40_960:45_056] + b"\r\nZZZZ\r\n")
        self.close_connection = True

    def answer_cut301(self, _: str) -> None:
        self.send_response(301)
        self.send_header("Content-Length", "400")
        self.end_headers()
        self.wfile.write(b"x" * 320)
        self.close_connection = True

    def answer_nolength(self, _: str) -> None:
        """Send a part, and then less than what is left without saying how much it will be."""
        start = int(self.headers.get("Range", "bytes=0-").removeprefix("bytes=").rstrip("-"))
        self.send_response(206 if start else 200)
        if start:
            self.send_header("Content-Range", f"bytes {start}-{len(BODY) - 1}/{len(BODY)}")
        else:
            self.send_header("Content-Length", str(len(BODY)))
        self.end_headers()
        self.wfile.write(BODY[start : start + 1000])
        self.close_connection = True

    def answer_stump(self, _: str) -> None:
        self.wfile.write(b"HTTP/1.1 200 OK\r\nContent-Le")
        self.close_connection = True

    def answer_other(self, _: str) -> None:
        self.send(200, BODY, ETag='"v2"')

    def answer_spliced(self, _: str) -> None:
        """Send the first part of one version, and go on with another."""
        if "Range" not in self.headers:
            self.answer_cut("cut")
            return
        start = int(self.headers["Range"].removeprefix("bytes=").rstrip("-"))
        where = f"bytes {start}-{len(BODY) - 1}/{len(BODY)}"
        self.send(206, BODY[start:], **{"Content-Range": where, "ETag": '"v2"'})

    def answer_redirect(self, _: str) -> None:
        self.send(302, b"", Location="/ok/x")

    def answer_nowhere(self, _: str) -> None:
        self.send(301, b"x" * 400)

    def answer_escape(self, _: str) -> None:
        self.send(302, b"", Location="file:///etc/hostname")

    def answer_hang(self, _: str) -> None:
        self.server.released.wait(30)
        self.answer_ok("ok")


@contextlib.contextmanager
def serving() -> Iterator[Server]:
    """Serve on the loopback meanwhile."""
    with Server() as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        yield server
        server.released.set()
        server.shutdown()
        thread.join()
