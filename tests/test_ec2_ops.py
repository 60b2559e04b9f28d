"""Looking after fleets: status, resize, extend, cost, sweep, doctor, policy, down."""

import dataclasses
import datetime as dt
import json
import os
import re
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from ec2cloud import KEYS, Request

from workflows.ec2 import agent, api, doctor, ground, policy, rehearsal, sweep
from workflows.ec2.accounts import phases
from workflows.ec2.api import ACCESS, EXPIRES, Aws, Instance, instances
from workflows.ec2.prices import Spent, integrated, spent
from workflows.ec2.teardown import leftovers
from workflows.errors import FleetError, NotAllowed

if TYPE_CHECKING:
    from conftest import Done
    from ec2fleets import Ec2

PAST = "2020-01-01T00:00:00Z"


def left(ec2: "Ec2") -> dict[str, Any]:
    """Return what is left but volumes: moto's stay in use after their instance is terminated."""
    found = leftovers(Aws("us-east-1"), ec2.name)
    return {kind: ids for kind, ids in found.items() if kind != "volumes"}


def test_status_shows_every_slot_what_is_missing_and_the_cost(ec2: "Ec2") -> None:
    ec2.fleet.up()
    gone = next(name for name, tags in ec2.tags().items() if tags["workflows:slot"] == "1")
    ec2.region.reclaim(gone)

    done = ec2.run("status")
    data = json.loads(ec2.run("status", "--json").out)

    assert "0     i-" in done.out
    assert "ready" in done.out
    assert f"missing: slots 1; workflows fleet up {ec2.name}" in done.out
    assert "node minutes" in done.out
    (one,) = data
    assert one["slot"] == 0
    assert one["state"] == "ready"
    assert one["private_ip"].startswith("127.")
    assert {"name", "private_ip", "public_ip", "public_dns"} <= set(one)


def test_down_leaves_nothing_that_is_tagged(ec2: "Ec2") -> None:
    ec2.fleet.up()
    assert set(left(ec2)) == {"instances", "key pairs", "security groups"}

    done = ec2.run("down", "--yes")
    again = ec2.run("down", "--yes")

    assert done.code == again.code == 0, (done, again)
    assert f"nothing of {ec2.name} is left" in done.err
    assert left(ec2) == {}


def test_down_works_when_no_node_answers(ec2: "Ec2") -> None:
    ec2.fleet.up()
    for node in ec2.region.nodes.values():
        node.kill()

    assert ec2.run("down", "--yes").code == 0
    assert left(ec2) == {}


def test_down_does_not_depend_on_prices(ec2: "Ec2") -> None:
    ec2.write(nodes=1)
    ec2.fleet.up()
    ec2.cloud.refuse("DescribeSpotPriceHistory", "UnauthorizedOperation")
    ec2.cloud.requests.clear()

    done = ec2.run("down", "--yes")

    assert done.code == 0, done
    assert left(ec2) == {}
    assert "its cost is not known: describe_spot_price_history: " in done.err
    asked = [request.action for request in ec2.cloud.requests]
    assert asked.index("TerminateInstances") < asked.index("DescribeSpotPriceHistory")


def test_down_does_not_depend_on_the_logs_of_runs(ec2: "Ec2") -> None:
    ec2.write(nodes=1)
    ec2.fleet.up()
    (ec2.place.state / "runs" / "1" / "log.jsonl").mkdir(parents=True)  # it cannot be read

    done = ec2.run("down", "--yes")

    assert done.code == 0, done
    assert left(ec2) == {}
    assert "its cost is not known: " in done.err


def test_what_shows_or_is_launched_while_a_fleet_goes_down_goes_too(ec2: "Ec2") -> None:
    ec2.write(nodes=1)
    ec2.fleet.up()
    terminated = iter([True])

    def launched_meanwhile(request: Request) -> None:
        if request.action == "TerminateInstances" and next(terminated, False):
            late(ec2)

    ec2.cloud.answered.append(launched_meanwhile)

    done = ec2.run("down", "--yes")

    assert done.code == 0, done
    assert ec2.live() == []
    assert left(ec2) == {}


def test_what_comes_when_all_else_is_gone_is_no_success(ec2: "Ec2") -> None:
    ec2.write(nodes=1)
    ec2.fleet.up()
    deleted = iter([True])

    def launched_meanwhile(request: Request) -> None:
        if request.action == "DeleteSecurityGroup" and next(deleted, False):
            late(ec2)

    ec2.cloud.answered.append(launched_meanwhile)

    done = ec2.run("down", "--yes")

    assert done.code == 1, done
    assert f"type it again: workflows fleet down {ec2.name}" in done.err
    assert "is left in" not in done.err
    assert ec2.live() == []


def late(ec2: "Ec2") -> None:
    """Launch an instance as an `up` does that is under way on another machine."""
    (image, *_) = ec2.region.ec2.describe_images()["Images"]
    tags = [{"Key": "workflows:fleet", "Value": ec2.name}]
    ec2.region.boots = False
    ec2.region.ec2.run_instances(
        ImageId=image["ImageId"],
        MinCount=1,
        MaxCount=1,
        SubnetId=ec2.region.subnets[0],
        TagSpecifications=[{"ResourceType": "instance", "Tags": tags}],
    )


def test_down_of_a_name_alone_finds_its_fleet_in_another_region(ec2: "Ec2") -> None:
    far = Aws("eu-west-1")
    tags = [{"Key": "workflows:fleet", "Value": "elsewhere"}]
    public = ground.key_pair()[1].encode()
    far.call(
        "import_key_pair",
        KeyName="elsewhere",
        PublicKeyMaterial=public,
        TagSpecifications=[{"ResourceType": "key-pair", "Tags": tags}],
    )

    done = ec2.run_any("down", "elsewhere", "--yes")
    there = ec2.run_any("down", "elsewhere", "--region", "eu-west-1", "--yes")
    again = ec2.run_any("down", "elsewhere", "--yes")

    assert done.code == 2, done
    assert "in eu-west-1: workflows fleet down elsewhere --region eu-west-1\n" in done.err
    assert "is left" not in done.err
    assert there.code == again.code == 0, (there, again)
    assert leftovers(far, "elsewhere") == {}


def test_a_fleet_that_is_begun_again_costs_what_it_has_cost_since(ec2: "Ec2") -> None:
    ec2.write(nodes=2)
    ec2.converge()
    first = ec2.run("down", "--yes")
    ec2.write(nodes=1)
    ec2.converge()

    second = ec2.run("down", "--yes")

    assert "2 nodes, " in first.err, first
    assert "1 nodes, " in second.err, second


def test_what_ec2_forgets_at_once_is_accounted_for(ec2: "Ec2") -> None:
    ec2.write(nodes=1)
    (name,) = ec2.converge()

    def forgotten(request: Request) -> None:
        if request.action == "DeleteSecurityGroup":
            ec2.region.ec2.delete_tags(Resources=[name], Tags=[{"Key": "workflows:fleet"}])

    ec2.cloud.answered.append(forgotten)

    done = ec2.run("down", "--yes")

    assert done.code == 0, done
    assert "1 nodes, " in done.err
    assert "teardown" in done.err


def test_a_group_that_ec2_does_not_let_go_of_yet_is_waited_for(ec2: "Ec2") -> None:
    ec2.write(nodes=1)
    ec2.fleet.up()
    ec2.cloud.refuse("DeleteSecurityGroup", "DependencyViolation", times=2)

    ec2.fleet.down()

    assert left(ec2) == {}
    assert len(ec2.cloud.asked("DeleteSecurityGroup")) == 3


def test_resize_changes_the_number_of_nodes_and_disturbs_no_other(ec2: "Ec2") -> None:
    ec2.fleet.up()
    before = set(ec2.tags())

    done = ec2.run("resize", "3", "--yes")

    assert done.code == 0, done
    assert before < set(ec2.tags())
    assert ec2.slots() == ["0", "1", "2"]


def test_extend_moves_end_deadline_and_tag(ec2: "Ec2") -> None:
    ec2.write(nodes=1)
    ec2.fleet.up()
    (name,) = ec2.tags()

    done = ec2.run("extend", "2d")

    assert done.code == 0, done
    state = ec2.node_home(name) / ".workflows"
    until = dt.datetime.now(dt.timezone.utc) + dt.timedelta(days=2)
    assert int((state / "deadline").read_text()) == pytest.approx(until.timestamp(), abs=60)
    assert (state / "extended").stat().st_mtime == pytest.approx(until.timestamp(), abs=60)
    assert ec2.tags()[name][EXPIRES].startswith(f"{until:%Y-%m-%d}")


def test_a_node_that_was_extended_lives_on_while_nobody_renews_its_lease(
    ec2: "Ec2", tmp_path: Path
) -> None:
    ec2.write(nodes=1)
    ec2.fleet.up()
    (name,) = ec2.tags()
    ec2.run("extend", "2d")
    done = ec2.run("exec", "true")
    assert done.code == 0, done

    # What the agent looks at, but no lease renewed for long.
    for file in ("lease", "extended", "deadline"):
        shutil.copy2(ec2.node_home(name) / ".workflows" / file, tmp_path)
    os.utime(tmp_path / "lease", (0, 0))
    lease, deadline = str(tmp_path / "lease"), str(tmp_path / "deadline")

    assert agent.over(lease, deadline, 60, {}) == ""
    (tmp_path / "extended").unlink()
    assert agent.over(lease, deadline, 60, {}) == "nobody has renewed its lease for 60 s"


# -- sweep -----------------------------------------------------------------------------------------


def test_sweep_finds_what_is_over_and_removes_it_only_if_told(ec2: "Ec2") -> None:
    ec2.write(nodes=1)
    ec2.fleet.up()
    fresh = ec2.run_any("sweep", "--regions", "us-east-1,eu-west-1")
    every = [one for ids in left(ec2).values() for one in ids]
    ec2.region.ec2.create_tags(Resources=every, Tags=[{"Key": EXPIRES, "Value": PAST}])
    volumes = leftovers(Aws("us-east-1"), ec2.name).get("volumes", {})
    if volumes:  # which moto would never let go of
        ec2.region.ec2.delete_tags(Resources=list(volumes), Tags=[{"Key": "workflows:fleet"}])

    shown = ec2.run_any("sweep", "--regions", "us-east-1,eu-west-1")
    kept = left(ec2)
    swept = ec2.run_any("sweep", "--regions", "us-east-1", "--yes")

    assert not any(ec2.name in line and "OVER" in line for line in fresh.out.splitlines())
    over = [line for line in shown.out.splitlines() if ec2.name in line and line.endswith("OVER")]
    assert len(over) == len(every)
    assert set(kept) == {"instances", "key pairs", "security groups"}
    assert swept.code == 0, swept
    assert left(ec2) == {}


@pytest.mark.parametrize("region", ["us-gov-west-1", "cn-north-1", ""])
def test_sweep_begins_in_the_logins_own_partition(
    monkeypatch: pytest.MonkeyPatch, region: str
) -> None:
    monkeypatch.setenv("AWS_CONFIG_FILE", os.devnull)
    monkeypatch.setenv("AWS_DEFAULT_REGION", region)

    assert api.home_region() == (region or "us-east-1")
    monkeypatch.setenv("AWS_REGION", "us-gov-east-1")
    assert api.home_region() == "us-gov-east-1"


def test_a_fleet_that_will_not_go_keeps_sweep_from_no_other(ec2: "Ec2") -> None:
    names = [f"{ec2.name}-{letter}" for letter in "ab"]
    for name in names:
        ec2.region.ec2.import_key_pair(
            KeyName=name,
            PublicKeyMaterial=ground.key_pair()[1].encode(),
            TagSpecifications=[
                {"ResourceType": "key-pair", "Tags": [{"Key": "workflows:fleet", "Value": name}]}
            ],
        )
    found, _ = sweep.find(["us-east-1"])
    ec2.cloud.refuse("DeleteKeyPair", "UnauthorizedOperation", times=1)

    with pytest.raises(FleetError, match=f"not removed: {names[0]} in us-east-1"):
        sweep.remove([one for one in found if one.fleet in names], print)

    assert [bool(leftovers(Aws("us-east-1"), name)) for name in names] == [True, False]
    sweep.remove([one for one in found if one.fleet in names], print)


def test_an_answer_that_is_not_from_aws_is_an_error_and_no_traceback(ec2: "Ec2") -> None:
    def fault(request: Request) -> bytes | None:
        return b"<Response><Errors>and then HTML" if request.action.startswith("Desc") else None

    ec2.cloud.faults.append(fault)

    done = ec2.run("status")

    assert done.code == 1, done
    assert done.err.startswith("workflows: describe_instances: Unable to parse response"), done


def test_a_fleet_of_which_anything_has_time_left_is_not_over() -> None:
    now = dt.datetime(2026, 11, 21, tzinfo=dt.timezone.utc)
    past, future = now - dt.timedelta(hours=1), now + dt.timedelta(hours=1)
    found = [
        sweep.Leftover("us-east-1", "a", "instances", "i-1", future),
        sweep.Leftover("us-east-1", "a", "key pairs", "key-1", past),
        sweep.Leftover("eu-west-1", "a", "key pairs", "key-2", past),
        sweep.Leftover("us-east-1", "b", "key pairs", "key-3", None),
    ]

    assert [one.id for one in sweep.overdue(found, now)] == ["key-2", "key-3"]


# -- doctor, policy, cost --------------------------------------------------------------------------


def with_spot_role(ec2: "Ec2") -> "Done":
    """Ask the doctor about an account that has the role for spot instances."""
    import boto3

    session = boto3.session.Session("testing", "testing", region_name="us-east-1")
    iam = session.client("iam", endpoint_url=ec2.cloud.url)
    try:
        iam.create_role(RoleName="AWSServiceRoleForEC2Spot", AssumeRolePolicyDocument="{}")
        return ec2.run("doctor")
    finally:
        iam.delete_role(RoleName="AWSServiceRoleForEC2Spot")


def test_the_doctor_finds_all_well_on_a_good_account(ec2: "Ec2") -> None:
    done = with_spot_role(ec2)

    assert done.code == 0, done
    # Those of other tests count too: they are in the same account.
    assert re.search(r"quotas: \d+ of 64 spot vCPUs, \d+ of 64 on-demand vCPUs", done.out), done
    assert "permissions: 4 calls rehearsed (DryRun), all allowed" in done.out
    assert "private: what nodes fetch needs a NAT or endpoints" in done.out
    made = ("Create", "Import", "Run")
    real = [one for one in ec2.cloud.requests if one.action.startswith(made)]
    assert [one.action for one in real if one.service == "ec2"] == []


@pytest.mark.parametrize(("ahead_s", "says"), [(3600, "Signature expired"), (-3600, "not yet")])
def test_the_doctor_tells_how_far_a_clock_is_off_though_aws_refuses_what_it_signs(
    ec2: "Ec2", ahead_s: float, says: str
) -> None:
    ec2.cloud.account.clock_s = ahead_s

    found = {one.what: one for one in doctor.examine(Aws("us-east-1"), ec2.spec)}

    assert not found["clock"].is_well
    off = re.search(r"this machine's clock is off by (-?\d+) s", found["clock"].says)
    assert off is not None
    assert abs(int(off[1]) + ahead_s) < 60
    assert says in found["identity"].says
    assert "clock may be wrong" in found["identity"].says
    assert "secret key" not in found["identity"].says


def test_the_doctor_names_what_is_wrong_and_what_to_type(ec2: "Ec2") -> None:
    ec2.fleet.up()
    access = {**ec2.top["access"], "address": "public", "from": ["me"]}
    ec2.write(nodes=50, access=access)
    ec2.cloud.caller = "127.0.0.9"

    done = ec2.run("doctor")

    assert done.code == 1
    bad = [line for line in done.out.splitlines() if line.startswith("BAD")]
    assert [line.split()[1] for line in bad] == ["spot", "quotas:", "caller:"]
    assert "create-service-linked-role" in bad[0]
    assert "need up to 100 spot vCPUs (4 run already), 64 are allowed" in bad[1]
    assert f"this machine has moved; workflows fleet up {ec2.name}" in bad[2]
    assert "which an internet gateway serves" in done.out
    assert "permissions: 9 calls rehearsed (DryRun), all allowed" in done.out
    assert len(ec2.live()) == 2


def test_the_doctor_names_each_permission_that_is_missing_and_changes_nothing(ec2: "Ec2") -> None:
    ec2.write(nodes=1)
    ec2.converge()
    before = left(ec2)
    denied = {"RunInstances", "RevokeSecurityGroupIngress", "TerminateInstances"}
    ec2.cloud.account.denied = denied

    done = ec2.run("doctor")

    (line,) = [one for one in done.out.splitlines() if "permissions:" in one]
    assert line.startswith("BAD ")
    assert all(f"ec2:{action}" in line for action in denied)
    assert "ec2:CreateLaunchTemplate" not in line
    assert "workflows fleet policy prints what is needed" in line
    assert left(ec2) == before


def test_the_policy_that_is_printed_is_enough_for_the_doctor_up_and_down(ec2: "Ec2") -> None:
    """As IAM asks for each resource of a call: also of the network interface and the group."""
    ec2.cloud.account.policy = policy.policy()
    aws, spec = Aws("us-east-1"), ec2.spec

    before = rehearsal.rehearse(aws, spec, [])
    ec2.fleet.up()
    there = rehearsal.rehearse(aws, spec, instances(aws, spec.name))
    ec2.fleet.down()

    assert before == ((), ("ec2:RunInstances (once the fleet is up)",), 3)
    assert there == ((), (), 9)
    assert ec2.cloud.asked("CreateFleet")
    assert not ec2.cloud.asked("RunInstances")  # which is launched by where CreateFleet is denied
    assert left(ec2) == {}


def test_one_by_one_the_policy_that_is_printed_is_enough_too(ec2: "Ec2") -> None:
    ec2.cloud.account.policy = policy.policy()
    ec2.cloud.refuse("CreateFleet", "UnauthorizedOperation")

    assert len(ec2.converge()) == 2


@pytest.mark.parametrize("sid", ["MakeTagged", "LaunchFrom", "LaunchFromOwn", "TagWhenMade"])
def test_no_statement_of_the_policy_is_too_much(ec2: "Ec2", sid: str) -> None:
    least = policy.policy()
    kept = [row for row in least["Statement"] if row["Sid"] != sid]
    ec2.cloud.account.policy = {**least, "Statement": kept}

    with pytest.raises(NotAllowed, match="UnauthorizedOperation"):
        ec2.converge()


def test_what_runs_in_the_account_and_every_family_of_types_is_counted(ec2: "Ec2") -> None:
    (image, *_) = ec2.region.ec2.describe_images()["Images"]
    ec2.region.boots = False
    ec2.region.ec2.run_instances(
        ImageId=image["ImageId"],
        InstanceType="g4dn.xlarge",
        MinCount=2,
        MaxCount=2,
        SubnetId=ec2.region.subnets[0],
    )
    ec2.write(types=["g4dn.xlarge", "g5.2xlarge", "c5.large"], spot={"on_demand_base": 1})
    ec2.cloud.account.quotas = {"L-DB2E81BA": 12, "L-3819A6DF": 4}

    done = ec2.run("doctor")

    (line,) = [one for one in done.out.splitlines() if "quotas:" in one]
    assert line.startswith("BAD ")
    # 8 of g4dn run; g5.2xlarge, which EC2 may choose, has 8 more.
    assert "need up to 16 on-demand G and VT vCPUs (8 run already), 12 are allowed" in line
    assert "need up to 8 spot G and VT vCPUs, 4 are allowed: ask for more of L-3819A6DF" in line
    assert "standard" not in line


def test_without_credentials_the_message_says_so(ec2: "Ec2") -> None:
    for name in KEYS:
        ec2.place.more[name] = ""

    done = ec2.run("status")

    assert done.code == 6
    assert "no AWS credentials; aws configure" in done.err


def test_the_policy_is_json(ec2: "Ec2") -> None:
    done = ec2.run_any("policy", "--role", "arn:aws:iam::1:role/nodes")

    assert json.loads(done.out)["Version"] == "2012-10-17"


def test_cost_follows_the_price_over_each_nodes_real_life() -> None:
    def hour(number: float) -> dt.datetime:
        return dt.datetime(2026, 11, 21, tzinfo=dt.timezone.utc) + dt.timedelta(hours=number)

    prices = [(hour(0), 0.10), (hour(2), 0.30)]

    assert integrated(prices, hour(1), hour(1.5)) == pytest.approx(0.05)
    assert integrated(prices, hour(1), hour(3)) == pytest.approx(0.40)
    assert integrated(prices, hour(5), hour(6)) == pytest.approx(0.30)
    assert integrated([], hour(5), hour(6)) == 0


def lived(name: str, start: dt.datetime, minutes: float, usd: float, **tags: str) -> Spent:
    """Return what an instance cost that lived for some minutes from `start`."""
    ended = start + dt.timedelta(minutes=minutes)
    about = {"launched": start, "ended": ended, "private_ip": "", "public_ip": "", "is_spot": True}
    own = {f"workflows:{tag}": text for tag, text in tags.items()}
    one = Instance(name, "terminated", "m7i.large", "us-east-1a", tags=own, **about)  # type: ignore[arg-type]
    return Spent(one, minutes / 60, usd, None, 0.0)


def test_a_fleets_minutes_and_dollars_are_split_without_a_rest() -> None:
    start = dt.datetime(2026, 11, 21, tzinfo=dt.timezone.utc)
    epoch = start.timestamp()

    def at(minutes: float) -> str:
        return f"{epoch + 60 * minutes:.0f}"

    one = lived("i-1", start, 11, 1.10, reached=at(1), ready=f"digest {at(3)}")
    two = lived("i-2", start, 11, 2.20, reached=at(2), ready=f"digest {at(4)}")
    runs = [(epoch + 240, epoch + 480), (epoch + 540, epoch + 600)]

    found = phases([one, two], runs, epoch + 13 * 60, epoch + 10.5 * 60)

    assert {name: list(phase) for name, phase in found.items()} == {
        "provisioning": pytest.approx([2, 3, 0.1 + 0.4]),
        "bootstrap": pytest.approx([3, 4, 0.2 + 0.4]),
        "compute": pytest.approx([5, 10, 0.5 + 1.0]),
        "idle": pytest.approx([2.5, 4, 0.25 + 0.3]),
        "teardown": pytest.approx([2.5, 1, 0.05 + 0.1]),
        "total": pytest.approx([13, 22, 3.30]),
    }


def test_on_demand_nodes_cost_the_list_price_and_disks_are_estimated(ec2: "Ec2") -> None:
    start = dt.datetime(2026, 11, 21, tzinfo=dt.timezone.utc)
    life = {"launched": start, "ended": start + dt.timedelta(hours=2), "tags": {}}
    about = ("running", "m7i.large", "us-east-1a")
    spot = Instance("i-1", *about, is_spot=True, private_ip="", public_ip="", **life)  # type: ignore[arg-type]
    demand = Instance("i-2", *about, is_spot=False, private_ip="", public_ip="", **life)  # type: ignore[arg-type]

    public = dataclasses.replace(demand, id="i-3", tags={ACCESS: "ann 22 public"})

    one, two, three = spent(
        Aws("us-east-1"), [spot, demand, public], 73, start + dt.timedelta(hours=9)
    )

    assert one.usd == pytest.approx(2 * 0.03)
    assert two.usd == one.on_demand_usd == pytest.approx(2 * 0.1)
    assert one.ebs_usd == pytest.approx(2 * 73 * 0.08 / 730)
    assert one.address_usd == 0
    assert three.address_usd == pytest.approx(2 * 0.005)
    assert three.total_usd == pytest.approx(2 * (0.1 + 0.005 + 73 * 0.08 / 730))
