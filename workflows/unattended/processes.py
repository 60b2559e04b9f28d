"""Signals, and groups of processes that are ended together."""

import contextlib
import os
import signal
import time
from collections.abc import Callable

LONGEST_S = 3600.0  # of one wait: the system refuses to wait for centuries


class Signals:
    """SIGHUP, SIGINT and SIGTERM are held back until they are asked for: none comes amid anything.

    Those that were ignored from the start, as by nohup, stay ignored.
    """

    def __init__(self) -> None:
        held = {signal.SIGHUP, signal.SIGINT, signal.SIGTERM, signal.SIGCHLD}
        ignored = {one for one in held if signal.getsignal(one) == signal.SIG_IGN}
        self.asked = held - ignored - {signal.SIGCHLD}
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        # run_pipeline.sh may have held them back already.
        self._before = (
            signal.pthread_sigmask(signal.SIG_BLOCK, {*self.asked, signal.SIGCHLD}) - held
        )

    def wait(self, seconds: float) -> int:
        """Wait for a signal or a change of a child; return the signal, or 0."""
        wait_s = min(max(0.0, seconds), LONGEST_S)
        found = signal.sigtimedwait({*self.asked, signal.SIGCHLD}, wait_s)
        return found.si_signo if found and found.si_signo in self.asked else 0

    def restore(self) -> None:
        """Let signals do what they do to other programs: for a child that becomes one."""
        for one in {*self.asked, signal.SIGPIPE}:
            signal.signal(one, signal.SIG_DFL)
        signal.pthread_sigmask(signal.SIG_SETMASK, self._before)

    def ignore(self) -> None:
        """Let no signal stop this process any more, nor what it starts from now on."""
        for one in (signal.SIGHUP, signal.SIGINT, signal.SIGTERM):
            signal.signal(one, signal.SIG_IGN)
        signal.pthread_sigmask(signal.SIG_SETMASK, self._before)


def is_alive(group: int) -> bool:
    """Tell whether anything of a group runs. Zombies do not; a container may never collect them."""
    try:
        os.killpg(group, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    if not os.path.exists("/proc/self/stat"):
        return True
    return any(_runs_in(group, pid) for pid in os.listdir("/proc") if pid.isdigit())


def _runs_in(group: int, pid: str) -> bool:
    try:
        with open(f"/proc/{pid}/stat", "rb") as file:
            state, _, own = file.read().rpartition(b")")[2].split()[:3]
    except (OSError, ValueError):
        return False
    return int(own) == group and state != b"Z"


def kill(group: int, number: int) -> None:
    """Send a signal to a group, if there is one."""
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(group, number)


def end(group: int, grace_s: float, wait: Callable[[float], None]) -> None:
    """Send TERM, and after `grace_s` KILL, unless all has ended. `wait` spends some seconds."""
    if not is_alive(group):
        return
    kill(group, signal.SIGTERM)
    deadline = time.monotonic() + grace_s
    while is_alive(group):
        if time.monotonic() >= deadline:
            kill(group, signal.SIGKILL)
            return
        wait(0.05)


def status(code: int) -> int:
    """Return an exit code as a shell gives it: 128 and the number of the signal that killed."""
    return 128 - code if code < 0 else code


def close_others(*kept: int) -> None:
    """Close every file but the standard ones and those `kept`."""
    for name in os.listdir("/proc/self/fd"):
        if int(name) > 2 and int(name) not in kept:
            with contextlib.suppress(OSError):
                os.close(int(name))


def read_nothing() -> None:
    """Let stdin be empty."""
    null = os.open(os.devnull, os.O_RDONLY)
    os.dup2(null, 0)
