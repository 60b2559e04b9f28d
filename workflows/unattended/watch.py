"""Wait for the end of a run; a signal or its timeout brings that about."""

import math
import os
import signal
import time

from workflows.unattended import processes
from workflows.unattended.processes import Signals
from workflows.unattended.refusal import TIMEOUT


class Watch:
    """Over the process group `group`, led by a child. `verdict` is why it was ended, or 0."""

    def __init__(self, group: int, grace_s: float, signals: Signals) -> None:
        self.verdict = 0
        self._group, self._grace_s, self._signals = group, grace_s, signals

    def wait(self, timeout_s: float) -> int:
        """Return the exit code once nothing of the group is left; 0 seconds are no limit."""
        deadline = time.monotonic() + timeout_s if timeout_s else math.inf
        ended = self._ended(os.WNOHANG)
        while ended is None and not self.verdict:
            self._spend(deadline - time.monotonic())
            if time.monotonic() >= deadline:
                self._decide(TIMEOUT)
            ended = self._ended(os.WNOHANG)
        processes.end(self._group, self._grace_s, self._spend)
        if ended is None:
            ended = self._ended(0)
        return self.verdict or ended or 0

    def _spend(self, seconds: float) -> None:
        """Wait. A signal decides the exit code; a second one leaves the group no time to end."""
        number = self._signals.wait(seconds)
        if number and self.verdict:
            processes.kill(self._group, signal.SIGKILL)
        if number:
            self._decide(128 + number)

    def _decide(self, verdict: int) -> None:
        self.verdict = self.verdict or verdict

    def _ended(self, options: int) -> int | None:
        pid, state = os.waitpid(self._group, options)
        return processes.status(os.waitstatus_to_exitcode(state)) if pid else None
