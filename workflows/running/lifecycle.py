"""A run of this process from start to end: Luigi's reports of it, and its last lines."""

import atexit
import contextlib
import functools
import os
import sys
from collections.abc import Callable
from typing import Any

import luigi

from workflows.config import settings
from workflows.errors import WorkflowsError
from workflows.fleets.channel import is_in_task
from workflows.luigi_seam import commandline, console, outcomes
from workflows.planning import context, tolerance
from workflows.reporting.deadline import Deadline
from workflows.reporting.progress import Progress
from workflows.reporting.runlog import Totals, read_lines

_driver, _exit_code = [0], [0]
_root = [""]
_read_on: set[str] = set()
_asked: set[str] = set()
_dead: set[str] = set()
_unfinished: list[str] = []


@functools.lru_cache(maxsize=1)
def watch(root: luigi.Task) -> None:
    """Show a person how a run goes; called once, by the process that schedules."""
    context.begin()
    _driver[0], _root[0] = os.getpid(), root.task_id
    console.explain_interrupts()
    progress, deadline = Progress(context.log()), Deadline(context.log(), settings().deadline_s)
    progress.start()
    deadline.start()
    # Asked now: what the command line said is not known any longer at exit.
    atexit.register(_end, progress, deadline, root, os.getpid(), commandline.luigid())
    _advise(root)


def _advise(root: luigi.Task) -> None:
    """Say so if there are fewer tasks in flight than nodes that could work."""
    spec = getattr(root, "fleet", "")
    if spec and commandline.is_used():
        workers, nodes = commandline.workers(), len(context.fleet(spec))
        if workers < nodes:
            context.logger.warning(
                "%d workers cannot keep %d nodes busy; add --workers %d, or write it in luigi.cfg",
                workers,
                nodes,
                2 * nodes,
            )


def fail(error: WorkflowsError) -> None:
    """Say what is wrong and let Luigi's command fail, from where Luigi swallows every error."""
    context.logger.error("%s", error)
    if commandline.is_used():
        _exit_code[0] = commandline.code_of_failure()


def leave() -> None:
    """End the process with the exit code of what failed where Luigi swallows every error."""
    if _exit_code[0]:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(_exit_code[0])


def note_unfinished(worker: Any) -> None:
    """Keep for the end of the run why Luigi did not do all of it, if it has to do with steps."""
    if _driver[0]:
        _unfinished.extend(outcomes.unfinished(worker, context.log().path))


def is_driver() -> bool:
    """Tell whether it is what schedules that asks, not a task."""
    return os.getpid() == _driver[0] and not is_in_task()


def _schedules(task: luigi.Task, dependency: luigi.Task) -> None:
    """Know that Luigi schedules a run; what the run is for is asked for its dependencies first."""
    if not _driver[0]:
        watch(task)
    if hasattr(task, "shard"):  # a step, not a task that only names several results
        _read_on.add(dependency.task_id)
        note_asked(task)


def is_result(task: luigi.Task) -> bool:
    """Tell whether no step of this run reads what a task makes: it is what the run is for."""
    return task.task_id not in _read_on


def note_asked(step: Any) -> None:
    """Write down, once, a pipeline that this run is for: `workflows gc` keeps what it refers to."""
    if not step.shard and is_result(step) and step.task_id not in _asked:
        _asked.add(step.task_id)
        about = {"module": step.__module__, "task": step.task_family}
        order = [before.name for before in step.lineage]
        nodes = len(step.nodes)
        context.log().add(
            what="asked", **about, params=step.to_str_params(), order=order, nodes=nodes
        )


def _finished(task: luigi.Task) -> None:
    """Let the driver know that all is done; its own answers may be seconds old by then."""
    if task.task_id == _root[0]:
        context.log().add(what="finished", task=task.task_family)


def _note_failure(task: luigi.Task, error: BaseException) -> None:
    """Note what a task raised that is no step, and so has no report: its process knows it alone."""
    if _driver[0] and not hasattr(task, "shard"):
        why = f"{type(error).__name__}: {error}".partition("\n")[0][:500]
        context.log().add(what="failed", step=task.task_family, task=task.task_id, why=why)


def _say_timeout(task: luigi.Task, _message: str) -> None:
    """Say what Luigi does not: a task took longer than its settings let it."""
    shard = getattr(task, "shard", "")
    why = "ended by [worker] timeout in luigi.cfg; finished work is kept"
    context.log().add(what="failed", step=task.task_family, task=task.task_id, why=why)
    context.logger.error("%s %s: %s", task.task_family, shard, why)


def _say_death(task: luigi.Task, message: str) -> None:
    """Say what Luigi only notes, again and again: the process of a task, no step, was killed."""
    if task.task_id in _dead:
        return
    _dead.add(task.task_id)
    context.log().add(what="failed", step=task.task_family, task=task.task_id, why=message)
    context.logger.error("%s; finished work is kept", message)


def lost_nodes() -> list[str]:
    """Return the nodes that were lost more often in this run than is retried."""
    return [line["node"] for _, line in read_lines(context.log().path) if line["what"] == "lost"]


def close() -> None:
    """End this process's fleets and forget all; for programs that make several runs."""
    console.tell_held()
    context.close()
    watch.cache_clear()
    commandline.forget_tasks()
    _driver[0], _root[0] = 0, ""
    _read_on.clear()
    _asked.clear()
    _dead.clear()
    _unfinished.clear()
    tolerance.forget()


def _end(
    progress: Progress, deadline: Deadline, root: luigi.Task, driver: int, luigid: str
) -> None:
    if os.getpid() != driver:
        return
    console.end_interrupts()
    late = deadline.stop()
    context.log().tell_plan()
    progress.stop()
    totals = Totals()
    totals.update(context.log().path)
    if totals.steps:
        print(totals.table(), file=sys.stderr)
        if luigid:
            print(f"luigid shows it: {luigid}", file=sys.stderr)
    for line in [*totals.refills(), *totals.left_out()]:
        print(line, file=sys.stderr)
    if late:
        print(late, file=sys.stderr)
    is_well = totals.noted["finished"] and totals.noted["left_out"]
    last_words = "" if is_well else _last_words(totals, root)
    if last_words:
        print(last_words, file=sys.stderr)


def _last_words(totals: Totals, root: luigi.Task) -> str:
    """Return what a run that did not reach its end leaves its reader with."""
    if failed := sum(step["failed"] for step in totals.steps.values()):
        keys = "1 key" if failed == 1 else f"{failed} keys"
        return f"{keys} failed, finished work is kept: fix the cause, then run the same again"
    if _unfinished:
        return "\n".join([*_unfinished, "not finished; finished work is kept: run the same again"])
    if totals.noted["failed"] or console.has_complained():
        return ""
    if totals.noted["finished"]:
        return ""
    with contextlib.suppress(WorkflowsError):
        if root.complete():
            return ""
    return (
        "not finished, though nothing failed: the scheduler had no more work for this run\n"
        "(luigid was restarted or paused, another run does the same, or luigid takes what was done"
        " seconds ago for done: stable_done_cooldown_secs = 0 in its luigi.cfg);"
        " finished work is kept: run it again"
    )


# Told by Luigi of every task.
LISTENERS: dict[str, Callable[..., None]] = {
    luigi.Event.DEPENDENCY_DISCOVERED: _schedules,
    luigi.Event.SUCCESS: _finished,
    luigi.Event.FAILURE: _note_failure,
    luigi.Event.TIMEOUT: _say_timeout,
    luigi.Event.PROCESS_FAILURE: _say_death,
}
