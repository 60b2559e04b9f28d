"""``workflows verify``: recount the source with an independent program, and compare.

DuckDB does it where it is installed, else Python's csv module: slower, but nothing of the pipeline.
"""

import argparse
import collections
import contextlib
import csv
import http.client
import io
import json
import shutil
import tempfile
from collections.abc import Iterator
from typing import Any

from workflows.errors import SourceError, UsageError
from workflows.model import SourceKey
from workflows.node.urls import scheme_of, shown
from workflows.planning.source import list_source
from workflows.planning.sourceweb import open_url
from workflows.storage import s3
from workflows.verbs.results import last_result

PARQUET = ".parquet"
Counts = dict[tuple[str, ...], int]


def add(parser: argparse.ArgumentParser) -> None:
    """Add the verb's arguments."""
    parser.add_argument("--engine", choices=("auto", "duckdb", "csv"), default="auto")


def run(arguments: argparse.Namespace) -> int:
    """Print whether the last result is right; return 1 and show the smallest difference if not.

    Raises:
        SourceError: the source is not what was counted.
    """
    target = last_result("MergeCounts")
    manifest = target.manifest() or {}
    keys = _unchanged(manifest["dataset"], target.store.url)
    columns = json.loads(manifest["params"]["columns"])
    engine, count = _engine(arguments.engine)
    if count is count_csv and any(key.name.endswith(PARQUET) for key in keys):
        raise UsageError("only DuckDB reads Parquet: pip install duckdb")
    expected: collections.Counter[tuple[str, ...]] = collections.Counter()
    for key in keys:
        with _brought(key) as path:
            expected.update(count(path, [normal_name(column) for column in columns]))
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


def _unchanged(counted: dict[str, Any], checkpoint: str) -> list[SourceKey]:
    """Return the keys of the source, listed again, if they are those that were counted.

    Raises:
        SourceError: some were changed, added or removed since.
    """
    was = {name: (size, etag) for name, _, size, etag in counted["keys"]}
    keys = list_source(counted["source"], counted["pattern"], checkpoint)
    now = {key.name: (key.size, key.etag) for key in keys}
    changes = [
        f"{name} is {'gone' if name not in now else 'new' if name not in was else 'changed'}"
        for name in sorted(was.keys() | now.keys())
        if was.get(name) != now.get(name)
    ]
    if changes:
        more = f" (and {len(changes) - 1} more)" if changes[1:] else ""
        raise SourceError(
            f"the result cannot be verified: {shown(counted['source'])} has changed since it was"
            f" made: {changes[0]}{more}. Run the pipeline again, then verify"
        )
    return keys


@contextlib.contextmanager
def _brought(key: SourceKey) -> Iterator[str]:
    """Yield the path of a source key; of a URL that of a copy, removed afterwards.

    Raises:
        SourceError: it cannot be fetched, or not all of it.
    """
    if not scheme_of(key.url):
        yield key.url
        return
    suffix = PARQUET if key.name.endswith(PARQUET) else ""
    with tempfile.NamedTemporaryFile(prefix="workflows-verify-", suffix=suffix) as file:
        try:
            with open_url(s3.signed(key.url)) as answer:
                shutil.copyfileobj(answer, file, 1 << 20)
        except (OSError, http.client.HTTPException) as error:
            raise SourceError(f"cannot fetch {key.shown}: {error}; try again") from error
        file.flush()
        if key.size is not None and file.tell() != key.size:
            raise SourceError(f"{key.shown} came with {file.tell()} of {key.size} bytes; try again")
        yield file.name


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


def count_csv(path: str, columns: list[str]) -> Counts:
    """Count with Python's csv module."""
    counts: collections.Counter[tuple[str, ...]] = collections.Counter()
    with open(path, newline="", encoding="utf-8-sig", errors="surrogateescape") as file:
        rows = csv.reader(file)
        names = [normal_name(name) for name in next(rows, [])]
        where = [names.index(column) for column in columns] if names else []
        for row in rows:
            if row and len(row) > max(where):
                counts[tuple(normal_value(row[i]) for i in where)] += 1
    return dict(counts)


def count_duckdb(path: str, columns: list[str]) -> Counts:
    """Count with DuckDB, everything read as text."""
    import duckdb

    counts: collections.Counter[tuple[str, ...]] = collections.Counter()
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
