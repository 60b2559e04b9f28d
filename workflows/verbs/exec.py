"""``workflows exec CMD``: a command on every node; prints its lines as they come."""

import argparse
import os
import sys
import threading
from typing import Any

from workflows import fleetkeys
from workflows.errors import NodeLost, WorkflowsError
from workflows.fleet import Fleet
from workflows.verbs.onfleet import add_nodes, command, exit_code, say, seconds


def add(parser: argparse.ArgumentParser) -> None:
    """Add the verb's arguments."""
    parser.add_argument(
        "command", type=command, metavar="CMD", help="what bash runs, in an empty directory"
    )
    parser.add_argument("--timeout", type=seconds, default=0.0, metavar="SECONDS")
    add_nodes(parser)


def run(arguments: argparse.Namespace) -> int:
    """Return 0 if it succeeded on all nodes, 1 if it failed on one, 3 if nodes are lost."""
    with fleetkeys.opened(arguments.fleet) as fleet:
        slots = fleetkeys.chosen_slots(fleet, arguments.node)
        screen = threading.Lock()

        def execute(slot: int) -> dict[str, Any]:
            return _execute(fleet, slot, arguments, screen)

        errors = []
        for slot, outcome in fleetkeys.outcomes(fleet, slots, execute).items():
            name = fleet.nodes[slot].name
            if isinstance(outcome, WorkflowsError):
                errors.append(outcome)
                say(str(outcome) if isinstance(outcome, NodeLost) else f"{name}: {outcome}")
            elif outcome["status"]:
                why = outcome["why"] or f"exited {outcome['status']}"
                errors.append(WorkflowsError(why))
                say(f"{name}: {why}")
    return exit_code(errors)


def _execute(
    fleet: Fleet, slot: int, arguments: argparse.Namespace, screen: threading.Lock
) -> dict[str, Any]:
    prefix = os.fsencode(f"{fleet.nodes[slot].name}: ")
    parts = {1: b"", 2: b""}
    outs = {1: sys.stdout.buffer, 2: sys.stderr.buffer}

    def show(fd: int, data: bytes) -> None:
        with screen:  # whole lines, or those of several nodes would mix
            outs[fd].write(b"".join(prefix + line + b"\n" for line in data.split(b"\n")))
            outs[fd].flush()

    message = {"op": "exec", "command": arguments.command, "timeout_s": arguments.timeout}
    last: dict[str, Any] = {}
    for event, data in fleet.channel(slot).stream(message, "ended"):
        last = event
        if data:
            lines, newline, rest = (parts[event["fd"]] + data).rpartition(b"\n")
            parts[event["fd"]] = rest
            if newline:
                show(event["fd"], lines)
    for fd, rest in parts.items():
        if rest:
            show(fd, rest)
    return last
