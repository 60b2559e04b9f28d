"""One more host beside the nodes, for luigid, results or the driver: no keys are placed on it."""

import base64
import json
import re
from typing import TYPE_CHECKING

import pytest

from workflows.ec2 import prices
from workflows.ec2.config import Spec
from workflows.ec2.prices import Pool

if TYPE_CHECKING:
    from ec2fleets import Ec2

STEPS = "from workflows.steps import Map\nclass Where(Map):\n    command = 'xargs cat'\n"


def roles(ec2: "Ec2") -> dict[str, list[str]]:
    """Return role -> slots."""
    found: dict[str, list[str]] = {}
    for tags in ec2.tags().values():
        found.setdefault(tags["workflows:role"], []).append(tags.get("workflows:slot", "-"))
    return {role: sorted(slots) for role, slots in found.items()}


def host(ec2: "Ec2") -> str:
    """Return the id of the results host."""
    (found,) = [one for one, tags in ec2.tags().items() if tags["workflows:role"] == "results"]
    return found


def test_up_brings_a_results_host_beside_the_nodes_once_and_it_can_be_worked_with(
    ec2: "Ec2",
) -> None:
    up = ec2.run("up", "--nodes", "3", "--results-host", "--yes")
    again = ec2.run("up", "--nodes", "3", "--results-host", "--yes")
    said = ec2.run("exec", "--on", "results", "echo $WORKFLOWS_TEST_NODE")
    status = json.loads(ec2.run("status", "--json").out)

    assert up.code == again.code == 0, (up, again)
    assert "launch     1 results host, on demand" in up.err
    assert roles(ec2) == {"node": ["0", "1", "2"], "results": ["-"]}
    assert len(ec2.cloud.asked("CreateFleet")) == 2
    body = ec2.cloud.asked("CreateFleet")[1].body
    assert body["TargetCapacitySpecification.OnDemandTargetCapacity"] == "1"
    assert body["TargetCapacitySpecification.SpotTargetCapacity"] == "0"
    assert said.out == f"results: {host(ec2)}\n", said
    shown = {one["name"]: one["slot"] for one in status}
    assert shown == {
        **{f"{ec2.name}-{slot}": slot for slot in range(3)},
        f"{ec2.name}-results": None,
    }


def test_of_two_that_two_calls_of_up_brought_one_is_kept(ec2: "Ec2") -> None:
    ec2.write(nodes=1, results_host=True)
    ec2.converge()
    ec2.region.boots = False
    (tags,) = [tags for tags in ec2.tags().values() if tags["workflows:role"] == "results"]
    (image, *_) = ec2.region.ec2.describe_images()["Images"]
    ec2.region.ec2.run_instances(
        ImageId=image["ImageId"],
        MinCount=1,
        MaxCount=1,
        SubnetId=ec2.region.subnets[0],
        TagSpecifications=[
            {
                "ResourceType": "instance",
                "Tags": [{"Key": name, "Value": value} for name, value in tags.items()],
            }
        ],
    )
    assert roles(ec2)["results"] == ["-", "-"]

    ec2.converge()

    assert roles(ec2) == {"node": ["0"], "results": ["-"]}


def test_a_run_places_nothing_on_it_and_only_down_removes_it(ec2: "Ec2") -> None:
    ec2.write(results_host=True, nodes=1)
    ec2.fleet.up()
    mine = host(ec2)
    ec2.place.module(STEPS)
    for number in range(4):
        ec2.place.key(f"{number:03d}", b"x\n")

    done = ec2.place.luigi("Where", "--pattern", "*", "--fleet", f"ec2:{ec2.name}")
    ec2.write(results_host=None)
    resized = ec2.run("resize", "2", "--yes")

    assert done.code == resized.code == 0, (done, resized)
    assert not (ec2.node_home(mine) / "scratch/workflows").exists() or not list(
        (ec2.node_home(mine) / "scratch/workflows").rglob("data/Where")
    )
    assert roles(ec2) == {"node": ["0", "1"], "results": ["-"]}
    assert host(ec2) == mine
    assert ec2.run("down", "--yes").code == 0
    assert ec2.live() == []


def test_it_does_not_end_itself_for_want_of_work(ec2: "Ec2") -> None:
    """No run renews its lease: it has its longest life instead."""
    ec2.write(results_host=True, nodes=1, ttl={"idle": "30m", "max": "12h"})

    ec2.converge()

    idle = {}
    for one in ec2.live():
        about = ec2.region.ec2.describe_instance_attribute(
            InstanceId=one["InstanceId"], Attribute="userData"
        )
        text = base64.b64decode(about["UserData"]["Value"]).decode()
        role = ec2.tags()[one["InstanceId"]]["workflows:role"]
        (idle[role],) = re.findall(r"--idle (\d+) ", text)
    assert idle == {"node": "1800", "results": "43200"}


def test_it_costs_what_a_node_costs_on_demand() -> None:
    pools = [Pool("m7i.large", "us-east-1a", 0.03, 0.03, 0.10)]

    cost = prices.hourly(Spec("crawl", nodes=3, results_host=True), pools, 3)

    beside = 4 * (30 * prices.EBS_USD_PER_GB_HOUR + 0.005)
    assert cost.expected == pytest.approx(3 * 0.03 + 0.10 + beside)
    assert cost.at_most == pytest.approx(3 * 0.10 + 0.10 + beside)
