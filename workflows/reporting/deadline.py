"""Whether a run will meet its deadline: a forecast from its log, printed once, in time."""

import os
import threading
import time
from collections.abc import Mapping

from workflows.reporting.progress import CLEAR
from workflows.reporting.runlog import RunLog, Totals, on_terminal

_EVERY_S = 0.5
# Before that share of its time, a run has shown too little of its pace.
_TRUSTED = 0.02


class Deadline:
    """Watches a run until its end; warns once, when the forecast exceeds the deadline."""

    def __init__(self, log: RunLog, seconds: float) -> None:
        self._log, self._seconds = log, seconds
        self._stop = threading.Event()
        self._started = time.time()

    def start(self) -> None:
        """Begin to watch, if there is a deadline."""
        if self._seconds:
            threading.Thread(target=self._watch, daemon=True).start()

    def stop(self) -> str:
        """Stop; return what is to be said of a run that took too long."""
        self._stop.set()
        took = time.time() - self._started
        if not self._seconds or took <= self._seconds:
            return ""
        return f"took {_spoken(took)}, its deadline was {_spoken(self._seconds)}"

    def _watch(self) -> None:
        totals, before = Totals(), earlier(self._log)
        while not self._stop.wait(_EVERY_S):
            totals.update(self._log.path)
            took = time.time() - self._started
            needs = forecast(totals, took, before)
            if took > _TRUSTED * self._seconds and needs > self._seconds:
                done = sum(total["keys"] for total in totals.steps.values())
                self._say(
                    f"needs about {_spoken(needs)} at this pace, its deadline is"
                    f" {_spoken(self._seconds)} ({done} keys in {_spoken(took)}):"
                    " more nodes or slots would help"
                )
                return

    def _say(self, text: str) -> None:
        # Not a logger, nor sys.stderr: Luigi forks while this thread runs, and locks with it.
        clear = CLEAR if on_terminal() else ""
        os.write(2, f"{clear}WARNING: the run {text}\n".encode())
        self._log.add(what="late", says=text)


def forecast(totals: Totals, took: float, before: Mapping[str, float]) -> float:
    """Return the seconds that a run takes in all, at least; 0 while nothing can be said.

    Known remaining keys take as long as such keys have taken so far, or did in an earlier run
    (`before`: step -> seconds a key), as many at once as so far. Steps that cannot be planned yet
    are not in it.
    """
    busy, left = 0.0, 0.0
    for step, planned in totals.planned.items():
        total = totals.steps.get(step)
        keys = total["keys"] if total is not None else 0
        wall = total["wall"] if total is not None else 0.0
        each = wall / keys if keys else before.get(step, 0.0)
        busy += wall
        left += max(0, planned - keys) * each
    return took + left * took / busy if busy else 0.0


def earlier(log: RunLog) -> dict[str, float]:
    """Return step -> seconds that a key took in the last run that ran anything."""
    names = sorted(os.listdir(log.runs), reverse=True) if os.path.isdir(log.runs) else []
    for name in names:
        totals = Totals()
        totals.update(os.path.join(log.runs, name, "log.jsonl"))
        if totals.steps and name != log.name:
            return {
                step: total["wall"] / total["keys"]
                for step, total in totals.steps.items()
                if total["keys"]
            }
    return {}


def _spoken(seconds: float) -> str:
    return f"{seconds:.0f} s" if seconds < 120 else f"{seconds / 60:.0f} min"
