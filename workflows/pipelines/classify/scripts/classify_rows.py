"""The rows of a CSV file, each with what a classifier says of it.

    python3 -m classify_rows FRAME_ROWS CLASSIFIER FILE < CSV

Promise: FILE is compressed, and holds the header and every row, unchanged and in order, with one
more column CLASSIFICATION. It is two gzip members, the header's and the rows', so that such files
can be joined without being read. The module CLASSIFIER has a function classify(frame): it is given
pandas data frames of up to FRAME_ROWS rows, whose values are all text (missing ones are empty), and
returns as many classes. Same rows, same bytes. Metrics: rows_in = rows_out.
"""

import csv
import importlib
import io
import sys
import zlib
from collections.abc import Iterable, Iterator
from typing import Any

from csv_rows import fail, metrics, records

COLUMN = b"CLASSIFICATION"


def main(frame_rows: int, classifier: str, path: str) -> None:
    classify = classifier_of(classifier)
    header, *rows = list(records(sys.stdin.buffer)) or [b""]
    with open(path, "wb") as file:
        file.write(compressed([joined(header, COLUMN)]))
        classes = classified(header, rows, frame_rows, classify)
        written = [joined(row, each) for row, each in zip(rows, classes)]
        file.write(compressed(written))
    print(path)
    metrics(rows_in=len(rows), rows_out=len(written))


def classifier_of(name: str) -> Any:
    try:
        return importlib.import_module(name).classify
    except ModuleNotFoundError as error:
        return fail(
            f"{error.name} is not installed on this node: python3 -m pip install {error.name}", 3
        )


def classified(
    header: bytes, rows: "list[bytes]", frame_rows: int, classify: Any
) -> "Iterator[bytes]":
    """Yield the class of each row as it stands in a CSV file."""
    if not rows:
        return
    frame = frame_of(header, rows)
    for start in range(0, len(rows), frame_rows):
        part = frame.iloc[start : start + frame_rows].reset_index(drop=True)
        classes = [str(each) for each in classify(part)]
        if len(classes) != len(part):
            fail(f"the classifier gave {len(classes)} classes for {len(part)} rows", 4)
        yield from map(as_field, classes)


def frame_of(header: bytes, rows: "list[bytes]") -> Any:
    import pandas as pd

    text = io.BytesIO(b"".join([header, *rows]))
    try:
        frame = pd.read_csv(
            text, dtype=str, na_filter=False, index_col=False, encoding_errors="surrogateescape"
        )
    except pd.errors.ParserError as error:
        return fail(f"not a table: {error}", 4)
    if len(frame) != len(rows):
        fail(f"pandas sees {len(frame)} rows where there are {len(rows)}", 4)
    return frame.fillna("")  # of rows that are cut short


def as_field(text: str) -> bytes:
    line = io.StringIO()
    csv.writer(line, lineterminator="").writerow([text])
    return line.getvalue().encode("utf-8", "surrogateescape")


def joined(row: bytes, field: bytes) -> bytes:
    """Return a row with one more field, and its own line end."""
    end = b"\r\n" if row.endswith(b"\r\n") else b"\n"
    return row[: -len(end)] + b"," + field + end


def compressed(rows: "Iterable[bytes]") -> bytes:
    """Return one gzip member, without a time in it."""
    maker = zlib.compressobj(6, zlib.DEFLATED, 31)
    return maker.compress(b"".join(rows)) + maker.flush()


if __name__ == "__main__":
    main(int(sys.argv[1]), sys.argv[2], sys.argv[3])
