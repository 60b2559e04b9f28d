"""Rows classified in data frames: how long for how many rows, on how many nodes.

``python -m benchmarks.classify``; try it small: ``--rows 1000 --nodes 1 2 --rounds 1``.

A node is a local one with a slot of its own, so more of them than cores gain nothing. Start is what
comes before the first command of a node: Python, Luigi, the listing of the source, the nodes.
Compute is from there to the end of the last command; what is left is the checkpoint.
"""

import argparse
import glob
import json
import os
import shutil
import statistics
import sys
import tempfile
import time
from typing import Any, NamedTuple

from benchmarks import measure, table
from benchmarks.jobs import ROOT, ResultsDiffer
from workflows.pipelines.classify.generate import HEADER, rides

# Pandas is no dependency of the project: the developer's environment has it.
PYTHON = sys.executable
SPEEDUP_BAR = 0.75  # two nodes on two cores take at most so much of the time of one


class Sized(NamedTuple):
    """One run: seconds until the first command, of all commands, and after the last."""

    start_s: float
    compute_s: float
    end_s: float

    @property
    def wall_s(self) -> float:
        """Return all of it."""
        return self.start_s + self.compute_s + self.end_s


def flags() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.classify", description=__doc__)
    parser.add_argument("--rows", type=int, nargs="+", default=[10_000, 100_000, 300_000])
    parser.add_argument("--nodes", type=int, nargs="+", default=[1, 2, 4])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--piece-rows", type=int, default=10_000)
    parser.add_argument(
        "--work", help="work below this directory (default: that of temporary files)"
    )
    parser.add_argument("--results", type=type(table.RESULTS), default=table.RESULTS)
    return parser.parse_args()


def write_rows(folder: str, rows: int) -> None:
    os.makedirs(folder)
    with open(os.path.join(folder, "rides.csv"), "w", encoding="ascii") as file:
        file.write(HEADER + "\n")
        file.writelines(row + "\n" for row in rides(rows, 1))


def run(folder: str, source: str, nodes: int, piece_rows: int) -> Sized:
    """Classify once, from nothing."""
    shutil.rmtree(folder, ignore_errors=True)
    os.makedirs(os.path.join(folder, ".workflows"))
    argv = [PYTHON, "-m", "luigi", "--module", "workflows.pipelines.classify.tasks", "ClassifyRows"]
    argv += ["--source", source, "--pattern", "*.csv", "--fleet", f"local:{nodes}"]
    argv += ["--checkpoint", ".workflows/checkpoint", "--piece-rows", str(piece_rows)]
    environ = {k: v for k, v in os.environ.items() if not k.startswith("WORKFLOWS_")}
    environ.update(
        PYTHONPATH=str(ROOT), LUIGI_CONFIG_PATH=str(ROOT / "luigi.cfg"), WORKFLOWS_SLOTS="1"
    )
    began = time.time()
    took = measure.run(argv, cwd=folder, env=environ)
    first, last = span(folder)
    return Sized(first - began, last - first, began + took.wall_s - last)


def span(folder: str) -> tuple[float, float]:
    """Return when the first command began and the last one ended, by the nodes' ledgers."""
    lines = []
    for path in glob.glob(os.path.join(folder, ".workflows/nodes/*/ledger/*.jsonl")):
        with open(path, encoding="utf-8") as file:
            lines += [line for line in map(json.loads, file) if "wall" in line]
    return min(line["at"] for line in lines), max(line["at"] + line["wall"] for line in lines)


def result(folder: str) -> bytes:
    """Return the file that came out."""
    (path,) = glob.glob(os.path.join(folder, ".workflows/checkpoint/ClassifyRows/*/data/*/*"))
    with open(path, "rb") as file:
        return file.read()


def cell(runs: list[Sized], name: str) -> str:
    return f"{statistics.median(getattr(one, name) for one in runs):.1f}"


def measured(chosen: argparse.Namespace, work: str) -> dict[str, Any]:
    """Run all and return the results."""
    before = table.machine()
    runs: dict[tuple[int, int], list[Sized]] = {}
    for rows in chosen.rows:
        source = f"{work}/rows-{rows}"
        write_rows(source, rows)
        results = set()
        for _ in range(chosen.rounds):
            for nodes in chosen.nodes:
                folder = f"{work}/run"
                runs.setdefault((rows, nodes), []).append(
                    run(folder, source, nodes, chosen.piece_rows)
                )
                results.add(result(folder))
                print(f"{rows} rows, {nodes} nodes: {runs[rows, nodes][-1]}", file=sys.stderr)
        if len(results) > 1:
            raise ResultsDiffer(f"{rows} rows came to {len(results)} different results")
    return {
        "name": "classify",
        "title": "Rows classified in pandas data frames",
        "about": f"Frames of 100 rows, pieces of {chosen.piece_rows}, one slot per node, medians of"
        f" {chosen.rounds} rounds. Start is the time before a node's first command, compute the"
        " time from there to the end of the last command, end is the checkpoint. The results"
        " are the same bytes for any number of nodes.",
        "run": table.command("classify", sys.argv[1:]),
        "machine": before,
        "tables": [
            {
                "columns": ["rows", "nodes", "start s", "compute s", "end s", "wall s"],
                "rows": [
                    [
                        rows,
                        nodes,
                        *[cell(some, name) for name in ("start_s", "compute_s", "end_s", "wall_s")],
                    ]
                    for (rows, nodes), some in runs.items()
                ],
            }
        ],
        "bars": bars(runs),
        "runs": {
            f"{rows} rows, {nodes} nodes": [rounded(one) for one in some]
            for (rows, nodes), some in runs.items()
        },
    }


def rounded(one: Sized) -> dict[str, float]:
    return {name: round(value, 3) for name, value in one._asdict().items()}


def bars(runs: dict[tuple[int, int], list[Sized]]) -> list[dict[str, Any]]:
    """Return what two nodes must gain over one, for the most rows."""
    most = max(rows for rows, _ in runs)
    if not {(most, 1), (most, 2)} <= set(runs):
        return []
    one, two = (statistics.median(s.compute_s for s in runs[most, n]) for n in (1, 2))
    what = f"{most} rows: compute on two nodes"
    return [table.bar(what, SPEEDUP_BAR, two / one, "x that on one")]


def main() -> int:
    """Measure, print, write the results file; 1 if a bar was missed."""
    chosen = flags()
    with tempfile.TemporaryDirectory(prefix="benchmarks-", dir=chosen.work) as work:
        return 0 if table.publish(measured(chosen, work), chosen.results) else 1


if __name__ == "__main__":
    sys.exit(main())
