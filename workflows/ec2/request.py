"""Requests that launch nodes: the template, CreateFleet, RunInstances."""

import base64
import dataclasses
import hashlib
import secrets
from collections.abc import Mapping
from typing import Any, NamedTuple

from workflows.ec2 import ground
from workflows.ec2.api import LAUNCH, Instance, canonical
from workflows.ec2.config import Spec


@dataclasses.dataclass(frozen=True)
class Site:
    """The common part of the launches of one call of `up`."""

    image: ground.Image
    network: ground.Network
    group: str
    login_key: str
    mark: str = dataclasses.field(default_factory=lambda: secrets.token_hex(6))

    def has_launched(self, one: Instance) -> bool:
        """Tell whether an instance is of this call, by the name of its launch template."""
        return f"-{self.mark}-" in one.tags.get(LAUNCH, "")


def template_data(spec: Spec, stand: Site, text: str, tags: Mapping[str, str]) -> dict[str, Any]:
    """Return what all instances of a launch have in common, as EC2 wants it.

    The tags of network interfaces are here: CreateFleet takes none for them.
    """
    data: dict[str, Any] = {
        "ImageId": stand.image.id,
        "KeyName": f"workflows-{spec.name}",
        "UserData": base64.b64encode(text.encode()).decode(),
        "InstanceInitiatedShutdownBehavior": "terminate",
        "MetadataOptions": {
            "HttpTokens": "required",
            "HttpEndpoint": "enabled",
            "HttpProtocolIpv6": "disabled",
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
    data["NetworkInterfaces"] = [_interface(spec, stand)]
    data["TagSpecifications"] = ground.tagged("network-interface", tags)
    if spec.profile:
        data["IamInstanceProfile"] = {"Name": spec.profile}
    return data


class Pool(NamedTuple):
    """One instance type in one zone, by its subnet there."""

    type: str
    zone: str
    subnet: str


@dataclasses.dataclass(frozen=True)
class Request:
    """One launch: how many, of what, tagged how."""

    spec: Spec
    stand: Site
    template: str
    tags: Mapping[str, str]
    spot: int
    demand: int

    def pools(self) -> list[Pool]:
        """Return where instances may come from."""
        network = self.stand.network
        return [
            Pool(name, zone, network.subnets[zone])
            for name in self.spec.types
            for zone, offered in network.offered.items()
            if name in offered
        ]

    def fleet(self, number: int = 0) -> dict[str, Any]:
        """Return the CreateFleet for all of it; the same request of one `number` has one token."""
        spec = self.spec
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
            "TagSpecifications": self._tagged("fleet"),
        }
        if self.spot:
            strategy = spec.spot.strategy
            body["SpotOptions"] = {
                "AllocationStrategy": strategy,
                "InstanceInterruptionBehavior": "terminate",
            }
        return with_token(body, number)

    def single(self, pool: Pool, number: int, *, spot: bool) -> dict[str, Any]:
        """Return the RunInstances for one of it, in one pool; `number` tells it from the others."""
        body: dict[str, Any] = {
            "MinCount": 1,
            "MaxCount": 1,
            "InstanceType": pool.type,
            "LaunchTemplate": {"LaunchTemplateName": self.template, "Version": "$Latest"},
            "TagSpecifications": self._tagged(*(["spot-instances-request"] if spot else [])),
        }
        # Beside interfaces, which the template has, EC2 takes no subnet.
        interface = _interface(self.spec, self.stand)
        body["NetworkInterfaces"] = [{**interface, "SubnetId": pool.subnet}]
        if spot:
            limit = self.spec.spot.max_price
            price = {} if limit is None else {"MaxPrice": f"{limit:g}"}
            options = {"SpotInstanceType": "one-time", "InstanceInterruptionBehavior": "terminate"}
            body["InstanceMarketOptions"] = {"MarketType": "spot", "SpotOptions": options | price}
        return with_token(body, number)

    def _tagged(self, *more: str) -> list[dict[str, Any]]:
        kinds = ("instance", "volume", *more)
        return [one for kind in kinds for one in ground.tagged(kind, self.tags)]

    def _overrides(self) -> list[dict[str, Any]]:
        limit = self.spec.spot.max_price
        price = {"MaxPrice": f"{limit:g}"} if limit is not None and self.spot else {}
        return [
            {"InstanceType": pool.type, "SubnetId": pool.subnet, **price} for pool in self.pools()
        ]


def with_token(body: Mapping[str, Any], number: int = 0) -> dict[str, Any]:
    """Return a request with the token that makes EC2 do it once, however often it is sent."""
    digest = hashlib.sha256(f"{canonical(body)}{number}".encode()).hexdigest()
    return {**body, "ClientToken": digest[:32]}


def _interface(spec: Spec, stand: Site) -> dict[str, Any]:
    return {
        "DeviceIndex": 0,
        # Said either way: left out, the subnet decides, and a public address costs money.
        "AssociatePublicIpAddress": spec.access.address == "public",
        "DeleteOnTermination": True,
        "Groups": [stand.group],
    }
