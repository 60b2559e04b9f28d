"""``workflows ssh N [CMD...]``: the system's ssh to a node, as strict as our own logins."""

import argparse
import os
import signal
import subprocess
from collections.abc import Sequence

from workflows.config import settings
from workflows.errors import NodeLost, NodeRefused, UsageError
from workflows.fleets.hosts import Host
from workflows.fleets.openssh import NODE, write_config
from workflows.verbs.onfleet import add_fleet, say, static_hosts

_SSH_FAILED = 255  # or the command's own


def add(parser: argparse.ArgumentParser) -> None:
    """Add the verb's arguments."""
    parser.add_argument("node", type=int, metavar="N", help="the node's slot")
    parser.add_argument(
        "command", nargs=argparse.REMAINDER, metavar="CMD", help="the command; without it, a shell"
    )
    add_fleet(parser)


def run(arguments: argparse.Namespace) -> int:
    """Run the system's ssh; its exit status is the command's, or 255."""
    slot, command = arguments.node, arguments.command
    if command and command[0].startswith("--fleet"):
        raise UsageError("write --fleet before the node: workflows ssh --fleet SPEC N CMD")
    hosts = static_hosts(arguments.fleet, "ssh")
    if not 0 <= slot < len(hosts):
        raise UsageError(f"there is no node {slot}; {arguments.fleet} has 0 to {len(hosts) - 1}")
    folder = os.path.abspath(os.path.join(settings().state, "ssh"))
    name = f"node {slot} ({hosts[slot]})"
    config = write_config(name, hosts[slot], folder)
    status = _run(["ssh", "-F", config, NODE, *command])
    if status == _SSH_FAILED:
        _explain(name, hosts[slot])
    return status


def _run(words: Sequence[str]) -> int:
    """Run a program to its end and return its status; signals are for it alone."""
    try:
        process = subprocess.Popen(words)
    except FileNotFoundError as error:
        raise UsageError("there is no ssh here: apt-get install openssh-client") from error
    # Ctrl-C reaches it by itself, as it is in the terminal's group.
    for number in (signal.SIGINT, signal.SIGQUIT):
        signal.signal(number, signal.SIG_IGN)
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, lambda got, _: process.send_signal(got))
    status = process.wait()
    return status if status >= 0 else 128 - status


def _explain(name: str, host: Host) -> None:
    """Say what to do where ssh's own advice does not help: it knows of no hosts.yaml."""
    from workflows.fleets.ssh import connect

    try:
        connect(name, host).close()
    except NodeRefused as error:  # it shows another key than ours, or does not let us in
        say(str(error))
    except NodeLost:
        pass  # as ssh has said
