"""HTTP/1.1 between a client and a server behind it, streamed: nothing here knows of S3.

A subclass of `Exchange` says in `admit` what becomes of a request before it is passed on, and in
`answered` what becomes of the answer.
"""

import contextlib
import dataclasses
import http.client
import select
import socket
import socketserver
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import IO, Any, Protocol, cast

from aws.rule import Refusal
from aws.sigv4 import Request

_CHUNK = 1 << 18
_SMALL = 1 << 22
_HOP = {"connection", "keep-alive", "transfer-encoding", "expect", "proxy-connection"}


@dataclasses.dataclass
class Answer:
    """An answer on its way to the client; `body` None means that it is streamed as it comes."""

    status: int
    headers: list[tuple[str, str]]
    body: bytes | None = None


class Watch(Protocol):
    """Sees a request's body pass; either method may raise a Refusal."""

    def feed(self, data: bytes) -> None:
        """Take some of it."""

    def end(self) -> None:
        """Take its end, before the last of it is passed on."""


@dataclasses.dataclass
class Passed:
    """A request that may be passed on, as the server behind gets it.

    `over` is called when its answer is there, or will never be.
    """

    request: Request
    watch: Watch
    answered: Callable[[Answer], None] = lambda _: None
    wants_body: bool = False  # of the answer: `answered` is given all of it
    body: bytes | None = None  # what is sent in place of the body that came
    over: Callable[[], None] = lambda: None


class Relay(socketserver.ThreadingTCPServer):
    """Listens on the loopback, and passes on what `admit` lets pass to a port behind it."""

    daemon_threads = True
    allow_reuse_address = True
    request_queue_size = 256

    def __init__(self, behind: Callable[[], tuple[str, int]]) -> None:
        super().__init__(("127.0.0.1", 0), _Connection)
        self.behind = behind
        self.port = int(self.server_address[1])
        self.url = f"http://127.0.0.1:{self.port}"
        self._thread = threading.Thread(target=self.serve_forever, args=(0.01,), daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Stop listening."""
        self.shutdown()
        self._thread.join()
        self.server_close()

    def admit(self, request: Request, body: bytes | None) -> Passed:
        """Return what is passed on; `body` is all of it if it is small.

        Raises:
            Refusal: it is not.
        """
        raise NotImplementedError

    def refusal(self, request: Request, refusal: Refusal) -> Answer:
        """Return the answer to a request that was refused."""
        raise NotImplementedError

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Say nothing: clients and servers that are killed are what tests are about."""


class _Gone(Exception):
    """One side has closed its connection in the middle."""


class _Connection(socketserver.StreamRequestHandler):
    """One client's connection, with one of its own to the server behind."""

    server: Relay
    rbufsize = _CHUNK
    disable_nagle_algorithm = True

    def handle(self) -> None:
        """Answer requests until either side has had enough."""
        self._behind: socket.socket | None = None
        try:
            with contextlib.suppress(_Gone, OSError, http.client.HTTPException, ValueError):
                while self._exchange():
                    pass
        finally:
            self._drop()

    def _exchange(self) -> bool:
        file = cast("IO[bytes]", self.rfile)
        found = _head(file)
        if found is None:
            return False
        request, keeps = found
        left = _Incoming(request, file, self._go_on)
        passed = None
        try:
            body = left.whole() if left.length <= _SMALL else None
            passed = self.server.admit(request, body)
            if body is not None:
                passed.watch.feed(body)
                passed.watch.end()
            answer, streamed = self._passed_on(passed, body, left)
        except Refusal as refusal:
            keeps = left.drain() and keeps
            answer, streamed = self.server.refusal(request, refusal), None
        finally:
            if passed is not None:
                passed.over()
        self._answer(request, answer, streamed, keeps=keeps)
        return keeps

    def _go_on(self) -> None:
        self.wfile.write(b"HTTP/1.1 100 Continue\r\n\r\n")

    def _passed_on(
        self, passed: Passed, body: bytes | None, left: "_Incoming"
    ) -> tuple[Answer, http.client.HTTPResponse | None]:
        if passed.body is not None:
            body = passed.body
        there = self._connected()
        length = left.length if body is None else len(body)
        head = _encoded(passed.request, length)
        try:
            if body is not None:
                there.sendall(head + body)
            else:
                self._stream(there, head, passed.watch, left)
        except Refusal:
            self._drop()  # the server behind never saw the end of it
            raise
        except (BrokenPipeError, ConnectionResetError):
            pass  # it may have answered before
        response = http.client.HTTPResponse(there, method=passed.request.method)
        response.begin()
        headers = [(k, v) for k, v in response.getheaders() if k.lower() not in _HOP]
        answer = Answer(response.status, headers)
        if passed.wants_body and passed.request.method != "HEAD":
            answer.body = response.read()
        passed.answered(answer)
        return answer, response

    def _stream(self, there: socket.socket, head: bytes, watch: Watch, left: "_Incoming") -> None:
        held = head
        for piece in left.pieces():
            watch.feed(piece)
            there.sendall(held)
            held = piece
        watch.end()
        there.sendall(held)

    def _connected(self) -> socket.socket:
        if self._behind is not None and select.select([self._behind], [], [], 0)[0]:
            self._drop()  # it was closed meanwhile
        if self._behind is None:
            self._behind = socket.create_connection(self.server.behind(), timeout=120)
            self._behind.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        return self._behind

    def _drop(self) -> None:
        if self._behind is not None:
            self._behind.close()
            self._behind = None

    def _answer(
        self,
        request: Request,
        answer: Answer,
        response: http.client.HTTPResponse | None,
        *,
        keeps: bool,
    ) -> None:
        headers = [*answer.headers, *([] if keeps else [("Connection", "close")])]
        if answer.body is not None:
            headers = [(k, v) for k, v in headers if k.lower() != "content-length"]
            headers.append(("Content-Length", str(len(answer.body))))
        is_chunked = response is not None and answer.body is None and response.chunked
        if is_chunked:
            headers = [*headers, ("Transfer-Encoding", "chunked")]
        lines = [f"HTTP/1.1 {answer.status} {http.client.responses.get(answer.status, 'Odd')}"]
        lines += [f"{name}: {value}" for name, value in headers]
        head = ("\r\n".join(lines) + "\r\n\r\n").encode("latin-1")
        if request.method == "HEAD":
            answer.body = b""
        self.wfile.write(head + (answer.body or b""))
        if response is not None:
            if answer.body is None:
                self._send_on(response, is_chunked=bool(is_chunked))
            if response.will_close:
                self._drop()

    def _send_on(self, response: http.client.HTTPResponse, *, is_chunked: bool) -> None:
        length = response.length
        while True:
            piece = response.read1(_CHUNK) if is_chunked else response.read(_CHUNK)
            if not piece:
                break
            length = None if length is None else length - len(piece)
            self.wfile.write(b"%x\r\n%b\r\n" % (len(piece), piece) if is_chunked else piece)
        if length:
            raise _Gone  # the server behind was killed: so is this
        if is_chunked:
            self.wfile.write(b"0\r\n\r\n")


class _Incoming:
    """A request's body, not yet read."""

    def __init__(self, request: Request, file: IO[bytes], go_on: Callable[[], None]) -> None:
        self.is_chunked = "chunked" in (request.header("Transfer-Encoding") or "").lower()
        self.length = int(request.header("Content-Length") or 0)
        self._file = file
        self._left = self.length
        self._go_on = go_on if request.header("Expect") else None

    def whole(self) -> bytes | None:
        """Return all of it."""
        if self.is_chunked:
            return None  # which is refused
        return b"".join(self.pieces())

    def pieces(self) -> Iterator[bytes]:
        """Yield it as it comes."""
        if self._go_on is not None and self._left:
            self._go_on()
            self._go_on = None
        while self._left:
            piece = self._file.read1(min(_CHUNK, self._left))  # type: ignore[attr-defined]
            if not piece:
                raise _Gone
            self._left -= len(piece)
            yield piece

    def drain(self) -> bool:
        """Read what is left, so that the client hears the answer; tell whether all came."""
        if self._go_on is not None and (self._left or self.is_chunked):
            return False  # it waits to be told to send it
        if self.is_chunked:
            while size := int(self._file.readline().split(b";")[0] or b"0", 16):
                self._file.read(size + 2)
            self._file.readline()
        for _ in self.pieces():
            pass
        return True


def _head(file: IO[bytes]) -> tuple[Request, bool] | None:
    """Return a request's head, and whether its connection is kept; None at the end."""
    first = file.readline(1 << 16)
    if not first.strip():
        return None
    method, target, version = first.decode("latin-1").split(" ", 2)
    headers = []
    while (line := file.readline(1 << 16)) not in (b"\r\n", b"\n", b""):
        name, _, value = line.decode("latin-1").partition(":")
        headers.append((name, value.strip()))
    path, _, query = target.partition("?")
    request = Request(method, path, query, headers)
    keeps = "1.1" in version and (request.header("Connection") or "").lower() != "close"
    return request, keeps


def _encoded(request: Request, length: int) -> bytes:
    target = request.path + (f"?{request.query}" if request.query else "")
    lines = [f"{request.method} {target} HTTP/1.1"]
    skipped = {*_HOP, "content-length"}
    lines += [f"{name}: {value}" for name, value in request.headers if name.lower() not in skipped]
    if length or request.method in {"PUT", "POST"}:
        lines.append(f"Content-Length: {length}")
    return ("\r\n".join(lines) + "\r\n\r\n").encode("latin-1")


def header_of(headers: Sequence[tuple[str, str]], name: str) -> str:
    """Return a header's value, or the empty string."""
    return next((value for key, value in headers if key.lower() == name.lower()), "")


def replaced(headers: Sequence[tuple[str, str]], new: Mapping[str, str]) -> list[tuple[str, str]]:
    """Return headers with others in place of those of the same names."""
    names = {name.lower() for name in new}
    return [one for one in headers if one[0].lower() not in names] + list(new.items())
