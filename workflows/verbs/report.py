"""``workflows report``: what a run did, by steps, nodes and keys; or many runs side by side."""

import argparse
import glob
import os
import re
from collections.abc import Iterable, Sequence

from workflows.config import settings
from workflows.errors import UsageError, did_you_mean
from workflows.reporting.runlog import Totals, aligned, phase_table, read_lines
from workflows.verbs.pipeline import run_logs

_DONE = re.compile(r"\d\d:\d\d:\d\d (.*) done: \d+ bytes, ([\d.]+) s")
_COMPARED = 20
_COLUMNS = (
    *("run", "fleet", "keys", "failed", "nodes", "rows", "s", "busy s", "cpu s", "MB in", "MB/s"),
    *("fleet min", "$"),
)


def add(parser: argparse.ArgumentParser) -> None:
    """Add the verb's arguments."""
    parser.add_argument("run", nargs="?", help="name of a run (the last one)")
    parser.add_argument(
        "--keys", action="store_true", help="how long keys took: median, 95th percentile, longest"
    )
    parser.add_argument(
        "--compare", action="store_true", help=f"the last {_COMPARED} runs, a line each"
    )


def run(arguments: argparse.Namespace) -> int:
    """Print the stages and the nodes of a run, or of the last one that ran anything."""
    paths = list(run_logs())
    if arguments.run:
        paths = [path for path in paths if os.path.basename(os.path.dirname(path)) == arguments.run]
    found = [(path, totals) for path in paths if (totals := _totals(path)).steps]
    if not found:
        raise _missing(arguments.run)
    if arguments.compare:
        print(_compared(found[:_COMPARED]))
        return 0
    path, totals = found[0]
    print(f"{_name(path)}: {totals.last - totals.first:.1f} s, log {path}")
    print(totals.table())
    for line in totals.noted["warned"]:
        print(f"warning: {line['why']}")
    if totals.nodes:
        print(f"\n{totals.node_table()}")
    if totals.phases:
        print(f"\n{phase_table(totals.phases)}")
    if arguments.keys:
        print(f"\n{_keys(os.path.dirname(path), totals)}")
    return 0


def _missing(name: str | None) -> UsageError:
    """Return what to say where there is no such run, or none at all."""
    where = f"{settings().state}/runs"
    if not name:
        return UsageError(f"no run is on record in {where}")
    return UsageError(f"no run {name!r} in {where}{did_you_mean(name, map(_name, run_logs()))}")


def _totals(path: str) -> Totals:
    totals = Totals()
    totals.update(path)
    return totals


def _name(path: str) -> str:
    return os.path.basename(os.path.dirname(path))


def _keys(folder: str, totals: Totals) -> str:
    """Return how long the keys of each step took, from the logs of its tasks."""
    rows: list[tuple[str, ...]] = [("step", "keys", "p50 s", "p95 s", "max s", "longest key")]
    for step in totals.steps:
        took = sorted(_times(folder, step))
        if took:
            seconds = [each for each, _ in took]
            numbers = [f"{each:.3f}" for each in (*_shares(seconds), seconds[-1])]
            rows.append((step, str(len(took)), *numbers, took[-1][1]))
    return aligned(rows, left=(0, 5))


def _times(folder: str, step: str) -> Iterable[tuple[float, str]]:
    for path in glob.glob(os.path.join(glob.escape(folder), glob.escape(step) + " *.txt")):
        with open(path, encoding="utf-8", errors="backslashreplace") as file:
            for line in file:
                if match := _DONE.fullmatch(line.rstrip("\n")):
                    yield float(match[2]), match[1]


def _shares(seconds: Sequence[float]) -> tuple[float, float]:
    """Return what half of the keys, and 95 in 100, took at most; `seconds` are sorted.

    >>> _shares([1.0, 2.0, 3.0, 4.0])
    (2.0, 4.0)
    """
    count = len(seconds)
    return seconds[(count + 1) // 2 - 1], seconds[-(-count * 95 // 100) - 1]


def _compared(found: Iterable[tuple[str, Totals]]) -> str:
    """Return runs as a table, the newest first."""
    rows = [_COLUMNS]
    for path, totals in found:
        took = totals.last - totals.first
        steps = totals.steps.values()
        moved = sum(step["bytes_in"] for step in steps) / 1e6
        rows.append(
            (
                _name(path),
                _fleet(path),
                str(sum(step["keys"] for step in steps)),
                str(sum(step["failed"] for step in steps)),
                str(len(totals.nodes) or "-"),
                str(max(step["rows"] for step in steps) or "-"),
                f"{took:.1f}",
                f"{sum(step['wall'] for step in steps):.1f}",
                f"{sum(step['cpu'] for step in steps):.1f}",
                f"{moved:.1f}",
                f"{moved / took:.1f}" if took else "-",
                *_spent(totals),
            )
        )
    return aligned(rows, left=(0, 1))


def _spent(totals: Totals) -> tuple[str, str]:
    """Return the minutes that a fleet was there, and its dollars, once it was taken down."""
    total = totals.phases.get("total")
    return (f"{total.minutes:.1f}", f"{total.usd:.4f}") if total else ("-", "-")


def _fleet(path: str) -> str:
    for _, line in read_lines(path):
        if line["what"] == "planned":
            return str(line.get("params", {}).get("fleet", "-"))
    return "-"
