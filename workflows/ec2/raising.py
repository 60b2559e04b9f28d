"""Bringing a fleet up: converge, then make ready; nodes that are lost meanwhile are replaced."""

from collections.abc import Sequence

from workflows.ec2 import provision
from workflows.ec2.adopt import adopt
from workflows.ec2.api import LEAVING, READY, RESULTS_SLOT, Aws, Instance, instances
from workflows.ec2.bootstrap import Recipe, recipe
from workflows.ec2.config import Spec
from workflows.ec2.launch import Say
from workflows.ec2.teardown import terminate
from workflows.errors import FleetError, NodeLost, NodeRefused

_ROUNDS = 2


def bring_up(
    aws: Aws, spec: Spec, *, say: Say, refresh_ami: bool = False
) -> tuple[list[Instance], list[Instance]]:
    """Bring a fleet to what its spec says; return (the nodes made ready now, all that are ready).

    Raises:
        NoCapacity: fewer than `min_nodes` could be launched; these were terminated.
        FleetError: AWS refused, or too many nodes could not be made ready.
    """
    what = recipe(spec)
    made: dict[str, Instance] = {}
    live: list[Instance] = []
    failed: dict[int, NodeLost | NodeRefused] = {}
    for _ in range(_ROUNDS):
        live = provision.converge(aws, spec, say=say, refresh_ami=refresh_ami)
        todo = [one for one in live if not is_ready(one, what)]
        results = adopt(aws, spec, todo, what, say)
        failed = {slot: error for slot, error in results.items() if isinstance(error, Exception)}
        made |= {one.id: one for one in results.values() if isinstance(one, Instance)}
        lost = [one for one in todo if isinstance(failed.get(one.slot), NodeLost)]
        if not lost:
            break
        _dismiss(aws, lost, failed, say)
    for error in failed.values():
        say(str(error))
    if spec.nodes - len(failed.keys() - {RESULTS_SLOT}) < spec.least:
        why = "\n".join(str(error) for error in failed.values())
        raise FleetError(
            f"{len(failed)} nodes could not be made ready:\n{why}\nfix that, then:"
            f" workflows fleet up {spec.name}; or: workflows fleet down {spec.name}"
        )
    # Not asked of EC2 again, which may not show the newest tags yet.
    ready = [made.get(one.id, one) for one in live]
    return list(made.values()), [one for one in ready if is_ready(one, what)]


def _dismiss(
    aws: Aws, lost: Sequence[Instance], why: dict[int, NodeLost | NodeRefused], say: Say
) -> None:
    terminate(aws, [one.id for one in lost])
    for one in lost:
        say(f"{why[one.slot]}; terminating it")


def is_ready(one: Instance, what: Recipe) -> bool:
    """Tell whether a node was made ready by this very recipe."""
    return one.tags.get(READY, "").split(" ")[0] == what.digest


def present(aws: Aws, fleet: str) -> list[Instance]:
    """Return the live instances of a fleet that EC2 has not announced to take back, by slot."""
    found = [one for one in instances(aws, fleet) if LEAVING not in one.tags]
    return sorted(found, key=lambda one: (one.slot, one.id))


def dismiss_leaving(aws: Aws, fleet: str) -> None:
    """Terminate the nodes that EC2 is about to take back: others fill their slots."""
    terminate(aws, [one.id for one in instances(aws, fleet) if LEAVING in one.tags])
