"""EC2 is told what exists, and does not know it yet; shows it, and then does not."""

import pathlib
import time
from typing import TYPE_CHECKING

import pytest
from aws import sigv4
from ec2cloud import Request

from workflows.ec2 import adopt, ground, launch, teardown
from workflows.ec2.adopt import Watched
from workflows.ec2.api import Aws, _instance, instances
from workflows.errors import FleetError, NodeLost, Rejected

if TYPE_CHECKING:
    from ec2fleets import Ec2

NOTHING = (
    b"<DescribeInstancesResponse xmlns='http://ec2.amazonaws.com/doc/2016-11-15/'>"
    b"<reservationSet/></DescribeInstancesResponse>"
)


class Late:
    """Makes everything new be unknown to the first calls that name it, as often as said."""

    def __init__(self, ec2: "Ec2", times: int) -> None:
        self.account = ec2.cloud.account
        self._made = self.account.made
        self.times = times
        self.account.made = self  # type: ignore[method-assign]

    def __call__(self, kind: str, *names: str) -> None:
        self._made(kind, *names)
        self.account._new.update(dict.fromkeys(names, self.times))


def hide(ec2: "Ec2", times: int) -> None:
    """Let the next descriptions of instances show none."""
    left = [times]

    def fault(request: Request) -> bytes | None:
        if request.action != "DescribeInstances" or left[0] <= 0:
            return None
        left[0] -= 1
        return NOTHING

    ec2.cloud.faults.append(fault)


def test_an_up_whose_every_new_thing_is_unknown_at_first_goes_through(ec2: "Ec2") -> None:
    Late(ec2, 3)

    assert len(ec2.fleet.up()) == 2

    names = {refusal.rule.name for _, refusal in ec2.cloud.refused}
    assert {"new group", "new template", "new key pair", "new instance"} <= names
    assert len(ec2.live()) == 2


def test_one_by_one_new_things_are_waited_for_as_well(ec2: "Ec2") -> None:
    Late(ec2, 2)
    ec2.cloud.refuse("CreateFleet", "UnauthorizedOperation")

    assert len(ec2.converge()) == 2

    assert len(ec2.live()) == 2


def test_what_was_just_launched_is_terminated_though_ec2_does_not_know_it_yet(
    ec2: "Ec2",
) -> None:
    """Told that there is no such instance, nobody may conclude that it is gone."""
    Late(ec2, 3)
    ec2.cloud.refuse("DescribeTags", "x")
    ec2.region.boots = False
    aws, spec = Aws("us-east-1"), ec2.spec
    stand = launch.site(aws, spec, [])
    ids, _ = launch.launch(aws, spec, stand, 2, print)

    teardown.terminate(aws, ids)

    assert ec2.live() == []


def test_a_group_and_a_template_that_were_just_made_go_down_though_ec2_does_not_know_them(
    ec2: "Ec2", monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(teardown, "LATE_S", 0.5)
    Late(ec2, 2)
    aws, spec = Aws("us-east-1"), ec2.spec
    ground.security_group(aws, spec, ec2.region.vpc)
    stand = launch.site(aws, spec, [])
    launch._request(aws, spec, stand, spot=1, demand=0)

    ec2.fleet.down()

    assert teardown.leftovers(aws, spec.name) == {}


GROUPS = b"<DescribeSecurityGroupsResponse><securityGroupInfo/></DescribeSecurityGroupsResponse>"
KEYS = b"<DescribeKeyPairsResponse><keySet/></DescribeKeyPairsResponse>"


def empty(ec2: "Ec2", action: str, answer: bytes, times: int) -> None:
    """Let the next calls of a Describe show nothing."""
    left = [times]

    def fault(request: Request) -> bytes | None:
        if request.action != action or left[0] <= 0:
            return None
        left[0] -= 1
        return answer

    ec2.cloud.faults.append(fault)


def test_a_group_that_was_made_but_does_not_show_is_waited_for(ec2: "Ec2") -> None:
    """An `up` was killed after it had made the group; the next one comes at once."""
    aws, spec = Aws("us-east-1"), ec2.spec
    first = ground.security_group(aws, spec, ec2.region.vpc)
    empty(ec2, "DescribeSecurityGroups", GROUPS, 4)

    assert ground.security_group(aws, spec, ec2.region.vpc) == first


def test_a_key_that_was_imported_but_does_not_show_is_waited_for(ec2: "Ec2") -> None:
    aws, spec = Aws("us-east-1"), ec2.spec
    first = ground.login_key(aws, spec, in_use=False)
    empty(ec2, "DescribeKeyPairs", KEYS, 4)

    assert ground.login_key(aws, spec, in_use=False) == first


def test_another_key_of_the_name_that_does_not_show_at_first_is_replaced(ec2: "Ec2") -> None:
    aws, spec = Aws("us-east-1"), ec2.spec
    ground.login_key(aws, spec, in_use=False)
    for name in (spec.identity, f"{spec.identity}.pub"):
        pathlib.Path(name).unlink()
    empty(ec2, "DescribeKeyPairs", KEYS, 2)

    mine = ground.login_key(aws, spec, in_use=False)

    filters = [{"Name": "key-name", "Values": [f"workflows-{spec.name}"]}]
    answer = ec2.region.ec2.describe_key_pairs(Filters=filters, IncludePublicKey=True)
    (row,) = answer["KeyPairs"]
    assert row["PublicKey"].startswith(mine)


def test_a_rule_that_shows_though_it_is_out_already_is_no_error(ec2: "Ec2") -> None:
    aws, spec = Aws("us-east-1"), ec2.spec
    ground.security_group(aws, spec, ec2.region.vpc)
    access = {**ec2.top["access"], "from": ["127.0.0.2/32"]}
    ec2.write(access=access)
    ec2.cloud.refuse("RevokeSecurityGroupIngress", "InvalidPermission.NotFound")

    ground.security_group(aws, ec2.spec, ec2.region.vpc)

    assert ec2.cloud.asked("RevokeSecurityGroupIngress")


def test_instances_that_are_gone_are_waited_for_together_not_one_after_the_other(
    ec2: "Ec2", monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Aws, "settle_s", 0.5)
    ec2.region.boots = False
    ids = ec2.converge()
    gone = [f"i-{number:017x}" for number in range(8)]
    started = time.monotonic()

    teardown.terminate(Aws("us-east-1"), [*gone, *ids])

    assert time.monotonic() - started < 8 * 0.5
    assert ec2.live() == []


def test_a_refusal_that_is_about_no_instance_is_not_asked_for_each(ec2: "Ec2") -> None:
    """With a hundred instances that would be a hundred calls more, each of which is retried."""
    ec2.region.boots = False
    ids = ec2.converge()
    ec2.cloud.refuse("TerminateInstances", "AuthFailure")

    with pytest.raises(FleetError, match="AuthFailure"):
        teardown.terminate(Aws("us-east-1"), ids)

    (asked,) = ec2.cloud.asked("TerminateInstances")
    assert len(asked.listed("InstanceId")) == 2


def test_what_another_down_has_removed_meanwhile_holds_nobody_up(ec2: "Ec2") -> None:
    """Two downs at once: the one that comes second neither fails nor waits for half a minute."""
    aws, spec = Aws("us-east-1"), ec2.spec
    ground.security_group(aws, spec, ec2.region.vpc)
    ec2.cloud.refuse("DeleteSecurityGroup", "InvalidGroup.NotFound")
    (group,) = teardown.leftovers(aws, spec.name)["security groups"]

    def gone(request: Request) -> None:
        if request.action == "DescribeSecurityGroups":
            ec2.region.ec2.delete_security_group(GroupId=group)
            ec2.cloud.answered.clear()

    ec2.cloud.answered.append(gone)
    started = time.monotonic()

    teardown.tear_down(aws, spec.name, say=print)

    assert time.monotonic() - started < 10
    assert teardown.leftovers(aws, spec.name) == {}


def test_what_stays_unknown_is_given_up_in_the_end(
    ec2: "Ec2", monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Aws, "settle_s", 0.3)
    aws = Aws("us-east-1")

    with pytest.raises(FleetError) as raised:
        aws.call("delete_security_group", settles=True, GroupId="sg-0123456789abcdef0")

    assert raised.value.code == "InvalidGroup.NotFound"
    assert len(ec2.cloud.asked("DeleteSecurityGroup")) == len([*aws.pauses_s()]) + 1 == 4


def test_pauses_begin_short_and_last_for_half_a_minute() -> None:
    pauses = list(Aws("us-east-1").pauses_s())

    assert pauses[0] == 0.05
    assert 30 <= sum(pauses) <= 32
    assert max(pauses) == 2.0


def test_an_instance_that_ec2_shows_and_then_leaves_out_is_not_lost(ec2: "Ec2") -> None:
    ec2.write(nodes=1)
    ec2.region.boots = False
    ec2.converge()
    aws = Aws("us-east-1")
    (one,) = instances(aws, ec2.name)
    watched = Watched(aws, ec2.name)
    watched.look(one, within_s=0)
    hide(ec2, 3)

    found = [watched.look(one, within_s=0).id for _ in range(4)]

    assert set(found) == {one.id}


def test_an_up_during_which_ec2_leaves_out_what_it_has_shown_keeps_its_nodes(ec2: "Ec2") -> None:
    calls = [0]

    def fault(request: Request) -> bytes | None:
        if request.action != "DescribeInstances" or not ec2.cloud.asked("CreateFleet"):
            return None
        calls[0] += 1
        return NOTHING if calls[0] % 3 else None

    ec2.cloud.faults.append(fault)

    assert len(ec2.fleet.up()) == 2

    assert len(ec2.cloud.asked("CreateFleet")) == 1
    assert not ec2.cloud.asked("TerminateInstances")


def test_an_instance_that_is_left_out_for_long_is_lost_after_all(
    ec2: "Ec2", monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Aws, "settle_s", 0.2)
    ec2.write(nodes=1)
    ec2.region.boots = False
    ec2.converge()
    aws = Aws("us-east-1")
    (one,) = instances(aws, ec2.name)
    watched = Watched(aws, ec2.name)
    hide(ec2, 1000)

    assert watched.look(one, within_s=0).id == one.id
    time.sleep(0.25)
    with pytest.raises(NodeLost, match="EC2 no longer shows it"):
        watched.look(one, within_s=0)


def test_an_instance_that_has_ended_is_lost_at_once(ec2: "Ec2") -> None:
    ec2.write(nodes=1)
    ec2.region.boots = False
    (name,) = ec2.converge()
    aws = Aws("us-east-1")
    (one,) = instances(aws, ec2.name)
    ec2.region.ec2.terminate_instances(InstanceIds=[name])

    with pytest.raises(NodeLost, match="EC2 has terminated it"):
        Watched(aws, ec2.name).look(one)


def test_an_instance_that_ec2_could_not_start_is_no_lost_node(ec2: "Ec2") -> None:
    """A key of KMS that may not be used: a second launch would end the same way."""
    ec2.write(nodes=1)
    ec2.region.boots = False
    (name,) = ec2.converge()
    ec2.region.ec2.terminate_instances(InstanceIds=[name])
    kms = "Client.InvalidKMSKey.InvalidState: The KMS key provided is in an incorrect state"
    (raw,) = ec2.region.described(ec2.name, "terminated")
    raw["StateReason"] = {"Code": kms.split(":", maxsplit=1)[0], "Message": kms}

    error = adopt._ended(_instance(raw), "node 0")

    assert isinstance(error, Rejected)
    assert error.exit_code == 7
    assert "The KMS key provided is in an incorrect state" in str(error)
    assert "waiting does not help: look for" in str(error)


# -- credentials -----------------------------------------------------------------------------------


def test_a_login_that_is_over_is_named_before_the_clock(ec2: "Ec2") -> None:
    ec2.cloud.account.keys["testing"] = sigv4.Credential("testing", ends=1.0)

    done = ec2.run("status")

    assert done.code == 6, done
    assert "(RequestExpired); the login has expired: log in again (aws sso login" in done.err
    assert done.err.index("log in again") < done.err.index("clock may be wrong")
    assert "policy" not in done.err


def test_a_wrong_secret_key_is_no_missing_permission(ec2: "Ec2") -> None:
    ec2.cloud.account.keys["testing"] = sigv4.Credential("another")

    done = ec2.run("status")

    assert done.code == 6, done
    assert "the secret key does not fit the key id: aws configure" in done.err
    assert "please report this" in done.err
    assert "policy" not in done.err
