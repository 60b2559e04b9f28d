"""Permissions, asked of EC2 itself: the calls that change something, with DryRun.

EC2 then does nothing, and says whether the caller may. Calls on what is there already can be
rehearsed only once the fleet exists: the least policy allows them on what has the fleet's tag.
"""

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

from workflows.ec2 import ground
from workflows.ec2.api import Aws, Instance
from workflows.ec2.config import Spec
from workflows.errors import FleetError

_WOULD = "DryRunOperation"
_MAY_NOT = ("UnauthorizedOperation", "AccessDenied")


class Rehearsal(NamedTuple):
    """Actions that the caller may not do, and those of which EC2 did not tell, with its code."""

    denied: tuple[str, ...]
    untold: tuple[str, ...]
    allowed: int


def rehearse(aws: Aws, spec: Spec, live: Sequence[Instance]) -> Rehearsal:
    """Ask EC2 whether the caller may do what `up` and `down` do; nothing is changed."""
    denied, untold, may = [], [], 0
    for operation, given in _calls(aws, spec, live):
        name = "ec2:" + "".join(part.title() for part in operation.split("_"))
        try:
            aws.call(operation, DryRun=True, **given)
            untold.append(f"{name} (it knows no DryRun)")
        except FleetError as error:
            if error.code == _WOULD:
                may += 1
            elif error.code.startswith(_MAY_NOT):
                denied.append(name)
            else:
                untold.append(f"{name} ({error.code})")
    return Rehearsal(tuple(denied), tuple(untold), may)


def _calls(aws: Aws, spec: Spec, live: Sequence[Instance]) -> Iterator[tuple[str, dict[str, Any]]]:
    network = ground.network(aws, spec)
    tags = ground.common_tags(spec)
    name = f"workflows-{spec.name}"
    zone, subnet = next(iter(network.subnets.items()))
    offered = network.offered[zone] or spec.types
    group = ground.find_group(aws, spec.name, network.vpc)
    if group is None:
        made = {"GroupName": name, "Description": "rehearsal", "VpcId": network.vpc}
        specs = ground.tagged("security-group", tags)
        yield "create_security_group", {**made, "TagSpecifications": specs}
        public = ground.key_pair()[1].encode()
        specs = ground.tagged("key-pair", tags)
        key = {"KeyName": name, "PublicKeyMaterial": public, "TagSpecifications": specs}
        yield "import_key_pair", key
    image = ground.image(aws, spec).id
    yield (
        "create_launch_template",
        {
            "LaunchTemplateName": f"{name}-rehearsal",
            "LaunchTemplateData": {"ImageId": image},
            "TagSpecifications": ground.tagged("launch-template", tags),
        },
    )
    yield (
        "run_instances",
        {
            "MinCount": 1,
            "MaxCount": 1,
            "ImageId": image,
            "InstanceType": offered[0],
            "SubnetId": subnet,
            "TagSpecifications": [
                one for kind in ("instance", "volume") for one in ground.tagged(kind, tags)
            ],
        },
    )
    if group is not None:
        own = group["GroupId"]
        rule = {"IpProtocol": "tcp", "FromPort": 22, "ToPort": 22}
        permissions = [{**rule, "IpRanges": [{"CidrIp": "192.0.2.1/32"}]}]
        for operation in ("authorize", "revoke"):
            given = {"GroupId": own, "IpPermissions": permissions}
            yield f"{operation}_security_group_ingress", given
        yield "create_tags", {"Resources": [own], "Tags": [{"Key": "workflows:x", "Value": "x"}]}
        yield "delete_tags", {"Resources": [own], "Tags": [{"Key": "workflows:x"}]}
        yield "delete_security_group", {"GroupId": own}
        yield "delete_key_pair", {"KeyName": name}
    if live:
        yield "terminate_instances", {"InstanceIds": [live[0].id]}
