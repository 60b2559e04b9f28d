"""``workflows fsck``: read every output on the nodes again."""

import argparse

from workflows import run as runs
from workflows.config import settings


def add(parser: argparse.ArgumentParser) -> None:
    """Add the verb's arguments."""
    parser.add_argument("steps", nargs="*", metavar="STEP", help="only these steps (all)")
    parser.add_argument("--fleet", default=settings().fleet, help="which fleet (luigi.cfg's)")


def run(arguments: argparse.Namespace) -> int:
    """Print what is damaged; it is forgotten, so that the next run makes it again."""
    fleet = runs.fleet(arguments.fleet)

    def check(slot: int) -> list[dict[str, object]]:
        message = {"op": "check", "steps": arguments.steps}
        return list(fleet.channel(slot).ask(message, "checked"))

    bad = checked = 0
    for slot, events in fleet.each(range(len(fleet)), check).items():
        for event in events:
            if event["event"] == "bad":
                bad += 1
                print(f"{event['step']}/{event['key']} on {fleet.nodes[slot].name}: {event['why']}")
            else:
                checked += int(str(event["keys"]))
    print(f"{checked} keys read, {bad} damaged" + (", to be made again" if bad else ""))
    return 1 if bad else 0
