"""Shared by the verbs that speak to a fleet themselves. No Luigi: they must start quickly."""

import argparse
import sys
from collections.abc import Callable, Iterable

from workflows.config import settings
from workflows.errors import OWN_FAILURE, NodeLost, UsageError, WorkflowsError
from workflows.fleets.fleet import Fleet
from workflows.fleets.hosts import Host, Hosts, read_hosts
from workflows.storage.store import Store, open_store
from workflows.verbs import fleetkeys
from workflows.verbs.fleetkeys import Name

_TIMED_OUT = 124  # as timeout(1) has it
_SIGNALLED = 128


def exit_status(status: int, why: str = "") -> int:
    """Return what a verb exits with whose command ended so; of a signal, what a shell would.

    >>> exit_status(3), exit_status(-9), exit_status(-9, "timeout: ran longer than 1 s")
    (3, 137, 124)
    >>> exit_status(0, "its input is not here")
    255
    """
    if why.startswith("timeout"):
        return _TIMED_OUT
    if status < 0:
        return _SIGNALLED - status
    return status or (OWN_FAILURE if why else 0)


def add_fleet(parser: argparse.ArgumentParser) -> None:
    """Let a verb be told its fleet."""
    parser.add_argument(
        "--fleet", default=settings().fleet, metavar="SPEC", help="which fleet (luigi.cfg's)"
    )


def add_nodes(parser: argparse.ArgumentParser) -> None:
    """Let a verb be told its fleet, and some of its nodes."""
    parser.add_argument("--node", type=int, action="append", metavar="N", help="only this slot")
    add_fleet(parser)


def on_each(arguments: argparse.Namespace, work: Callable[[Fleet, int], object]) -> int:
    """Do `work` on every node that was chosen, and say what went wrong; return the exit code."""
    with fleetkeys.opened(arguments.fleet) as fleet:
        slots = fleetkeys.chosen_slots(fleet, arguments.node)
        answers = fleetkeys.outcomes(fleet, slots, lambda slot: work(fleet, slot))
    errors = [answer for answer in answers.values() if isinstance(answer, WorkflowsError)]
    for error in errors:
        say(str(error))
    return exit_code(errors)


def one_key(text: str, again: str) -> Name:
    """Return the one key that is named; `again` is what to type for all of a directory.

    Raises:
        UsageError: it is a directory.
    """
    name = fleetkeys.parse(text)
    if not name.rest or name.rest.endswith("/"):
        raise UsageError(f"{text} is a directory; for all keys below it give -r: {again}")
    return name


def store_at(url: str) -> Store:
    """Return the store at `url`; what is not a directory costs the imports that it needs.

    Raises:
        UsageError: nothing here can write to such a place.
    """
    if "://" not in url:
        return open_store(url)
    from workflows.planning import context

    return context.store(url)


def say(text: str) -> None:
    """Tell a person something; stdout is for data alone."""
    print(f"workflows: {text}", file=sys.stderr)


def exit_code(errors: Iterable[WorkflowsError]) -> int:
    """Return 3 if a node was lost, 1 if anything else failed, else 0."""
    found = list(errors)
    return 3 if any(isinstance(error, NodeLost) for error in found) else 1 if found else 0


def static_hosts(spec: str, verb: str) -> tuple[Host, ...]:
    """Return the hosts of an ssh fleet, in the order of their slots; `verb` asks.

    Raises:
        UsageError: it is another kind of fleet, or its file is wrong.
    """
    return static_fleet(spec, verb).hosts


def static_fleet(spec: str, verb: str) -> Hosts:
    """Return what the file of an ssh fleet says; `verb` asks.

    Raises:
        UsageError: it is another kind of fleet, or its file is wrong.
    """
    if spec.startswith("ssh:"):
        return read_hosts(spec.removeprefix("ssh:"))
    if spec.startswith("ec2:"):
        raise UsageError(f"{spec} is on EC2: workflows fleet {verb} {spec.removeprefix('ec2:')}")
    raise UsageError(f"{spec} is not an ssh fleet: workflows {verb} --fleet ssh:hosts.yaml")


def command(text: str) -> str:
    """Return a command that a person typed; for `argparse`.

    Raises:
        argparse.ArgumentTypeError: there is nothing in it.
    """
    if not text.strip():
        raise argparse.ArgumentTypeError("it is empty; write a bash command, such as 'wc -l'")
    return text


def seconds(text: str) -> float:
    """Return a number of seconds that a person typed; for `argparse`.

    >>> seconds("1.5")
    1.5

    Raises:
        argparse.ArgumentTypeError: it is not a number of seconds.
    """
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not 0 <= value < float("inf"):
        raise argparse.ArgumentTypeError(f"{text!r} is not a number of seconds; 0 is no limit")
    return value
