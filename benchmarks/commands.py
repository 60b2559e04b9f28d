"""What counting the rides of a month costs: the pipeline's scripts beside the obvious alternatives.

    python3 benchmarks/commands.py [--files 2] [--megabytes 64] [--runs 5] [--awk mawk]

The data is the bundled months, repeated. CPU is user + system time of the whole command line under
bash, the page cache warm; the alternatives run in turn, so that a busy machine slows them all.
Every count is compared with the others before anything is printed.
"""

import argparse
import os
import pathlib
import resource
import shlex
import statistics
import subprocess
import sys
import tempfile

ROOT = pathlib.Path(__file__).resolve().parent.parent
SCRIPTS = ROOT / "workflows" / "scripts"
COLUMN = "passenger_count"
STARTS = 20

CSV_MODULE = f"""
import collections, csv, sys
rows = csv.reader(sys.stdin)
place = next(rows).index({COLUMN!r})
for value, count in collections.Counter(row[place] for row in rows).items():
    print(value, count, sep=",")
"""
SPLIT_COUNTER = f"""
import collections, operator, sys
rows = sys.stdin.buffer
place = next(rows).split(b",").index({COLUMN.encode()!r})
fields = map(operator.methodcaller("split", b",", place + 1), rows)
for value, count in collections.Counter(map(operator.itemgetter(place), fields)).items():
    print(value.decode(), count, sep=",")
"""


def main() -> None:
    parser = argparse.ArgumentParser(description="What counting the rides of a month costs.")
    parser.add_argument("--files", type=int, default=2)
    parser.add_argument("--megabytes", type=int, default=64)
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--awk", default="awk", help="for example 'busybox awk'")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as directory:
        header, *rows = sample_rows()
        place = header.rstrip().split(b",").index(COLUMN.encode()) + 1
        big = pathlib.Path(directory, "big.csv")
        files = [big.with_name(f"{i}.csv") for i in range(args.files)]
        for file in files:
            write(file, header, rows, args.megabytes * 10**6)
        small = big.with_name("small.csv")
        small.write_bytes(header + b"".join(rows[:10]))
        commands = alternatives(args.awk, place)
        agree(commands, files[0])
        seconds = measure(commands, files, args.runs)
        starts = measure(commands, [small] * STARTS, args.runs)
    gigabytes = sum(seconds.pop("bytes")) / 1e9
    starts.pop("bytes")
    print_table(args, gigabytes, seconds, starts)


def sample_rows() -> list[bytes]:
    """Return the header of the bundled months, and the rows of those that share it."""
    header, rows = b"", []
    for path in sorted((ROOT / "samples" / "taxi").glob("*.csv")):
        first, *rest = path.read_bytes().splitlines(keepends=True)
        header = header or first
        rows += rest if first == header else []
    return [header, *rows]


def write(path: pathlib.Path, header: bytes, rows: list[bytes], size: int) -> None:
    """Write the rows again and again, up to a size in bytes."""
    body = b"".join(rows)
    with path.open("wb") as file:
        file.write(header)
        for _ in range(size // len(body)):
            file.write(body)


def alternatives(awk: str, place: int) -> dict[str, str]:
    """Return label -> command; each reads a month on stdin and writes `value,count` lines."""
    script = {
        name: shlex.quote(str(SCRIPTS / f"{name}.awk"))
        for name in ("csv", "select_columns", "count_rows")
    }
    select = f"{awk} -f {script['csv']} -f {script['select_columns']} -- {COLUMN}"
    count = f"{awk} -f {script['csv']} -f {script['count_rows']}"
    show = 'END { for (k in c) printf "%s,%.0f\\n", k, c[k] }'
    python = shlex.quote(sys.executable)
    return {
        "bash alone": "cat > /dev/null < /dev/null",
        "**select_columns.awk, count_rows.awk**": f"{select} | {count}",
        "select_columns.awk alone": f"{select} > /dev/null",
        f"cut -d, -f{place}, awk count": f"cut -d, -f{place} | {awk} 'NR > 1 {{ c[$0]++ }} {show}'",
        "awk -F, count": f"{awk} -F, 'NR > 1 {{ c[${place}]++ }} {show}'",
        "Python, split and Counter": f"{python} -I -S -c {shlex.quote(SPLIT_COUNTER)}",
        "Python, csv and Counter": f"{python} -I -S -c {shlex.quote(CSV_MODULE)}",
    }


def agree(commands: dict[str, str], file: pathlib.Path) -> None:
    """Refuse to compare commands that do not count the same."""
    found = {}
    for label, command in commands.items():
        lines = sorted(output(command, file).splitlines())
        if lines:
            found[label] = lines
    if len({tuple(lines) for lines in found.values()}) != 1:
        raise SystemExit(f"the commands disagree: {found}")


def measure(
    commands: dict[str, str], files: list[pathlib.Path], runs: int
) -> dict[str, list[float]]:
    """Return label -> CPU seconds of each run over all files; and the `bytes` of the files."""
    taken: dict[str, list[float]] = {label: [] for label in commands}
    for _ in range(runs):
        for label, command in commands.items():
            before = cpu_s()
            for file in files:
                output(command, file)
            taken[label].append(cpu_s() - before)
    return {**taken, "bytes": [file.stat().st_size for file in files]}


def output(command: str, file: pathlib.Path) -> bytes:
    """Run a command as a step is run, on one file."""
    with file.open("rb") as stdin:
        bash = ["bash", "--norc", "--noprofile", "-euo", "pipefail", "-c", command]
        environ = {**os.environ, "LC_ALL": "C"}
        return subprocess.run(
            bash, stdin=stdin, env=environ, stdout=subprocess.PIPE, check=True
        ).stdout


def cpu_s() -> float:
    """Return the CPU seconds of all children so far."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def print_table(
    args: argparse.Namespace,
    gigabytes: float,
    seconds: dict[str, list[float]],
    starts: dict[str, list[float]],
) -> None:
    """Print one line per command: medians."""
    print(f"{args.files} x {args.megabytes} MB, {args.runs} runs, {args.awk}, Python", end=" ")
    print(".".join(map(str, sys.version_info[:3])) + "\n")
    print("| command | CPU s/GB | start-up, CPU ms |")
    print("|-|-|-|")
    for label, taken in seconds.items():
        start_ms = statistics.median(starts[label]) / STARTS * 1000
        print(f"| {label} | {statistics.median(taken) / gigabytes:.2f} | {start_ms:.1f} |")


if __name__ == "__main__":
    main()
