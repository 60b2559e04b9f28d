"""The two ways into a runtime: its own stdin and stdout, and a private socket."""

import contextlib
import errno
import os
import select
import signal
import socket
import struct
import threading
import time
from typing import IO, Callable, Optional

_TAKEOVER_S = 10.0


class Pipes:
    """The runtime's stdin and stdout, with the methods of a socket."""

    def __init__(self) -> None:
        self._timeout: Optional[float] = None

    def recv(self, size: int) -> bytes:
        """Read what there is; wait for it as long as `settimeout` said."""
        if not select.select([0], [], [], self._timeout)[0]:
            raise socket.timeout("nothing came")
        return os.read(0, size)

    def sendall(self, data: "bytes | memoryview") -> None:
        """Write everything."""
        view = memoryview(data)
        while view:
            view = view[os.write(1, view) :]

    def settimeout(self, timeout: Optional[float]) -> None:
        """Make a `recv` that waits longer than `timeout` seconds raise socket.timeout."""
        self._timeout = timeout

    def close(self) -> None:
        """Do nothing: the process ends."""


def is_readable(file: IO[bytes], timeout_s: float) -> bool:
    """Wait until a pipe has something to read, or has ended; tell whether it does in time."""
    poll = select.poll()  # select knows no file above number 1023
    poll.register(file, select.POLLIN)
    return bool(poll.poll(timeout_s * 1000))


def has_ended(file: IO[bytes], timeout_s: float) -> bool:
    """Wait until a pipe has ended, and read what is left of it; tell whether it does in time.

    So the end of a process is noticed at once. `Popen.wait` with a timeout looks now and then.
    """
    deadline = time.monotonic() + timeout_s
    while is_readable(file, max(0.0, deadline - time.monotonic())):
        if not os.read(file.fileno(), 1 << 16):
            return True
    return False


def listen(name: str) -> socket.socket:
    """Return a listening socket in Linux's abstract namespace: it has no file to leave behind.

    A runtime that still listens there is one that its driver has lost sight of: it is killed, since
    it may hang, and must not outlive its successor.

    Raises:
        OSError: it belongs to another user, or will not go.
    """
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    deadline = time.monotonic() + _TAKEOVER_S
    while True:
        try:
            listener.bind("\0" + name)
            break
        except OSError as error:
            if error.errno != errno.EADDRINUSE or time.monotonic() > deadline:
                raise
        _kill_listener(name)
        time.sleep(0.01)
    listener.listen(128)
    return listener


def _kill_listener(name: str) -> None:
    with contextlib.suppress(OSError), socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.settimeout(1)
        probe.connect("\0" + name)
        pid, uid = peer(probe)
        if uid == os.getuid():
            os.kill(pid, signal.SIGKILL)  # its watchdog cleans up its commands and files


def accept(listener: socket.socket, serve: Callable[[socket.socket], None]) -> None:
    """Serve every connection of this user in a thread of its own."""
    while True:
        stream, _ = listener.accept()
        if peer(stream)[1] != os.getuid():
            stream.close()
            continue
        threading.Thread(target=serve, args=(stream,), daemon=True).start()


def peer(stream: socket.socket) -> "tuple[int, int]":
    """Return the process and the user at the other end."""
    raw = stream.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, struct.calcsize("3i"))
    pid, uid, _ = struct.unpack("3i", raw)
    return pid, uid
