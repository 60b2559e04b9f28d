"""The watchdog: ends a runtime's commands when the runtime itself is killed.

The runtime kills its commands when its driver goes away. Nothing can do that for a runtime that
gets SIGKILL, so a second, idle process waits on a pipe that the runtime holds open. When the pipe
ends without a farewell, it kills every process that carries the runtime's mark in its environment,
and removes the runtime's temporary files.
"""

import contextlib
import os
import signal
import time

from workflows.node.files import remove
from workflows.node.strays import kill_having

MARK = "WORKFLOWS_RUNTIME"
_FAREWELL = b"x"
_START_S = 0.02  # a command that is just being started looks like the runtime until it is itself


class Watchdog:
    """The runtime's end of the pipe."""

    def __init__(self, mark: str, tmp: str) -> None:
        reader, self._writer = os.pipe()
        self._pid = os.fork()  # before any thread is started
        if self._pid == 0:
            os.close(self._writer)
            _watch(reader, mark, tmp)
        os.close(reader)

    def dismiss(self) -> None:
        """Tell the watchdog that all is in order, and wait until it is gone."""
        with contextlib.suppress(OSError):
            os.write(self._writer, _FAREWELL)
        os.close(self._writer)
        os.waitpid(self._pid, 0)


def _watch(reader: int, mark: str, tmp: str) -> None:
    try:
        os.setsid()  # a signal to the driver's process group must not reach it
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            signal.signal(number, signal.SIG_IGN)
        null = os.open(os.devnull, os.O_RDWR)
        for fd in (0, 1, 2):
            os.dup2(null, fd)
        if os.read(reader, 1) != _FAREWELL:
            kill_marked(mark, tmp)
            time.sleep(_START_S)
            kill_marked(mark, tmp)
            remove(tmp)
    finally:
        os._exit(0)


def kill_marked(mark: str, tmp: str) -> None:
    """Kill every command of a runtime, and what it left behind."""
    kill_having(f"{MARK}={mark}", below=tmp)  # ``env -i`` takes the mark away, not the directory
