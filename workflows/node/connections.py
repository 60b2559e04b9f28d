"""The two ways into a runtime: its own stdin and stdout, and a private socket."""

import os
import socket
import struct
import threading
from typing import Callable, Optional

from workflows.node.wire import Wire


class Pipes:
    """The runtime's stdin and stdout, with the methods of a socket."""

    def recv(self, size: int) -> bytes:
        """Read what there is."""
        return os.read(0, size)

    def sendall(self, data: "bytes | memoryview") -> None:
        """Write everything."""
        view = memoryview(data)
        while view:
            view = view[os.write(1, view) :]

    def settimeout(self, timeout: Optional[float]) -> None:
        """Do nothing: the node waits for as long as the driver lives."""

    def close(self) -> None:
        """Do nothing: the process ends."""


def listen(name: str) -> socket.socket:
    """Return a listening socket in Linux's abstract namespace: it has no file to leave behind."""
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    listener.bind("\0" + name)
    listener.listen(128)
    return listener


def accept(listener: socket.socket, serve: Callable[[Wire], None]) -> None:
    """Serve every connection of this user in a thread of its own."""
    while True:
        stream, _ = listener.accept()
        if _peer_uid(stream) != os.getuid():
            stream.close()
            continue
        threading.Thread(target=serve, args=(Wire(stream),), daemon=True).start()


def _peer_uid(stream: socket.socket) -> int:
    raw = stream.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, struct.calcsize("3i"))
    uid: int = struct.unpack("3i", raw)[1]
    return uid
