"""``workflows put``: a file of this machine to the same path on every node."""

import argparse
import os
import shlex

from workflows import fleetkeys
from workflows.errors import UsageError
from workflows.fleet import Fleet
from workflows.keys import file_digest
from workflows.verbs.onfleet import add_nodes, on_each


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
    try:
        with open(arguments.file, "rb") as file:
            data = file.read()
            mode = os.fstat(file.fileno()).st_mode & 0o777
    except OSError as error:
        raise UsageError(f"cannot read {arguments.file}: {error.strerror}") from error
    digest = file_digest(data)
    quoted = shlex.quote(path)
    # By a temporary name beside it: whoever reads the path meanwhile sees the old file or the new.
    command = (
        f'mkdir -p -- "$(dirname -- {quoted})"; tmp={quoted}.$$.tmp;'
        f" trap 'rm -f -- \"$tmp\"' EXIT;"
        f' install -m {mode:o} -- "$WORKFLOWS_ROOT/files/{digest}" "$tmp"; mv -T -- "$tmp" {quoted}'
    )

    def put(fleet: Fleet, slot: int) -> None:
        fleet.channel(slot).ship({digest: data})
        fleetkeys.executed(fleet, slot, command)

    return on_each(arguments, put)
