"""Processes that outlived what started them: they become the runtime's children.

Leftovers of commands are killed by what they carry (strays.py). A daemon that closed every file
and emptied its environment carries nothing, and may go on. Here it is at least seen, so that no key
works where such a one may still write. See prctl(2), PR_SET_CHILD_SUBREAPER.
"""

import contextlib
import os

_PR_SET_CHILD_SUBREAPER = 36


class Orphans:
    """Those of this process; made by its first thread, which starts no other process after it."""

    def __init__(self) -> None:
        self._path = f"/proc/self/task/{os.getpid()}/children"
        self._own = self._children() if _adopt() else None

    def are_gone(self) -> bool:
        """Tell whether none is alive, as far as that can be known; those that ended are let go."""
        if self._own is None:
            return False
        children = self._children()
        return children is not None and not any(map(_is_alive, children - self._own))

    def _children(self) -> "set[int] | None":
        try:
            with open(self._path, "rb", buffering=0) as file:
                return set(map(int, (file.read() or b"").split()))
        except OSError:  # a kernel that does not tell
            return None


def _adopt() -> bool:
    """Become the parent of orphans; tell whether that can be done."""
    with contextlib.suppress(ImportError, OSError, AttributeError):
        import ctypes  # only here: it takes milliseconds to load

        return bool(ctypes.CDLL(None).prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0) == 0)
    return False


def _is_alive(pid: int) -> bool:
    with contextlib.suppress(ChildProcessError):
        return os.waitpid(pid, os.WNOHANG)[0] == 0
    return False
