"""A task whose node was lost is tried again in the same run, however long luigid keeps it failed.

Luigi leaves retries to the scheduler: after `retry_delay` it turns a failed task to pending, also
when the run is long over, and luigid then shows no failure. So the delay is long, and the run asks
for its task again by itself.
"""

import time
from typing import Any

import luigi
from luigi.task_status import PENDING
from luigi.worker import Worker

from workflows.errors import NodeLost, NodeRefused

AFTER_S = 10.0
_due: dict[str, float] = {}  # task id -> when it may run again
_ask: Any = Worker._get_work


def retry_lost() -> None:
    """Let a worker put such tasks back whenever it asks for work; after the run nothing does."""
    Worker._get_work = _get_work  # type: ignore[method-assign]


def _get_work(worker: Any) -> Any:
    now = time.monotonic()
    for task_id, at in list(_due.items()):
        task = worker._scheduled_tasks.get(task_id)
        if task is not None and at <= now:
            del _due[task_id]
            about = {"family": task.task_family, "module": task.task_module}
            worker._add_task(
                worker=worker._id,
                task_id=task_id,
                status=PENDING,
                runnable=True,
                params=task.to_str_params(),
                resources=task.process_resources(),
                **about,
            )
    return _ask(worker)


@luigi.Task.event_handler(luigi.Event.FAILURE)  # type: ignore[untyped-decorator]
def _failed(task: luigi.Task, error: BaseException) -> None:
    if isinstance(error, NodeLost | NodeRefused):
        _due[task.task_id] = time.monotonic() + AFTER_S


@luigi.Task.event_handler(luigi.Event.START)  # type: ignore[untyped-decorator]
def _started(task: luigi.Task) -> None:
    _due.pop(task.task_id, None)
