"""``workflows results``: the last result as a table."""

import argparse
import os
import sys

from workflows import run as runs
from workflows.config import settings
from workflows.errors import UsageError
from workflows.results import left_out, show, write_to
from workflows.targets import CheckpointTarget
from workflows.verbs.pipeline import last_line


def add(parser: argparse.ArgumentParser) -> None:
    """Add the verb's arguments."""
    parser.add_argument("task", nargs="?", default="MergeCounts", help="whose result (MergeCounts)")
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
        target = CheckpointTarget(runs.store(line["checkpoint"]), task, line["identity"])
        if target.exists():
            return target
    store = runs.store(settings().checkpoint)
    done = [item for item in store.list(task) if item.name.endswith("/_SUCCESS")]
    if not done:
        raise UsageError(
            f"{task} has no result in {store.url} yet; make it with:"
            f" luigi --module workflows.tasks {task}"
        )
    newest = max(done, key=lambda item: item.modified)
    return CheckpointTarget(store, task, newest.name.split("/")[1])
