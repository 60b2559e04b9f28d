"""What the verbs cost a person who types them: eval, health, ls, and maps beside xargs.

python -m benchmarks.verbs [--runs 3] [--keys 1000] [--big 24] [--big-mb 64]
"""

import argparse
import os
import pathlib
import shlex
import shutil
import statistics
import sys
import tempfile
from typing import Any

from benchmarks import data, measure, table
from benchmarks.jobs import CORES, PYTHON, ROOT
from benchmarks.measure import Took
from workflows.node.work import BASH

LISTED = 10_000
CUT = "cut -d, -f1-5"  # a command that does something, if little
TYPED = 10  # times a short verb is typed for each number


def main() -> int:
    parser = argparse.ArgumentParser(description="What the verbs cost a person who types them.")
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--keys", type=int, default=1000)
    parser.add_argument("--big", type=int, default=24)
    parser.add_argument("--big-mb", type=int, default=64)
    parser.add_argument("--folder", default="", help="where (a temporary directory)")
    parser.add_argument("--results", type=pathlib.Path, default=table.RESULTS)
    arguments = parser.parse_args()
    folder = arguments.folder or tempfile.mkdtemp(prefix="workflows-verbs-")
    try:
        result = measured(folder, arguments)
    finally:
        if not arguments.folder:
            shutil.rmtree(folder, ignore_errors=True)
    return 0 if table.publish(result, arguments.results) else 1


def measured(folder: str, arguments: argparse.Namespace) -> dict[str, Any]:
    """Measure everything; return what the page shows of it."""
    machine = table.machine()
    shutil.copy(ROOT / "luigi.cfg", folder)
    small = data.write_keys(os.path.join(folder, "small"), arguments.keys, 1 << 16)
    big = data.write_keys(os.path.join(folder, "big"), arguments.big, arguments.big_mb * 10**6)
    tiny = data.write_tiny_keys(os.path.join(folder, "tiny"), LISTED)
    data.warm(small + big + tiny)
    for name in ("small", "big", "tiny"):
        verb(folder, "cp", "-r", name, f"fleet://{name}")
    key = f"small/{os.path.basename(small[0])}"
    typed = {
        f"eval {key} cat": [verb(folder, "eval", key, "cat") for _ in range(TYPED)],
        "health": [verb(folder, "health") for _ in range(TYPED)],
        f"ls -r of {LISTED:,} keys": [verb(folder, "ls", "-r", "tiny") for _ in range(TYPED)],
    }
    rows = [(name, len(took), *numbers(took)) for name, took in typed.items()]
    bars = [
        table.bar(f"{name}, wall", limit, median(took), "s")
        for (name, took), limit in zip(typed.items(), (0.4, 0.4, 1.0), strict=True)
    ]
    for name, many, command in (("small", small, "cat"), ("big", big, "cat"), ("big", big, CUT)):
        what = f"{command}, {len(many):,} keys of {os.path.getsize(many[0]) / 1e6:.3g} MB"
        ours, floor = maps(folder, name, command, arguments.runs)
        rows += [(f"map {what}", arguments.runs, *numbers(ours))]
        rows += [(f"xargs -P{CORES} {what}", arguments.runs, *numbers(floor))]
        if name == "small":
            bars.append(table.bar(f"map {what}, wall", 2.5, median(ours), "s"))
        else:
            over = statistics.median(o.wall_s / f.wall_s for o, f in zip(ours, floor, strict=True))
            bars.append(table.bar(f"map {what}, wall over xargs", 1.1, over, "x"))
    return {
        "name": "verbs",
        "title": "The verbs",
        "about": "Cold starts on three local nodes; the page cache is warm. The floor starts the"
        " same bash for each key; maps also digest what they read and write.",
        "run": "python -m benchmarks.verbs",
        "machine": machine,
        "tables": [
            {
                "title": "Wall and CPU seconds, medians",
                "columns": ["what", "runs", "wall s", "least", "most", "CPU s"],
                "rows": rows,
            }
        ],
        "bars": bars,
    }


def maps(folder: str, name: str, command: str, runs: int) -> tuple[list[Took], list[Took]]:
    """Map all keys of a step, and do the same under xargs, in alternating order."""
    strict = shlex.join([*BASH, f'{command} < "{name}/$0" > "floor/$0"'])
    floor = ["bash", "-c", f"ls {name} | xargs -d '\\n' -n 1 -P {CORES} {strict}"]
    ours, theirs = [], []
    jobs = [(ours, words("map", f"{name}/", "out/", command)), (theirs, floor)]
    for _ in range(runs):
        shutil.rmtree(os.path.join(folder, "floor"), ignore_errors=True)
        os.mkdir(os.path.join(folder, "floor"))
        verb(folder, "rm", "-r", "out/")
        jobs.reverse()
        for took, argv in jobs:
            measure.level(data.size(os.path.join(folder, name)))
            took.append(measure.run(argv, cwd=folder, env=environ()))
    verb(folder, "rm", "-r", "out/")
    return ours, theirs


def verb(folder: str, *arguments: str) -> Took:
    """Type a verb; return what it took."""
    return measure.run(words(*arguments), cwd=folder, env=environ())


def words(*arguments: str) -> list[str]:
    """Return a verb's command line, in the user's own environment where there is one."""
    python = str(PYTHON) if pathlib.Path(PYTHON).exists() else sys.executable
    return [python, "-m", "workflows", *arguments]


def environ() -> dict[str, str]:
    """Return a user's environment."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("WORKFLOWS_")}
    return dict(kept, PYTHONPATH=str(ROOT), LC_ALL="C")


def median(took: list[Took]) -> float:
    """Return the median wall seconds."""
    return statistics.median(one.wall_s for one in took)


def numbers(took: list[Took]) -> tuple[str, ...]:
    """Return what a row shows of several runs."""
    walls = [one.wall_s for one in took]
    cpu = statistics.median(one.cpu_s for one in took)
    return tuple(f"{n:.2f}" for n in (statistics.median(walls), min(walls), max(walls), cpu))


if __name__ == "__main__":
    sys.exit(main())
