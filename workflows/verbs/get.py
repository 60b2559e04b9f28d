"""``workflows get``: the same file of every node, each into a directory of its own here."""

import argparse
import contextlib
import os
import shlex

from workflows.errors import UsageError, WorkflowsError
from workflows.fleets.fleet import Fleet
from workflows.verbs import fleetkeys
from workflows.verbs.onfleet import add_nodes, on_each


def add(parser: argparse.ArgumentParser) -> None:
    """Add the verb's arguments."""
    parser.add_argument("path", metavar="PATH", help="absolute, on the nodes")
    parser.add_argument("folder", metavar="DIR", help="here; node 0's file becomes DIR/0/name")
    add_nodes(parser)


def run(arguments: argparse.Namespace) -> int:
    """Return 0 if all nodes had it, 1 if one had not, 3 if nodes are lost."""
    if not arguments.path.startswith("/") or arguments.path.endswith("/"):
        raise UsageError(f"{arguments.path} must be a file's absolute path; for keys: workflows cp")

    def get(fleet: Fleet, slot: int) -> None:
        chunks = fleetkeys.printed(fleet, slot, f"cat -- {shlex.quote(arguments.path)}")
        folder = os.path.join(arguments.folder, str(slot))
        target = os.path.join(folder, os.path.basename(arguments.path))
        tmp = f"{target}.{os.getpid()}.part"
        try:
            os.makedirs(folder, exist_ok=True)
            with open(tmp, "wb") as file:
                file.writelines(chunks)
            os.replace(tmp, target)
        except OSError as error:
            raise WorkflowsError(f"cannot write to {folder}: {error.strerror}") from error
        finally:
            with contextlib.suppress(OSError):
                os.unlink(tmp)

    return on_each(arguments, get)
