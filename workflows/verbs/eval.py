"""``workflows eval KEY CMD``: a command on one key, on its node; prints its output."""

import argparse
import os
import sys

from workflows.config import passed, settings
from workflows.errors import credentials_hint
from workflows.verbs import fleetkeys
from workflows.verbs.onfleet import add_fleet, command, exit_status, say, seconds


def add(parser: argparse.ArgumentParser) -> None:
    """Add the verb's arguments."""
    parser.add_argument("key", metavar="KEY", help="step/dir/name")
    parser.add_argument(
        "command", type=command, metavar="CMD", help="the bash command, with the key on stdin"
    )
    parser.add_argument("--timeout", type=seconds, default=settings().timeout_s, metavar="SECONDS")
    add_fleet(parser)


def run(arguments: argparse.Namespace) -> int:
    """Print what the command prints, byte for byte; return its exit code."""
    name = fleetkeys.parse_key(arguments.key)
    variables, hidden = passed(settings(), os.environ)
    with fleetkeys.opened(arguments.fleet) as fleet:
        found, _ = fleetkeys.find(fleet, name)
        message = {
            "op": "eval",
            "key": name.rest,
            "inputs": [[found.ledger, found.identity, name.rest]],
            "command": arguments.command,
            "timeout_s": arguments.timeout,
            "env": variables,
            "hidden": hidden,
        }
        for event, data in fleet.channel(found.slot).stream(message, "ended", "failed"):
            if data:
                (sys.stdout if event["fd"] == 1 else sys.stderr).buffer.write(data)
                continue
            sys.stdout.buffer.flush()
            sys.stderr.buffer.flush()
            if event["event"] == "failed":
                say(f"{name} on {fleet.nodes[found.slot].name}: {event['why']}")
                if cause := event.get("cause"):
                    say(cause)
                for hint in credentials_hint(event["stderr"]):
                    say(hint)
                return exit_status(event["status"], event["why"])
    return 0
