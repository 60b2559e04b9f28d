"""``workflows status``: the nodes of a fleet, and what they store."""

import argparse

from workflows.errors import NodeLost, WorkflowsError
from workflows.reporting.runlog import aligned
from workflows.verbs import fleetkeys
from workflows.verbs.health import asked
from workflows.verbs.onfleet import add_fleet, exit_code, say


def add(parser: argparse.ArgumentParser) -> None:
    """Add the verb's arguments."""
    add_fleet(parser)


def run(arguments: argparse.Namespace) -> int:
    """Print a table with one line a node."""
    rows: list[tuple[str, ...]] = [
        ("node", "state", "slots", "load", "keys", "MB", "free GB", "where")
    ]
    with fleetkeys.opened(arguments.fleet) as fleet:
        answers = asked(fleet)
        found, _ = fleetkeys.listing(fleet)
        for slot, answer in answers.items():
            name = fleet.nodes[slot].name
            if isinstance(answer, WorkflowsError):
                state = "lost" if isinstance(answer, NodeLost) else "unhealthy"
                rows.append((name, state, *["-"] * 5, fleet.nodes[slot].root))
                continue
            sizes = [one.size for one in found if one.slot == slot and not one.is_made]
            rows.append(
                (
                    name,
                    "healthy",
                    str(answer["slots"]),
                    f"{answer['load']:.2f}",
                    str(len(sizes)),
                    f"{sum(sizes) / 1e6:.1f}",
                    f"{answer['free'] / 1e9:.1f}",
                    answer["root"],
                )
            )
    print(aligned(rows, left=(0, 1, 7)))
    errors = [answer for answer in answers.values() if isinstance(answer, WorkflowsError)]
    for error in errors:
        say(str(error))
    return exit_code(errors)
