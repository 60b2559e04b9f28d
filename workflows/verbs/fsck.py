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

    bad = checked = lost = 0
    for slot, events in fleet.each(range(len(fleet)), check).items():
        for event in events:
            if event["event"] == "bad":
                bad += 1
                name = f"{event['step']}/{event['key']}"
                print(f"{name} on {fleet.nodes[slot].name}: {event['why']}")
                if event["spec"] == "put":
                    lost += 1
                    print(f"  nothing makes it: put it again, workflows cp FILE fleet://{name}")
            else:
                checked += int(str(event["keys"]))
    again = ", to be made again" if bad > lost else ""
    print(f"{checked} keys read, {bad} damaged{again}")
    return 1 if bad else 0
