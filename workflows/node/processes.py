"""The process groups that commands run in, and how they all end."""

import contextlib
import os
import signal
import threading


class Groups:
    """The process groups of one session, so that they can all be killed."""

    def __init__(self) -> None:
        self._pids: set[int] = set()
        self._mutex = threading.Lock()
        self.cancelled = False

    def add(self, pid: int) -> None:
        """Remember a group; if the session has ended, kill it at once."""
        with self._mutex:
            self._pids.add(pid)
            if self.cancelled:
                kill_group(pid)

    def end(self, pid: int) -> None:
        """Kill what a command left running behind it, and forget the group."""
        kill_group(pid)
        with self._mutex:
            self._pids.discard(pid)

    def cancel(self) -> None:
        """Kill all groups, now and as they come."""
        with self._mutex:
            self.cancelled = True
            for pid in self._pids:
                kill_group(pid)


def kill_group(pid: int) -> None:
    """Send SIGKILL to a process group, if there is one."""
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(pid, signal.SIGKILL)
