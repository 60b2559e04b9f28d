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
_COUNTED_NONE: dict[str, Any] = {"n_pending_tasks": 0, "n_unique_pending": 0, "running_tasks": []}

_create = _WorkerSchedulerFactory.create_local_scheduler


class LocalScheduler(Scheduler):
    """The scheduler of one worker."""

    _pruned = 0.0

    def prune(self) -> None:
        """Find what has timed out, if that was not done a moment ago."""
        now = time.monotonic()
        if now - self._pruned >= _PRUNED_EVERY_S:
            self._pruned = now
            super().prune()

    def count_pending(self, worker: str) -> dict[str, Any]:
        """Return the counts, made when one of them is read."""
        state = self._state.get_worker(worker).state
        return _Answer(self, worker, state)


class _Answer(dict[str, Any]):
    """What a worker is told that asks for a task: the task, added by Luigi, or counts."""

    def __init__(self, scheduler: Scheduler, worker: str, state: str) -> None:
        super().__init__(worker_state=state)
        self._scheduler, self._worker = scheduler, worker

    def __missing__(self, name: str) -> Any:
        counted = _COUNTED_NONE
        if self.get("task_id") is None:
            counted = Scheduler.count_pending(self._scheduler, self._worker)
            self.update(counted)
        return counted[name]


def look_seldom() -> None:
    """Let Luigi make such a scheduler where it is to make one of its own."""

    def create(factory: Any) -> Any:
        scheduler = _create(factory)  # type: ignore[no-untyped-call]
        if type(scheduler) is Scheduler:
            scheduler.__class__ = LocalScheduler
        return scheduler

    _WorkerSchedulerFactory.create_local_scheduler = create  # type: ignore[method-assign]
