"""Permissions, asked of EC2 itself: the calls that change something, with DryRun.

EC2 then does nothing, and says whether the caller may. Calls on what is there already can be
rehearsed only once the fleet exists: the least policy allows them on what has the fleet's tag.
"""

from collections.abc import Iterator, Mapping, Sequence
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
    network = ground.network(aws, spec)
    group = ground.find_group(aws, spec.name, network.vpc)
    for operation, given in _calls(aws, spec, live, network, group):
        name = "ec2:" + "".join(part.title() for part in operation.split("_"))
        try:
            aws.call(operation, DryRun=True, **given)
            untold.append(f"{name} (it knows no DryRun)")
        except FleetError as error:
            if error.code == _WOULD:
                may += 1
            elif error.code.startswith(_MAY_NOT) and operation == "run_instances" and not group:
                # Without a group EC2 takes the VPC's own, which the least policy does not allow.
                untold.append(f"{name} (once the fleet is up)")
            elif error.code.startswith(_MAY_NOT):
                denied.append(name)
            else:
                untold.append(f"{name} ({error.code})")
    return Rehearsal(tuple(denied), tuple(untold), may)


def _calls(
    aws: Aws,
    spec: Spec,
    live: Sequence[Instance],
    network: ground.Network,
    group: Mapping[str, Any] | None,
) -> Iterator[tuple[str, dict[str, Any]]]:
    tags = ground.common_tags(spec)
    name = f"workflows-{spec.name}"
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
    yield "run_instances", _launch(spec, network, image, group)
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


def _launch(
    spec: Spec, network: ground.Network, image: str, group: Mapping[str, Any] | None
) -> dict[str, Any]:
    """Return the RunInstances of one node: tagged as a real one, or a policy would refuse it."""
    tags = ground.common_tags(spec)
    zone, subnet = next(iter(network.subnets.items()))
    offered = network.offered[zone] or spec.types
    kinds = ("instance", "volume", "network-interface")
    return {
        "MinCount": 1,
        "MaxCount": 1,
        "ImageId": image,
        "InstanceType": offered[0],
        "SubnetId": subnet,
        "TagSpecifications": [one for kind in kinds for one in ground.tagged(kind, tags)],
        **({"SecurityGroupIds": [group["GroupId"]]} if group else {}),
    }
