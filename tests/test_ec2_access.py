"""Who gets in: the fleet's own login key, and a security group that knows only the caller."""

import os
import pathlib
import stat
from typing import TYPE_CHECKING

import pytest

from workflows.ec2 import caller, ground
from workflows.ec2.api import Aws
from workflows.ec2.config import Access, Spec
from workflows.errors import UsageError

if TYPE_CHECKING:
    from ec2fleets import Ec2


def test_the_login_key_is_made_once_private_and_imported(ec2: "Ec2") -> None:
    ec2.converge()
    made = pathlib.Path(ec2.spec.identity).read_text()

    ec2.write(nodes=3)
    ec2.converge()

    assert stat.S_IMODE(os.stat(ec2.spec.identity).st_mode) == 0o600
    assert pathlib.Path(ec2.spec.identity).read_text() == made
    assert len(ec2.cloud.asked("ImportKeyPair")) == 1


def test_a_machine_without_the_login_key_is_told_so_and_changes_nothing(ec2: "Ec2") -> None:
    ec2.converge()
    os.unlink(ec2.spec.identity)
    ec2.write(nodes=3)

    with pytest.raises(UsageError, match="know another login key"):
        ec2.converge()

    assert len(ec2.live()) == 2


def test_only_the_caller_may_log_in_and_when_it_moves_only_from_its_new_address(
    ec2: "Ec2",
) -> None:
    aws = Aws("us-east-1")
    ec2.write(access={**ec2.top["access"], "from": ["me"], "address": "public"})
    ec2.converge()
    ec2.cloud.caller = "127.0.0.9"

    ec2.converge()

    group = ground.find_group(aws, ec2.name)
    assert group is not None
    by_protocol = {one["IpProtocol"]: one for one in group["IpPermissions"]}
    ssh = by_protocol["tcp"]
    assert [entry["CidrIp"] for entry in ssh["IpRanges"]] == ["127.0.0.9/32"]
    assert ssh["FromPort"] == ssh["ToPort"] == ec2.region.port
    members = [pair["GroupId"] for pair in by_protocol["-1"]["UserIdGroupPairs"]]
    assert members == [group["GroupId"]]


# -- descriptions that EC2 takes -------------------------------------------------------------------


@pytest.mark.parametrize(
    "user", ["ann", "o'hara", "CORP\\ann", "ann&bob", "jos\u00e9", 'x"y', "a" * 300, "a<b>c"]
)
def test_whatever_a_user_is_called_the_rules_that_let_him_in_are_taken(
    ec2: "Ec2", monkeypatch: pytest.MonkeyPatch, user: str
) -> None:
    monkeypatch.setattr("getpass.getuser", lambda: user)
    aws, spec = Aws("us-east-1"), ec2.spec

    group = ground.security_group(aws, spec, ec2.region.vpc)
    again = ground.security_group(aws, spec, ec2.region.vpc)

    assert group == again
    assert not [one for _, one in ec2.cloud.refused if "description" in one.rule.name]


def test_a_user_without_a_name_has_his_number(monkeypatch: pytest.MonkeyPatch) -> None:
    """In a container, for instance."""

    def nobody() -> str:
        raise KeyError("getpwuid(): uid not found: 4711")

    monkeypatch.setattr("getpass.getuser", nobody)

    assert caller.described().startswith(f"workflows: uid {os.getuid()} at ")


def test_two_users_whose_names_ec2_does_not_take_do_not_revoke_each_others_rules() -> None:
    texts = ["workflows: a'b at x", "workflows: a\\b at x", "workflows: a_b at x", "a" * 256]

    found = {caller.plain(text) for text in texts}

    assert len(found) == len(texts)
    assert all(len(text) <= 255 for text in found)


# -- private fleets --------------------------------------------------------------------------------


def private(ec2: "Ec2", *, jump: str = "") -> None:
    """Let the fleet be private, and let in `me`: this machine, or a jump host."""
    access = {**ec2.top["access"], "from": ["me"], "address": "private"}
    if jump:
        access["jump"] = {"address": jump, "user": "ann", "host_key": "ssh-ed25519 AAAA"}
    ec2.write(access=access)


def test_a_private_fleet_lets_in_the_private_address_of_a_machine_in_its_vpc(
    ec2: "Ec2", monkeypatch: pytest.MonkeyPatch
) -> None:
    private(ec2)
    mine = f"{ec2.region.network}.1.77"
    monkeypatch.setattr(caller, "_outgoing", lambda _: mine)

    ec2.converge()

    group = ground.find_group(Aws("us-east-1"), ec2.name)
    assert group is not None
    (ssh,) = [one for one in group["IpPermissions"] if one["IpProtocol"] == "tcp"]
    assert [entry["CidrIp"] for entry in ssh["IpRanges"]] == [f"{mine}/32"]


def test_who_is_outside_of_a_private_fleets_vpc_is_told_what_to_write_before_anything_is_made(
    ec2: "Ec2",
) -> None:
    private(ec2)

    plan = ec2.run("plan")
    up = ec2.run("up", "--yes")

    for done in (plan, up):
        assert done.code == 2, done
        assert "this machine (127.0.0.1) is not in the VPC" in done.err
        assert "access: {from: [10.8.0.0/16]}" in done.err
    made = [one.action for one in ec2.cloud.requests if one.action.startswith(("Create", "Import"))]
    assert made == []


def test_a_jump_hosts_private_address_is_let_in_and_its_public_one_is_refused(ec2: "Ec2") -> None:
    aws, vpc = Aws("us-east-1"), ec2.region.vpc
    inside = f"{ec2.region.network}.0.9"
    private(ec2, jump=inside)
    assert caller.sources(aws, ec2.spec, vpc) == [f"{inside}/32"]
    private(ec2, jump="203.0.113.7")

    with pytest.raises(UsageError, match=r"the jump host 203\.0\.113\.7 is not in the VPC"):
        caller.sources(aws, ec2.spec, vpc)


def test_the_address_on_the_way_to_another_is_found_without_sending_anything() -> None:
    assert caller._outgoing("127.0.0.9") == "127.0.0.1"
    assert caller._outgoing("no address") == ""


# -- public fleets ---------------------------------------------------------------------------------


def public(ec2: "Ec2", **more: object) -> None:
    ec2.write(access={**ec2.top["access"], "address": "public"}, **more)


def isolated(ec2: "Ec2", *subnets: str) -> None:
    """Give subnets a route table of their own, which leads nowhere."""
    made = ec2.region.ec2.create_route_table(VpcId=ec2.region.vpc)["RouteTable"]["RouteTableId"]
    for subnet in subnets:
        ec2.region.ec2.associate_route_table(RouteTableId=made, SubnetId=subnet)


def test_a_public_fleet_is_launched_only_where_an_internet_gateway_reaches_it(ec2: "Ec2") -> None:
    public(ec2)
    isolated(ec2, ec2.region.subnets[0])

    plan = str(ec2.fleet.plan())
    ec2.converge()

    (request,) = ec2.cloud.asked("CreateFleet")
    asked = set(request.listed(r".*Overrides\.\d+\.SubnetId"))
    assert asked == set(ec2.region.subnets[1:])
    left = f"no internet gateway, left out: {ec2.region.subnets[0]} (us-east-1a)"
    assert left in plan


def test_a_public_subnet_is_chosen_before_a_private_one_with_more_free_addresses(
    ec2: "Ec2",
) -> None:
    wide = ec2.region.ec2.create_subnet(
        VpcId=ec2.region.vpc,
        CidrBlock=f"{ec2.region.network}.64.0/18",
        AvailabilityZone="us-east-1a",
    )["Subnet"]["SubnetId"]
    isolated(ec2, wide)
    public(ec2)

    network = ground.network(Aws("us-east-1"), ec2.spec)

    assert network.subnets["us-east-1a"] == ec2.region.subnets[0]
    assert network.left_out == ()
    private(ec2)
    assert ground.network(Aws("us-east-1"), ec2.spec).subnets["us-east-1a"] == wide


def test_a_public_fleet_without_any_public_subnet_is_refused_with_what_to_write(
    ec2: "Ec2",
) -> None:
    isolated(ec2, *ec2.region.subnets)
    public(ec2)

    done = ec2.run("plan")

    assert done.code == 2, done
    assert "have no route to an internet gateway" in done.err
    assert "access: {address: private}" in done.err


def test_a_private_subnet_that_a_public_fleets_file_names_is_refused(ec2: "Ec2") -> None:
    isolated(ec2, ec2.region.subnets[0])
    public(ec2, subnets=ec2.region.subnets[:2], vpc=None)

    with pytest.raises(UsageError, match=f"^{ec2.region.subnets[0]} have no route"):
        ground.network(Aws("us-east-1"), ec2.spec)


def test_more_pools_than_ec2_takes_are_refused_before_anything_is_made(ec2: "Ec2") -> None:
    rows = ec2.region.ec2.describe_instance_types()["InstanceTypes"]
    names = [
        row["InstanceType"]
        for row in rows
        if "x86_64" in row["ProcessorInfo"]["SupportedArchitectures"]
    ]
    spec = Spec("crawl", vpc=ec2.region.vpc, types=tuple(names[:180]), access=Access())

    with pytest.raises(UsageError, match=r"180 types in 3 zones are \d+ pools, and EC2 takes 300"):
        ground.network(Aws("us-east-1"), spec)


def test_an_image_of_another_architecture_is_refused_here(ec2: "Ec2") -> None:
    ec2.write(types=["m7g.large"], ami=ec2.region.image("x86_64"))

    with pytest.raises(UsageError, match=r"is for x86_64, and m7g\.large are arm64"):
        ec2.converge()


def test_an_image_that_is_not_there_is_the_users_to_name(ec2: "Ec2") -> None:
    ec2.write(ami="ami-0123456789abcdef0")

    with pytest.raises(UsageError, match="no image ami-0123456789abcdef0 in us-east-1"):
        ec2.converge()
