"""The lock of a pipeline: of two runs at the same time the second one does nothing."""

import contextlib
import fcntl
import os
import time

from workflows.unattended.refusal import ALREADY_RUNNING, CANNOT_LOCK, Refused, cannot_write

# The guard of a run that was killed just now may still be killing the rest of it.
_PATIENCE_S = 0.5
_EVERY_S = 0.02


def take(path: str, task: str) -> int:
    """Lock a file and write this process's pid into it; return the descriptor that holds the lock.

    The lock lives as long as any process has that descriptor.

    Raises:
        Refused: another run holds it, or the file cannot be written or locked.
    """
    try:
        held = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o666)
        os.write(held, b"\n")  # not only opened: the disk may be full
    except OSError as error:
        raise cannot_write(path, error) from error
    deadline = time.monotonic() + _PATIENCE_S
    while not _locked(held, path):
        if time.monotonic() > deadline:
            raise Refused(
                f"{task} is already running as pid {_holder(path)}; this run does nothing",
                ALREADY_RUNNING,
            )
        time.sleep(_EVERY_S)
    with contextlib.suppress(OSError):  # who holds it is good to know, but not needed
        os.ftruncate(held, 0)
        os.write(held, b"%d\n" % os.getpid())
    return held


def _locked(held: int, path: str) -> bool:
    try:
        fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError as error:
        raise Refused(
            f"cannot lock {path}: {error.strerror}; nothing was run", CANNOT_LOCK
        ) from error
    return True


def _holder(path: str) -> str:
    """Return the pid in a lock file, once it lives: its writer may be about to write."""
    pid = ""
    for _ in range(10):
        with contextlib.suppress(OSError), open(path, encoding="ascii", errors="replace") as file:
            pid = file.read().strip()
        if pid.isdigit() and os.path.exists(f"/proc/{pid}"):
            break
        time.sleep(0.05)
    return pid or "unknown"
