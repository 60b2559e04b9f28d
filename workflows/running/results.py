"""Results for a person: their paths, and a table."""

import csv
import gzip
import hashlib
import io
import sys
import tarfile
from collections.abc import Callable
from typing import TextIO

from workflows.errors import UsageError, WorkflowsError
from workflows.reporting import stdio
from workflows.reporting.runlog import named
from workflows.storage.replacing import replace
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


def left_out(target: CheckpointTarget) -> str:
    """Return what is to be said of a result that was made without some keys; nothing of others."""
    missing = (target.manifest() or {}).get("left_out", [])
    if not missing:
        return ""
    keys = [[f"{one['step']} of {one['key']}", one["why"]] for one in missing]
    return f"made without {named(keys)}; the next run of {target.step} retries them"


def _as_text(data: bytes) -> str:
    """Return `data` as text, or nothing if a terminal could not show it."""
    try:
        text = data.decode("utf-8")
    except UnicodeDecodeError:
        return ""
    return "" if "\0" in text or "\x1b" in text else text


def announce(step: str, show_it: Callable[[], None]) -> None:
    """Show what a run made.

    Raises:
        WorkflowsError: stdout is full or closed, or its reader is gone.
    """
    try:
        stdio.require_stdout()
        show_it()
    except OSError as error:
        stdio.discard()
        lost = stdio.OutputLost(error.errno, error.strerror)
        raise WorkflowsError(
            f"the result could not be printed: {lost};"
            f" it is kept: workflows results {step} prints it"
        ) from error


def write_to(target: CheckpointTarget, path: str) -> str:
    """Write a result into one file, whole or not at all; return its SHA-256.

    A .tgz holds every output by its name, and is the same for the same outputs.

    Raises:
        CheckpointError: an output is missing or damaged.
        UsageError: there are several, and `path` is no .tgz; or it cannot be written.
    """
    parts = list(target.read())
    if path.endswith((".tgz", ".tar.gz")):
        data = _archive(parts)
    elif len(parts) == 1:
        data = parts[0][1]
    else:
        raise UsageError(f"{target.step} has {len(parts)} outputs: name a file that ends in .tgz")
    replace(path, data)
    return hashlib.sha256(data).hexdigest()


def _archive(parts: list[tuple[str, bytes]]) -> bytes:
    packed = io.BytesIO()
    with (
        gzip.GzipFile(fileobj=packed, mode="wb", mtime=0) as zipped,
        tarfile.open(fileobj=zipped, mode="w") as archive,
    ):
        for name, data in sorted(parts):
            about = tarfile.TarInfo(name)
            about.size = len(data)
            archive.addfile(about, io.BytesIO(data))
    return packed.getvalue()
