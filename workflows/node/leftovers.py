"""Leftovers of runs on a node beside outputs: shipped files, other versions' runtimes."""

import contextlib
import glob
import os
import re
import sys
import time
from collections.abc import Iterator, Sequence
from typing import Any

from workflows.node.files import remove
from workflows.node.storage import Storage

_RUNTIME = re.compile(r"runtime-[0-9a-f]{20}\.pyz")


def found(storage: Storage) -> "list[dict[str, Any]]":
    """Return what there is: its kind (``file`` or ``runtime``), name, bytes and age in seconds.

    This runtime's own program is not among it, nor is one that any process runs.
    """
    now = time.time()
    items = []
    for kind, path in _candidates(storage):
        with contextlib.suppress(OSError):
            status = os.stat(path)
            about = {"bytes": status.st_size, "age_s": now - status.st_mtime}
            items.append({"kind": kind, "name": os.path.basename(path), **about})
    return items


def discard(storage: Storage, names: Sequence[str]) -> int:
    """Remove what has these names; return how many there were."""
    chosen = [path for _, path in _candidates(storage) if os.path.basename(path) in names]
    for path in chosen:
        remove(path)
    return len(chosen)


def _candidates(storage: Storage) -> "Iterator[tuple[str, str]]":
    files = os.path.join(storage.root, "files")
    for name in sorted(os.listdir(files)):
        yield "file", os.path.join(files, name)
    program = os.path.abspath(sys.argv[0])
    folder = os.path.dirname(program)
    others = [name for name in sorted(os.listdir(folder)) if _RUNTIME.fullmatch(name)]
    others = [name for name in others if name != os.path.basename(program)]
    if others:
        running = b"\0".join(_command_lines())
        for name in others:
            if os.fsencode(name) not in running:
                yield "runtime", os.path.join(folder, name)


def _command_lines() -> Iterator[bytes]:
    for path in glob.glob("/proc/[0-9]*/cmdline"):
        with contextlib.suppress(OSError), open(path, "rb") as file:
            yield file.read()
