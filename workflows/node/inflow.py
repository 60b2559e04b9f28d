"""The stdin of a command, as it arrives from the driver."""

import contextlib
import queue
from typing import IO, Callable


class Inflow:
    """Bytes on their way into a command; filled by the session, emptied by a thread of its own."""

    def __init__(self) -> None:
        self._waiting: queue.SimpleQueue[bytes] = queue.SimpleQueue()

    def add(self, data: bytes) -> None:
        """Take some bytes, or with none the end."""
        self._waiting.put(data)

    def feed(self, stdin: IO[bytes], taken: Callable[[int], None]) -> None:
        """Write all that comes to `stdin`; say how much was `taken`, so that more is sent.

        A command that reads no more loses nothing that it wanted: the rest is dropped.
        """
        wants_more = True
        with contextlib.suppress(OSError):  # nobody listens now
            while data := self._waiting.get():
                if wants_more:
                    try:
                        stdin.write(data)
                        stdin.flush()
                    except OSError:
                        wants_more = False
                taken(len(data))
        with contextlib.suppress(OSError):
            stdin.close()
