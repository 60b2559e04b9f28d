"""Converging, by the requests that EC2 gets: what is asked for, refused, lost, and asked again."""

from typing import TYPE_CHECKING

import pytest
from ec2cloud import Request, error_body, fleet_answer

from workflows.ec2 import ground
from workflows.ec2.api import Aws, instances, refusal
from workflows.ec2.config import Spec
from workflows.ec2.launch import shortage
from workflows.errors import (
    FleetError,
    NoCapacity,
    NotAllowed,
    OverQuota,
    Rejected,
    UsageError,
)

if TYPE_CHECKING:
    from ec2fleets import Ec2


# Service Quotas' codes of standard instances.
SPOT, ON_DEMAND = "L-34B43A08", "L-1216C47A"


def launches(ec2: "Ec2") -> list[Request]:
    return ec2.cloud.asked("CreateFleet")


def no_capacity(request: Request) -> bytes | None:
    """Spot has nothing; on-demand goes through."""
    if request.action == "CreateFleet" and request.body.get("SpotOptions.AllocationStrategy"):
        return fleet_answer([], [("InsufficientInstanceCapacity", "m7i.large")] * 2)
    return None


# -- what is asked for -----------------------------------------------------------------------------


def test_up_twice_launches_once(ec2: "Ec2") -> None:
    first, second = ec2.converge(), ec2.converge()

    assert first == second
    assert len(launches(ec2)) == 1
    assert ec2.slots() == ["0", "1"]


def test_a_launch_asks_for_every_type_in_every_zone_at_once(ec2: "Ec2") -> None:
    ec2.converge()

    (request,) = launches(ec2)
    body = request.body
    overrides = {
        (
            body[f"LaunchTemplateConfigs.1.Overrides.{n}.InstanceType"],
            body[f"LaunchTemplateConfigs.1.Overrides.{n}.SubnetId"],
        )
        for n in range(1, 7)
    }
    assert overrides == {(name, net) for name in ec2.spec.types for net in ec2.region.subnets}
    assert body["Type"] == "instant"
    assert body["SpotOptions.AllocationStrategy"] == "price-capacity-optimized"
    assert body["TargetCapacitySpecification.SpotTargetCapacity"] == "2"
    assert body["TargetCapacitySpecification.OnDemandTargetCapacity"] == "0"
    assert not any("MaxPrice" in name for name in body)


def test_everything_is_tagged_in_the_launch_call(ec2: "Ec2") -> None:
    ec2.write(tags={"owner": "ann"})

    ec2.converge()

    (request,) = launches(ec2)
    kinds = request.listed(r"TagSpecification\.\d\.ResourceType")
    assert sorted(kinds) == ["fleet", "instance", "volume"]
    for number in range(1, 4):
        keys = request.listed(rf"TagSpecification\.{number}\.Tag\.\d+\.Key")
        assert {"workflows:fleet", "workflows:expires", "workflows:bootkey", "owner"} <= set(keys)
    for action in ("CreateLaunchTemplate", "CreateSecurityGroup", "ImportKeyPair"):
        (made,) = ec2.cloud.asked(action)
        assert "workflows:fleet" in made.body.values()
    (template,) = ec2.cloud.asked("CreateLaunchTemplate")
    inner = "LaunchTemplateData.TagSpecification.1"
    assert template.body[f"{inner}.ResourceType"] == "network-interface"
    assert {"workflows:fleet", "owner"} <= set(template.listed(rf"{inner}\.Tag\.\d+\.Key"))


def test_the_template_asks_for_imdsv2_termination_own_group_and_an_encrypted_disk(
    ec2: "Ec2",
) -> None:
    ec2.write(disk_gb=50, profile="nodes-s3")

    ec2.converge()

    (request,) = ec2.cloud.asked("CreateLaunchTemplate")
    data = {name.removeprefix("LaunchTemplateData."): value for name, value in request.body.items()}
    group = ground.find_group(Aws("us-east-1"), ec2.name)
    assert group is not None
    assert data["InstanceInitiatedShutdownBehavior"] == "terminate"
    assert data["MetadataOptions.HttpTokens"] == "required"
    assert data["MetadataOptions.HttpPutResponseHopLimit"] == "1"
    assert data["NetworkInterface.1.SecurityGroupId.1"] == group["GroupId"]
    # Left out, a public subnet would give each node an address that costs money.
    assert data["NetworkInterface.1.AssociatePublicIpAddress"] == "false"
    assert data["IamInstanceProfile.Name"] == "nodes-s3"
    disk = {name.split(".")[-1]: value for name, value in data.items() if ".Ebs." in name}
    assert disk == {
        "VolumeSize": "50",
        "VolumeType": "gp3",
        "Encrypted": "true",
        "DeleteOnTermination": "true",
    }
    assert ec2.cloud.asked("DeleteLaunchTemplate")  # it holds the key of the first contact


def test_a_public_fleet_gets_public_addresses(ec2: "Ec2") -> None:
    ec2.write(access={**ec2.top["access"], "address": "public"})

    ec2.converge()

    (request,) = ec2.cloud.asked("CreateLaunchTemplate")
    interface = "LaunchTemplateData.NetworkInterface.1."
    assert request.body[interface + "AssociatePublicIpAddress"] == "true"
    assert request.body[interface + "SecurityGroupId.1"].startswith("sg-")


def test_a_max_price_and_an_on_demand_base_are_passed_on(ec2: "Ec2") -> None:
    ec2.write(nodes=3, spot={"max_price": 0.05, "on_demand_base": 1})

    ec2.converge()

    (request,) = launches(ec2)
    assert set(request.listed(r".*MaxPrice")) == {"0.05"}
    assert request.body["TargetCapacitySpecification.SpotTargetCapacity"] == "2"
    assert request.body["TargetCapacitySpecification.OnDemandTargetCapacity"] == "1"


def test_a_type_is_only_asked_for_where_it_is_offered(ec2: "Ec2") -> None:
    """In us-east-1e there is no m7i."""
    network = ec2.region.network
    made = ec2.region.ec2.create_subnet(
        VpcId=ec2.region.vpc, CidrBlock=f"{network}.9.0/24", AvailabilityZone="us-east-1e"
    )
    ec2.write(types=["m7i.large", "m4.large"], zones=["a", "e"])

    ec2.converge()

    (request,) = launches(ec2)
    names = request.listed(r".*Overrides\.\d+\.InstanceType")
    subnets = request.listed(r".*Overrides\.\d+\.SubnetId")
    old, new = ec2.region.subnets[0], made["Subnet"]["SubnetId"]
    assert set(zip(names, subnets, strict=True)) == {
        ("m7i.large", old),
        ("m4.large", old),
        ("m4.large", new),
    }


def test_a_type_that_does_not_exist_is_refused_here(ec2: "Ec2") -> None:
    ec2.write(types=["m7i.large", "m99.large"], ami="ssm:al2023")

    with pytest.raises(UsageError, match=r"no such instance types in us-east-1: m99\.large"):
        ec2.fleet.up()


def test_the_image_is_pinned_at_first_up(ec2: "Ec2") -> None:
    ec2.converge()
    (ami,) = {tags["workflows:ami"] for tags in ec2.tags().values()}
    asked = len(ec2.cloud.asked("GetParameter"))
    ec2.write(nodes=3)

    ec2.converge()

    assert {tags["workflows:ami"] for tags in ec2.tags().values()} == {ami}
    assert len(ec2.cloud.asked("GetParameter")) == asked


def test_a_fleet_that_grows_keeps_its_nodes_and_one_that_shrinks_ends_the_highest_slots(
    ec2: "Ec2",
) -> None:
    first = set(ec2.converge())
    ec2.write(nodes=4)
    assert first < set(ec2.converge())
    ec2.write(nodes=2)

    ec2.converge()

    assert {one["InstanceId"] for one in ec2.live()} == first
    assert ec2.slots() == ["0", "1"]


# -- refusals --------------------------------------------------------------------------------------


def test_what_spot_does_not_have_is_bought_on_demand(ec2: "Ec2") -> None:
    ec2.cloud.faults.append(no_capacity)

    ids = ec2.converge()

    spot, demand = launches(ec2)
    assert len(ids) == 2
    assert demand.body["TargetCapacitySpecification.OnDemandTargetCapacity"] == "2"
    assert demand.body["OnDemandOptions.AllocationStrategy"] == "lowest-price"
    assert spot.body["ClientToken"] != demand.body["ClientToken"]


def test_an_error_of_the_call_itself_falls_back_too(ec2: "Ec2") -> None:
    ec2.cloud.refuse("CreateFleet", "UnfulfillableCapacity", times=1)

    assert len(ec2.converge()) == 2


def test_without_fallback_every_reason_is_named_once_with_how_often(ec2: "Ec2") -> None:
    ec2.write(spot={"fallback": False})
    ec2.cloud.faults.append(no_capacity)

    with pytest.raises(NoCapacity, match=r"InsufficientInstanceCapacity x 2 \(m7i.large us-east"):
        ec2.converge()

    assert len(launches(ec2)) == 1
    assert ec2.live() == []


def test_instances_that_came_beside_errors_are_kept_if_they_are_enough(ec2: "Ec2") -> None:
    ec2.write(nodes=3, min_nodes=2)
    one_short(ec2)

    assert len(ec2.converge()) == 2
    assert ec2.slots() == ["0", "1"]


def test_fewer_than_min_nodes_are_terminated_again(ec2: "Ec2") -> None:
    ec2.write(nodes=3, min_nodes=3)
    one_short(ec2)

    with pytest.raises(NoCapacity, match="only 2 of at least 3 nodes could be launched"):
        ec2.converge()

    assert ec2.live() == []
    assert not ec2.region.ec2.describe_launch_templates(
        Filters=[{"Name": "tag:workflows:fleet", "Values": [ec2.name]}]
    )["LaunchTemplates"]


def test_enough_nodes_are_gone_on_with_if_ec2_has_no_more(ec2: "Ec2") -> None:
    ec2.write(nodes=3, min_nodes=2)
    one_short(ec2)
    before = set(ec2.converge())

    after = ec2.converge()

    assert set(after) == before
    assert len(launches(ec2)) == 4  # it was tried again, on demand too


def test_a_run_on_fewer_nodes_than_asked_for_places_no_key_where_nothing_is(ec2: "Ec2") -> None:
    ec2.write(nodes=3, min_nodes=2)
    one_short(ec2)

    assert len(ec2.fleet.up()) == 2
    assert len(ec2.fleet.hosts()) == 2
    ec2.write(min_nodes=3)
    assert len(ec2.fleet.hosts()) == 3  # of which one is filled during the run


def test_a_launch_that_brings_nothing_leaves_alone_what_another_up_has_launched(
    ec2: "Ec2",
) -> None:
    ec2.write(nodes=2)
    others: list[str] = []
    calls = iter([True])

    def at_first(request: Request) -> bytes | None:
        if request.action != "CreateFleet":
            return None
        if next(calls, False):
            ec2.cloud.faults = []
            others.extend(ec2.converge())
            ec2.cloud.faults = [refused]
        return refused(request)

    def refused(request: Request) -> bytes | None:
        if request.action != "CreateFleet":
            return None
        return error_body("InsufficientInstanceCapacity", "none left")

    ec2.cloud.faults = [at_first]

    with pytest.raises(NoCapacity):
        ec2.converge()

    assert sorted(one["InstanceId"] for one in ec2.live()) == sorted(others)


def one_short(ec2: "Ec2") -> None:
    """Let the first CreateFleet bring one instance less than asked for, and the others nothing."""
    calls = []

    def fault(request: Request) -> bytes | None:
        if request.action != "CreateFleet":
            return None
        calls.append(request)
        if len(calls) > 1:
            return fleet_answer([], [("InsufficientInstanceCapacity", "m6i.large")])
        for name in ("TotalTargetCapacity", "SpotTargetCapacity"):
            key = f"TargetCapacitySpecification.{name}"
            count = int(request.body[key])
            text = f"{key}={count}".encode()
            request.raw = request.raw.replace(text, f"{key}={count - 1}".encode())
        return None

    ec2.cloud.faults.append(fault)


def test_what_a_new_accounts_spot_quota_does_not_allow_is_bought_on_demand(ec2: "Ec2") -> None:
    ec2.cloud.account.quotas = {SPOT: 5, ON_DEMAND: 5}
    ec2.write(nodes=3)

    assert len(ec2.converge()) == 3

    assert sorted(one.get("InstanceLifecycle", "") for one in ec2.live()) == ["", "spot", "spot"]
    ec2.write(nodes=None)
    assert ec2.spec.nodes == 2  # of 2 vCPUs each: the default fits


def test_quotas_that_do_not_suffice_have_their_exit_code_and_carry_all_refusals(
    ec2: "Ec2",
) -> None:
    """Of spot and on demand: trying later would not help, as it would where capacity is short."""
    ec2.cloud.account.quotas = {SPOT: 3, ON_DEMAND: 1}

    done = ec2.run("up", "--yes")

    assert done.code == 5, done
    said = "only 1 of at least 2 nodes could be launched: MaxSpotInstanceCountExceeded x 1"
    assert said in done.err
    assert "VcpuLimitExceeded x 1 (m7i.large us-east-1a: You have requested more vCPU" in done.err
    assert "waiting does not help: ask for more in Service Quotas" in done.err
    assert ec2.live() == []


def test_what_runs_already_counts_against_a_quota(ec2: "Ec2") -> None:
    ec2.cloud.account.quotas = {SPOT: 0, ON_DEMAND: 4}
    (image, *_) = ec2.region.ec2.describe_images()["Images"]
    ec2.region.boots = False
    ec2.region.ec2.run_instances(
        ImageId=image["ImageId"],
        InstanceType="c5.large",
        MinCount=1,
        MaxCount=1,
        SubnetId=ec2.region.subnets[0],
    )

    with pytest.raises(OverQuota, match="only 1 of at least 2"):
        ec2.converge()


def test_without_fallback_a_quota_of_spot_is_final(ec2: "Ec2") -> None:
    ec2.write(spot={"fallback": False})
    ec2.cloud.account.quotas = {SPOT: 0}

    with pytest.raises(OverQuota, match="ask for more in Service Quotas") as raised:
        ec2.converge()

    assert raised.value.exit_code == 5
    assert len(launches(ec2)) == 1


REJECTED = [
    ("InvalidParameterValue", "report this"),
    ("UnknownParameter", "report this"),
    ("InvalidParameterCombination", "report this"),
    ("Unsupported", "waiting does not help"),
    ("InvalidKMSKey.InvalidState", "waiting does not help"),
    ("InvalidBlockDeviceMapping", "waiting does not help"),
]


@pytest.mark.parametrize(("code", "says"), REJECTED)
@pytest.mark.parametrize("where", ["answer", "call"])
def test_what_ec2_does_not_take_is_no_want_of_capacity(code: str, says: str, where: str) -> None:
    """Whoever starts again on exit code 4 would do so for ever."""
    spec = Spec("crawl")
    one = refusal(code, "m7i.large us-east-1a: no" if where == "answer" else "create_fleet: no")

    error = shortage([one, one], "EC2 launched nothing", spec)

    assert isinstance(error, Rejected)
    assert error.exit_code == 7
    assert says in str(error)
    assert "policy" not in str(error)


@pytest.mark.parametrize(
    "code",
    [
        *("VcpuLimitExceeded", "MaxSpotInstanceCountExceeded", "MaxFleetCountExceeded"),
        *("SecurityGroupLimitExceeded", "RulesPerSecurityGroupLimitExceeded"),
        *("NetworkInterfaceLimitExceeded", "VolumeLimitExceeded", "InstanceLimitExceeded"),
    ],
)
def test_a_quota_of_anything_is_no_matter_of_waiting(code: str) -> None:
    error = refusal(code, "create_security_group: too many")

    assert error.exit_code == 5
    assert "Service Quotas" in str(error)


@pytest.mark.parametrize(
    ("code", "exit_code"),
    [("RequestLimitExceeded", 1), ("FilterLimitExceeded", 7), ("TagLimitExceeded", 7)],
)
def test_a_limit_of_one_call_is_no_quota(code: str, exit_code: int) -> None:
    assert refusal(code, "describe_instances: no").exit_code == exit_code


def test_more_types_than_ec2_takes_in_one_filter_are_asked_for_in_several_calls(
    ec2: "Ec2",
) -> None:
    types = tuple(f"m7i.size{number}" for number in range(201))

    with pytest.raises(UsageError, match="no such instance types"):
        ground.type_details(Aws("us-east-1"), types)

    asked = ec2.cloud.asked("DescribeInstanceTypes")
    assert [len(one.listed(r"Filter\.1\.Value")) for one in asked] == [200, 1]


def test_a_disk_that_is_smaller_than_the_image_is_refused_before_anything_is_made(
    ec2: "Ec2",
) -> None:
    ec2.write(disk_gb=8)

    with pytest.raises(UsageError, match=r"disk_gb: 8 is less than the \d+ GB of the image"):
        ec2.converge()

    assert not ec2.cloud.asked("CreateSecurityGroup")


def test_an_image_that_is_not_shared_is_no_wrong_key(ec2: "Ec2") -> None:
    (image, *_) = ec2.region.ec2.describe_images()["Images"]
    ec2.write(ami=image["ImageId"])
    ec2.cloud.account.private = {image["ImageId"]}

    with pytest.raises(NotAllowed) as raised:
        ec2.converge()

    assert "does not share it with this one: name another ami" in str(raised.value)
    assert "keys" not in str(raised.value)
    assert ec2.cloud.refused[-1][1].rule.name == "private image"


def test_a_missing_permission_is_told_without_what_nobody_can_read(ec2: "Ec2") -> None:
    ec2.cloud.account.denied = {"CreateSecurityGroup"}

    with pytest.raises(NotAllowed) as raised:
        ec2.converge()

    assert "You are not authorized to perform this operation. (Unauth" in str(raised.value)
    assert "Encoded" not in str(raised.value)


def test_only_a_want_of_capacity_is_told_as_one_that_passes() -> None:
    spec = Spec("crawl")
    capacity = refusal("InsufficientInstanceCapacity", "m7i.large us-east-1a: none left")
    unsupported = refusal("Unsupported", "m7i.large us-east-1e: not there")
    quota = refusal("VcpuLimitExceeded", "m7i.large us-east-1a: too many")
    busy = refusal("InternalError", "create_fleet: oh")

    found = [
        shortage(refusals, "nothing", spec).exit_code
        for refusals in (
            [capacity],
            [capacity, unsupported],
            [unsupported],
            [capacity, quota],
            [busy],
            [refusal("UnauthorizedOperation", "no"), capacity],
        )
    ]

    assert found == [4, 4, 7, 5, 1, 6]


def test_a_missing_permission_is_final_and_says_what_prints_the_policy(ec2: "Ec2") -> None:
    ec2.cloud.refuse("CreateFleet", "UnauthorizedOperation")
    ec2.cloud.refuse("RunInstances", "UnauthorizedOperation")

    done = ec2.run("up", "--yes")

    assert done.code == 6
    assert "workflows fleet policy prints what is needed" in done.err
    assert "Traceback" not in done.err


def test_a_missing_spot_role_says_how_it_is_made(ec2: "Ec2") -> None:
    ec2.cloud.refuse("CreateFleet", "AuthFailure.ServiceLinkedRoleCreationNotPermitted")

    with pytest.raises(NotAllowed, match="aws iam create-service-linked-role"):
        ec2.converge()


# -- where CreateFleet is not allowed --------------------------------------------------------------


def singles(ec2: "Ec2") -> list[Request]:
    return ec2.cloud.asked("RunInstances")


def test_who_may_not_create_fleets_gets_nodes_one_by_one_over_the_cheapest_pools(
    ec2: "Ec2",
) -> None:
    ec2.write(nodes=3)
    ec2.cloud.refuse("CreateFleet", "UnauthorizedOperation")
    prices = {("m7i.large", "a"): 0.03, ("m6i.large", "c"): 0.01, ("m7i.large", "b"): 0.02}
    ec2.cloud.spot = {(name, f"us-east-1{zone}"): usd for (name, zone), usd in prices.items()}

    up = ec2.run("up", "--yes")

    assert up.code == 0, up
    assert "CreateFleet is not allowed here; launching by RunInstances" in up.err
    assert ec2.slots() == ["0", "1", "2"]
    zones = dict(zip("abc", ec2.region.subnets, strict=True))
    cheapest = sorted(prices, key=lambda where: prices[where])
    net = "NetworkInterface.1.SubnetId"
    asked = [(one.body["InstanceType"], one.body[net]) for one in singles(ec2)]
    assert asked == [(name, zones[zone]) for name, zone in cheapest]
    assert len({one.body["ClientToken"] for one in singles(ec2)}) == 3
    for one in singles(ec2):
        assert one.body["InstanceMarketOptions.MarketType"] == "spot"
        assert one.body["InstanceMarketOptions.SpotOptions.SpotInstanceType"] == "one-time"
        assert one.body["MinCount"] == one.body["MaxCount"] == "1"
        kinds = one.listed(r"TagSpecification\.\d\.ResourceType")
        assert sorted(kinds) == ["instance", "spot-instances-request", "volume"]


def test_one_by_one_a_pool_without_capacity_is_left_out_and_the_rest_is_bought_on_demand(
    ec2: "Ec2",
) -> None:
    ec2.write(nodes=3, zones=["a"])
    ec2.cloud.refuse("CreateFleet", "UnauthorizedOperation")
    came = []

    def one_spot_only(request: Request) -> bytes | None:
        is_spot = "InstanceMarketOptions.MarketType" in request.body
        if request.action != "RunInstances" or not is_spot:
            return None
        came.append(request)
        return None if len(came) == 1 else error_body("InsufficientInstanceCapacity", "none left")

    ec2.cloud.faults.append(one_spot_only)

    assert len(ec2.converge()) == 3

    spots = ["InstanceMarketOptions.MarketType" in one.body for one in singles(ec2)]
    assert spots == [True, True, True, False, False]


def test_one_by_one_a_public_node_has_its_subnet_where_its_address_is_asked_for(
    ec2: "Ec2",
) -> None:
    ec2.write(nodes=1, access={**ec2.top["access"], "address": "public"})
    ec2.cloud.refuse("CreateFleet", "UnauthorizedOperation")

    ec2.converge()

    (request,) = singles(ec2)
    assert "SubnetId" not in request.body
    assert request.body["NetworkInterface.1.SubnetId"] in ec2.region.subnets
    assert request.body["NetworkInterface.1.AssociatePublicIpAddress"] == "true"
    assert request.body["NetworkInterface.1.SecurityGroupId.1"].startswith("sg-")


def test_one_by_one_a_lost_answer_launches_nothing_twice(ec2: "Ec2") -> None:
    ec2.cloud.refuse("CreateFleet", "UnauthorizedOperation")
    lost: list[Request] = []

    def lose(request: Request) -> None:
        if request.action == "RunInstances" and not lost:
            lost.append(request)
            raise ConnectionResetError("the answer is lost")

    ec2.cloud.answered.append(lose)

    assert len(ec2.converge()) == 2
    assert len(singles(ec2)) == 3
    assert len(ec2.live()) == 2


def test_throttling_is_waited_out(ec2: "Ec2") -> None:
    ec2.cloud.refuse("CreateFleet", "RequestLimitExceeded", times=2)

    assert len(ec2.converge()) == 2
    assert len({request.body["ClientToken"] for request in launches(ec2)}) == 1


def test_a_lost_answer_launches_nothing_twice(ec2: "Ec2") -> None:
    lost: list[Request] = []

    def lose(request: Request) -> None:
        if request.action == "CreateFleet" and not lost:
            lost.append(request)
            raise ConnectionResetError("the answer is lost")

    ec2.cloud.answered.append(lose)

    assert len(ec2.converge()) == 2
    assert len(launches(ec2)) == 2
    assert len(ec2.live()) == 2


def test_a_launch_that_shows_late_is_not_kept_beside_its_repetition(ec2: "Ec2") -> None:
    """Another `up` was cut off; what it had launched is not described before this one launched."""
    first = ec2.converge()
    for one in first:
        ec2.region.ec2.delete_tags(Resources=[one], Tags=[{"Key": "workflows:slot"}])
    hidden = [0]

    def hide(request: Request) -> bytes | None:
        if request.action == "DescribeInstances" and not launches_after(ec2, hidden[0]):
            return (
                b"<DescribeInstancesResponse xmlns='http://ec2.amazonaws.com/doc/2016-11-15/'>"
                b"<reservationSet/></DescribeInstancesResponse>"
            )
        return None

    hidden[0] = len(launches(ec2))
    ec2.cloud.faults.append(hide)

    ec2.converge()

    ec2.cloud.faults.clear()
    assert ec2.slots() == ["0", "1"]
    assert len(instances(Aws("us-east-1"), ec2.name)) == 2


def launches_after(ec2: "Ec2", count: int) -> bool:
    return len(launches(ec2)) > count


def test_a_launch_that_breaks_in_the_middle_is_gone_on_with(ec2: "Ec2") -> None:
    ec2.cloud.refuse("CreateTags", "InternalFailure")

    with pytest.raises(FleetError, match="create_tags"):
        ec2.converge()

    ec2.cloud.faults.clear()
    launched = len(launches(ec2))
    assert len(ec2.converge()) == 2
    assert len(launches(ec2)) == launched  # two came, and were not thrown away


def test_what_may_cost_too_much_is_refused_before_anything_is_launched(ec2: "Ec2") -> None:
    ec2.write(max_hourly_cost=0.1)

    done = ec2.run("up", "--yes")

    assert done.code == 1
    assert "above max_hourly_cost 0.1" in done.err
    assert launches(ec2) == []


def test_up_does_not_go_on_unasked(ec2: "Ec2") -> None:
    done = ec2.run("up")

    assert done.code == 2
    assert "--yes" in done.err
    assert launches(ec2) == []


def test_a_misspelt_name_launches_nothing(ec2: "Ec2") -> None:
    done = ec2.run_any("up", "crwal", "--yes")

    assert done.code == 2
    assert "to begin: workflows fleet init > crwal.yaml" in done.err
    assert launches(ec2) == []
