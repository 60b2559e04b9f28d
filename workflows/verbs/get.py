"""``workflows get``: the same file of every node, each into a directory of its own here."""

import argparse
import os
import shlex

from workflows import fleetkeys
from workflows.errors import UsageError, WorkflowsError
from workflows.verbs.onfleet import add_fleet, exit_code, say


def add(parser: argparse.ArgumentParser) -> None:
    """Add the verb's arguments."""
    parser.add_argument("path", metavar="PATH", help="absolute, on the nodes")
    parser.add_argument("folder", metavar="DIR", help="here; node 0's file becomes DIR/0/name")
    parser.add_argument("--node", type=int, action="append", metavar="N", help="only of this slot")
    add_fleet(parser)


def run(arguments: argparse.Namespace) -> int:
    """Return 0 if all nodes had it, 1 if one had not, 3 if nodes are lost."""
    if not arguments.path.startswith("/") or arguments.path.endswith("/"):
        raise UsageError(f"{arguments.path} must be a file's absolute path; for keys: workflows cp")
    with fleetkeys.opened(arguments.fleet) as fleet:

        def get(slot: int) -> None:
            data = fleetkeys.executed(fleet, slot, f"cat -- {shlex.quote(arguments.path)}")
            folder = os.path.join(arguments.folder, str(slot))
            try:
                os.makedirs(folder, exist_ok=True)
                with open(os.path.join(folder, os.path.basename(arguments.path)), "wb") as file:
                    file.write(data)
            except OSError as error:
                raise WorkflowsError(f"cannot write to {folder}: {error.strerror}") from error

        answers = fleetkeys.outcomes(fleet, fleetkeys.chosen_slots(fleet, arguments.node), get)
    errors = [answer for answer in answers.values() if isinstance(answer, WorkflowsError)]
    for error in errors:
        say(str(error))
    return exit_code(errors)
