"""Counting words: a job in plain Python, the same under mrjob's local runner, and a shell pipe.

``python -m benchmarks.disco --mrjob /path/to/python``; that Python must have mrjob, which is left
out without it. Try it small: ``--megabytes 1 --rounds 1``.
"""

import argparse
import collections
import dataclasses
import glob
import gzip
import os
import pathlib
import random
import statistics
import sys
import tempfile
from collections.abc import Callable
from typing import Any

from benchmarks import measure, table
from benchmarks.jobs import CORES, PYTHON, ROOT, ResultsDiffer
from benchmarks.measure import Took

PIPE_BAR, MRJOB_BAR = 2.0, 1.0
MRJOB = """
import re
from mrjob.job import MRJob

WORD = re.compile(r"[a-z']+")


class WordCount(MRJob):
    def mapper(self, _, line):
        for word in WORD.findall(line.lower()):
            yield word, 1

    def combiner(self, key, values):
        yield key, sum(values)

    def reducer(self, key, values):
        yield key, sum(values)


if __name__ == "__main__":
    WordCount.run()
"""
PIPE = r"""set -euo pipefail
printf '%s\0' "$IN"/*.gz | xargs -0 -n 1 -P "$CORES" sh -c '
  zcat "$0" | tr A-Z a-z | tr -cs "a-z'"'"'" "\n" | grep . | sort | uniq -c > "part.${0##*/}"'
cat part.* | awk '{n[$2] += $1} END {for (w in n) print w "\t" n[w]}' > counts
"""


def flags() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.disco", description=__doc__)
    parser.add_argument("--files", type=int, default=8)
    parser.add_argument("--megabytes", type=float, default=16, help="of each file, unpacked")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--mrjob", default="", help="a Python that has mrjob")
    parser.add_argument(
        "--work", help="work below this directory (default: that of temporary files)"
    )
    parser.add_argument("--results", type=type(table.RESULTS), default=table.RESULTS)
    return parser.parse_args()


def write_texts(folder: str, files: int, size: int) -> None:
    """Write texts of words whose frequencies fall as those of a language do; always the same."""
    os.makedirs(folder)
    draw = random.Random(1).random
    letters = "etaoinshrdlcumwfgypbvk"
    words = [
        "".join(letters[int(draw() ** 2 * 22)] for _ in range(1 + int(draw() * 9)))
        for _ in range(50_000)
    ]
    for number in range(files):
        lines, left = [], size
        while left > 0:
            line = " ".join(words[int(50_000 ** draw()) - 1] for _ in range(12)) + "\n"
            lines.append(line)
            left -= len(line)
        data = "".join(lines).encode("ascii")
        pathlib.Path(folder, f"{number:03d}.txt.gz").write_bytes(gzip.compress(data, 6, mtime=0))


def ours(folder: str, source: str) -> Took:
    os.makedirs(os.path.join(folder, ".workflows"))
    argv = [str(PYTHON), "-m", "luigi", "--module", "workflows.pipelines.disco.tasks", "WordCount"]
    argv += ["--source", source, "--pattern", "*.gz", "--fleet", f"local:{CORES}"]
    argv += ["--checkpoint", ".workflows/checkpoint"]
    environ = {k: v for k, v in os.environ.items() if not k.startswith("WORKFLOWS_")}
    environ.update(PYTHONPATH=str(ROOT), LUIGI_CONFIG_PATH=str(ROOT / "luigi.cfg"))
    return measure.run(argv, cwd=folder, env=environ)


def pipe(folder: str, source: str) -> Took:
    environ = dict(os.environ, LC_ALL="C", IN=source, CORES=str(CORES))
    return measure.run(["bash", "-c", PIPE], cwd=folder, env=environ)


def mrjob(python: str) -> Callable[[str, str], Took]:
    """Return a way to run the job under mrjob's local runner."""

    def job(folder: str, source: str) -> Took:
        pathlib.Path(folder, "words.py").write_text(MRJOB)
        inputs = sorted(glob.glob(os.path.join(source, "*.gz")))
        argv = [
            python,
            "words.py",
            "-r",
            "local",
            "--no-conf",
            "--output-dir",
            "out",
            "--no-output",
        ]
        return measure.run([*argv, *inputs], cwd=folder, env=dict(os.environ))

    return job


def counts(folder: str) -> "collections.Counter[str]":
    """Return what a run came to, whichever way it was run."""
    found: collections.Counter[str] = collections.Counter()
    for path in glob.glob(os.path.join(folder, ".workflows/checkpoint/WordCount/*/data/*/*.gz")):
        found.update(parsed(gzip.decompress(pathlib.Path(path).read_bytes())))
    for path in [*glob.glob(f"{folder}/counts"), *glob.glob(f"{folder}/out/part-*")]:
        found.update(parsed(pathlib.Path(path).read_bytes()))
    return found


def parsed(data: bytes) -> dict[str, int]:
    lines = (line.split("\t") for line in data.decode("ascii").splitlines())
    return {word.strip('"'): int(count) for word, count in lines}


def measured(chosen: argparse.Namespace, work: str) -> dict[str, Any]:
    """Run all in turn and return the results."""
    before = table.machine()
    source = f"{work}/texts"
    write_texts(source, chosen.files, int(chosen.megabytes * 1e6))
    ways: dict[str, Callable[[str, str], Took]] = {"ours": ours, "shell pipe": pipe}
    if chosen.mrjob:
        ways["mrjob -r local"] = mrjob(chosen.mrjob)
    took: dict[str, list[Took]] = {name: [] for name in ways}
    expected: collections.Counter[str] = collections.Counter()
    for number in range(chosen.rounds):
        for name, way in ways.items():
            folder = f"{work}/{number}-{name.split()[0]}"
            os.mkdir(folder)
            took[name].append(way(folder, source))
            found = counts(folder)
            expected = expected or found
            if not found or found != expected:
                raise ResultsDiffer(f"{name} counts other words than the first did")
            print(f"{name}: {took[name][-1]}", file=sys.stderr)
    return described(chosen, before, took, expected.total())


def median(many: list[Took], name: str) -> float:
    return float(statistics.median(getattr(one, name) for one in many))


def described(
    chosen: argparse.Namespace, before: dict[str, str], took: dict[str, list[Took]], words: int
) -> dict[str, Any]:
    """Return the results as they are kept."""
    wall = {name: median(many, "wall_s") for name, many in took.items()}
    bars = [table.bar("wall", PIPE_BAR, wall["ours"] / wall["shell pipe"], "x the shell pipe")]
    if "mrjob -r local" in wall:
        ratio = wall["ours"] / wall["mrjob -r local"]
        bars.append(table.bar("wall", MRJOB_BAR, ratio, "x mrjob"))
    return {
        "name": "disco",
        "title": "Words counted by a job in plain Python",
        "about": f"{chosen.files} compressed texts of {chosen.megabytes:g} MB, {words:,} words in"
        f" all, 10 partitions, {CORES} local nodes; medians of {chosen.rounds} rounds in turn. The"
        " pipe is zcat, tr, sort and uniq -c under xargs, on as many cores; all count alike.",
        "run": table.command("disco", sys.argv[1:]),
        "machine": before,
        "tables": [
            {
                "columns": ["job", "wall s", "CPU s", "MB/s"],
                "rows": [
                    [
                        name,
                        f"{wall[name]:.2f}",
                        f"{median(many, 'cpu_s'):.2f}",
                        f"{chosen.files * chosen.megabytes / wall[name]:.1f}",
                    ]
                    for name, many in took.items()
                ],
            }
        ],
        "bars": bars,
        "runs": {name: [dataclasses.asdict(one) for one in many] for name, many in took.items()},
    }


def main() -> int:
    """Measure, print, write the results file; 1 if a bar was missed."""
    chosen = flags()
    with tempfile.TemporaryDirectory(prefix="benchmarks-", dir=chosen.work) as work:
        return 0 if table.publish(measured(chosen, work), chosen.results) else 1


if __name__ == "__main__":
    sys.exit(main())
