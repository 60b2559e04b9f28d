"""Results as a person reads them: where they are, and a table."""

import csv
import io
import os
import sys
from collections.abc import Callable
from typing import TextIO

from workflows.targets import CheckpointTarget

_FEW, _SHORT = 20, 1 << 16  # outputs that are named one by one, and bytes that are shown


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


def show_plainly(target: CheckpointTarget, out: TextIO | None = None) -> None:
    """Print where each output is, and its content if that is short text; of many, where all are.

    Raises:
        CheckpointError: one is missing or damaged.
    """
    stream = out or sys.stdout
    manifest = target.manifest() or {"parts": [], "attempt": ""}
    parts = manifest["parts"]
    if len(parts) > _FEW:
        print(target.store.locate(manifest["attempt"]), file=stream)
    elif sum(part["bytes"] for part in parts) > _SHORT:
        for part in parts:
            print(target.store.locate(part["object"]), file=stream)
    else:
        for part, (_, data) in zip(parts, target.read(), strict=True):
            print(target.store.locate(part["object"]), file=stream)
            text = _as_text(data)
            print(text, end="" if text.endswith("\n") or not text else "\n", file=stream)
    stream.flush()


def _as_text(data: bytes) -> str:
    """Return `data` as text, or nothing if a terminal could not show it."""
    try:
        text = data.decode("utf-8")
    except UnicodeDecodeError:
        return ""
    return "" if "\0" in text or "\x1b" in text else text


def announce(show_it: Callable[[], None]) -> None:
    """Show what a run made; that a reader like `head` has had enough is no failure of the run."""
    try:
        show_it()
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
