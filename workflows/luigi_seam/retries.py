"""A task whose node was lost is tried again in the same run, however long luigid keeps it failed.

Luigi leaves retries to the scheduler: after `retry_delay` it turns a failed task to pending, also
when the run is long over, and luigid then shows no failure. So the delay is long, and the run asks
for its task again by itself.
"""

import time

import luigi

from workflows.errors import NodeLost, NodeRefused

AFTER_S = 10.0
_due: dict[str, float] = {}  # task id -> when it may run again


def due() -> list[str]:
    """Return the ids of tasks that may run again now; each is returned once."""
    now = time.monotonic()
    found = [task_id for task_id, at in list(_due.items()) if at <= now]
    for task_id in found:
        del _due[task_id]
    return found


def note_failure(task: luigi.Task, error: BaseException) -> None:
    """Let a task run again after a while if its node was lost."""
    if isinstance(error, NodeLost | NodeRefused):
        _due[task.task_id] = time.monotonic() + AFTER_S


def note_start(task: luigi.Task) -> None:
    """Forget a task that runs again already."""
    _due.pop(task.task_id, None)
