"""Many tiny keys: is it linear, how much is overhead, what does a rerun cost, how much memory.

``python -m benchmarks.scale``; try it small with ``--sizes 30 100``.
"""

import argparse
import dataclasses
import itertools
import os
import sys
import tempfile
from typing import Any, NamedTuple

from benchmarks import data, jobs, table
from benchmarks.jobs import Floor, Ours
from benchmarks.measure import Took

OVERHEAD_BAR_S, RERUN_BAR_S, MEMORY_BAR_MB = 60.0, 3.0, 300.0
_ROLES = ("driver", "task", "runtime")
_COLUMNS = ["keys", "", "wall s", "CPU s", "floor s", "overhead s", "ms per key", "rerun s"]
_COLUMNS += [f"{role} MB" for role in _ROLES]


class Sized(NamedTuple):
    """One number of keys, run one way."""

    keys: int
    fuse: bool
    ours: Took
    floor: Took
    rerun: Took

    @property
    def overhead_s(self) -> float:
        """Return the wall time that is not the commands'."""
        return self.ours.wall_s - self.floor.wall_s

    def row(self) -> list[Any]:
        """Return the table's row."""
        return [
            self.keys,
            "fused" if self.fuse else "unfused",
            f"{self.ours.wall_s:.2f}",
            f"{self.ours.cpu_s:.2f}",
            f"{self.floor.wall_s:.2f}",
            f"{self.overhead_s:.2f}",
            f"{1e3 * self.ours.wall_s / self.keys:.2f}",
            f"{self.rerun.wall_s:.2f}",
            *[f"{self.memory_mb(role):.0f}" for role in _ROLES],
        ]

    def memory_mb(self, role: str) -> float:
        """Return the most memory that a process of this role had, in the run or its rerun."""
        return max(took.rss_mb.get(role, 0.0) for took in (self.ours, self.rerun))


def flags() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.scale", description=__doc__)
    parser.add_argument("--sizes", type=int, nargs="+", default=[100, 1000, 10_000])
    parser.add_argument(
        "--work", help="work below this directory (default: that of temporary files)"
    )
    parser.add_argument("--results", type=type(table.RESULTS), default=table.RESULTS)
    return parser.parse_args()


def sized(work: str, keys: int, *, fuse: bool) -> Sized:
    """Run ours, ours again with nothing to do, and the floors.

    Raises:
        ResultsDiffer: they did not all come to the same bytes.
    """
    source = f"{work}/tiny-{keys}"
    data.warm(data.write_tiny_keys(source, keys))
    # Nothing is removed before the end: see `jobs.alternate`.
    how = f"{keys}-{'fused' if fuse else 'unfused'}"
    ours = Ours(f"{work}/ours-{how}", source, fuse)
    ours.clean()
    os.sync()
    first = ours.run(watch_memory=True)
    rerun = ours.run(watch_memory=True)
    floors = []
    for processes in jobs.floor_sizes():
        floor = Floor(f"{work}/floor-{how}-{processes}", source, processes, fuse)
        floor.clean()
        os.sync()
        floors.append(floor.run())
        if floor.result() != ours.result():
            raise jobs.ResultsDiffer(f"ours: {ours.result()!r}, the floor: {floor.result()!r}")
    done = Sized(keys, fuse, first, min(floors, key=lambda took: took.wall_s), rerun)
    print(f"{dict(zip(_COLUMNS, done.row(), strict=True))}", file=sys.stderr)
    return done


def growth(runs: list[Sized]) -> list[list[Any]]:
    """Return how the wall time grows from each size to the next; linear is a ratio of the keys'."""
    lines = []
    for before, after in itertools.pairwise(runs):
        if before.fuse == after.fuse:
            how = "fused" if after.fuse else "unfused"
            wall = after.ours.wall_s / before.ours.wall_s
            floor = after.floor.wall_s / before.floor.wall_s
            keys = after.keys / before.keys
            lines.append(
                [
                    f"{before.keys} to {after.keys}",
                    how,
                    f"{keys:.1f}",
                    f"{wall:.1f}",
                    f"{floor:.1f}",
                ]
            )
    return lines


def measured(sizes: list[int], work: str) -> dict[str, Any]:
    """Run all and return the results."""
    before = table.machine()
    runs = [sized(work, keys, fuse=fuse) for fuse in (False, True) for keys in sorted(sizes)]
    bars = []
    for one in (one for one in runs if one.keys == max(sizes)):
        how = f"{one.keys} tiny keys, {'fused' if one.fuse else 'unfused'}"
        memory = max(one.memory_mb(role) for role in _ROLES)
        bars += [
            table.bar(f"{how}: overhead", OVERHEAD_BAR_S, one.overhead_s, "s"),
            table.bar(f"{how}: rerun with nothing to do", RERUN_BAR_S, one.rerun.wall_s, "s"),
            table.bar(f"{how}: memory of the largest process", MEMORY_BAR_MB, memory, "MB"),
        ]
    return {
        "name": "scale",
        "title": "Many tiny keys",
        "about": "A header and a few rows each, through all five steps on"
        f" {jobs.NODES} local nodes with {jobs.slots()} slots in all. Overhead is the wall time"
        " above the fastest floor's. Memory is the high-water mark of the luigi process, of the"
        " largest task it forked, and of the largest runtime.",
        "run": table.command("scale", sys.argv[1:]),
        "machine": before,
        "tables": [
            {"columns": _COLUMNS, "rows": [one.row() for one in runs]},
            {
                "title": "Growth",
                "columns": [
                    "keys",
                    "",
                    "times the keys",
                    "times the wall",
                    "times the floor's wall",
                ],
                "rows": growth(runs),
            },
        ],
        "bars": bars,
        "runs": [
            {
                "keys": one.keys,
                "fused": one.fuse,
                **{
                    name: dataclasses.asdict(getattr(one, name))
                    for name in ("ours", "floor", "rerun")
                },
            }
            for one in runs
        ],
    }


def main() -> int:
    """Measure, print, write the results file; 1 if a bar was missed."""
    chosen = flags()
    with tempfile.TemporaryDirectory(prefix="benchmarks-", dir=chosen.work) as work:
        return 0 if table.publish(measured(chosen.sizes, work), chosen.results) else 1


if __name__ == "__main__":
    sys.exit(main())
