"""HTTPS between the nodes of one run: one side gives an output a request, the other fetches it.

Both know the run's certificate, whose key only its nodes have, and the run's token. The receiver
trusts that one certificate and no authority; the sender answers nobody who lacks the token, and
whoever has it may only read: one output or piece that is in a ledger, by its full name. There is no
listing. Imported when a shuffle needs it, as it takes as long as all the rest of a runtime.
"""

import contextlib
import hmac
import http.client
import http.server
import io
import os
import socket
import socketserver
import ssl
import stat
import threading
import urllib.parse
import zlib
from collections.abc import Sequence
from typing import Any, NamedTuple, Optional

from workflows.node.storage import Storage

_BLOCK = 1 << 18  # larger ones were no faster
_CONNECT_S, _SILENT_S = 8.0, 15.0
_HANDSHAKE_S, _IDLE_S = 10.0, 30.0
_CONNECTIONS = 1024
_POLL_S = 0.05  # how long to close a listener may take
BROKEN = (OSError, http.client.HTTPException)
# Not what timed out: a sender that says nothing will go on to do so.
_ONCE_MORE = (ConnectionError, ssl.SSLError, http.client.HTTPException)


class Credential(NamedTuple):
    """Credentials of a run's nodes: PEM texts (the key for senders only) and the token."""

    certificate: str
    token: str
    key: str = ""


def target_of(made: Sequence[str]) -> str:
    """Return the request target of (step, identity, key) or (step, identity, key, piece)."""
    return "".join("/" + urllib.parse.quote(os.fsencode(name), safe="") for name in made)


def path_of(storage: Storage, made: Sequence[str]) -> Optional[str]:
    """Return the file of an output or piece, or None unless its key is in the ledger."""
    names = list(made)
    if len(names) not in (3, 4) or any("\0" in name for name in names):
        return None
    step, identity, key = names[:3]
    if any(name in ("", ".", "..") or "/" in name for name in (step, identity, *names[3:])):
        return None
    ledger = storage.ledger(step)
    entry = ledger.find(identity)
    if entry is None:
        entry = ledger.entries().get(identity)
    if entry is None or entry.key != key:
        return None
    return os.path.join(storage.path(step, identity, key), *names[3:])


# -- the sender ------------------------------------------------------------------------------------


class Listener(socketserver.ThreadingTCPServer):
    """Serves a node's outputs on one address, on a port that the kernel chooses."""

    daemon_threads = True
    block_on_close = False
    request_queue_size = 128

    def __init__(self, storage: Storage, address: str, credential: Credential) -> None:
        self.storage, self.token = storage, credential.token.encode("ascii")
        self.is_closed = False
        self.context = _server_context(credential)
        self._room = threading.BoundedSemaphore(_CONNECTIONS)
        found = socket.getaddrinfo(address, 0, type=socket.SOCK_STREAM)[0]
        self.address_family = found[0]
        super().__init__(found[4], _Handler)  # type: ignore[arg-type]
        threading.Thread(target=self.serve_forever, args=(_POLL_S,), daemon=True).start()

    @property
    def port(self) -> int:
        """Return the port that the kernel chose."""
        return int(self.socket.getsockname()[1])

    def close(self) -> None:
        """Take no more connections, and answer no more requests on those there are."""
        self.is_closed = True
        self.shutdown()
        self.server_close()

    def process_request(self, request: Any, client_address: Any) -> None:
        """Serve a connection in a thread of its own, if there is room."""
        if self._room.acquire(blocking=False):
            super().process_request(request, client_address)
        else:
            self.shutdown_request(request)

    def process_request_thread(self, request: Any, client_address: Any) -> None:
        """Serve a connection to its end."""
        try:
            super().process_request_thread(request, client_address)
        finally:
            self._room.release()

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Say nothing: the receiver notices, and tells the driver."""


class _Handler(http.server.BaseHTTPRequestHandler):
    """One connection: any number of requests, one after the other."""

    protocol_version = "HTTP/1.1"
    timeout = _IDLE_S
    disable_nagle_algorithm = True
    server: Listener

    def setup(self) -> None:
        """Shake hands, in this connection's own thread."""
        self.request.settimeout(_HANDSHAKE_S)
        self.request = self.server.context.wrap_socket(self.request, server_side=True)
        super().setup()

    def finish(self) -> None:
        """Close the connection, which is another object since the handshake."""
        super().finish()
        self.request.close()

    def parse_request(self) -> bool:
        """Turn away whoever lacks the token, before anything else is looked at."""
        if not super().parse_request():
            return False
        shown = self.headers.get("Authorization", "").encode("utf-8", "replace")
        if not hmac.compare_digest(shown, b"Bearer " + self.server.token) or self.server.is_closed:
            self.send_error(401)
            return False
        if self.command != "GET":
            self.send_error(405)
            return False
        return True

    def do_GET(self) -> None:
        """Send one output or piece."""
        names = self.path.split("/")[1:]
        made = [os.fsdecode(urllib.parse.unquote_to_bytes(name)) for name in names]
        path = path_of(self.server.storage, made)
        try:
            fd = os.open(path or "", os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK)
        except OSError:
            self._head(404, 0)
            return
        with open(fd, "rb", buffering=0) as file:
            status = os.fstat(fd)
            if not stat.S_ISREG(status.st_mode):
                self._head(404, 0)
                return
            self._head(200, status.st_size)
            left = status.st_size
            view = memoryview(bytearray(max(1, min(left, _BLOCK))))
            while left:
                count = file.readinto(view[: min(left, _BLOCK)])
                if not count:
                    self.close_connection = True  # it was cut: so must the answer be
                    return
                self.connection.sendall(view[:count])
                left -= count

    def send_error(
        self, code: int, message: Optional[str] = None, explain: Optional[str] = None
    ) -> None:
        """Answer with a status alone, and hang up."""
        self.close_connection = True
        self._head(code, 0)

    def _head(self, code: int, size: int) -> None:
        self.wfile.write(b"HTTP/1.1 %d \r\nContent-Length: %d\r\n\r\n" % (code, size))

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002 - http.server's name
        """Log nothing."""


def _server_context(credential: Credential) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    # Python reads keys from files only, but this one must not be on a disk: it is in memory.
    fd = os.memfd_create("credential", os.MFD_CLOEXEC)
    try:
        os.write(fd, (credential.certificate + credential.key).encode("ascii"))
        context.load_cert_chain(f"/proc/self/fd/{fd}")
    finally:
        os.close(fd)
    return context


# -- the receiver ----------------------------------------------------------------------------------


class Gone(Exception):
    """The sender does not have it, or has another size of it."""


class NotKept(Exception):
    """Received bytes could not be written here."""


class Source:
    """A connection to one sender, opened when needed and used for one output after the other."""

    def __init__(self, host: str, port: int, credential: Credential) -> None:
        self._credential = credential
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.minimum_version = ssl.TLSVersion.TLSv1_2
        context.check_hostname = False  # it is known by its certificate, which no other host has
        context.load_verify_locations(cadata=credential.certificate)
        self._pinned = ssl.PEM_cert_to_DER_cert(credential.certificate)
        self._line = http.client.HTTPSConnection(host, port, timeout=_CONNECT_S, context=context)

    def fetch(self, made: Sequence[str], size: int, path: str) -> str:
        """Write one output to a new file; return its checksum. A broken connection is made again.

        Raises:
            Gone: the sender does not have it.
            NotKept: it cannot be written here.
            OSError, HTTPException: the sender cannot be reached, or broke off twice.
        """
        target = target_of(made)
        with contextlib.suppress(*_ONCE_MORE):
            return self._guarded(target, size, path)
        return self._guarded(target, size, path)

    def close(self) -> None:
        """Close the connection; the next fetch opens another."""
        self._line.close()

    def _guarded(self, target: str, size: int, path: str) -> str:
        try:
            return self._fetch(target, size, path)
        except BaseException:
            self.close()  # what else comes over it is not what the next fetch asks for
            raise

    def _fetch(self, target: str, size: int, path: str) -> str:
        if self._line.sock is None:
            self._connect()
        headers = {"Authorization": f"Bearer {self._credential.token}"}
        self._line.request("GET", target, headers=headers)
        answer = self._line.getresponse()
        if answer.status in (401, 405):
            raise ConnectionRefusedError("it does not take part in this run")
        if answer.status != 200 or answer.length != size:
            why = "it is not there" if answer.status == 404 else f"it has {answer.length} bytes"
            raise Gone(why)
        return _kept(answer, size, path)

    def _connect(self) -> None:
        self._line.connect()
        sock = self._line.sock
        if sock.getpeercert(binary_form=True) != self._pinned:
            raise ssl.SSLError("it shows another certificate than this run's")
        sock.settimeout(_SILENT_S)


def _kept(answer: http.client.HTTPResponse, size: int, path: str) -> str:
    """Write the body to `path` and return its CRC-32, as `storage.checksum` does."""
    crc, left = 0, size
    view = memoryview(bytearray(max(1, min(size, _BLOCK))))
    with _opened(path) as file:
        while left:
            count = answer.readinto(view[: min(left, _BLOCK)])
            if not count:
                raise ConnectionResetError("it broke off")
            crc = zlib.crc32(view[:count], crc)
            left -= count
            _write(file, view[:count])
    answer.read()  # nothing; but only then does the next request find the connection free
    return f"{crc:08x}"


def _opened(path: str) -> "io.FileIO":
    try:
        return open(path, "wb", buffering=0)
    except OSError as error:
        raise NotKept(str(error)) from error


def _write(file: "io.FileIO", data: memoryview) -> None:
    try:
        while data:
            data = data[file.write(data) :]
    except OSError as error:
        raise NotKept(str(error)) from error
