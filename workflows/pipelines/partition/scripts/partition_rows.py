"""The rows of a CSV file, spread over files by the whole number in one column and by their hash.

    python3 -m partition_rows FILES COLUMN NAME < FILE

Promise: each row whose COLUMN holds a whole number N (1.0 is 1) is written, unchanged and without
the header, to one of the FILES files NAME_N_000.csv, NAME_N_001.csv, ...; the names of the files
that have rows are printed. All other rows are rejected: counted, and not written. Which file a row
is in depends on the row alone, so the same input makes the same files, whenever and wherever.
Metrics: rows_in = rows_out + rows_rejected.
"""

import re
import sys
import zlib
from collections.abc import Iterator

from csv_rows import fail, metrics, normal, records

HELD = 1 << 24  # bytes of rows held back, so that a file is opened once for many rows
MOST_VALUES = 1000
WHOLE = re.compile(rb"\s*([0-9]{1,9})(?:\.0*)?\s*\Z")
Buckets = dict[tuple[str, int], list[bytes]]  # (number, part) -> rows


class Rejected(Exception):
    """A row that has no whole number where one should be."""


def main(files: int, column: str, name: str) -> None:
    rows = records(sys.stdin.buffer)
    place = place_of(column.encode(), next(rows, b""))
    held: Buckets = {}
    names: set[str] = set()
    numbers: dict[bytes, str] = {}
    size = rows_out = rejected = 0
    for row in rows:
        try:
            number = number_in(row, place, numbers)
        except Rejected:
            rejected += 1
            continue
        held.setdefault((number, zlib.crc32(row) % files), []).append(row)
        rows_out += 1
        size += len(row)
        if size > HELD:
            names.update(flush(held, name))
            size = 0
    names.update(flush(held, name))
    print("".join(f"{each}\n" for each in sorted(names)), end="")
    metrics(rows_in=rows_out + rejected, rows_out=rows_out, rows_rejected=rejected)


def place_of(column: bytes, header: bytes) -> int:
    names = [normal(name) for name in header.split(b",")]
    if header and names.count(normal(column)) != 1:
        fail(f"not one column {column.decode()!r} in the header: {header.decode('latin-1')!r}", 3)
    return names.index(normal(column)) if header else 0


def number_in(row: bytes, place: int, numbers: "dict[bytes, str]") -> str:
    """Return the whole number in a row; `numbers` remembers what texts mean."""
    if b'"' in row:
        text = quoted_field(row, place)
    else:
        fields = row.split(b",", place + 1)
        if len(fields) <= place:
            raise Rejected
        text = fields[place]
    if text not in numbers:
        if len(numbers) >= MOST_VALUES:
            fail(f"more than {MOST_VALUES} different values, such as {text!r}: is this a count?", 4)
        found = WHOLE.match(text)
        numbers[text] = str(int(found[1])) if found else ""
    if not numbers[text]:
        raise Rejected
    return numbers[text]


def quoted_field(row: bytes, place: int) -> bytes:
    import csv

    fields = next(csv.reader([row.decode("latin-1")]))
    if len(fields) <= place:
        raise Rejected
    return fields[place].encode("latin-1")


def flush(held: Buckets, name: str) -> "Iterator[str]":
    """Append what is held to its files; yield their names."""
    for (number, part), rows in sorted(held.items()):
        path = f"{name}_{number}_{part:03d}.csv"
        with open(path, "ab") as file:
            file.writelines(rows)
        yield path
    held.clear()


if __name__ == "__main__":
    main(int(sys.argv[1]), sys.argv[2], sys.argv[3])
