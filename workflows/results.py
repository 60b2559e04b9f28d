"""Results as a person reads them: where they are, and a table."""

import csv
import io
import os
import sys
from typing import TextIO

from workflows.targets import CheckpointTarget


def table(data: bytes, top: int | None = None) -> str:
    r"""Return ``value,count`` lines as aligned columns, the first `top` rows of them.

    >>> print(table(b"1,106386\n,2150\n"))
    1        106386
    (blank)    2150
    """
    rows = list(csv.reader(io.StringIO(data.decode("utf-8", "backslashreplace"))))[:top]
    shown = [[cell or "(blank)" for cell in row] for row in rows]
    if not shown:
        return "(nothing was counted)"
    columns = max(map(len, shown))
    widths = [
        max((len(row[i]) for row in shown if i < len(row)), default=0) for i in range(columns)
    ]
    lines = []
    for row in shown:
        cells = [cell.ljust(width) for cell, width in zip(row[:-1], widths, strict=False)]
        lines.append("  ".join([*cells, row[-1].rjust(widths[len(row) - 1])]))
    return "\n".join(lines)


def show(target: CheckpointTarget, top: int | None = None, out: TextIO | None = None) -> None:
    """Print a checkpoint's path, then its content as a table; on stdout unless told otherwise."""
    stream = out or sys.stdout
    parts = [
        (target.store.locate(part["object"]), part) for part in (target.manifest() or {})["parts"]
    ]
    for (path, _), (_, data) in zip(parts, target.read(), strict=True):
        print(path, file=stream)
        print(table(data, top), file=stream)
    stream.flush()


def announce(target: CheckpointTarget) -> None:
    """Show what a run made; that a reader like `head` has had enough is no failure of the run."""
    try:
        show(target)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
