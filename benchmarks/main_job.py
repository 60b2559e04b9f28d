"""The main job against its floor: few big keys, and many small ones.

``python -m benchmarks.main_job``; try it small:
``--big-keys 4 --big-mb 2 --small-keys 50 --rounds 1``.
"""

import argparse
import dataclasses
import os
import statistics
import sys
import tempfile
from typing import Any

from benchmarks import data, jobs, table
from benchmarks.jobs import KEYED_STEPS, Floor, Ours
from benchmarks.measure import Took

UNFUSED_BAR, FUSED_BAR, SMALL_BAR_MS = 1.25, 1.10, 2.5
_COLUMNS = ["job", "wall s", "min-max", "user s", "sys s", "wall / floor", "CPU / floor"]
Taken = dict[str, list[Took]]


def flags() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.main_job", description=__doc__)
    parser.add_argument("--big-keys", type=int, default=24)
    parser.add_argument("--big-mb", type=float, default=64)
    parser.add_argument("--small-keys", type=int, default=1000)
    parser.add_argument("--small-kb", type=float, default=64)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument(
        "--work", help="work below this directory (default: that of temporary files)"
    )
    parser.add_argument("--results", type=type(table.RESULTS), default=table.RESULTS)
    return parser.parse_args()


def lineup(work: str, source: str, *, fuse: bool) -> "list[tuple[str, Ours | Floor]]":
    """Return ours and the floors: as many processes as cores, one more, as the fleet has slots."""
    name = "fused" if fuse else "unfused"
    floors = [
        (f"floor {name}, xargs -P {count}", Floor(f"{work}/floor", source, count, fuse))
        for count in jobs.floor_sizes()
    ]
    return [(f"ours {name}", Ours(f"{work}/ours", source, fuse)), *floors]


def median(many: list[Took], name: str) -> float:
    """Return the median of one number of several runs."""
    return float(statistics.median(getattr(took, name) for took in many))


def fastest_floor(took: Taken) -> str:
    """Return the name of the floor with the least wall time."""
    floors = [name for name in took if name.startswith("floor")]
    return min(floors, key=lambda name: median(took[name], "wall_s"))


def rows(took: Taken) -> list[list[Any]]:
    """Return the table's rows: each job, and how it compares with the fastest floor."""
    floor = took[fastest_floor(took)]
    lines = []
    for name, many in took.items():
        walls = [one.wall_s for one in many]
        lines.append(
            [
                name,
                f"{median(many, 'wall_s'):.2f}",
                f"{min(walls):.2f}-{max(walls):.2f}",
                f"{median(many, 'user_s'):.2f}",
                f"{median(many, 'sys_s'):.2f}",
                f"{ratio(many, floor, 'wall_s'):.3f}",
                f"{ratio(many, floor, 'cpu_s'):.3f}",
            ]
        )
    return lines


def ratio(many: list[Took], floor: list[Took], name: str) -> float:
    """Return the median of the ratios of each round: the machine's speed drifts between rounds."""
    pairs = zip(many, floor, strict=True)
    return statistics.median(getattr(one, name) / getattr(other, name) for one, other in pairs)


def wall_ratio(took: Taken) -> float:
    """Return how much longer ours takes than the fastest floor."""
    ours = next(many for name, many in took.items() if name.startswith("ours"))
    return ratio(ours, took[fastest_floor(took)], "wall_s")


def ms_per_key(many: list[Took], keys: int) -> float:
    """Return the milliseconds of wall time per key and step."""
    return 1e3 * median(many, "wall_s") / keys / KEYED_STEPS


def say(line: str) -> None:
    """Tell how far it is."""
    print(line, file=sys.stderr, flush=True)


def measured(chosen: argparse.Namespace, work: str) -> dict[str, Any]:
    """Run all and return the results."""
    before = table.machine()
    big = data.write_keys(f"{work}/big", chosen.big_keys, int(chosen.big_mb * 1e6))
    small = data.write_keys(f"{work}/small", chosen.small_keys, int(chosen.small_kb * 1e3))
    big_title = f"{len(big)} keys of {chosen.big_mb:g} MB"
    small_title = f"{len(small)} keys of {chosen.small_kb:g} KB"
    cases: dict[str, Taken] = {}
    for title, paths, fuse in (
        (f"{big_title}, unfused", big, False),
        (f"{big_title}, fused", big, True),
        (f"{small_title}, unfused", small, False),
    ):
        data.warm(paths)
        entries = lineup(work, os.path.dirname(paths[0]), fuse=fuse)
        cases[title] = jobs.alternate(entries, chosen.rounds, say)
    unfused, fused, many = cases.values()
    ours_ms = ms_per_key(many["ours unfused"], len(small))
    floor_ms = ms_per_key(many[fastest_floor(many)], len(small))
    return {
        "name": "main_job",
        "title": "The main job against the same commands under xargs",
        "about": f"Fetch, Select, GroupCount, Shuffle and MergeCounts on {jobs.NODES} local nodes"
        f" with {jobs.slots()} slots in all, {chosen.rounds} rounds interleaved with the floor,"
        " in alternating order; results compared. Ratios are medians of the ratios of each round,"
        f" relative to the floor with the least median. {small_title}: {ours_ms:.2f} ms of wall"
        f" time per key and step, {floor_ms:.2f} the floor's.",
        "run": table.command("main_job", sys.argv[1:]),
        "machine": before,
        "tables": [
            {"title": title, "columns": _COLUMNS, "rows": rows(took)}
            for title, took in cases.items()
        ],
        "bars": [
            table.bar(
                f"{big_title}, unfused: wall", UNFUSED_BAR, wall_ratio(unfused), "x the floor"
            ),
            table.bar(f"{big_title}, fused: wall", FUSED_BAR, wall_ratio(fused), "x the floor"),
            table.bar(f"{small_title}: wall", SMALL_BAR_MS, ours_ms, "ms per key and step"),
        ],
        "runs": {
            title: {name: [dataclasses.asdict(one) for one in many] for name, many in took.items()}
            for title, took in cases.items()
        },
    }


def main() -> int:
    """Measure, print, write the results file; 1 if a bar was missed."""
    chosen = flags()
    with tempfile.TemporaryDirectory(prefix="benchmarks-", dir=chosen.work) as work:
        return 0 if table.publish(measured(chosen, work), chosen.results) else 1


if __name__ == "__main__":
    sys.exit(main())
