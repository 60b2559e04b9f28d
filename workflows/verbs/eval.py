"""``workflows eval KEY CMD``: a command over one key, where it is; prints what it prints."""

import argparse
import sys

from workflows import fleetkeys
from workflows.config import settings
from workflows.errors import WorkflowsError
from workflows.verbs.onfleet import add_fleet, command, seconds


def add(parser: argparse.ArgumentParser) -> None:
    """Add the verb's arguments."""
    parser.add_argument("key", metavar="KEY", help="step/dir/name")
    parser.add_argument(
        "command", type=command, metavar="CMD", help="what bash runs, with the key on its stdin"
    )
    parser.add_argument("--timeout", type=seconds, default=settings().timeout_s, metavar="SECONDS")
    add_fleet(parser)


def run(arguments: argparse.Namespace) -> int:
    """Print what the command prints, to the byte; return 1 if it fails."""
    name = fleetkeys.parse_key(arguments.key)
    with fleetkeys.opened(arguments.fleet) as fleet:
        found, _ = fleetkeys.find(fleet, name)
        message = {
            "op": "eval",
            "key": name.rest,
            "inputs": [[found.ledger, found.identity, name.rest]],
            "command": arguments.command,
            "timeout_s": arguments.timeout,
        }
        for event, data in fleet.channel(found.slot).stream(message, "ended", "failed"):
            if data:
                sys.stdout.buffer.write(data)
                continue
            sys.stdout.buffer.flush()
            sys.stderr.write(event["stderr"])
            if event["event"] == "failed":
                node = fleet.nodes[found.slot].name
                raise WorkflowsError(f"{name} on {node}: {event['why']}")
    return 0
