"""The dated log of a run; Luigi adds its own lines, by `WORKFLOWS_LOG`."""

import contextlib
import glob
import os
import time

from workflows.unattended.refusal import cannot_write

KEPT = 30


class DatedLog:
    """One file of `folder`; of all of them the last `KEPT` stay."""

    def __init__(self, folder: str, name: str) -> None:
        """Create it.

        Raises:
            Refused: it cannot be written.
        """
        started = time.strftime("%Y%m%dT%H%M%S")
        self.path = os.path.join(folder, f"run-{started}-{os.getpid()}.log")
        self._name = name
        try:
            with open(self.path, "ab"):
                pass
        except OSError as error:
            raise cannot_write(self.path, error) from error
        for old in sorted(glob.glob(os.path.join(glob.escape(folder), "run-*.log")))[:-KEPT]:
            with contextlib.suppress(OSError):
                os.unlink(old)

    def add(self, data: bytes) -> None:
        """Add to it, if that is possible: no run fails for its log."""
        with contextlib.suppress(OSError), open(self.path, "ab") as file:
            file.write(data)

    def note(self, text: str) -> None:
        """Add a line with the time."""
        line = f"{time.strftime('%Y-%m-%d %H:%M:%S')} {self._name}[{os.getpid()}] {text}\n"
        self.add(line.encode("utf-8", "surrogateescape"))

    def tail(self, lines: int) -> bytes:
        """Return its last lines, as far as they are not longer than 64 kB."""
        try:
            with open(self.path, "rb") as file:
                file.seek(max(0, os.fstat(file.fileno()).st_size - 65536))
                return b"".join(file.readlines()[-lines:])
        except OSError:
            return b""
