"""Why a run did not finish, task by task, read from Luigi's worker before it is gone.

Steps say themselves what failed. Of other tasks only the worker knows, for each of their processes
ends without a word to the run.
"""

import contextlib
from collections.abc import Iterable, Iterator
from typing import Any

import luigi.execution_summary
from luigi.task_status import DISABLED

from workflows.reporting.runlog import read_lines

_NAMED, _LONG = 3, 200


def unfinished(worker: Any, log: str) -> Iterator[str]:
    """Yield a sentence for each reason why tasks of a worker are not done.

    Steps that failed, or that have to wait for others, are not in it. `log` is the path of the
    run's log.
    """
    found = luigi.execution_summary._summary_dict(worker)
    for task in sorted(found["failed"], key=str):
        if not hasattr(task, "shard"):
            yield f"{_name(task)} failed{_why(task, log)}"
    broken = [task for task in found["scheduling_error"] if not hasattr(task, "shard")]
    if broken:
        yield f"{_names(broken)} could not be scheduled: see the error above"
    if missing := found["still_pending_ext"]:
        yield f"missing, and no task makes it: {_names(missing)}"
    disabled = [task for task, status, _ in worker._add_task_history if status == DISABLED]
    disabled += _disabled_by_luigid(worker, found["not_run"])
    if disabled:
        yield f"disabled, and so not run: {_names(disabled)}"
    if found["run_by_other_worker"]:
        yield f"another run is at work on {_names(found['run_by_other_worker'])}"


def _why(task: Any, log: str) -> str:
    whys = [
        line["why"]
        for _, line in read_lines(log)
        if line["what"] == "failed" and line.get("task") == task.task_id
    ]
    return f": {whys[-1]}" if whys else ""


def _disabled_by_luigid(worker: Any, tasks: Iterable[Any]) -> list[Any]:
    """Return those that the scheduler disabled, for they failed too often, or that a person did."""
    by_id = {task.task_id: task for task in tasks}
    if not by_id:
        return []
    with contextlib.suppress(Exception):  # luigid is away: then that is what is said
        return [by_id[name] for name in worker._scheduler.task_list(DISABLED, "") if name in by_id]
    return []


def _names(tasks: Iterable[Any]) -> str:
    names = sorted({_name(task) for task in tasks})
    more = f" and {len(names) - _NAMED} more" if len(names) > _NAMED else ""
    return ", ".join(names[:_NAMED]) + more


def _name(task: Any) -> str:
    text = str(task)
    return text if len(text) <= _LONG else text[: _LONG - 3] + "..."
