"""Who gets in: the fleet's own login key, and a security group that knows only the caller."""

import os
import pathlib
import stat
from typing import TYPE_CHECKING

import pytest

from workflows.ec2 import ground
from workflows.ec2.api import Aws
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
