"""Shared by several verbs: the pipeline they are about, and the recorded runs."""

import argparse
import importlib
import os
import shlex
from collections.abc import Iterable, Iterator
from typing import Any

from workflows.config import settings
from workflows.errors import UsageError, WorkflowsError, did_you_mean
from workflows.luigi_seam import commandline
from workflows.planning.plan import Plan
from workflows.reporting.runlog import Line, read_lines
from workflows.steps import Step

_EXAMPLE = "workflows plan MergeCounts --source samples/taxi"


def add_pipeline(parser: argparse.ArgumentParser) -> None:
    """Let a verb be told a pipeline as `luigi` is: a task, its module and its parameters."""
    parser.add_argument(
        "task", nargs="?", default="MergeCounts", help="the last step (MergeCounts)"
    )
    parser.add_argument("--module", default="workflows.tasks", help="where it is (workflows.tasks)")
    parser.add_argument(
        "parameters", nargs=argparse.REMAINDER, help="its parameters, as luigi takes them"
    )


def step_from(arguments: argparse.Namespace) -> Step:
    """Return the whole step that the arguments name.

    Raises:
        UsageError: there is none, or Luigi does not understand its parameters.
    """
    settings()  # a wrong one is told in its own words, not as the default of a parameter
    words = ["--module", arguments.module, arguments.task, *arguments.parameters]
    module = _import(arguments.module)
    try:
        task = commandline.parsed(words)
    except SystemExit as error:
        meant = _meant(arguments.task, arguments.parameters)
        raise UsageError(f"luigi does not understand: {shlex.join(words)}{meant}") from error
    except commandline.NoSuchTask as error:
        named = {name for name, one in vars(module).items() if _is_runnable(one)}
        meant = did_you_mean(arguments.task, named)
        raise UsageError(f"{arguments.module} has no step {arguments.task!r}{meant}") from error
    except WorkflowsError:
        raise
    except Exception as error:
        raise UsageError(f"{error}; for example: {_EXAMPLE}") from error
    if not isinstance(task, Step):
        raise UsageError(f"{arguments.task} is not a step of workflows; for example: {_EXAMPLE}")
    if task.shard:
        task.this_shard()
    return task


def _is_runnable(one: Any) -> bool:
    is_step = isinstance(one, type) and issubclass(one, Step)
    return is_step and "_is_base_of_steps" not in vars(one)


def _meant(task: str, words: Iterable[str]) -> str:
    """Return which parameters of a task were meant by those that it does not have."""
    kind = commandline.task_class(task)
    known = {f"--{name.replace('_', '-')}" for name, _ in kind.get_params()}
    given = [word.partition("=")[0] for word in words if word.startswith("--")]
    wrong = [word for word in given if word not in known]
    return "".join(f"\n  {task} has no {word}{did_you_mean(word, known)}" for word in wrong)


def _import(module: str) -> Any:
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise UsageError(f"cannot import {module}: {error}; is it on PYTHONPATH?") from error
    except WorkflowsError:  # a step that is stated wrongly names itself
        raise
    except Exception as error:  # a user's module may raise anything
        raise UsageError(f"cannot import {module}: {type(error).__name__}: {error}") from error


def run_logs() -> Iterator[str]:
    """Yield the logs of the runs of this state directory, the newest first."""
    folder = os.path.join(settings().state, "runs")
    names = sorted(os.listdir(folder), reverse=True) if os.path.isdir(folder) else []
    for name in names:
        yield os.path.join(folder, name, "log.jsonl")


def last_line(what: str, **wanted: str) -> Line | None:
    """Return the newest line of a kind in the newest run that has one."""
    for path in run_logs():
        found = None
        for _, line in read_lines(path):
            if line["what"] == what and all(line.get(k) == v for k, v in wanted.items()):
                found = line
        if found is not None:
            return found
    return None


def plan_on_record(name: str) -> Line:
    """Return what the last run that had a step wrote down of the pipeline that it is in.

    Raises:
        UsageError: no run on record had such a step.
    """
    for path in run_logs():
        lines = [line for _, line in read_lines(path)]
        planned = {line["step"]: line for line in lines if line["what"] == "planned"}
        # A pipe is planned by its last step, and what comes after a barrier may not be planned at
        # all: the others are found upstream of what was planned, or asked for.
        asked = [line for line in lines if line["what"] == "asked"]
        for line in [planned[name]] if name in planned else [*planned.values(), *asked]:
            if name == line.get("step") or name in line.get("order", ()):
                nodes = next((one["nodes"] for one in lines if "nodes" in one), 1)
                return {"nodes": nodes, **line}
    raise UsageError(f"no run here had a step {name!r}{did_you_mean(name, steps_on_record())}")


def step_on_record(name: str, line: Line) -> Plan:
    """Return a step with the parameters that it last ran with; only its own module is imported.

    Raises:
        UsageError: its module cannot be imported, or no longer has such a task or step.
    """
    kind = getattr(_import(line["module"]), line["task"], None)
    if kind is None:
        raise UsageError(f"{line['module']} no longer has a task {line['task']}")
    step: Step = kind.from_str_params(line["params"])
    for before in step.lineage:
        if before.name == name:
            return before.whole
    raise UsageError(f"{line['task']} no longer has an upstream step {name}")


def steps_on_record() -> dict[str, str]:
    """Return the names of the steps that runs here had, each with the module of its pipeline."""
    found: dict[str, str] = {}
    for path in run_logs():
        for _, line in read_lines(path):
            if line["what"] in ("planned", "asked"):
                for name in line.get("order", ()):
                    found.setdefault(name, line["module"])
    return found
