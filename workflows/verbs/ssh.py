"""``workflows ssh N [CMD...]``: the system's ssh to a node, as strict as our own logins."""

import argparse
import os

from workflows.config import settings
from workflows.errors import UsageError
from workflows.transports.openssh import NODE, write_config
from workflows.verbs.onfleet import add_fleet, static_hosts


def add(parser: argparse.ArgumentParser) -> None:
    """Add the verb's arguments."""
    parser.add_argument("node", type=int, metavar="N", help="the node's slot")
    parser.add_argument(
        "command", nargs=argparse.REMAINDER, metavar="CMD", help="what to run there; else a shell"
    )
    add_fleet(parser)


def run(arguments: argparse.Namespace) -> int:
    """Become the system's ssh; its exit status is the command's, or 255."""
    slot, command = arguments.node, arguments.command
    if command and command[0].startswith("--fleet"):
        raise UsageError("write --fleet before the node: workflows ssh --fleet SPEC N CMD")
    hosts = static_hosts(arguments.fleet, "ssh")
    if not 0 <= slot < len(hosts):
        raise UsageError(f"there is no node {slot}; {arguments.fleet} has 0 to {len(hosts) - 1}")
    folder = os.path.abspath(os.path.join(settings().state, "ssh"))
    config = write_config(f"node {slot} ({hosts[slot]})", hosts[slot], folder)
    try:
        os.execvp("ssh", ["ssh", "-F", config, NODE, *command])  # noqa: S606 - no shell
    except FileNotFoundError as error:
        raise UsageError("there is no ssh here: apt-get install openssh-client") from error
