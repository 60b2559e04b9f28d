"""Lines for the person or program that started this process, written by a thread of their own.

A closed terminal, a full disk, a pipe that nobody reads: none of them may stop or delay the work,
least of all the removal of what costs money. So printing neither raises nor waits; at the end,
`finish` tells whether every line arrived.
"""

import contextlib
import os
import queue
import select
import threading
import time
from collections.abc import Callable

from workflows.reporting.stdio import missing

PATIENCE_S = 10.0  # how long a reader may take nothing before what is left counts as lost
_NAMES = ("stdin", "stdout", "stderr")


class Stream:
    """One descriptor; its thread starts with the first line."""

    def __init__(self, fd: int) -> None:
        self._fd = fd
        self._lines: queue.SimpleQueue[bytes] = queue.SimpleQueue()
        self._state = threading.Condition()
        self._left, self._moved = 0, 0.0
        self._thread: threading.Thread | None = None
        self._lost = ""

    def print(self, text: str) -> None:
        """Write a line, now or as soon as there is room for it; never raise."""
        with self._state:
            if not self._left:
                self._moved = time.monotonic()  # patience begins with the first line that waits
            self._left += 1
            if self._thread is None:
                self._thread = threading.Thread(target=self._write_all, daemon=True)
                self._thread.start()
        self._lines.put(f"{text}\n".encode("utf-8", "backslashreplace"))

    def flush(self, patience_s: float = PATIENCE_S) -> str:
        """Wait until everything is written; return why something was not, or an empty text."""
        with self._state:
            while self._left:
                rest = self._moved + patience_s - time.monotonic()
                if rest <= 0:
                    return f"nobody reads {_NAMES[self._fd]}"
                self._state.wait(rest)
            return self._lost

    def _write_all(self) -> None:
        while True:
            data, lost = self._lines.get(), ""
            try:
                self._write(data)
            except OSError as error:
                lost = str(error.strerror)
            if self._fd in missing:
                lost = f"{_NAMES[self._fd]} is closed"
            with self._state:
                self._left -= 1
                self._lost = self._lost or lost
                self._moved = time.monotonic()
                self._state.notify_all()

    def _write(self, data: bytes) -> None:
        # Not by sys.stderr: at the end Python waits for its lock, which a blocked write would hold.
        while data:
            try:
                data = data[os.write(self._fd, data) :]
                self._moved = time.monotonic()
            except BlockingIOError:  # whoever shares the pipe has set it so
                select.select([], [self._fd], [])


out, err = Stream(1), Stream(2)


def say(text: str) -> None:
    """Tell the user something that is no result."""
    err.print(text)


def show(text: str) -> None:
    """Print a result, or a part of one."""
    out.print(text)


def finish(code: int) -> int:
    """Wait for the readers, but not for ever; return `code`, or 1 for 0 if lines were lost."""
    lost = out.flush()
    if lost:
        say(f"workflows: not all could be written: {lost}")
    lost = err.flush() or lost
    return code or int(bool(lost))


def unfailing(say: Callable[[str], None]) -> Callable[[str], None]:
    """Return `say` without its exceptions: a line that cannot be printed decides nothing."""

    def said(text: str) -> None:
        with contextlib.suppress(Exception):
            say(text)

    return said
