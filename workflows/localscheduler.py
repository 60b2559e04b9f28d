"""Luigi's scheduler in a run's own process: it looks at all tasks less often.

Each time a worker asks for a task, the scheduler looks for what has timed out, and counts what is
pending. A worker wants to know the count only if there is no task for it, and delays are of
seconds. luigid is a process of its own, and stays as it is. See docs/adr/0013.
"""

import time
from typing import Any

from luigi.interface import _WorkerSchedulerFactory
from luigi.scheduler import Scheduler

_PRUNED_EVERY_S = 0.2

_create = _WorkerSchedulerFactory.create_local_scheduler


class LocalScheduler(Scheduler):
    """The scheduler of one worker."""

    _pruned = 0.0
    _uncounted: dict[str, Any] | None = None  # what is counted while a worker asks for a task

    def get_work(self, **asked: Any) -> dict[str, Any]:
        """Return a task to run; if there is none, after a look at everything, what is pending."""
        before = self._pruned
        reply = self._asked(asked)
        if _is_empty(reply) and self._pruned == before:
            self._pruned = 0.0  # a task may be due to be tried again
            reply = self._asked(asked)
        if _is_empty(reply) and reply is self._uncounted:
            reply.update(super().count_pending(asked["worker"]))
        self._uncounted = None
        return reply

    def _asked(self, asked: dict[str, Any]) -> dict[str, Any]:
        self._uncounted = {}
        reply: dict[str, Any] = super().get_work(**asked)
        return reply

    def prune(self) -> None:
        """Find what has timed out, if that was not done a moment ago."""
        now = time.monotonic()
        if now - self._pruned >= _PRUNED_EVERY_S:
            self._pruned = now
            super().prune()

    def count_pending(self, worker: str) -> dict[str, Any]:
        """Return the counts; zeros while a worker asks for a task."""
        if self._uncounted is None:
            return dict(super().count_pending(worker))
        counts = ("n_pending_tasks", "n_unique_pending", "n_pending_last_scheduled")
        self._uncounted.update(dict.fromkeys(counts, 0), running_tasks=[])
        self._uncounted["worker_state"] = self._state.get_worker(worker).state
        return self._uncounted


def _is_empty(reply: dict[str, Any]) -> bool:
    return reply["task_id"] is None and "batch_id" not in reply


def look_seldom() -> None:
    """Let Luigi make such a scheduler where it is to make one of its own."""

    def create(factory: Any) -> Any:
        scheduler = _create(factory)  # type: ignore[no-untyped-call]
        if type(scheduler) is Scheduler:
            scheduler.__class__ = LocalScheduler
        return scheduler

    _WorkerSchedulerFactory.create_local_scheduler = create  # type: ignore[method-assign]
