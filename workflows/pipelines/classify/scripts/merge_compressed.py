"""Compressed CSV files as one, under one header.

    python3 merge_compressed.py < PATHS > FILE

Promise: stdin names files of two gzip members each, a header and rows. The output is the first
file, followed by the rows of all others, in the order of their names on stdin; nothing is
compressed again. Files with different headers are refused. Metrics: bytes_headers, what was left.
"""

import os
import shutil
import sys
import zlib
from typing import IO


def main() -> None:
    out = sys.stdout.buffer
    first = b""
    left_out = 0
    for number, line in enumerate(sys.stdin.buffer.read().splitlines()):
        with open(line, "rb") as file:
            header, size = first_member(file)
            if number == 0:
                first = header
                size = 0
            elif header != first:
                name = os.fsdecode(line)
                sys.exit(f"merge_compressed: the header of {name} is {header!r}, not {first!r}")
            file.seek(size)
            left_out += size
            shutil.copyfileobj(file, out, 1 << 20)
    with open(os.environ["WORKFLOWS_METRICS"], "a", encoding="ascii") as file:
        file.write(f"bytes_headers={left_out}\n")


def first_member(file: "IO[bytes]") -> "tuple[bytes, int]":
    """Return what the first gzip member holds, and its bytes."""
    reader = zlib.decompressobj(31)
    text, size = b"", 0
    while not reader.eof:
        data = file.read(4096)
        if not data:
            sys.exit(f"merge_compressed: {file.name} is cut off")
        text += reader.decompress(data)
        size += len(data)
    return text, size - len(reader.unused_data)


if __name__ == "__main__":
    main()
