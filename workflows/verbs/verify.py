"""``workflows verify``: count the source again with an independent program, and compare.

DuckDB does it where it is installed, else Python's csv module: slower, but nothing of the pipeline.
"""

import argparse
import collections
import csv
import io
from typing import Any

from workflows.errors import UsageError
from workflows.verbs.results import last_result

PARQUET = ".parquet"
Counts = dict[tuple[str, ...], int]


def add(parser: argparse.ArgumentParser) -> None:
    """Add the verb's arguments."""
    parser.add_argument("--engine", choices=("auto", "duckdb", "csv"), default="auto")


def run(arguments: argparse.Namespace) -> int:
    """Print whether the last result is right; return 1 and show the smallest difference if not."""
    import json

    target = last_result("MergeCounts")
    manifest = target.manifest() or {}
    paths = [url for _, url, _, _ in manifest["dataset"]["keys"]]
    if any("://" in path for path in paths):
        raise UsageError("verify reads local sources only; this result has URLs")
    columns = json.loads(manifest["params"]["columns"])
    engine, count = _engine(arguments.engine)
    if count is count_csv and any(path.endswith(PARQUET) for path in paths):
        raise UsageError("only DuckDB reads Parquet: pip install duckdb")
    expected = count(paths, [normal_name(column) for column in columns])
    found: Counts = {}
    for _, data in target.read():
        for row in csv.reader(io.StringIO(data.decode("utf-8", "surrogateescape"))):
            found[tuple(row[:-1])] = int(row[-1])
    wrong = sorted(set(found.items()) ^ set(expected.items()))
    if wrong:
        value = wrong[0][0]
        print(
            f"WRONG: {','.join(value) or '(blank)'} was counted {found.get(value, 0)} times,"
            f" {engine} counts {expected.get(value, 0)} ({len(wrong)} differences)"
        )
        return 1
    print(f"right: {sum(found.values())} rows, {len(found)} values, as {engine} counts them")
    return 0


def _engine(wanted: str) -> tuple[str, Any]:
    if wanted != "csv":
        try:
            import duckdb

            return f"DuckDB {duckdb.__version__}", count_duckdb
        except ImportError as error:
            if wanted == "duckdb":
                raise UsageError("DuckDB is not installed; pip install duckdb") from error
    return "Python's csv module", count_csv


def normal_name(name: str) -> str:
    """Return a column's name as names are compared: without case, blanks, quotes and BOM."""
    return name.strip().strip("\ufeff").strip().strip('"').strip().lower()


def normal_value(value: str) -> str:
    """Return a value as values are counted: trimmed, and 1.0 as 1."""
    value = value.strip()
    whole, dot, rest = value.partition(".")
    is_whole = dot and rest and not rest.strip("0") and whole.removeprefix("-").isdecimal()
    return whole if is_whole else value


def count_csv(paths: list[str], columns: list[str]) -> Counts:
    """Count with Python's csv module."""
    counts: collections.Counter[tuple[str, ...]] = collections.Counter()
    for path in paths:
        with open(path, newline="", encoding="utf-8-sig", errors="surrogateescape") as file:
            rows = csv.reader(file)
            names = [normal_name(name) for name in next(rows, [])]
            where = [names.index(column) for column in columns] if names else []
            for row in rows:
                if row and len(row) > max(where):
                    counts[tuple(normal_value(row[i]) for i in where)] += 1
    return dict(counts)


def count_duckdb(paths: list[str], columns: list[str]) -> Counts:
    """Count with DuckDB, everything read as text."""
    import duckdb

    counts: collections.Counter[tuple[str, ...]] = collections.Counter()
    for path in paths:
        if path.endswith(PARQUET):
            read = duckdb.read_parquet(path)
        else:
            read = duckdb.read_csv(
                path, all_varchar=True, header=True, null_padding=True, strict_mode=False
            )
        names = {normal_name(name): name for name in read.columns}
        chosen = ", ".join('"' + names[column].replace('"', '""') + '"' for column in columns)
        for *values, count in read.aggregate(f"{chosen}, count(*)", chosen).fetchall():
            texts = ("" if value is None else str(value) for value in values)
            counts[tuple(map(normal_value, texts))] += count
    return dict(counts)
