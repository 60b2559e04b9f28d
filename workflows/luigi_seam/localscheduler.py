"""Luigi's scheduler in a run's own process: it looks at all tasks less often.

Each time a worker asks for a task, the scheduler looks for what has timed out, and counts what is
pending. A worker wants to know the count only if there is no task for it, and delays are of
seconds. luigid is a process of its own, and stays as it is. See docs/adr/0013.
"""

import time
from typing import Any

from luigi.interface import _WorkerSchedulerFactory
from luigi.scheduler import Scheduler
from luigi.task_status import FAILED

_PRUNED_EVERY_S = 0.2

_create = _WorkerSchedulerFactory.create_local_scheduler


class LocalScheduler(Scheduler):
    """The scheduler of one worker."""

    _pruned = 0.0
    _is_asked = False  # for a task, just now

    def get_work(self, **asked: Any) -> dict[str, Any]:
        """Return a task to run; if there is none, after a look at everything, what is pending."""
        before = self._pruned
        reply = self._asked(asked)
        if self._is_empty(reply) and self._pruned == before and self._may_try_again():
            self._pruned = 0.0
            reply = self._asked(asked)
        if reply["task_id"] is None and "n_pending_last_scheduled" in reply:
            reply.update(self.count_pending(asked["worker"]))
        return reply

    def _asked(self, asked: dict[str, Any]) -> dict[str, Any]:
        self._is_asked = True
        try:
            return dict(super().get_work(**asked))
        finally:
            self._is_asked = False

    def _is_empty(self, reply: dict[str, Any]) -> bool:
        return reply["task_id"] is None and "batch_id" not in reply

    def _may_try_again(self) -> bool:
        """Tell whether there is a failed task, which only a look at all puts among those to run."""
        failed = self._state.get_active_tasks_by_status(FAILED)
        return bool(self._config.prune_on_get_work and any(True for _ in failed))

    def prune(self) -> None:
        """Find what has timed out, if that was not done a moment ago."""
        now = time.monotonic()
        if now - self._pruned >= _PRUNED_EVERY_S:
            self._pruned = now
            super().prune()

    def count_pending(self, worker: str) -> dict[str, Any]:
        """Return the counts; zeros while a worker asks for a task."""
        if not self._is_asked:
            return dict(super().count_pending(worker))
        counts = ("n_pending_tasks", "n_unique_pending", "n_pending_last_scheduled")
        about = {"running_tasks": [], "worker_state": self._state.get_worker(worker).state}
        return dict.fromkeys(counts, 0) | about


def look_seldom() -> None:
    """Let Luigi make such a scheduler where it is to make one of its own."""

    def create(factory: Any) -> Any:
        scheduler = _create(factory)  # type: ignore[no-untyped-call]
        if type(scheduler) is Scheduler:
            scheduler.__class__ = LocalScheduler
        return scheduler

    _WorkerSchedulerFactory.create_local_scheduler = create  # type: ignore[method-assign]
