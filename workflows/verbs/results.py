"""``workflows results``: the last result as a table."""

import argparse
import os
import sys

from workflows.config import settings
from workflows.errors import UsageError, did_you_mean
from workflows.planning import context
from workflows.running.results import left_out, show, write_to
from workflows.storage.store import Store
from workflows.targets import CheckpointTarget
from workflows.verbs.pipeline import last_line, steps_on_record

_USUAL = "MergeCounts"


def add(parser: argparse.ArgumentParser) -> None:
    """Add the verb's arguments."""
    parser.add_argument("task", nargs="?", default=_USUAL, help="whose result (MergeCounts)")
    parser.add_argument("--top", type=int, metavar="N", help="only the first N rows")
    parser.add_argument(
        "--to", metavar="FILE", help="write it into FILE, all of it if FILE ends in .tgz"
    )


def run(arguments: argparse.Namespace) -> int:
    """Print the path and the table of the last result."""
    result = last_result(arguments.task)
    if arguments.to:
        print(f"{write_to(result, arguments.to)}  {arguments.to}")  # as sha256sum -c reads it
    else:
        show(result, arguments.top)
    if missing := left_out(result):
        print(missing, file=sys.stderr)
    return 0


def last_result(task: str) -> CheckpointTarget:
    """Return the result of the last run, or else the newest one there is.

    Raises:
        UsageError: there is none yet.
    """
    named = os.environ.get("WORKFLOWS_CHECKPOINT")
    line = last_line("result", step=task, **({"checkpoint": named} if named else {}))
    if line is not None:
        target = CheckpointTarget(context.store(line["checkpoint"]), task, line["identity"])
        if target.exists():
            return target
    store = context.store(settings().checkpoint)
    done = [item for item in store.list(task) if item.name.endswith("/_SUCCESS")]
    if not done:
        raise UsageError(_without_result(task, store))
    newest = max(done, key=lambda item: item.modified)
    return CheckpointTarget(store, task, newest.name.split("/")[1])


def _without_result(task: str, store: Store) -> str:
    """Say that a task has no result, and which task was meant, or how to make it."""
    text = f"{task} has no result in {store.url} yet"
    known = {_USUAL: "workflows.tasks", **steps_on_record()}
    if task not in known:
        return text + did_you_mean(task, known)
    return f"{text}; make it with: luigi --module {known[task]} {task}"
