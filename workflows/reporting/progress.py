"""The status line of a running run, on a terminal only."""

import os
import threading
import time

from workflows.reporting.runlog import RunLog, Totals, on_terminal

_EVERY_S = 0.2
CLEAR = "\r\x1b[K"


class Progress:
    """Draws the run log's totals on stderr until stopped."""

    def __init__(self, log: RunLog) -> None:
        self._log = log
        self._totals = Totals()
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None

    def start(self) -> None:
        """Begin to draw, if stderr is a terminal."""
        if on_terminal() and self._thread is None:
            self._thread = threading.Thread(target=self._draw, daemon=True)
            self._thread.start()

    def stop(self) -> None:
        """Stop, and leave an empty line."""
        if self._thread is not None:
            self._stop.set()
            self._thread.join()
            self._thread = None

    def _draw(self) -> None:
        while not self._stop.wait(_EVERY_S):
            self._totals.update(self._log.path)
            if self._totals.planned:
                _write(CLEAR + self._totals.line(_columns() - 1, time.time()))
        _write(CLEAR)


def _columns() -> int:
    try:
        return os.get_terminal_size(2).columns
    except OSError:
        return 80


def _write(text: str) -> None:
    # Not sys.stderr: Luigi forks while this thread runs, and a child must not inherit its lock.
    os.write(2, text.encode("utf-8", "replace"))
