"""Kills leftover processes of commands, wherever they went: another session, parent, a daemon.

A process is known by a variable in its environment, and by a pipe that all a command starts
inherits. Neither would do alone: a daemon closes the pipe, ``env -i`` drops the variable, and while
a process is in the middle of ``exec`` the kernel shows no environment of it at all.
"""

import contextlib
import functools
import os
import select
import signal
import time
from collections.abc import Iterable
from typing import Optional

_SOON_S = 0.5  # within it the kernel cannot have given out all process numbers once
_PATIENCE_S = 5.0
_FEW = 100  # asking for this many processes one by one is cheaper than listing all
_LOOKS = 5


class Strays:
    """The leftovers of one command; made before it starts."""

    def __init__(self, variable: str) -> None:
        self._variable = variable
        self._alive, self.held = os.pipe()  # the command gets `held`: as long as one lives, no end
        self._since, self._started = last_pid(), time.monotonic()
        self._is_over = False

    def end(self) -> bool:
        """Kill them before they can touch the output; tell whether that could be done."""
        if self._is_over:
            return True
        self._is_over = True
        os.close(self.held)
        since = self._since if time.monotonic() - self._started < _SOON_S else 0
        deadline = time.monotonic() + _PATIENCE_S
        try:
            while not self._are_gone():
                for pid in self._holders(since):
                    _kill(pid)
                if time.monotonic() >= deadline:
                    return False
            return kill_having(self._variable, since=since)
        finally:
            os.close(self._alive)

    def _are_gone(self) -> bool:
        """Wait a moment for the end of the pipe: killed processes need one."""
        poll = select.poll()
        poll.register(self._alive, 0)  # which is to say: only its end
        return bool(poll.poll(2))

    def _holders(self, since: int) -> list[int]:
        link = f"pipe:[{os.fstat(self._alive).st_ino}]"
        own = _read("/proc/self/cmdline")
        # A command of another key that was forked, but is not yet itself, holds all that we hold.
        return [
            pid
            for pid in processes(since)
            if _holds(pid, link) and _read(f"/proc/{pid}/cmdline") not in (own, b"", None)
        ]


def kill_having(variable: str, *, below: str = "", since: int = 0) -> bool:
    """Kill all processes with ``NAME=value`` in their environment; tell if none is left.

    With `below`, also those that work in a directory below it. With `since`, only what was started
    after that process is looked at: reading hundreds of environments takes a millisecond, and the
    commands of a key may take no more themselves.
    """
    wanted = os.fsencode(variable), os.path.realpath(below) + "/" if below else ""
    deadline = time.monotonic() + _PATIENCE_S
    while time.monotonic() < deadline:
        newest = last_pid()
        if _kill_found(wanted, since):
            continue
        # A parent may have ended just before its turn came, and its child been born after it.
        if last_pid() == newest or not _kill_found(wanted, newest):
            return True
    return False


def _kill_found(wanted: tuple[bytes, str], since: int) -> bool:
    """Kill what has the variable; tell whether there was any."""
    for _ in range(_LOOKS):
        found, hidden = _look(wanted, since)
        for pid in found:
            _kill(pid)
        if found or hidden:
            # To be gone, or to be to the end of its `exec`. Not time.sleep: it waits until a time,
            # and what fakes a node's clock makes an error of one that has passed.
            select.select([], [], [], 0.001)
        if found or not hidden:
            return bool(found)
    return False


def _look(wanted: tuple[bytes, str], since: int) -> "tuple[list[int], bool]":
    """Return the processes that are wanted, and whether one did not show what it has."""
    variable, below = wanted
    found, hidden = [], False
    for pid in processes(since):
        environment = _read(f"/proc/{pid}/environ")
        if environment is None:
            continue
        has_it = variable in environment.split(b"\0")
        if has_it or (below and _link(pid, "cwd").startswith(below)):
            found.append(pid)
        elif not environment and _link(pid, "exe"):  # neither the kernel's own nor a zombie
            hidden = True
    return found, hidden


def processes(since: int = 0) -> Iterable[int]:
    """Return all other processes, or those that may have been started after process `since` was.

    Some of the latter may be gone, or may never have been processes.
    """
    newest = last_pid()
    if 0 < since <= newest < since + _FEW:
        return range(since + 1, newest + 1)
    if newest < since:
        since = 0  # the kernel has wrapped to small numbers
    own = os.getpid()
    numbers = [int(name) for name in os.listdir("/proc") if name.isdigit()]
    return [pid for pid in numbers if pid > since and pid != own]


def last_pid() -> int:
    """Return the number of the newest process, 0 if it cannot be known."""
    try:
        return int(os.pread(_loadavg(), 256, 0).split()[-1])
    except OSError:
        _loadavg.cache_clear()
        return 0


@functools.cache
def _loadavg() -> int:
    """Return an open file that says so, afresh on each read: each command asks four times."""
    return os.open("/proc/loadavg", os.O_RDONLY | os.O_CLOEXEC)


def _holds(pid: int, link: str) -> bool:
    with contextlib.suppress(OSError):
        return any(_link(pid, f"fd/{name}") == link for name in os.listdir(f"/proc/{pid}/fd"))
    return False


def _link(pid: int, name: str) -> str:
    with contextlib.suppress(OSError):
        return os.readlink(f"/proc/{pid}/{name}")
    return ""


def _read(path: str) -> Optional[bytes]:
    """Return what a file of the kernel's holds; None if it is gone or not for us."""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return None
    try:
        return b"".join(iter(lambda: os.read(fd, 1 << 16), b""))
    except OSError:
        return None
    finally:
        os.close(fd)


def _kill(pid: int) -> None:
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.kill(pid, signal.SIGKILL)
