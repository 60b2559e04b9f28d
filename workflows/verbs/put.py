"""``workflows put``: a file of this machine to the same path on every node."""

import argparse
import contextlib
import os
import shutil
import stat
import tempfile
from collections.abc import Iterator
from typing import IO

from workflows.errors import UsageError, WorkflowsError
from workflows.fleets.fleet import Fleet
from workflows.verbs.onfleet import add_nodes, on_each

_CHUNK = 1 << 20


def add(parser: argparse.ArgumentParser) -> None:
    """Add the verb's arguments."""
    parser.add_argument("file", metavar="FILE", help="of this machine")
    parser.add_argument("path", metavar="PATH", help="absolute, on the nodes; dir/ keeps the name")
    add_nodes(parser)


def run(arguments: argparse.Namespace) -> int:
    """Return 0 if it is on all nodes, 1 if it could not be written, 3 if nodes are lost."""
    path = arguments.path
    if not path.startswith("/"):
        raise UsageError(f"{path} must be absolute; for keys: workflows cp")
    path += os.path.basename(arguments.file) if path.endswith("/") else ""
    with _opened(arguments.file) as (file, mode):

        def put(fleet: Fleet, slot: int) -> None:
            message = {"op": "place", "path": path, "mode": mode}
            answer = fleet.channel(slot).store(message, _chunks(file))
            if answer["event"] == "failed":
                raise WorkflowsError(f"{fleet.nodes[slot].name}: {path}: {answer['why']}")

        return on_each(arguments, put)


@contextlib.contextmanager
def _opened(path: str) -> Iterator[tuple[IO[bytes], int]]:
    """Open a file that all nodes are to have; yield it and its mode. A pipe is read first."""
    try:
        with open(path, "rb") as file, tempfile.TemporaryFile() as kept:
            mode = os.fstat(file.fileno()).st_mode
            if not stat.S_ISREG(mode):
                shutil.copyfileobj(file, kept)
                kept.flush()
            yield file if stat.S_ISREG(mode) else kept, mode & 0o777
    except OSError as error:
        raise UsageError(f"cannot read {path}: {error.strerror}") from error


def _chunks(file: IO[bytes]) -> Iterator[bytes]:
    """Yield the bytes of a file that other threads read as well."""
    at = 0
    try:
        while data := os.pread(file.fileno(), _CHUNK, at):
            yield data
            at += len(data)
    except OSError as error:
        raise WorkflowsError(f"cannot read {file.name}: {error.strerror}") from error
