"""The guard: a process that ends a run whose own process was killed, even by SIGKILL.

It holds the lock of the pipeline too, so that no other run begins before it has done so.
"""

import contextlib
import os
import signal

from workflows.unattended.processes import close_others, kill, read_nothing

_DONE = b"done\n"


class Guard:
    """Reads a pipe: first the group to watch, then that all is done. Its end alone means death."""

    def __init__(self, lock: int) -> None:
        """Start it. This process must have no threads: it is forked."""
        read, self._write = os.pipe()
        self._pid = os.fork()
        if self._pid == 0:
            try:
                _watch(read, lock)
            finally:
                os._exit(0)
        os.close(read)

    def watch(self) -> None:
        """Let it watch the group that this process leads."""
        os.write(self._write, b"%d\n" % os.getpid())

    def dismiss(self) -> None:
        """Tell it that all is done, and wait for its end."""
        with contextlib.suppress(OSError):  # somebody killed it
            os.write(self._write, _DONE)
        os.close(self._write)
        with contextlib.suppress(ChildProcessError):
            os.waitpid(self._pid, 0)


def _watch(read: int, lock: int) -> None:
    os.setpgid(0, 0)
    for one in (signal.SIGHUP, signal.SIGINT, signal.SIGTERM):
        signal.signal(one, signal.SIG_IGN)
    close_others(read, lock)
    read_nothing()
    for standard in (1, 2):  # or whoever reads them would wait for the guard
        os.dup2(0, standard)
    heard = b""
    while data := os.read(read, 100):
        heard += data
    group, _, rest = heard.partition(b"\n")
    if group and rest != _DONE and group != _DONE.strip():
        kill(int(group), signal.SIGKILL)
