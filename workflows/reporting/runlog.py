"""The record of a run: one append-only file that all its processes write, and anyone can read.

Each line is JSON: what was planned, what came of keys, how a step ended. Progress, the table of
stages at the end and ``workflows report`` are all made from it.
"""

import contextlib
import datetime as dt
import json
import os
import secrets
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import IO, Any, NamedTuple

Line = dict[str, Any]
_PLAN_EVERY_S = 0.2
_NAMED = 5
COST = "cost"  # what a fleet had cost when it was torn down, long after the run


class Phase(NamedTuple):
    """One phase of a fleet: how long any node spent in it, how long all did, and the cost."""

    minutes: float
    node_minutes: float
    usd: float


class RunLog:
    """One run's file; created with its first line."""

    def __init__(self, state: str) -> None:
        now = dt.datetime.now(dt.timezone.utc)
        # To the millisecond: the newest run is the one whose name sorts last.
        self.name = f"{now:%Y%m%dT%H%M%S}.{now.microsecond // 1000:03d}-{secrets.token_hex(3)}"
        self.runs = os.path.abspath(os.path.join(state, "runs"))
        self.folder = os.path.join(self.runs, self.name)
        self.path = os.path.join(self.folder, "log.jsonl")
        self._planned: dict[str, set[str]] = {}
        self._untold: dict[str, Line] = {}
        self._told, self._planning = time.monotonic(), threading.Lock()

    def plan(self, step: str, keys: Iterable[str], about: Callable[[], Line]) -> None:
        """Note keys that a step has to run; written when a task runs, or once in a while.

        `about` a step is the same each time.
        """
        with self._planning:
            known = self._planned.setdefault(step, set())
            before = len(known)
            known.update(keys)
            if len(known) > before:
                line = self._untold.get(step) or {"step": step, **about()}
                self._untold[step] = {**line, "keys": len(known)}
        if time.monotonic() - self._told >= _PLAN_EVERY_S:
            self.tell_plan()

    def tell_plan(self) -> None:
        """Write what was planned since the last time."""
        with self._planning:
            for line in self._untold.values():
                self.add(what="planned", **line)
            self._untold.clear()
            self._told = time.monotonic()

    def add(self, **line: Any) -> None:
        """Append one line; those of several processes never mix. A full disk costs the line."""
        append(self.path, **line)

    def task_log(self, step: str, label: str) -> str:
        """Return the path of a task's own log; `.txt` is what any web server shows as text."""
        safe = "".join(c if c.isalnum() or c in "-_. " else "_" for c in label)[:80] or "all"
        return os.path.join(self.folder, f"{step} {safe}.txt")


def append(path: str, **line: Any) -> None:
    """Append one line to the run log at `path`."""
    text = json.dumps({"at": round(time.time(), 3), **line}).encode("ascii") + b"\n"
    with contextlib.suppress(OSError), appending(path) as file:
        file.write(text)


def appending(path: str) -> IO[bytes]:
    """Open a file to append to it, unbuffered; make its directory, which is there mostly."""
    try:
        return open(path, "ab", buffering=0)
    except FileNotFoundError:
        os.makedirs(os.path.dirname(path), exist_ok=True)
        return open(path, "ab", buffering=0)


def read_lines(path: str, start: int = 0) -> Iterator[tuple[int, Line]]:
    """Yield (offset after it, line) for each line of a run log from `start` on that is whole."""
    try:
        with open(path, "rb") as file:
            file.seek(start)
            for raw in file:
                if not raw.endswith(b"\n"):
                    return
                start += len(raw)
                with contextlib.suppress(ValueError):  # two in one, where the disk was full once
                    yield start, json.loads(raw)
    except FileNotFoundError:
        return


class Totals:
    """Sums over a run log: per step, keys, bytes and time."""

    def __init__(self) -> None:
        self.steps: dict[str, Line] = {}
        self.planned: dict[str, int] = {}
        self.shuffled: dict[str, Line] = {}
        self.nodes: dict[str, Line] = {}
        self.phases: dict[str, Phase] = {}
        kinds = ("failed", "refilled", "finished", "warned", "left_out")
        self.noted: dict[str, list[Line]] = {kind: [] for kind in kinds}
        self._order: dict[str, int] = {}
        self.first = self.last = 0.0
        self._read_to = 0

    def update(self, path: str) -> None:
        """Take in what was added to the log since the last time."""
        for offset, line in read_lines(path, self._read_to):
            self._read_to = offset
            if line["what"] == COST:
                self.phases = {name: Phase(*phase) for name, phase in line["phases"].items()}
                continue
            self.first = self.first or line["at"]
            self.last = line["at"]
            self._take(line)

    def _take(self, line: Line) -> None:
        if line["what"] == "planned":
            self.planned[line["step"]] = line["keys"]
            self._order.update((step, place) for place, step in enumerate(line["order"]))
        elif line["what"] in self.noted:
            self.noted[line["what"]].append(line)
        elif line["what"] == "delivered":
            self.shuffled[line["step"]] = line
        elif line["what"] == "keys":
            for stage in line["stages"]:
                _add(self.steps.setdefault(stage["step"], _empty(stage["fused"])), stage)
            if "node" in line:  # runs of earlier versions did not say where
                self._add_node(line)

    def _add_node(self, line: Line) -> None:
        new = dict(_empty(fused=False), slot=line["slot"], spans=[])
        node = self.nodes.setdefault(line["node"], new)
        for stage in line["stages"]:
            _add(node, stage)
        cover(node["spans"], line["since"], line["at"])

    def table(self) -> str:
        """Return the stages of a run as aligned text: keys, seconds, bytes and rates of each."""
        rows = [("step", "keys", "failed", "busy s", "cpu s", "MB in", "MB out", "MB/s in")]
        for step in self._ordered(self.steps):
            total = self.steps[step]
            busy = total["wall"]
            rate = f"{total['bytes_in'] / busy / 1e6:.0f}" if busy else "-"
            rows.append(
                (
                    step + (" (fused)" if total["fused"] else ""),
                    f"{total['keys']}",
                    f"{total['failed']}",
                    f"{busy:.2f}",
                    f"{total['cpu']:.2f}",
                    f"{total['bytes_in'] / 1e6:.1f}",
                    f"{total['bytes_out'] / 1e6:.1f}",
                    rate,
                )
            )
        shuffled = [_skew(step, self.shuffled[step]) for step in self._ordered(self.shuffled)]
        return "\n".join([aligned(rows, left=(0,)), *shuffled])

    def node_table(self) -> str:
        """Return what each node did as aligned text; its seconds are those in which it had keys.

        Rows and bytes are those that its steps read: each step of a key counts them again.
        """
        names = ("node", "keys", "failed", "s", "cpu s", "rows", "MB in", "rows/s", "MB/s in")
        rows = [names]
        for name, node in sorted(self.nodes.items(), key=lambda item: (item[1]["slot"], item[0])):
            took = sum(last - first for first, last in node["spans"])
            rows.append(
                (
                    name,
                    f"{node['keys']}",
                    f"{node['failed']}",
                    f"{took:.1f}",
                    f"{node['cpu']:.2f}",
                    f"{node['rows']}",
                    f"{node['bytes_in'] / 1e6:.1f}",
                    f"{node['rows'] / took:.0f}" if took and node["rows"] else "-",
                    f"{node['bytes_in'] / took / 1e6:.1f}" if took else "-",
                )
            )
        return aligned(rows, left=(0,))

    def line(self, columns: int, now: float) -> str:
        """Return the progress so far as one line; steps that are done make room for the others."""
        parts = []
        moved = 0
        for step in self._ordered(self.planned):
            planned = self.planned[step]
            total = self.steps.get(step, _empty(fused=False))
            failed = f" ({total['failed']} failed)" if total["failed"] else ""
            parts.append((f"{step} {total['keys']}/{planned}{failed}", total["keys"] >= planned))
            moved += total["bytes_in"]
        took = max(now - self.first, 1e-3)
        end = f"{moved / took / 1e6:.0f} MB/s · {took:.0f} s"
        line = " · ".join([*(text for text, _ in parts), end])
        while len(line) > columns and parts and parts[0][1]:
            del parts[0]
            line = " · ".join(["...", *(text for text, _ in parts), end])
        return line[:columns]

    def refills(self) -> Iterator[str]:
        """Yield a line for each slot that a new node had to fill during a run: what that cost."""
        again, busy = 0, 0.0
        for step, total in self.steps.items():
            more = max(0, total["keys"] - self.planned.get(step, total["keys"]))
            again += more
            busy += more * total["wall"] / max(1, total["keys"])
        for line in self.noted["refilled"]:
            after = f"after {line['seconds']} s"
            yield f"slot {line['slot']} was lost and filled by {line['id']} {after}"
        if self.noted["refilled"]:
            keys = "1 key" if again == 1 else f"{again} keys"
            yield f"keys of lost nodes ran again: {keys}, {busy:.1f} s of their commands"

    def left_out(self) -> Iterator[str]:
        """Yield a line for each step whose bad keys the run did without."""
        for line in self.noted["left_out"]:
            keys = f"{named(line['keys'])} of {line['step']}"
            yield f"left out of the result: {keys}; {line['limit']}"

    def _ordered(self, steps: Iterable[str]) -> list[str]:
        """Return steps as they follow each other; behind a 1:n step nothing can be planned."""
        return sorted(steps, key=lambda step: self._order.get(step, len(self._order)))


def named(keys: Sequence[Sequence[str]]) -> str:
    """Return how many keys failed, and how some of them did.

    >>> named([["a.csv", "exited 3"]])
    '1 key (a.csv: exited 3)'
    """
    count = "1 key" if len(keys) == 1 else f"{len(keys)} keys"
    some = ", ".join(f"{name}: {why}" for name, why in keys[:_NAMED])
    return f"{count} ({some}{', ...' if len(keys) > _NAMED else ''})"


def cover(spans: list[tuple[float, float]], first: float, last: float) -> None:
    """Add the time from `first` to `last` to `spans`, which do not overlap.

    >>> spans = [(0.0, 2.0), (3.0, 4.0)]
    >>> cover(spans, 3.5, 5.0)
    >>> spans
    [(0.0, 2.0), (3.0, 5.0)]
    """
    # Almost always it is the latest, so that looking at the last ones is enough.
    later = []
    while spans and spans[-1][1] >= first:
        span = spans.pop()
        if span[0] > last:
            later.append(span)
        else:
            first, last = min(first, span[0]), max(last, span[1])
    spans += [(first, last), *reversed(later)]


def phase_table(phases: Mapping[str, Phase]) -> str:
    """Return what a fleet did, and for how much, as aligned text."""
    rows = [("phase", "minutes", "node minutes", "$")]
    for name, phase in phases.items():
        rows.append((name, f"{phase.minutes:.1f}", f"{phase.node_minutes:.1f}", f"{phase.usd:.4f}"))
    return aligned(rows, left=(0,))


def aligned(rows: Sequence[Sequence[str]], *, left: Sequence[int]) -> str:
    """Return rows as columns; those in `left` are flush left, the others flush right."""
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    lines = []
    for row in rows:
        cells = [
            cell.ljust(width) if column in left else cell.rjust(width)
            for column, (cell, width) in enumerate(zip(row, widths, strict=True))
        ]
        lines.append("  ".join(cells).rstrip())
    return "\n".join(lines)


def _skew(step: str, line: Line) -> str:
    """Say how evenly a shuffle filled the slots."""
    return (
        f"{step}: {line['pieces']} pieces shuffled, {line['bytes'] / 1e6:.1f} MB;"
        f" bytes on the fullest slot: {line['skew']:.2f} of the mean"
    )


def _empty(fused: bool) -> Line:
    return {
        "keys": 0,
        "failed": 0,
        "wall": 0.0,
        "cpu": 0.0,
        "bytes_in": 0,
        "bytes_out": 0,
        "rows": 0,
        "rss": 0,
        "fused": fused,
    }


def _add(total: Line, stage: Line) -> None:
    for name in ("keys", "failed", "wall", "cpu", "bytes_in", "bytes_out"):
        total[name] += stage[name]
    total["rows"] += stage.get("rows", 0)
    total["rss"] = max(total["rss"], stage["rss"])


class Tally:
    """Gathers the events of one task and adds them to the run log a few times a second."""

    EVERY_S = 0.3

    def __init__(self, log: RunLog, step: str, slot: int, node: str) -> None:
        self._log, self._step, self._where = log, step, {"slot": slot, "node": node}
        self._stages: dict[str, Line] = {}
        self._since = float("inf")  # when the first of what has gathered began
        self._written = time.monotonic()
        self.started = time.monotonic()
        self.done = self.failed = self.bytes = 0

    def done_one(self, event: Line) -> None:
        """Count a key that is done, stage by stage."""
        self.done += 1
        self.bytes += event["metrics"].get("bytes_in", 0)
        self._since = min(self._since, time.time() - event.get("wall", 0))
        for stage in event.get("stages") or [dict(event, step=self._step)]:
            fused = "stages" in event
            total = self._stages.setdefault(stage["step"], _empty(fused))
            numbers = stage["metrics"]
            _add(
                total,
                {
                    "keys": 1,
                    "failed": 0,
                    "wall": stage.get("wall", 0),
                    "cpu": stage.get("cpu", 0),
                    "rss": stage.get("rss", 0),
                    "bytes_in": numbers.get("bytes_in", 0),
                    "bytes_out": numbers.get("bytes_out", 0),
                    "rows": numbers.get("rows_in", 0),
                },
            )
        self.flush(self.EVERY_S)

    def failed_one(self) -> None:
        """Count a key that failed."""
        self.failed += 1
        self._stages.setdefault(self._step, _empty(fused=False))["failed"] += 1

    def flush(self, every_s: float = 0.0) -> None:
        """Write what has gathered, if it is at least `every_s` seconds old."""
        if self._stages and time.monotonic() - self._written >= every_s:
            stages = [dict(total, step=step) for step, total in self._stages.items()]
            since = round(min(self._since, time.time()), 3)
            self._log.add(what="keys", **self._where, since=since, stages=stages)
            self._stages, self._since, self._written = {}, float("inf"), time.monotonic()

    @property
    def rate_mb_s(self) -> float:
        """Return the megabytes of input per second so far."""
        return self.bytes / max(time.monotonic() - self.started, 1e-3) / 1e6


def on_terminal() -> bool:
    """Tell whether a person watches stderr."""
    return sys.stderr.isatty() and os.environ.get("TERM") != "dumb"
