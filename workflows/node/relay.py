"""``runtime.pyz attach SOCKET``: sessions of a runtime over stdin and stdout.

This is how tasks reach a runtime on another host: as one more command of the ssh connection. It
serves one session after the other, since starting it costs more than a session does. Both ways,
bytes travel in frames: four bytes that say how many follow, and these. None ends the session.
"""

import _socket  # `socket` itself takes longer to load than Python does to start
import os
import select
import struct
import sys

_CHUNK = 1 << 16
_LENGTH = struct.Struct("!I")


def start() -> None:
    """Serve sessions until stdin ends, or the runtime does."""
    os.write(1, b'\n{"event":"attached"}\n')
    try:
        life = _connected()
        while True:
            _await_driver(life)
            data = _frame()
            if data:
                stream = _connected()
                _serve(stream, data)
                stream.close()
            _write(b"")
    except (OSError, EOFError):
        pass  # either side is gone, and so is what this is for
    os._exit(0)


def _connected() -> "_socket.socket":
    stream = _socket.socket(_socket.AF_UNIX, _socket.SOCK_STREAM)
    stream.connect("\0" + sys.argv[2])
    return stream


def _await_driver(life: _socket.socket) -> None:
    """Wait for a session to begin; `life` is one that says nothing, and ends with the runtime.

    Raises:
        EOFError: the runtime has ended.
    """
    poll = select.poll()
    poll.register(0, select.POLLIN)
    poll.register(life, select.POLLIN)
    if any(fd == life.fileno() for fd, _ in poll.poll()):
        raise EOFError


def _serve(stream: _socket.socket, first: bytes) -> None:
    """Copy bytes both ways until the driver ends the session."""
    # One direction blocks the other only while the side that asks does not read its answers.
    stream.sendall(first)
    poll = select.poll()
    poll.register(0, select.POLLIN)
    poll.register(stream, select.POLLIN)
    while True:
        for fd, _ in poll.poll():
            if fd == 0:
                data = _frame()
                if not data:
                    return
                stream.sendall(data)
            else:
                data = stream.recv(_CHUNK)
                if not data:
                    raise EOFError
                _write(data)


def _frame() -> bytes:
    """Return the next frame; empty at the end of a session.

    Raises:
        EOFError: stdin has ended.
    """
    return _exactly(_LENGTH.unpack(_exactly(_LENGTH.size))[0])


def _exactly(size: int) -> bytes:
    data = b""
    while len(data) < size:
        more = os.read(0, size - len(data))
        if not more:
            raise EOFError
        data += more
    return data


def _write(data: bytes) -> None:
    view = memoryview(_LENGTH.pack(len(data)) + data)
    while view:
        view = view[os.write(1, view) :]
