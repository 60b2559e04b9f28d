"""``workflows fsck``: read every output on the nodes, and compare checksums."""

import argparse

from workflows.config import settings
from workflows.errors import UsageError, did_you_mean
from workflows.fleets.fleet import Fleet
from workflows.node.keys import PIECES
from workflows.planning import context


def add(parser: argparse.ArgumentParser) -> None:
    """Add the verb's arguments."""
    parser.add_argument("steps", nargs="*", metavar="STEP", help="only these steps (all)")
    parser.add_argument("--fleet", default=settings().fleet, help="which fleet (luigi.cfg's)")


def run(arguments: argparse.Namespace) -> int:
    """Print what is damaged; it is forgotten, so that the next run makes it again.

    Raises:
        UsageError: a step is named that no node has.
    """
    fleet = context.fleet(arguments.fleet)
    if arguments.steps:
        arguments.steps = _ledgers(fleet, arguments.steps)

    def check(slot: int) -> list[dict[str, object]]:
        message = {"op": "check", "steps": arguments.steps}
        return list(fleet.channel(slot).ask(message, "checked"))

    bad = checked = lost = 0
    for slot, events in fleet.each(range(len(fleet)), check).items():
        for event in events:
            if event["event"] == "bad":
                bad += 1
                name = f"{event['step']}/{event['key']}"
                print(f"{name} on {fleet.nodes[slot].name}: {event['why']}")
                if event["spec"] == "put":
                    lost += 1
                    print(f"  no step makes it: copy it again, workflows cp FILE fleet://{name}")
            else:
                checked += int(str(event["keys"]))
    again = ", to be made again" if bad > lost else ""
    print(f"{checked} keys read, {bad} damaged{again}")
    return 1 if bad else 0


def _ledgers(fleet: Fleet, wanted: list[str]) -> list[str]:
    """Return the ledgers of the steps that are named: a 1:n step's files have one of their own."""
    there: set[str] = set()
    message = {"op": "ledgers"}
    for answer in fleet.each(
        range(len(fleet)), lambda slot: fleet.channel(slot).one(message, "ledgers")
    ).values():
        there.update(answer["steps"])
    steps = {ledger.removesuffix(PIECES) for ledger in there}
    for name in wanted:
        if name not in there | steps:
            raise UsageError(
                f"no node of {fleet.spec} has a step {name!r}{did_you_mean(name, steps)}"
            )
    return sorted(ledger for ledger in there if {ledger, ledger.removesuffix(PIECES)} & {*wanted})
