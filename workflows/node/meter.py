"""Counts the bytes between two stages of a fused key, without copying them."""

import contextlib
import fcntl
import os
import threading
import time

PIPE_SIZE = 1 << 20
_F_SETPIPE_SZ = 1031
# Between two moves of a big flow, so that what moves is as much as a pipe holds: being woken for
# every block that a stage writes took a third of a fused run's system time.
_NAP_S = 0.001


class Meter:
    """Counts what flows from one stage to the next; moves pages, copies nothing where it can."""

    def __init__(self) -> None:
        from_writer, writer = os.pipe()
        reader, to_reader = os.pipe()
        for fd in (writer, to_reader):
            _enlarge(fd)
        self.writer, self.reader = os.fdopen(writer, "wb", 0), os.fdopen(reader, "rb", 0)
        self._source, self._sink = from_writer, to_reader
        self._count = 0
        self._started = False
        self._thread = threading.Thread(target=self._pump, daemon=True)

    def start(self) -> None:
        """Begin to pump, once both stages run."""
        self._started = True
        self._thread.start()

    def abandon(self) -> None:
        """Give back the descriptors of a meter that was never started."""
        if not self._started:
            self._started = True
            os.close(self._source)
            os.close(self._sink)
            self.writer.close()
            self.reader.close()

    def count(self) -> int:
        """Return the bytes that flowed, after both ends are done."""
        self._thread.join()
        return self._count

    def _pump(self) -> None:
        try:
            while True:
                try:
                    moved = _move(self._source, self._sink)
                except BrokenPipeError:
                    # The reader has had enough. The writer must not learn of it: alone, with a file
                    # to write to, it would have gone on to its end.
                    self._drain()
                    return
                if not moved:
                    return
                self._count += moved
                if self._count > PIPE_SIZE:
                    time.sleep(_NAP_S)
        finally:
            os.close(self._source)
            os.close(self._sink)

    def _drain(self) -> None:
        while True:
            data = os.read(self._source, PIPE_SIZE)
            if not data:
                return
            self._count += len(data)


def _copy(source: int, sink: int) -> int:
    data = os.read(source, PIPE_SIZE)
    view = memoryview(data)
    while view:
        view = view[os.write(sink, view) :]
    return len(data)


def _splice(source: int, sink: int) -> int:
    return int(os.splice(source, sink, PIPE_SIZE))  # type: ignore[attr-defined, unused-ignore]


_move = _splice if hasattr(os, "splice") else _copy


def _enlarge(fd: int) -> None:
    """Make a pipe hold 1 MiB: fewer switches between the stages; refused when a user has many."""
    with contextlib.suppress(OSError):
        fcntl.fcntl(fd, _F_SETPIPE_SZ, PIPE_SIZE)
