"""JSON lines over anything with the three methods of a socket. Driver and node share this."""

import contextlib
import json
import socket
import threading
import time
from typing import Any, Optional, Protocol

CHUNK = 1 << 16
SOON_S = 0.02


class Stream(Protocol):
    """The common part of a socket, a paramiko channel and a pair of pipes."""

    def recv(self, size: int) -> bytes:
        """Return up to `size` bytes, empty at the end."""

    def sendall(self, data: "bytes | memoryview") -> None:
        """Send every byte or raise OSError."""

    def settimeout(self, timeout: Optional[float]) -> None:
        """Make a `recv` that waits longer than `timeout` seconds raise socket.timeout."""

    def close(self) -> None:
        """Close both directions."""


class Wire:
    """One message a line, in both directions; any thread may send, one reads.

    `runtime` is the transport's own name of the runtime at the other end, empty if it has none.
    """

    def __init__(self, stream: Stream, runtime: str = "") -> None:
        self._stream, self.runtime = stream, runtime
        self._buffer = bytearray()
        self._scanned = 0
        self._sending = threading.Lock()
        self._posted: list[bytes] = []
        self._put_at = 0.0

    def send(self, message: dict[str, Any]) -> None:
        """Send one message. Names that are not UTF-8 travel as lone surrogates, escaped."""
        self._put(_line(message))

    def post(self, message: dict[str, Any]) -> None:
        """Send one message within `SOON_S`, if not at once: many small ones travel together.

        Each takes all on its way some work, most of all over ssh.
        """
        with self._sending:
            self._posted.append(_line(message))
            if len(self._posted) > 1:
                return  # and the first is on its way
            pause_s = self._put_at + SOON_S - time.monotonic()
            if pause_s <= 0:
                self._flush()
                return
        timer = threading.Timer(pause_s, self._late)
        timer.daemon = True
        try:
            timer.start()
        except RuntimeError:  # there can be no more threads
            self._late()

    def _late(self) -> None:
        with self._sending, contextlib.suppress(OSError):  # who reads, or sends next, finds out
            self._flush()

    def send_bytes(self, message: dict[str, Any], data: bytes) -> None:
        """Send one message that is followed by raw bytes; its ``size`` says how many."""
        self._put(_line(dict(message, size=len(data))) + data)

    def send_raw(self, data: bytes) -> None:
        """Send raw bytes that a message has announced."""
        self._put(data)

    def _put(self, data: bytes) -> None:
        with self._sending:
            self._posted.append(data)
            self._flush()

    def _flush(self) -> None:
        data, self._posted = b"".join(self._posted), []
        view = memoryview(data)
        # In pieces: a socket's timeout is for a whole `sendall`, however much that is.
        for start in range(0, len(view), CHUNK):
            self._stream.sendall(view[start : start + CHUNK])
        self._put_at = time.monotonic()

    def limit(self, timeout_s: Optional[float]) -> None:
        """Make what is sent or read as raw bytes fail with socket.timeout if nothing moves."""
        self._stream.settimeout(timeout_s)

    def recv(self, timeout_s: Optional[float] = None) -> Optional[dict[str, Any]]:
        """Return the next message, or None at the end of the stream.

        Raises:
            ValueError: what came is not a message.
            socket.timeout: nothing came for `timeout_s` seconds.
        """
        self._stream.settimeout(timeout_s)
        while True:
            if self._buffer and not self._buffer.startswith(b"{"):  # at once: no line may ever end
                raise ValueError(f"not an object: {bytes(self._buffer[:80])!r}")
            end = self._buffer.find(b"\n", self._scanned)
            if end >= 0:
                line = bytes(self._buffer[:end])
                del self._buffer[: end + 1]
                self._scanned = 0
                message: dict[str, Any] = json.loads(line)
                return message
            self._scanned = len(self._buffer)
            data = self._stream.recv(CHUNK)
            if not data:
                return None
            self._buffer += data

    def recv_bytes(self, size: int) -> bytes:
        """Return exactly `size` raw bytes that follow a message; fewer only at the end."""
        while len(self._buffer) < size:
            data = self._stream.recv(CHUNK)
            if not data:
                break
            self._buffer += data
        data = bytes(self._buffer[:size])
        del self._buffer[:size]
        return data

    def interrupt(self) -> None:
        """Let whoever waits for a message of a socket see its end: closing it would not."""
        with contextlib.suppress(OSError):
            shutdown = getattr(self._stream, "shutdown", None)
            if shutdown is not None:
                shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        """Close the stream."""
        self._stream.close()


def _line(message: dict[str, Any]) -> bytes:
    return json.dumps(message, separators=(",", ":")).encode("ascii") + b"\n"
