"""The slots of a node: threads that run the keys of all its sessions."""

import contextlib
import queue
import threading
from typing import Callable


class Slots:
    """S threads that take what is to be run from one queue, whatever session it came from."""

    def __init__(self, count: int) -> None:
        self.count = count
        self._queue: queue.SimpleQueue[Callable[[], None]] = queue.SimpleQueue()
        self._busy, self._closed = 0, False
        self._go = threading.Event()
        self._go.set()
        self._changed = threading.Condition()
        for _ in range(count):
            threading.Thread(target=self._serve, daemon=True).start()

    def put(self, job: Callable[[], None]) -> None:
        """Run `job` when a slot is free."""
        self._queue.put(job)

    def close(self) -> None:
        """Start nothing more."""
        with self._changed:
            self._closed = True

    def drain(self) -> None:
        """Start nothing more; what runs is finished."""
        self._go.clear()

    def are_idle(self, timeout_s: float) -> bool:
        """Wait until all that was begun has ended; tell whether it has in time."""
        with self._changed:
            return self._changed.wait_for(lambda: not self._busy, timeout_s)

    def _serve(self) -> None:
        while True:
            job = self._queue.get()
            self._go.wait()
            with self._changed:
                if self._closed:
                    continue
                self._busy += 1
            try:
                job()
            finally:
                with self._changed:
                    self._busy -= 1
                    self._changed.notify_all()


class Countdown:
    """Calls `then` once, when `count` things have happened."""

    def __init__(self, count: int, then: Callable[[], None]) -> None:
        self._left, self._then = count, then
        self._mutex = threading.Lock()
        if count == 0:
            then()

    def one(self) -> None:
        """One more has happened."""
        with self._mutex:
            self._left -= 1
            last = self._left == 0
        if last:
            with contextlib.suppress(OSError):
                self._then()
