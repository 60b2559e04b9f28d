"""``workflows health``: whether every node can work, one line each."""

import argparse
import time
from typing import Any

from workflows.errors import NodeLost, WorkflowsError
from workflows.fleets.fleet import Fleet
from workflows.verbs import fleetkeys
from workflows.verbs.onfleet import add_fleet, exit_code

_SKEW_S = 5.0
_FULL = 1 << 26


def add(parser: argparse.ArgumentParser) -> None:
    """Add the verb's arguments."""
    add_fleet(parser)


def run(arguments: argparse.Namespace) -> int:
    """Print ``healthy: node``, or what is wrong; return 3 if one is lost, 1 if unfit."""
    with fleetkeys.opened(arguments.fleet) as fleet:
        answers = asked(fleet)
        errors = []
        for slot, answer in answers.items():
            if isinstance(answer, WorkflowsError):
                errors.append(answer)
                kind = "lost" if isinstance(answer, NodeLost) else "unhealthy"
                why = getattr(answer, "why", str(answer)).replace("\n", " ")
                print(f"{kind}: {fleet.nodes[slot].name}: {why}")
            else:
                about = f"python {answer['python']}, {answer['slots']} slots"
                free = f"{answer['free'] / 1e9:.1f} GB free"
                print(f"healthy: {fleet.nodes[slot].name}: {about}, {free}")
    return exit_code(errors)


def asked(fleet: Fleet) -> dict[int, dict[str, Any] | WorkflowsError]:
    """Ask every node how it is; a full disk or a wrong clock is an error too."""

    def ask(slot: int) -> dict[str, Any]:
        before = time.time()
        answer = fleet.channel(slot).one({"op": "health"}, "health")
        # A node that is slow to answer has no wrong clock: it read it at some time in between.
        skew = answer["clock"] - min(max(answer["clock"], before), time.time())
        if answer["free"] < _FULL:
            raise WorkflowsError(f"its disk is full: {answer['free'] / 1e6:.0f} MB free")
        if abs(skew) > _SKEW_S:
            raise WorkflowsError(
                f"its clock is {skew:+.0f} s off: runs work all the same, but S3 or pip may refuse"
                " its requests; to set it: timedatectl set-ntp true"
            )
        return answer

    return fleetkeys.outcomes(fleet, range(len(fleet)), ask)
