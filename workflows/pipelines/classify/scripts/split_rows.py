"""The rows of a CSV file in pieces of some rows each, every one with the header.

    python3 -m split_rows ROWS < FILE

Promise: the files are written in the order of the rows, their names (unlike those of any other key)
are printed in that order and sort in it. Rows are unchanged; a file without rows makes one piece
without rows, an empty file none. Metrics: rows_in = rows_out.
"""

import itertools
import os
import sys
import zlib

from csv_rows import metrics, records


def main(size: int) -> None:
    # Names that differ between keys: equal ones would have to meet on one node.
    suffix = f"{zlib.crc32(os.fsencode(os.environ.get('WORKFLOWS_KEY', ''))):08x}"
    rows = records(sys.stdin.buffer)
    header = next(rows, b"")
    rows_out = 0
    for number in itertools.count():
        piece = list(itertools.islice(rows, size))
        if not piece and (number or not header):
            break
        name = f"rows_{number:06d}_{suffix}.csv"
        with open(name, "wb") as file:
            file.write(header)
            file.writelines(piece)
        print(name)
        rows_out += len(piece)
    metrics(rows_in=rows_out + sum(1 for _ in rows), rows_out=rows_out)


if __name__ == "__main__":
    main(int(sys.argv[1]))
