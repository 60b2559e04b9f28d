"""The stdin of a verb, given to commands on nodes: the same bytes to each, as fast as it reads."""

import contextlib
import os
import stat
import tempfile
import threading
from collections.abc import Callable

_BLOCK = 1 << 16
_AHEAD = 1 << 22  # bytes sent to a node that its command has not read yet
_STDIN = 0


def is_given() -> bool:
    """Tell whether there is something to pass on: stdin is open, and is no terminal."""
    try:
        status = os.fstat(_STDIN)
    except OSError:
        return False
    is_null = stat.S_ISCHR(status.st_mode) and status.st_rdev == os.stat(os.devnull).st_rdev
    return not is_null and not os.isatty(_STDIN)


class Inflow:
    """Reads stdin once for several nodes.

    The fastest node decides how fast it is read; what others have yet to read is in a file without
    a name.
    """

    def __init__(self, readers: int) -> None:
        self._changed = threading.Condition()
        self._file = tempfile.TemporaryFile(prefix="workflows-stdin-")  # noqa: SIM115 - to the end
        self._size, self._is_over, self._error = 0, False, ""
        self._offsets = [0] * readers
        self._open = set(range(readers))

    def start(self) -> None:
        """Begin to read; a thread that waits for stdin does not keep the process alive."""
        threading.Thread(target=self._read, daemon=True).start()

    def _read(self) -> None:
        try:
            while data := os.read(_STDIN, _BLOCK):
                with self._changed:
                    os.pwrite(self._file.fileno(), data, self._size)
                    self._size += len(data)
                    self._changed.notify_all()
                    self._changed.wait_for(self._is_wanted)
        except OSError as error:
            self._error = f"stdin could not be read: {error.strerror}"
        with self._changed:
            self._is_over = True
            self._changed.notify_all()

    def _is_wanted(self) -> bool:
        """Tell whether to read on; what all have read makes room."""
        here = [self._offsets[reader] for reader in self._open]
        if here and min(here) == self._size:
            os.ftruncate(self._file.fileno(), 0)
            self._size = 0
            for reader in self._open:
                self._offsets[reader] = 0
        return bool(here) and self._size - max(self._offsets[r] for r in self._open) < _BLOCK

    def next(self, reader: int) -> bytes:
        """Return the next bytes for a reader, none at the end; waits for them."""
        with self._changed:
            self._changed.wait_for(
                lambda: (
                    reader not in self._open or self._offsets[reader] < self._size or self._is_over
                )
            )
            if reader not in self._open:
                return b""
            start = self._offsets[reader]
            data = os.pread(self._file.fileno(), min(_BLOCK, self._size - start), start)
            self._offsets[reader] += len(data)
            self._changed.notify_all()
            return data

    def leave(self, reader: int) -> None:
        """Wait for a reader no longer."""
        with self._changed:
            self._open.discard(reader)
            self._changed.notify_all()

    @property
    def error(self) -> str:
        """Return why stdin could not be read to its end, if so."""
        return self._error


class Sender:
    """Sends one node what its command reads, never much more than it has read."""

    def __init__(self, inflow: Inflow, reader: int, feed: Callable[[bytes], None]) -> None:
        self._inflow, self._reader, self._feed = inflow, reader, feed
        self._ahead, self._is_over = 0, False
        self._changed = threading.Condition()

    def start(self) -> None:
        """Begin to send."""
        threading.Thread(target=self._send, daemon=True).start()

    def _send(self) -> None:
        with contextlib.suppress(OSError):  # whoever reads its events learns of it
            while True:
                with self._changed:
                    self._changed.wait_for(lambda: self._is_over or self._ahead < _AHEAD)
                    if self._is_over:
                        return
                data = self._inflow.next(self._reader)
                with self._changed:
                    self._ahead += len(data)
                self._feed(data)
                if not data:
                    return

    def took(self, count: int) -> None:
        """Note that the command has read so much more."""
        with self._changed:
            self._ahead -= count
            self._changed.notify_all()

    def end(self) -> None:
        """Send no more: the command has ended."""
        with self._changed:
            self._is_over = True
            self._changed.notify_all()
        self._inflow.leave(self._reader)
