"""The report of one task: its log file, the run's log, and the visualizer's text."""

import contextlib
import html
import json
import os
import threading
import time
import urllib.parse
from typing import IO, TYPE_CHECKING, Any

from workflows.config import settings
from workflows.errors import KeysFailed, describe_failure
from workflows.model import Shard
from workflows.planning import context
from workflows.planning.plan import Plan
from workflows.reporting.runlog import Tally, appending

if TYPE_CHECKING:
    from typing_extensions import Self


Event = dict[str, Any]
_STATUS_EVERY_S = 1.0
_NAMED = 3  # failing keys that a status message names


def log_path(step: Plan, label: str) -> str:
    """Return the path of the log of the task that is one shard of a step."""
    return context.log().task_log(step.name, label)


def remember_failure(step: Plan, error: KeysFailed) -> None:
    """Note for the rest of the run that a shard's commands failed."""
    with contextlib.suppress(OSError), open(_failure_path(step), "w", encoding="ascii") as file:
        json.dump(error.args, file)


def failed_before(step: Plan) -> KeysFailed | None:
    """Return how a shard's commands failed earlier in this run, or None if they did not."""
    try:
        with open(_failure_path(step), encoding="ascii") as file:
            return KeysFailed(*json.load(file))
    except (OSError, ValueError):
        return None


def _failure_path(step: Plan) -> str:
    return log_path(step, step.shard) + ".failed"


def tell(step: Plan, message: str, percentage: int = 100) -> None:
    """Show in the visualizer how far a task is."""
    # The visualizer puts the message into its page as HTML, and a key may have any name.
    _say(step.set_status_message, html.escape(message, quote=False))
    _say(step.set_progress_percentage, percentage)


def _say(method: Any, value: Any) -> None:
    """Tell Luigi's scheduler, if the task runs under one and it listens: only a courtesy."""
    if method is not None:
        with contextlib.suppress(Exception):
            method(value)


class TaskReport:
    """One task's report, from its start to its end; a context manager."""

    def __init__(self, step: Plan, shard: Shard) -> None:
        self.step, self.shard = step, shard
        self.total = 0
        self.failures: list[Event] = []
        self.is_heard = False  # whether the node has said anything
        node = step.nodes.nodes[shard.slot].name
        self.tally = Tally(context.log(), step.name, shard.slot, node)
        self._path = log_path(step, shard.label)
        self._log: IO[bytes] | None = None
        self._shown = 0.0
        self._talking = threading.Lock()
        self._later: threading.Timer | None = None

    def __enter__(self) -> "Self":
        with contextlib.suppress(OSError):
            self._log = appending(self._path)
        if base := settings().log_url:  # not file://, which browsers do not open from a page
            path = os.path.relpath(self._path, context.log().runs)
            url = f"{base.rstrip('/')}/{urllib.parse.quote(path)}"
            _say(self.step.set_tracking_url, url)
        return self

    def __exit__(self, *_: object) -> None:
        self.tally.flush()
        self._show()
        if self._log is not None:
            self._log.close()
        if len(self.shard.keys) > 1:
            took = time.monotonic() - self.tally.started
            context.logger.info(
                "%s %s: %d keys, %.1f MB, %.1f s",
                *(self.step.name, self.shard.label, self.tally.done, self.tally.bytes / 1e6, took),
            )

    def take(self, event: Event) -> None:
        """Take one event of the node."""
        self.is_heard = True
        name = self.step.nodes.nodes[self.shard.slot].name
        if event["event"] == "running":
            self.total -= event["had"]
        elif event["event"] in ("done", "brought"):
            self.tally.done_one(event)
            self.write(f"{event['key']} done: {event['bytes']} bytes, {event.get('wall', 0)} s")
        elif event["event"] == "failed":
            self.failures.append(event)
            self.tally.failed_one()
            self.write(describe_failure(name, event))
        self._show_soon()

    def write(self, text: str) -> None:
        """Add a line to the task's log; where the disk is full, a key must not fail for it."""
        line = f"{time.strftime('%H:%M:%S')} {text}\n".encode("utf-8", "backslashreplace")
        if self._log is not None:
            with contextlib.suppress(OSError):
                self._log.write(line)

    def expect(self, missing: int) -> None:
        """Take note of how many keys are to be done, at the start or after a node was lost."""
        self.failures = []
        self.total = self.tally.done + missing

    def _show_soon(self) -> None:
        """Show how far the task is, at most once a second; the next key may take an hour."""
        if self.tally.done + len(self.failures) >= self.total:
            return  # the end of the task shows it, at once
        wait_s = self._shown + _STATUS_EVERY_S - time.monotonic()
        if wait_s <= 0:
            self._show()
        elif self._later is None:
            self._later = threading.Timer(wait_s, self._show)
            self._later.daemon = True
            self._later.start()

    def _show(self) -> None:
        later = self._later
        if later is not None:
            later.cancel()
        with self._talking:
            self._shown, self._later = time.monotonic(), None
            percentage = 100 * self.tally.done // self.total if self.total else 100
            tell(self.step, f"{self._status()}\nlog: {self._path}", percentage)

    def _status(self) -> str:
        if not self.total:
            return "no keys to run"
        parts = [f"{self.tally.done} of {self.total} keys done"]
        if self.failures:
            named = ", ".join(event["key"] for event in self.failures[:_NAMED])
            more = ", ..." if len(self.failures) > _NAMED else ""
            parts.append(f"{len(self.failures)} failed: {named}{more}")
        return ", ".join([*parts, f"{self.tally.rate_mb_s:.1f} MB/s"])
