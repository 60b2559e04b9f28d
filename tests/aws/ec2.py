"""EC2 as strict as Amazon, in front of moto: what a request must be, and what an account may.

`Account.check` refuses what Amazon refuses (the table is `ec2_rules.RULES`). Things that were just
made are not there yet for the first calls that name them, by seed; quotas of vCPUs count what runs;
what `denied` names is refused, and DryRun answered.

What it cannot know it lets pass: IAM's policies but for the one that a test sets (`iam`), capacity
(inject it), the addresses that reach a
node, KMS keys, instance profiles, limits that are documented nowhere, the order in which EC2 checks
what is wrong twice, how long its eventual consistency lasts, and the shapes of other services than
EC2, of which only signatures are looked at.
"""

import base64
import binascii
import dataclasses
import hashlib
import random
import re
import time
from collections.abc import Mapping, Sequence
from typing import Any
from xml.sax.saxutils import escape

from aws import ec2_shapes, iam, sigv4
from aws.ec2_rules import RULES
from aws.rule import Refusal, Rule

_DESCRIPTION = re.compile(r"[a-zA-Z0-9. _\-:/()#,@\[\]+=&;{}!$*]{0,255}")
# Kinds that may be tagged by the action that makes them; of other actions nothing is known.
_KINDS = {
    "CreateFleet": {"fleet", "instance", "volume"},
    "RunInstances": {
        *("instance", "volume", "elastic-gpu", "spot-instances-request", "network-interface"),
    },
    "CreateLaunchTemplate": {"launch-template"},
    "CreateSecurityGroup": {"security-group"},
    "ImportKeyPair": {"key-pair"},
}
_MOST = {"GroupName": 255, "KeyName": 255, "ClientToken": 64}
_OVERRIDES = 300
_FILTER_VALUES = 200
_CLOCK_S = 300.0
# A template is made of names that are not looked at; what makes a thing says that there is one; to
# delete a key that is not there is no error.
_NEVER_LATE = ("CreateLaunchTemplate", "CreateSecurityGroup", "ImportKeyPair", "DeleteKeyPair")
_LAUNCHES = ("CreateFleet", "RunInstances")
_FAULTS = {
    sigv4.Fault.ANONYMOUS: "anonymous",
    sigv4.Fault.MALFORMED: "anonymous",
    sigv4.Fault.EXPIRED_TOKEN: "expired",
    sigv4.Fault.MISMATCH: "signature",
    sigv4.Fault.WRONG_SCOPE: "signature",
    sigv4.Fault.UNSIGNED_HEADERS: "signature",
}
# Service Quotas' code for spot and on-demand vCPUs of each family (EC2 user guide).
FAMILIES = {
    "f": ("L-88CF9481", "L-74FC7D96"),
    "g": ("L-3819A6DF", "L-DB2E81BA"),
    "vt": ("L-3819A6DF", "L-DB2E81BA"),
    "p": ("L-7212CCBC", "L-417A185B"),
    "inf": ("L-B5D1601B", "L-1945791B"),
    "trn": ("L-6B0D517C", "L-2C3B7624"),
    "x": ("L-E3A00192", "L-7295265B"),
}
_STANDARD = ("L-34B43A08", "L-1216C47A")


def quota_of(name: str, *, spot: bool) -> str:
    """Return the code of the quota that counts an instance type."""
    family = re.match(r"[a-z]+", name)
    codes = FAMILIES.get(family[0] if family else "", _STANDARD)
    return codes[0] if spot else codes[1]


@dataclasses.dataclass
class Running:
    """An instance that counts against a quota."""

    type: str
    is_spot: bool


class Facts:
    """What the rules ask about what there is; moto answers."""

    def __init__(self, ec2: Any) -> None:
        self._ec2 = ec2
        self._types: dict[str, Any] = {}

    def type(self, name: str) -> Any:
        """Return what EC2 says about an instance type, or None."""
        if name not in self._types:
            filters = [{"Name": "instance-type", "Values": [name]}]
            rows = self._ec2.describe_instance_types(Filters=filters)["InstanceTypes"]
            self._types[name] = rows[0] if rows else None
        return self._types[name]

    def image_architecture(self, image: str) -> str | None:
        """Return the architecture of an image; None if there is no such image."""
        filters = [{"Name": "image-id", "Values": [image]}]
        rows = self._ec2.describe_images(Filters=filters)["Images"]
        return rows[0].get("Architecture", "x86_64") if rows else None

    def image_disks(self, image: str) -> dict[str, tuple[str, int]]:
        """Return device -> (snapshot, GB) of an image."""
        filters = [{"Name": "image-id", "Values": [image]}]
        (row,) = self._ec2.describe_images(Filters=filters)["Images"]
        return {
            one["DeviceName"]: (one["Ebs"].get("SnapshotId", ""), one["Ebs"].get("VolumeSize", 0))
            for one in row.get("BlockDeviceMappings", [])
            if "Ebs" in one
        }

    def tags(self, name: str) -> dict[str, str]:
        """Return the tags of something, by its id or name."""
        for operation, key, about in (
            ("describe_key_pairs", "KeyPairs", "key-name"),
            ("describe_launch_templates", "LaunchTemplates", "launch-template-name"),
        ):
            filters = [{"Name": about, "Values": [name]}]
            for row in getattr(self._ec2, operation)(Filters=filters)[key]:
                return {tag["Key"]: tag["Value"] for tag in row.get("Tags", [])}
        filters = [{"Name": "resource-id", "Values": [name]}]
        rows = self._ec2.describe_tags(Filters=filters)["Tags"]
        return {row["Key"]: row["Value"] for row in rows}

    def running(self) -> list[Running]:
        """Return what counts against the quotas."""
        filters = [{"Name": "instance-state-name", "Values": ["pending", "running"]}]
        rows = self._ec2.describe_instances(Filters=filters)["Reservations"]
        return [
            Running(one["InstanceType"], one.get("InstanceLifecycle") == "spot")
            for each in rows
            for one in each["Instances"]
        ]


@dataclasses.dataclass
class Launch:
    """How a CreateFleet comes out: how many of it, and why not the rest."""

    spot: int
    demand: int
    errors: list[tuple[Refusal, str]]  # and the type


class Account:
    """One account, whose keys, quotas, permissions and clock tests set."""

    def __init__(self, keys: Mapping[str, sigv4.Credential], seed: int = 0) -> None:
        self.keys = dict(keys)
        self.clock_s = 0.0  # how far EC2's clock is ahead of this machine's
        self.lag = 2  # a new thing is not there for up to so many calls that name it
        self.quotas: dict[str, float] = {}  # code -> vCPUs; 64 of the others
        self.denied: set[str] = set()
        self.private: set[str] = set()  # images that are not shared with this account
        self.policy: Mapping[str, Any] | None = None  # of IAM; None allows everything
        self.throttled: dict[str, int] = {}  # action -> how many calls are yet refused
        self._random = random.Random(seed)
        self._new: dict[str, int] = {}
        self._kinds: dict[str, str] = {}
        self._templates: dict[str, dict[str, Any]] = {}
        self._tokens: dict[str, str] = {}

    # -- signatures ------------------------------------------------------------------------------

    def verify(self, request: sigv4.Request, raw: bytes, service: str) -> None:
        """Refuse a request that is not signed by one of the account's keys, or not in time.

        Raises:
            Refusal: it is not.
        """
        now = time.time() + self.clock_s
        # Requests to S3 say themselves what hash of their body was signed.
        payload = None if service == "s3" else hashlib.sha256(raw).hexdigest()
        try:
            sigv4.verify(request, self.keys, region="", service=service, now=now, payload=payload)
        except sigv4.Unverified as error:
            name = _FAULTS.get(error.fault, "credentials")
            if error.fault is sigv4.Fault.SKEWED and service == "sts":
                raise _skewed(sigv4.read(request).at, now) from error
            if error.fault is sigv4.Fault.SKEWED:
                name = "expired" if sigv4.read(request).at < now else "credentials"
            raise RULES[name].refuse() from error
        if service == "ec2" and abs(sigv4.read(request).at - now) > _CLOCK_S:
            raise RULES["credentials"].refuse()

    # -- requests --------------------------------------------------------------------------------

    def check(self, action: str, body: Mapping[str, str]) -> dict[str, Any]:
        """Return the parameters of a request to EC2.

        Raises:
            Refusal: Amazon would not take it, whatever there is.
        """
        if self.throttled.get(action, 0) > 0:
            self.throttled[action] -= 1
            raise RULES["throttle"].refuse()
        found = ec2_shapes.read(action, body)
        if action in self.denied:
            raise RULES["permission"].refuse()
        for name, most in _MOST.items():
            if len(str(found.get(name, ""))) > most:
                raise RULES["length"].refuse(name=name, value=found[name][:60], most=str(most))
        for image in {*found.get("ImageIds", []), found.get("ImageId")} & self.private:
            raise RULES["private image"].refuse(name=image)
        _check_filters(found)
        _check_tags(action, found)
        _check_texts(action, found)
        if action == "CreateLaunchTemplate":
            _check_template(found["LaunchTemplateData"])
        if action in _LAUNCHES:
            self._check_launch(action, found)
        return found

    def _check_launch(self, action: str, found: Mapping[str, Any]) -> None:
        overrides = [one for row in _configs(found) for one in row.get("Overrides", [])]
        if len(overrides) > _OVERRIDES:
            raise RULES["overrides"].refuse(count=str(len(overrides)))
        pools = [repr(sorted(one.items())) for one in overrides]
        if len(set(pools)) < len(pools):
            raise RULES["duplicate pools"].refuse()
        spot = found.get("InstanceMarketOptions", {}).get("SpotOptions", {})
        for price in [one.get("MaxPrice") for one in [*overrides, spot]]:
            if price is not None and float(price) < 0.001:
                raise RULES["max price"].refuse(value=price)
        data = self._template_of(action, found)
        if action == "RunInstances":
            _check_template({**data, **found})

    def check_token(self, action: str, found: Mapping[str, Any]) -> None:
        """Refuse a token that came with other parameters.

        Raises:
            Refusal: it did.
        """
        token = found.get("ClientToken")
        if token:
            about = repr((action, sorted(found.items())))
            if self._tokens.setdefault(f"{action} {token}", about) != about:
                raise RULES["token"].refuse()

    def check_policy(self, action: str, found: Mapping[str, Any], facts: Facts) -> None:
        """Refuse what the policy does not allow of each resource of a call.

        Raises:
            Refusal: it does not.
        """
        if self.policy is None:
            return
        template = self._template_of(action, found)
        if iam.denied(self.policy, action, found, template, facts.tags):
            raise RULES["permission"].refuse()

    # -- eventual consistency --------------------------------------------------------------------

    def made(self, kind: str, *names: str) -> None:
        """Take down what was just made."""
        for name in names:
            self._kinds[name] = kind
            self._new[name] = self._random.randint(0, self.lag)

    def check_there(self, action: str, found: Mapping[str, Any]) -> None:
        """Refuse a call that names what is not there yet, at the first times.

        A Describe that shows it proves nothing for the next call that names it.

        Raises:
            Refusal: it names such a thing.
        """
        if action in _NEVER_LATE:
            return
        for name in [one for one in _texts(found) if one in self._new]:
            if self._new[name] > 0:
                self._new[name] -= 1
                raise self._not_there(name)

    def not_there(self, action: str, found: Mapping[str, Any]) -> Refusal | None:
        """Return why a launch finds no group or key that its template names: not there yet."""
        data = self._template_of(action, found)
        interfaces = [one for each in data.get("NetworkInterfaces", []) for one in _texts(each)]
        for one in [data.get("KeyName", ""), *interfaces, *data.get("SecurityGroupIds", [])]:
            if self._new.get(one, 0) > 0:
                self._new[one] -= 1
                return self._not_there(one)
        return None

    def _not_there(self, name: str) -> Refusal:
        return RULES[f"new {self._kinds[name]}"].refuse(name=name)

    def remember_template(self, found: Mapping[str, Any]) -> None:
        """Keep what a launch template holds: a launch is checked with it."""
        self._templates[found["LaunchTemplateName"]] = found["LaunchTemplateData"]

    def _template_of(self, action: str, found: Mapping[str, Any]) -> dict[str, Any]:
        if action == "CreateFleet":
            specs = [row.get("LaunchTemplateSpecification", {}) for row in _configs(found)]
        else:
            specs = [found.get("LaunchTemplate", {})]
        names = [one.get("LaunchTemplateName", "") for one in specs]
        return next((self._templates[one] for one in names if one in self._templates), {})

    # -- launches --------------------------------------------------------------------------------

    def launch(self, action: str, found: Mapping[str, Any], facts: Facts) -> Launch:
        """Return how a launch comes out.

        Raises:
            Refusal: of RunInstances, whose refusals are of the call itself.
        """
        data = self._template_of(action, found)
        if action == "RunInstances":
            is_spot = "InstanceMarketOptions" in found
            count = found["MinCount"]
            wanted = Launch(count * is_spot, count * (not is_spot), [])
            name = found.get("InstanceType") or data.get("InstanceType", "m1.small")
            image = found.get("ImageId") or data.get("ImageId", "")
        else:
            target = found["TargetCapacitySpecification"]
            wanted = Launch(
                target.get("SpotTargetCapacity", 0), target.get("OnDemandTargetCapacity", 0), []
            )
            overrides = [one for row in _configs(found) for one in row.get("Overrides", [])]
            name = overrides[0]["InstanceType"]
            image = data.get("ImageId", "")
        came = self._came(wanted, name, image, {**data, **found}, facts)
        if action == "RunInstances" and came.errors:
            raise came.errors[0][0]
        return came

    def _came(
        self, wanted: Launch, name: str, image: str, data: Mapping[str, Any], facts: Facts
    ) -> Launch:
        refusal = self._unlaunchable(name, image, data, facts)
        if refusal is not None:
            return Launch(0, 0, [(refusal, name)])
        cores = facts.type(name)["VCpuInfo"]["DefaultVCpus"]
        errors: list[tuple[Refusal, str]] = []
        came = []
        for is_spot, count in ((True, wanted.spot), (False, wanted.demand)):
            code = quota_of(name, spot=is_spot)
            used = sum(
                facts.type(one.type)["VCpuInfo"]["DefaultVCpus"]
                for one in facts.running()
                if one.is_spot == is_spot and quota_of(one.type, spot=is_spot) == code
            )
            fits = min(count, max(0, int((self.quota(code) - used) // cores)))
            came.append(fits)
            if fits < count:
                rule = RULES["spot quota" if is_spot else "on-demand quota"]
                errors.append((rule.refuse(limit=f"{self.quota(code):g}"), name))
        return Launch(came[0], came[1], errors)

    def _unlaunchable(
        self, name: str, image: str, data: Mapping[str, Any], facts: Facts
    ) -> Refusal | None:
        has = facts.image_architecture(image)
        if has is None:
            return RULES["image"].refuse(name=image)
        takes = facts.type(name)["ProcessorInfo"]["SupportedArchitectures"]
        if has not in takes:
            return RULES["architecture"].refuse(type="/".join(takes), image=has)
        return _too_small(data.get("BlockDeviceMappings", []), facts.image_disks(image))

    def quota(self, code: str) -> float:
        """Return how many vCPUs a quota allows."""
        return self.quotas.get(code, 64.0)


def _skewed(signed: float, now: float) -> Refusal:
    """Return how STS says that a clock is off."""
    is_behind = signed < now
    bound = now - sigv4.SKEW_S if is_behind else now + sigv4.SKEW_S
    facts = dict(zip(("signed", "least", "now"), map(_stamp, (signed, bound, now)), strict=True))
    return RULES["clock behind" if is_behind else "clock ahead"].refuse(**facts)


def _stamp(at: float) -> str:
    return time.strftime("%Y%m%dT%H%M%SZ", time.gmtime(at))


def _too_small(
    disks: Sequence[Mapping[str, Any]], image: Mapping[str, tuple[str, int]]
) -> Refusal | None:
    """Return why a launch fails whose disk is smaller than that of its image."""
    for one in disks:
        asked = one.get("Ebs", {}).get("VolumeSize")
        snapshot, least = image.get(one.get("DeviceName", ""), ("", 0))
        if asked is not None and asked < least:
            facts = {"size": str(asked), "snapshot": snapshot, "least": str(least)}
            return RULES["small disk"].refuse(**facts)
    return None


def _configs(found: Mapping[str, Any]) -> Sequence[Mapping[str, Any]]:
    configs: Sequence[Mapping[str, Any]] = found.get("LaunchTemplateConfigs", [])
    return configs


def _texts(found: Any) -> list[str]:
    """Return the texts in a request that may name something: not those of filters and tags."""
    if isinstance(found, str):
        return [found]
    if isinstance(found, list):
        return [text for one in found for text in _texts(one)]
    if isinstance(found, Mapping):
        skipped = {"Filters", "Filter", "Tags", "TagSpecifications", "ClientToken"}
        return [text for key, one in found.items() if key not in skipped for text in _texts(one)]
    return []


def _check_filters(found: Mapping[str, Any]) -> None:
    values = [one for each in found.get("Filters", []) for one in each.get("Values", [])]
    if len(values) > _FILTER_VALUES:
        raise RULES["filter values"].refuse()


def _check_tags(action: str, found: Mapping[str, Any]) -> None:
    groups = [found.get("Tags", [])] if action == "CreateTags" else []
    specs = [*found.get("TagSpecifications", [])]
    kinds = _KINDS.get(action)
    for one in specs:
        if kinds is not None and one["ResourceType"] not in kinds:
            raise RULES["tag kind"].refuse(kind=one["ResourceType"])
    specs += found.get("LaunchTemplateData", {}).get("TagSpecifications", [])
    groups += [one.get("Tags", []) for one in specs]
    for tags in groups:
        _check_each(tags)


def _check_each(tags: Sequence[Mapping[str, str]]) -> None:
    if len(tags) > 50:
        raise RULES["tag count"].refuse()
    for tag in tags:
        if len(tag["Key"]) > 127:
            raise RULES["tag key length"].refuse()
        if len(tag.get("Value", "")) > 256:
            raise RULES["tag value length"].refuse()
        if tag["Key"].lower().startswith("aws:"):
            raise RULES["tag prefix"].refuse()


def _check_texts(action: str, found: Mapping[str, Any]) -> None:
    if action == "CreateSecurityGroup" and not _DESCRIPTION.fullmatch(found["Description"]):
        raise RULES["group description"].refuse()
    for permission in found.get("IpPermissions", []):
        for name in ("IpRanges", "UserIdGroupPairs", "Ipv6Ranges", "PrefixListIds"):
            for one in permission.get(name, []):
                if not _DESCRIPTION.fullmatch(one.get("Description", "")):
                    raise RULES["rule description"].refuse()


def _check_template(data: Mapping[str, Any]) -> None:
    if "UserData" in data:
        try:
            text = base64.b64decode(data["UserData"], validate=True)
        except (binascii.Error, ValueError) as error:
            raise RULES["user data base64"].refuse() from error
        if len(text) > 16384:
            raise RULES["user data length"].refuse()
    if data.get("NetworkInterfaces"):
        if data.get("SecurityGroupIds") or data.get("SecurityGroups"):
            raise RULES["groups beside interfaces"].refuse()
        if data.get("SubnetId"):
            raise RULES["subnet beside interfaces"].refuse()


def xml(refusal: Refusal) -> bytes:
    """Return how EC2 says it."""
    return error_xml(refusal.rule.code, refusal.message)


def error_xml(code: str, message: str) -> bytes:
    """Return how EC2 refuses something."""
    return (
        f'<?xml version="1.0" encoding="UTF-8"?><Response><Errors><Error><Code>{code}</Code>'
        f"<Message>{escape(message)}</Message></Error></Errors>"
        "<RequestID>1</RequestID></Response>"
    ).encode()


def rules() -> Sequence[Rule]:
    """Return all rules about EC2."""
    return list(RULES.values())
