"""The current pipelines: those that ran lately, by the records of runs.

A pipeline is a task and its parameters. Fleet and fusing are none of what it is: its outputs are
the same on any number of nodes.
"""

import contextlib
import importlib
import itertools
import os
import re
import shlex
import time
from collections.abc import Iterable
from typing import Any, NamedTuple

import luigi

from workflows.errors import WorkflowsError
from workflows.model import Key
from workflows.node.keys import PIECES
from workflows.reporting.runlog import Line, read_lines
from workflows.steps import MapToN, Step
from workflows.verbs.pipeline import run_logs

_NO_PART = ("shard", "dataset", "fleet", "fuse")
# Runs of verbs, under their present and their former module; their keys are removed by name alone.
_TYPED = ("workflows.verbs.adhoc", "workflows.adhoc")


class Pipeline(NamedTuple):
    """A pipeline on record: as the newest run that was for it had it."""

    module: str
    task: str
    params: dict[str, str]
    order: list[str]
    at: float
    log: str

    def step(self, fleet: str) -> Step:
        """Return its last step as it is now, on the nodes of `fleet`.

        Raises:
            WorkflowsError: the task no longer exists, or its source cannot be listed.
        """
        try:
            kind = getattr(importlib.import_module(self.module), self.task)
            step: Step = kind.from_str_params({**self.params, "fleet": fleet})
        except Exception as error:  # a user's module may raise anything
            raise WorkflowsError(f"{type(error).__name__}: {error}") from error
        return step.whole

    def __str__(self) -> str:
        usual: dict[str, str] = {}
        unknown = (ImportError, AttributeError, luigi.parameter.ParameterException)
        with contextlib.suppress(*unknown):
            usual = getattr(importlib.import_module(self.module), self.task)().to_str_params()
        words = [self.task]
        for name, value in sorted(self.params.items()):
            if usual.get(name) != value:
                words += [f"--{name.replace('_', '-')}", value]
        return shlex.join(words)


def recorded() -> list[Pipeline]:
    """Return every pipeline on record, by its newest run; the newest first."""
    found: dict[tuple[Any, ...], Pipeline] = {}
    for path in run_logs():
        # All that is asked for is written down before the first key is done.
        lines = list(
            itertools.takewhile(
                lambda line: line["what"] != "keys", (line for _, line in read_lines(path))
            )
        )
        # Runs of earlier versions wrote down only what they planned.
        asked = [line for line in lines if line["what"] == "asked"]
        for line in asked or [line for line in lines if line["what"] == "planned"]:
            if line["module"] not in _TYPED:
                one = _pipeline(line, os.path.dirname(path))
                found.setdefault((one.module, one.task, *sorted(one.params.items())), one)
    return list(found.values())


def _pipeline(line: Line, log: str) -> Pipeline:
    params = {name: value for name, value in line["params"].items() if name not in _NO_PART}
    order = line["order"]
    return Pipeline(line["module"], line["task"], params, order, line["at"], log)


class Referred:
    """Everything that current pipelines reference, re-evaluated now.

    `steps` are the ledgers of which all else may go, but not of those that are `spared`. `places`
    are the checkpoints, with the steps that are kept there.
    """

    def __init__(self) -> None:
        self.steps: set[str] = set()
        self.spared: set[str] = set()
        self.identities: set[str] = set()
        self.barriers: set[str] = set()
        self.files: set[str] = set()
        self.places: dict[str, set[str]] = {}

    def add(self, last: Step) -> None:
        """Take in one pipeline.

        Raises:
            WorkflowsError: it cannot be told what it refers to.
        """
        try:
            self._add(last)
        except WorkflowsError:
            raise
        except Exception as error:  # what a user's step states may raise anything
            raise WorkflowsError(f"{type(error).__name__}: {error}") from error

    def _add(self, last: Step) -> None:
        for step in last.lineage:
            kept: list[Key] = [*(step.keys() or []), *(step.outputs() or [])]
            self.identities.update(key.identity for key in kept)
            self.files.update(digest for digest, _ in step.shipped.values())
            if isinstance(step, MapToN):
                self.barriers.add(f"barriers/{step.name}/{step.identity}.json")
            self.know([step.name])
            if step.outputs() is None and any(one.is_tolerant for one in step.lineage):
                self.spare([step.name])  # only a run decides which keys are left out
            self.places.setdefault(last.checkpoint, set()).add(step.name)

    def know(self, names: Iterable[str]) -> None:
        """Take in the names of steps, of which what is not referred to may go."""
        self.steps.update(_ledgers(names))

    def spare(self, names: Iterable[str]) -> None:
        """Let all outputs of these steps stay."""
        self.spared.update(_ledgers(names))


def _ledgers(names: Iterable[str]) -> list[str]:
    return [part for name in names for part in (name, name + PIECES)]


def days_old(pipeline: Pipeline) -> float:
    """Return how long ago a pipeline was run."""
    return (time.time() - pipeline.at) / 86400


def started(run: str) -> float | None:
    """Return when a run started, by its name: seconds since the epoch.

    >>> started("20250102T030405.678-a1b2c3")
    1735787045.0
    """
    import calendar

    found = re.match(r"(\d{8}T\d{6})\.\d{3}-", run)
    return float(calendar.timegm(time.strptime(found[1], "%Y%m%dT%H%M%S"))) if found else None
