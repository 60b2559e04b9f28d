"""`up` is killed or interrupted at any call: another `up`, or `down`, goes on from there."""

import os
import signal
import threading
from typing import TYPE_CHECKING, Any

import pytest
from ec2cloud import Request, wait_for

from workflows.ec2 import teardown
from workflows.ec2.api import Aws
from workflows.ec2.teardown import leftovers

if TYPE_CHECKING:
    from ec2fleets import Ec2

# In the order of an `up` of one node. Between two of these nothing that EC2 knows changes, so that
# these are all the states in which a killed `up` can leave it. Named with how many came before.
CHANGES = [
    ("CreateSecurityGroup", 1),
    ("AuthorizeSecurityGroupIngress", 1),
    ("AuthorizeSecurityGroupIngress", 2),
    ("ImportKeyPair", 1),
    ("CreateLaunchTemplate", 1),
    ("CreateFleet", 1),
    ("CreateTags", 1),  # its slot
    ("DeleteLaunchTemplate", 1),
    ("CreateTags", 2),  # its own host key
    ("DeleteTags", 1),  # no longer the one of the first contact
    ("CreateTags", 3),  # it is ready
]


class Stopper:
    """Stops the process that makes the n-th call of an action, once EC2 has done what it asks."""

    def __init__(self, ec2: "Ec2", action: str, number: int, how: int) -> None:
        self.action, self.left, self.how = action, number, how
        self.pid = 0
        self.reached = threading.Event()
        ec2.cloud.answered.append(self)

    def __call__(self, request: Request) -> None:
        if request.action != self.action or not self.pid:
            return
        self.left -= 1
        if self.left == 0:
            os.kill(self.pid, self.how)
            self.reached.set()
            if self.how == signal.SIGKILL:
                raise ConnectionResetError("nobody is there to be answered")


def stopped(ec2: "Ec2", action: str, number: int, how: int) -> Any:
    """Start `up`, stop it at a call, wait for its end; return the ended command."""
    stopper = Stopper(ec2, action, number, how)
    with ec2.place.start("workflows", "fleet", "up", ec2.name, "--yes") as running:
        stopper.pid = running.process.pid
        wait_for(stopper.reached.is_set, 60)
        running.end(60)
        ec2.cloud.answered.clear()
        return running


def test_an_up_makes_these_changes_in_this_order_and_no_others(ec2: "Ec2") -> None:
    ec2.write(nodes=1)

    ec2.fleet.up()

    made = [one.action for one in ec2.cloud.requests if not one.action.startswith("Describe")]
    counted = [(action, made[: at + 1].count(action)) for at, action in enumerate(made)]
    assert [one for one in counted if one[0] not in ("GetParameter", "GetProducts")] == CHANGES


@pytest.mark.parametrize(("action", "number"), CHANGES)
def test_up_that_is_killed_at_any_change_is_finished_by_the_next_up(
    ec2: "Ec2", action: str, number: int
) -> None:
    ec2.write(nodes=1)

    stopped(ec2, action, number, signal.SIGKILL)
    nodes = ec2.fleet.up()

    (one,) = ec2.live()
    (tags,) = ec2.tags().values()
    assert [node.id for node in nodes] == [one["InstanceId"]]
    assert tags["workflows:slot"] == "0"
    assert {"workflows:hostkey", "workflows:ready"} <= set(tags)
    assert "workflows:bootkey" not in tags
    assert len(ec2.region.described(ec2.name, "terminated", "shutting-down")) == 0
    kinds = {kind: len(found) for kind, found in leftovers(Aws("us-east-1"), ec2.name).items()}
    assert kinds.pop("volumes", 1) == 1
    assert kinds == {"instances": 1, "key pairs": 1, "security groups": 1}
    results = ec2.run("exec", "echo works")
    assert results.out == "0: works\n", results


@pytest.mark.parametrize(("action", "number"), [CHANGES[i] for i in (0, 3, 4, 5, 6, 8)])
def test_up_that_is_killed_leaves_nothing_that_down_does_not_find(
    ec2: "Ec2", action: str, number: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(teardown, "LATE_S", 2.0)
    ec2.write(nodes=1)

    stopped(ec2, action, number, signal.SIGKILL)
    ec2.fleet.down()

    assert not_volumes(ec2) == {}


@pytest.mark.parametrize(("action", "number"), [("CreateFleet", 1), ("CreateTags", 1)])
def test_ctrl_c_during_a_launch_undoes_it(ec2: "Ec2", action: str, number: int) -> None:
    """With fewer nodes than min_nodes nothing that came is of use; with enough it is kept."""
    ec2.write(nodes=2)

    running = stopped(ec2, action, number, signal.SIGINT)

    assert running.process.returncode == 130
    assert "Traceback" not in running.said
    launched = len(ec2.live())
    assert launched in (0, 2)
    assert len(ec2.fleet.up()) == 2
    assert len(ec2.live()) == 2


def not_volumes(ec2: "Ec2") -> dict[str, Any]:
    """Return what is left but volumes: moto's stay in use after their instance is terminated."""
    found = leftovers(Aws("us-east-1"), ec2.name)
    return {kind: ids for kind, ids in found.items() if kind != "volumes"}
