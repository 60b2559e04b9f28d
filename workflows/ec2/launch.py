"""Launching: one tagged template, one CreateFleet, one more on demand for what is missing."""

import base64
import collections
import dataclasses
import hashlib
import secrets
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from workflows.ec2 import ground
from workflows.ec2.api import (
    ACCESS,
    AMI,
    BOOT_KEY,
    LAUNCH,
    Aws,
    Instance,
    canonical,
    instances,
    refusal,
)
from workflows.ec2.config import Spec
from workflows.ec2.userdata import user_data
from workflows.errors import FleetError, NoCapacity, NotAllowed, OverQuota

Say = Callable[[str], None]
_VISIBLE_S = 30.0  # until DescribeInstances shows what CreateFleet has returned
PAUSES_S = (0.1, 0.2, 0.5, 1.0, 2.0)


@dataclasses.dataclass(frozen=True)
class Site:
    """What launches of a fleet have in common."""

    image: ground.Image
    network: ground.Network
    group: str
    login_key: str


def site(aws: Aws, spec: Spec, live: Sequence[Instance], *, refresh_ami: bool = False) -> Site:
    """Make sure of what instances stand on. The image is the one that live instances have."""
    pinned = "" if refresh_ami else pinned_image(live)
    network = ground.network(aws, spec)
    image = ground.image(aws, spec, pinned)
    login_key = ground.login_key(aws, spec, in_use=bool(live))
    group = ground.security_group(aws, spec, network.vpc)
    return Site(image, network, group, login_key)


def pinned_image(live: Sequence[Instance]) -> str:
    """Return the image that a fleet's live instances have; empty if there are none."""
    return next((one.tags[AMI] for one in live if AMI in one.tags), "")


def launch(aws: Aws, spec: Spec, stand: Site, count: int, say: Say) -> list[str]:
    """Launch `count` instances, as spot as the spec says; return the ids of those that came.

    Raises:
        NoCapacity, OverQuota, NotAllowed, FleetError: none of them came, for this reason.
    """
    boot_key = ground.key_pair()
    template = _template(aws, spec, stand, boot_key)
    tags = {
        **ground.common_tags(spec),
        LAUNCH: template,
        AMI: stand.image.id,
        BOOT_KEY: boot_key[1],
        ACCESS: f"{spec.access.user} {spec.access.ssh_port} {spec.access.address}",
    }
    base = max(0, spec.spot.on_demand_base - _on_demand_count(aws, spec))
    first = Request(
        spec, stand, template, tags, spot=count - min(base, count), demand=min(base, count)
    )
    ids, refusals = _create_fleet(aws, first, say)
    left = count - len(ids)
    if left and spec.spot.fallback and not _is_final(refusals):
        say(f"{len(ids)} of {count} came; trying on-demand for {left}: {summary(refusals)}")
        second = dataclasses.replace(first, spot=0, demand=left)
        more, others = _create_fleet(aws, second, say)
        ids, refusals = ids + more, refusals + others
    if not ids:
        raise _refused(refusals, spec)
    if len(ids) < count:
        say(f"only {len(ids)} of {count} came: {summary(refusals)}")
    _await_visible(aws, spec, ids)
    return ids


def _template(aws: Aws, spec: Spec, stand: Site, boot_key: tuple[str, str]) -> str:
    """Create a launch template, which holds the key of the first contact; return its name."""
    name = f"workflows-{spec.name}-{secrets.token_hex(6)}"
    text = user_data(spec, boot_key, stand.login_key)
    aws.call(
        "create_launch_template",
        LaunchTemplateName=name,
        ClientToken=name,
        LaunchTemplateData=template_data(spec, stand, text),
        TagSpecifications=ground.tagged("launch-template", ground.common_tags(spec)),
    )
    return name


def template_data(spec: Spec, stand: Site, text: str) -> dict[str, Any]:
    """Return what all instances of a launch have in common, as EC2 wants it."""
    data: dict[str, Any] = {
        "ImageId": stand.image.id,
        "KeyName": f"workflows-{spec.name}",
        "UserData": base64.b64encode(text.encode()).decode(),
        "InstanceInitiatedShutdownBehavior": "terminate",
        "MetadataOptions": {
            "HttpTokens": "required",
            "HttpEndpoint": "enabled",
            "HttpPutResponseHopLimit": 1,
        },
        "BlockDeviceMappings": [
            {
                "DeviceName": stand.image.root,
                "Ebs": {
                    "VolumeSize": spec.disk_gb,
                    "VolumeType": "gp3",
                    "Encrypted": True,
                    "DeleteOnTermination": True,
                },
            }
        ],
    }
    if spec.access.address == "public":
        data["NetworkInterfaces"] = [
            {
                "DeviceIndex": 0,
                "AssociatePublicIpAddress": True,
                "DeleteOnTermination": True,
                "Groups": [stand.group],
            }
        ]
    else:
        data["SecurityGroupIds"] = [stand.group]
    if spec.profile:
        data["IamInstanceProfile"] = {"Name": spec.profile}
    return data


@dataclasses.dataclass(frozen=True)
class Request:
    """One CreateFleet: how many, of what, tagged how."""

    spec: Spec
    stand: Site
    template: str
    tags: Mapping[str, str]
    spot: int
    demand: int

    def body(self) -> dict[str, Any]:
        """Return the request as EC2 wants it. The same request has the same token."""
        spec = self.spec
        kinds = ("instance", "volume", "network-interface", "fleet")
        body: dict[str, Any] = {
            "Type": "instant",
            "LaunchTemplateConfigs": [
                {
                    "LaunchTemplateSpecification": {
                        "LaunchTemplateName": self.template,
                        "Version": "$Latest",
                    },
                    "Overrides": self._overrides(),
                }
            ],
            "TargetCapacitySpecification": {
                "TotalTargetCapacity": self.spot + self.demand,
                "SpotTargetCapacity": self.spot,
                "OnDemandTargetCapacity": self.demand,
                "DefaultTargetCapacityType": "spot" if self.spot else "on-demand",
            },
            "OnDemandOptions": {"AllocationStrategy": "lowest-price"},
            "TagSpecifications": [one for kind in kinds for one in ground.tagged(kind, self.tags)],
        }
        if self.spot:
            strategy = spec.spot.strategy
            body["SpotOptions"] = {
                "AllocationStrategy": strategy,
                "InstanceInterruptionBehavior": "terminate",
            }
        digest = hashlib.sha256(canonical(body).encode()).hexdigest()
        return {**body, "ClientToken": digest[:32]}

    def _overrides(self) -> list[dict[str, Any]]:
        limit = self.spec.spot.max_price
        price = {"MaxPrice": f"{limit:g}"} if limit is not None and self.spot else {}
        network = self.stand.network
        return [
            {"InstanceType": name, "SubnetId": network.subnets[zone], **price}
            for name in self.spec.types
            for zone, offered in network.offered.items()
            if name in offered
        ]


def _create_fleet(aws: Aws, request: Request, say: Say) -> tuple[list[str], list[FleetError]]:
    """Return the ids of what came, and why the rest did not."""
    try:
        answer = aws.call("create_fleet", **request.body())
    except FleetError as error:
        return [], [error]
    ids = [one for group in answer.get("Instances", []) for one in group["InstanceIds"]]
    refusals = []
    for row in answer.get("Errors", []):
        pool = row.get("LaunchTemplateAndOverrides", {}).get("Overrides", {})
        zone = pool.get("AvailabilityZone") or pool.get("SubnetId", "")
        where = f"{pool.get('InstanceType', '?')} {zone}"
        refusals.append(
            refusal(row.get("ErrorCode", ""), f"{where}: {row.get('ErrorMessage', '')}")
        )
    if ids:
        kind = "spot" if request.spot else "on-demand"
        say(f"EC2 launched {len(ids)} {kind}: {', '.join(ids)}")
    return ids, refusals


def summary(refusals: Iterable[FleetError]) -> str:
    """Return why instances did not come, in as many words as there are different reasons.

    >>> summary(
    ...     [FleetError("a: none left", "Insufficient"), FleetError("b: none left", "Insufficient")]
    ... )
    'Insufficient x 2 (a: none left)'
    """
    groups = collections.defaultdict(list)
    for one in refusals:
        groups[one.code].append(one.why)
    return (
        "; ".join(f"{code} x {len(whys)} ({whys[0]})" for code, whys in groups.items())
        or "no reason given"
    )


def _is_final(refusals: Sequence[FleetError]) -> bool:
    """Tell whether trying elsewhere cannot help: a quota, or no permission."""
    return any(isinstance(one, (OverQuota, NotAllowed)) for one in refusals)


def _refused(refusals: list[FleetError], spec: Spec) -> FleetError:
    for kind in (NotAllowed, OverQuota):
        for one in refusals:
            if isinstance(one, kind):
                return one
    hint = "name more types or zones, or try again later; workflows fleet prices"
    code = refusals[0].code if refusals else ""
    return NoCapacity(f"EC2 launched nothing: {summary(refusals)}; {hint} {spec.name}", code)


def _on_demand_count(aws: Aws, spec: Spec) -> int:
    return (
        sum(not one.is_spot for one in instances(aws, spec.name)) if spec.spot.on_demand_base else 0
    )


def _await_visible(aws: Aws, spec: Spec, ids: Sequence[str]) -> None:
    """Wait until EC2 shows all that it said it has launched; those that died at once count too."""
    deadline = time.monotonic() + _VISIBLE_S
    states = ("pending", "running", "shutting-down", "terminated")
    for pause_s in (*PAUSES_S, *[2.0] * 20):
        shown = {one.id for one in instances(aws, spec.name, states=states)}
        if set(ids) <= shown or time.monotonic() > deadline:
            return
        time.sleep(pause_s)
