"""``workflows exec CMD``: a command on every node; prints its lines as they come."""

import argparse
import os
import sys
import threading
from typing import Any

from workflows.config import passed, settings
from workflows.errors import OWN_FAILURE, NodeLost, UsageError, WorkflowsError
from workflows.fleets.fleet import Fleet
from workflows.node.causes import ended
from workflows.verbs import fleetkeys, inflow
from workflows.verbs.onfleet import add_nodes, command, exit_status, say, seconds


def add(parser: argparse.ArgumentParser) -> None:
    """Add the verb's arguments."""
    parser.add_argument(
        "command", type=command, metavar="CMD", help="the bash command, run in an empty directory"
    )
    parser.add_argument("--timeout", type=seconds, default=0.0, metavar="SECONDS")
    parser.add_argument(
        "-n", "--no-stdin", action="store_true", help="give the command an empty stdin, like ssh -n"
    )
    parser.add_argument(
        "--raw", action="store_true", help="for one node: print its output byte for byte"
    )
    add_nodes(parser)


def run(arguments: argparse.Namespace) -> int:
    """Return the greatest exit status of the command on any node, 255 if a node is lost."""
    arguments.env = passed(settings(), os.environ)[0]
    with fleetkeys.opened(arguments.fleet) as fleet:
        slots = fleetkeys.chosen_slots(fleet, arguments.node)
        if arguments.raw and len(slots) > 1:
            raise UsageError("--raw is for one node: add --node N")
        given = inflow.Inflow(len(slots)) if _passes_stdin(arguments) else None
        execution = _Execution(fleet, slots, arguments, given)
        if given is not None:
            given.start()
        status = 0
        for slot, outcome in fleetkeys.outcomes(fleet, slots, execution.on).items():
            name = fleet.nodes[slot].name
            if isinstance(outcome, WorkflowsError):
                status = OWN_FAILURE
                say(str(outcome) if isinstance(outcome, NodeLost) else f"{name}: {outcome}")
            elif outcome["status"]:
                status = max(status, exit_status(outcome["status"], outcome["why"]))
                say(f"{name}: {outcome['why'] or ended(outcome['status'])}")
    if given is not None and given.error:
        raise WorkflowsError(given.error)
    return status


def _passes_stdin(arguments: argparse.Namespace) -> bool:
    return not arguments.no_stdin and inflow.is_given()


class _Execution:
    """The command on all nodes that were chosen."""

    def __init__(
        self,
        fleet: Fleet,
        slots: list[int],
        arguments: argparse.Namespace,
        given: inflow.Inflow | None,
    ) -> None:
        self._fleet, self._slots, self._arguments, self._given = fleet, slots, arguments, given
        self._screen = threading.Lock()
        self._outs = {1: sys.stdout.buffer, 2: sys.stderr.buffer}

    def on(self, slot: int) -> dict[str, Any]:
        """Run it on one node; return how it ended."""
        try:
            return self._run(slot)
        finally:
            if self._given is not None:
                self._given.leave(self._slots.index(slot))

    def _run(self, slot: int) -> dict[str, Any]:
        channel, given = self._fleet.channel(slot), self._given
        message = {
            "op": "exec",
            "command": self._arguments.command,
            "timeout_s": self._arguments.timeout,
            "env": self._arguments.env,
            "stdin": given is not None,
        }
        sender = None
        if given is not None:
            sender = inflow.Sender(given, self._slots.index(slot), channel.feed)
        screen = _Lines(self, self._fleet.nodes[slot].name)
        last: dict[str, Any] = {}
        for event, data in channel.stream(message, "ended"):
            last = event
            if event["event"] == "began" and sender is not None:
                sender.start()
            elif event["event"] == "took" and sender is not None:
                sender.took(event["count"])
            elif data:
                screen.take(event["fd"], data)
        if sender is not None:
            sender.end()
        screen.end()
        return last

    def show(self, fd: int, data: bytes) -> None:
        """Print whole lines, or those of several nodes would mix."""
        with self._screen:
            self._outs[fd].write(data)
            self._outs[fd].flush()

    @property
    def is_raw(self) -> bool:
        """Tell whether bytes are printed as they come."""
        return bool(self._arguments.raw)


class _Lines:
    """A node's output: line by line, each behind the node's name."""

    def __init__(self, execution: _Execution, name: str) -> None:
        self._execution, self._prefix = execution, os.fsencode(f"{name}: ")
        self._parts = {1: b"", 2: b""}

    def take(self, fd: int, data: bytes) -> None:
        """Take some bytes; print what is whole."""
        if self._execution.is_raw:
            self._execution.show(fd, data)
            return
        lines, newline, rest = (self._parts[fd] + data).rpartition(b"\n")
        self._parts[fd] = rest
        if newline:
            self._show(fd, lines)

    def end(self) -> None:
        """Print what has no end of its line."""
        for fd, rest in self._parts.items():
            if rest:
                self._show(fd, rest)

    def _show(self, fd: int, lines: bytes) -> None:
        shown = b"".join(self._prefix + line + b"\n" for line in lines.split(b"\n"))
        self._execution.show(fd, shown)
