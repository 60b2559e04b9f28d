"""What becomes of one task: its log file, the run's log, and what the visualizer shows of it."""

import contextlib
import os
import time
import urllib.parse
from typing import IO, TYPE_CHECKING, Any

from workflows import run
from workflows.errors import describe_failure
from workflows.lineage import Shard
from workflows.runlog import Tally

if TYPE_CHECKING:
    from typing_extensions import Self

    from workflows.steps import Step

Event = dict[str, Any]
_STATUS_EVERY_S = 1.0


class TaskReport:
    """One task's report, from its start to its end; a context manager."""

    def __init__(self, step: "Step", shard: Shard) -> None:
        self.step, self.shard = step, shard
        self.total = 0
        self.failures: list[Event] = []
        self.tally = Tally(run.log(), step.name)
        self._path = run.log().task_log(step.name, shard.label)
        self._log: IO[bytes] | None = None
        self._shown = 0.0

    def __enter__(self) -> "Self":
        with contextlib.suppress(OSError):
            os.makedirs(os.path.dirname(self._path), exist_ok=True)
            self._log = open(self._path, "ab", buffering=0)
        self._say("set_tracking_url", "file://" + urllib.parse.quote(self._path))
        return self

    def __exit__(self, *_: object) -> None:
        self.tally.flush()
        self._show()
        if self._log is not None:
            self._log.close()
        if len(self.shard.keys) > 1:
            took = time.monotonic() - self.tally.started
            run.logger.info(
                "%s %s: %d keys, %.1f MB, %.1f s",
                *(self.step.name, self.shard.label, self.tally.done, self.tally.bytes / 1e6, took),
            )

    def take(self, event: Event) -> None:
        """Take one event of the node."""
        name = self.step.nodes.nodes[self.shard.slot].name
        if event["event"] in ("done", "brought"):
            self.tally.done_one(event)
            self.write(f"{event['key']} done: {event['bytes']} bytes, {event.get('wall', 0)} s")
        elif event["event"] == "failed":
            self.failures.append(event)
            self.tally.failed_one()
            self.write(describe_failure(name, event))
        if time.monotonic() - self._shown >= _STATUS_EVERY_S or event["event"] == "failed":
            self._show()

    def write(self, text: str) -> None:
        """Add a line to the task's log; where the disk is full, a key must not fail for it."""
        line = f"{time.strftime('%H:%M:%S')} {text}\n".encode("utf-8", "backslashreplace")
        if self._log is not None:
            with contextlib.suppress(OSError):
                self._log.write(line)

    def _show(self) -> None:
        self._shown = time.monotonic()
        failed = f", failed: {self.failures[-1]['key']}" if self.failures else ""
        done = self.tally.done + len(self.failures)
        rate = self.tally.rate_mb_s
        self._say("set_status_message", f"{done}/{self.total} keys, {rate:.0f} MB/s{failed}")
        self._say("set_progress_percentage", 100 * done // max(1, self.total))

    def _say(self, method: str, value: Any) -> None:
        """Tell Luigi's scheduler, if this runs under one and it listens: only a courtesy."""
        tell = getattr(self.step, method, None)
        if tell is not None:
            with contextlib.suppress(Exception):
                tell(value)
