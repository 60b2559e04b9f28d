"""``python3 -I -S runtime.pyz attach SOCKET``: join stdin and stdout to a runtime's private socket.

This is how a task reaches a runtime on another host: as one more command of the ssh connection. It
ends when either side does.
"""

import os
import select
import socket
import sys

_CHUNK = 1 << 16


def start() -> None:
    """Say on stdout whether the runtime was reached, then copy bytes both ways."""
    stream = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        stream.connect("\0" + sys.argv[2])
    except OSError:
        os.write(1, b'\n{"event":"gone"}\n')
        os._exit(1)
    os.write(1, b'\n{"event":"attached"}\n')
    try:
        _copy(stream)
    except OSError:
        os._exit(1)
    os._exit(0)


def _copy(stream: socket.socket) -> None:
    # One direction blocks the other only while the side that asks does not read its answers.
    poll = select.poll()
    poll.register(0, select.POLLIN)
    poll.register(stream, select.POLLIN)
    while True:
        for fd, _ in poll.poll():
            data = os.read(fd, _CHUNK)
            if not data:
                return
            if fd == 0:
                stream.sendall(data)
            else:
                _write(data)


def _write(data: bytes) -> None:
    view = memoryview(data)
    while view:
        view = view[os.write(1, view) :]
