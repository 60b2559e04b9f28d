"""Whether what a process prints reaches its reader; a full disk or a closed pipe is an error."""

import errno
import io
import os
import sys
from typing import Any

missing: set[int] = set()  # the standard descriptors that this process was started without


class OutputLost(OSError):
    """Something printed on stdout did not reach its reader; the text says why."""

    def __str__(self) -> str:
        return "stdout is closed" if self.errno == errno.EBADF else str(self.strerror)


class _Stdout(io.FileIO):
    """File descriptor 1, whose errors are told from those of other files."""

    def write(self, data: Any) -> int:
        """Write to stdout.

        Raises:
            OutputLost: it cannot be written.
        """
        try:
            return super().write(data)
        except OSError as error:
            raise OutputLost(error.errno, error.strerror) from error


def guard() -> None:
    """Let each error of stdout be an `OutputLost`, and keep other files from closed streams.

    Python sets a stream to None whose descriptor is closed: what is printed there is lost without a
    word, and what is meant for stderr comes out on stdout. The next file that is opened would have
    the descriptor, and children would print into it.
    """
    if sys.stdin is None:
        _occupy(0, os.O_RDONLY)
    if sys.stdout is None:
        _occupy(1, os.O_RDONLY)  # to write there fails, as it does where nothing is open
        sys.stdout = io.TextIOWrapper(io.BufferedWriter(_Stdout(1, "w", closefd=False)), "utf-8")
    elif sys.stdout is sys.__stdout__:  # else it is guarded, or belongs to somebody else
        sys.stdout = _alike(sys.stdout)
    if sys.stderr is None:
        _occupy(2, os.O_WRONLY)
        sys.stderr = open(2, "w", errors="backslashreplace", closefd=False)  # noqa: SIM115


def _occupy(descriptor: int, flags: int) -> None:
    missing.add(descriptor)
    found = os.open(os.devnull, flags)
    if found != descriptor:
        os.dup2(found, descriptor)
        os.close(found)
    os.set_inheritable(descriptor, True)


def _alike(old: Any) -> io.TextIOWrapper:
    """Return a stdout that encodes and buffers like the one Python made."""
    old.flush()
    raw: Any = _Stdout(1, "w", closefd=False)
    return io.TextIOWrapper(
        raw if isinstance(old.buffer, io.RawIOBase) else io.BufferedWriter(raw),
        encoding=old.encoding,
        errors=old.errors,
        line_buffering=old.line_buffering,
        write_through=old.write_through,
    )


def require_stdout() -> None:
    """Refuse to print where nobody reads.

    Raises:
        OutputLost: stdout is closed.
    """
    if sys.stdout is None:
        raise OutputLost(errno.EBADF, os.strerror(errno.EBADF))


def discard() -> None:
    """Print nothing any more: a leftover in a buffer would fail again at exit."""
    null = os.open(os.devnull, os.O_WRONLY)
    os.dup2(null, 1)
    os.close(null)
