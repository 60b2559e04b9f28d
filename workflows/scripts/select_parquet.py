"""Chosen columns of a Parquet file, found by name, as CSV; only their bytes are read.

    python3 select_parquet.py passenger_count [NAME...] < FILE > FILE

With csv_rows.py beside it. Promise: what select_columns.awk promises, for Parquet. Names match
without case; types may differ from file to file: 1.0 is written as 1, null as nothing, a time as
text. A name that is missing or ambiguous is never guessed: exit 3. What is no whole Parquet file:
exit 4.
Metrics: rows_in is what the file's footer says, rows_out what was written; rows_rejected is 0.
"""

import os
import shutil
import sys
from typing import Any

from csv_rows import fail, metrics

MAGIC = b"PAR1"
FLOATS = ("FLOAT", "DOUBLE")


def main(wanted: list[str]) -> None:
    """Write the chosen columns of stdin to stdout, and say how many rows there were."""
    import duckdb

    path = seekable()
    check_magic(path)
    try:
        # One thread: a node runs as many of these as it has slots.
        with duckdb.connect(config={"threads": 1}) as database:
            rows_in, written = select(database, path, wanted)
    except duckdb.Error as error:
        fail(f"{name_of_key()} is no whole Parquet file: {error}", 4)
    else:
        with open("selected.csv", "rb") as file:
            shutil.copyfileobj(file, sys.stdout.buffer, 1 << 20)
        metrics(rows_in=rows_in, rows_out=written, rows_rejected=rows_in - written)


def select(database: Any, path: str, wanted: list[str]) -> tuple[int, int]:
    """Write selected.csv; return the rows that the file's footer says, and those written."""
    footer = database.execute("SELECT sum(num_rows) FROM parquet_file_metadata(?)", [path])
    (rows_in,) = footer.fetchone()
    columns = database.execute("DESCRIBE SELECT * FROM read_parquet(?)", [path]).fetchall()
    shown = ", ".join(selected(name, columns) for name in wanted)
    query = f"COPY (SELECT {shown} FROM read_parquet(?)) TO 'selected.csv' (FORMAT csv, HEADER)"  # noqa: S608
    (written,) = database.execute(query, [path]).fetchone()
    return rows_in, written


def seekable() -> str:
    """Return a path to stdin; a pipe is written to a file first: the footer is at the end."""
    if sys.stdin.buffer.seekable():
        return "/proc/self/fd/0"
    with open("stdin.parquet", "wb") as file:
        shutil.copyfileobj(sys.stdin.buffer, file, 1 << 20)
    return file.name


def check_magic(path: str) -> None:
    """Fail at what is not Parquet, such as an error page that was saved as data."""
    with open(path, "rb") as file:
        size = os.fstat(file.fileno()).st_size
        head = file.read(200)
        file.seek(max(0, size - 4))
        tail = file.read()
    if head[:4] != MAGIC or tail != MAGIC:
        start = head[:60].decode("utf-8", "replace").replace("\n", " ")
        what = "is cut off" if head[:4] == MAGIC else f"begins with {start!r}"
        fail(f"{name_of_key()} is no Parquet file: its {size} bytes {what}", 4)


def selected(name: str, columns: list[tuple[str, ...]]) -> str:
    """Return the SQL of one column under the name that was asked for."""
    found = [(given, kind) for given, kind, *_ in columns if normal(given) == normal(name)]
    if len(found) != 1:
        names = ", ".join(given for given, *_ in columns)
        many = "more than one" if found else "no"
        fail(f"{many} column {name!r} among: {names}", 3)
    given, kind = found[0]
    column = quoted(given)
    text = f"coalesce(CAST({column} AS VARCHAR), '')"
    if kind in FLOATS:
        whole = f"{column} = trunc({column}) AND abs({column}) < 1e15"
        text = f"CASE WHEN {whole} THEN CAST(CAST({column} AS BIGINT) AS VARCHAR) ELSE {text} END"
    return f"{text} AS {quoted(normal(name))}"


def normal(name: str) -> str:
    """Return a column's name as names are compared."""
    return name.strip().lower()


def quoted(name: str) -> str:
    """Return a name as SQL has it."""
    return '"' + name.replace('"', '""') + '"'


def name_of_key() -> str:
    """Return what the input is called."""
    return os.environ.get("WORKFLOWS_KEY", "the input")


if __name__ == "__main__":
    main(sys.argv[1:])
