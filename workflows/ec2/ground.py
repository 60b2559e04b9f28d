"""Prerequisites of an instance: image, subnets, login key, security group. All tagged when made."""

import contextlib
import dataclasses
import datetime as dt
import os
import time
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from workflows.ec2 import caller, loginkey
from workflows.ec2.api import EXPIRES, FLEET, Aws, fleet_filter, tag_list
from workflows.ec2.config import AMIS, Spec
from workflows.ec2.routes import without_gateway
from workflows.errors import FleetError, UsageError

_ARCH = {
    "x86_64": {"al2023": "x86_64", "ubuntu-24.04": "amd64", "debian-13": "amd64"},
    "arm64": {"al2023": "arm64", "ubuntu-24.04": "arm64", "debian-13": "arm64"},
}
# In a rule's description EC2 takes few characters, and no apostrophe: see `caller.plain`.
_MEMBERS = "workflows: the nodes of the fleet among themselves"
_POOLS = 300  # EC2's limit of overrides in one fleet
_FILTER_VALUES = 200  # EC2's limit in one call


@dataclasses.dataclass(frozen=True)
class Image:
    """The image of a fleet, and the name of its root device."""

    id: str
    root: str


@dataclasses.dataclass(frozen=True)
class Network:
    """Subnets by zone, one each, and the types that are offered there."""

    vpc: str
    subnets: Mapping[str, str]
    offered: Mapping[str, tuple[str, ...]]
    left_out: tuple[str, ...] = ()  # subnets from which nothing reaches the internet

    def __str__(self) -> str:
        where = ", ".join(f"{subnet} ({zone})" for zone, subnet in self.subnets.items())
        if not self.left_out:
            return where
        return f"{where}; left out, without an internet gateway: {', '.join(self.left_out)}"


def common_tags(spec: Spec, now: dt.datetime | None = None) -> dict[str, str]:
    """Return the tags of everything that is made for a fleet."""
    at = now or dt.datetime.now(dt.timezone.utc)
    expires = (at + dt.timedelta(seconds=spec.ttl.max)).strftime("%Y-%m-%dT%H:%M:%SZ")
    return {**spec.tags, FLEET: spec.name, EXPIRES: expires, "Name": f"workflows-{spec.name}"}


def tagged(kind: str, tags: Mapping[str, str]) -> list[dict[str, Any]]:
    """Return the TagSpecifications of one kind of resource."""
    return [{"ResourceType": kind, "Tags": tag_list(tags)}]


# -- image -----------------------------------------------------------------------------------------


def image(aws: Aws, spec: Spec, pinned: str = "") -> Image:
    """Return the image: `pinned`, or what the fleet's file says, resolved now.

    Raises:
        UsageError: there is none, or the types are of two architectures.
    """
    chosen = pinned or _resolved(aws, spec)
    try:
        found = aws.call("describe_images", ImageIds=[chosen]).get("Images", [])
    except FleetError as error:
        if not error.code.startswith("InvalidAMIID"):
            raise
        found = []
    if not found:
        raise UsageError(f"no image {chosen} in {spec.region}; ids are of one region each")
    root = found[0].get("RootDeviceName") or "/dev/xvda"
    _check_disk(spec, chosen, root, found[0].get("BlockDeviceMappings", []))
    built, wanted = found[0].get("Architecture", ""), architectures(aws, spec)
    if built and built not in wanted:
        raise UsageError(
            f"the image {chosen} is for {built}, and {', '.join(spec.types)} are"
            f" {'/'.join(sorted(wanted))}: name other types, or another ami"
        )
    return Image(chosen, root)


def _check_disk(spec: Spec, image: str, root: str, disks: Sequence[Mapping[str, Any]]) -> None:
    """Refuse a root disk that is smaller than the image, which EC2 refuses at each launch."""
    sizes = [one.get("Ebs", {}).get("VolumeSize", 0) for one in disks if one["DeviceName"] == root]
    if sizes and spec.disk_gb < sizes[0]:
        raise UsageError(
            f"disk_gb: {spec.disk_gb} is less than the {sizes[0]} GB of the image {image}:"
            f" write disk_gb: {sizes[0]} or more"
        )


def _resolved(aws: Aws, spec: Spec) -> str:
    if spec.ami.startswith("ami-"):
        return spec.ami
    name = spec.ami.removeprefix("ssm:")
    path = name
    if name in AMIS:
        path = AMIS[name].format(arch=_ARCH[architecture(aws, spec)][name])
    answer = aws.call("get_parameter", service="ssm", Name=path)
    return str(answer["Parameter"]["Value"])


def architecture(aws: Aws, spec: Spec) -> str:
    """Return the architecture for which a fleet's image is looked for.

    Raises:
        UsageError: they have none in common, or one of them does not exist.
    """
    return sorted(architectures(aws, spec), reverse=True)[0]


def architectures(aws: Aws, spec: Spec) -> set[str]:
    """Return the architectures that all types of a fleet have.

    Raises:
        UsageError: they have none in common, or one of them does not exist.
    """
    each = {
        name: set(about["ProcessorInfo"]["SupportedArchitectures"])
        for name, about in type_details(aws, spec.types).items()
    }
    both: set[str] = set.intersection(*each.values()) & set(_ARCH)
    if not both:
        kinds = ", ".join(f"{name} {'/'.join(sorted(archs))}" for name, archs in each.items())
        raise UsageError(f"types must share an architecture, since they share an image: {kinds}")
    return both


def type_details(aws: Aws, types: tuple[str, ...]) -> dict[str, Any]:
    """Return what EC2 says about each type.

    Raises:
        UsageError: one does not exist.
    """
    rows = _of_types(aws, types, "describe_instance_types", "InstanceTypes")
    found = {row["InstanceType"]: row for row in rows}
    unknown = [name for name in types if name not in found]
    if unknown:
        raise UsageError(f"no such instance types in {aws.region}: {', '.join(unknown)}")
    return found


def _of_types(
    aws: Aws, types: Sequence[str], operation: str, key: str, **more: str
) -> Iterator[Any]:
    """Yield what EC2 describes of instance types: by a filter, as an unknown id fails the call."""
    for start in range(0, len(types), _FILTER_VALUES):
        values = list(types[start : start + _FILTER_VALUES])
        filters = [{"Name": "instance-type", "Values": values}]
        yield from aws.pages(operation, key, Filters=filters, **more)


# -- network ---------------------------------------------------------------------------------------


def network(aws: Aws, spec: Spec) -> Network:
    """Return where instances may be launched: of a public fleet, where the internet reaches them.

    Raises:
        UsageError: nowhere: no such subnets, none that is public, or no type is offered there; or
            in more pools than EC2 takes.
    """
    rows = _subnets(aws, spec)
    vpcs = {row["VpcId"] for row in rows}
    if len(vpcs) != 1:
        what = "are in several VPCs" if vpcs else "were not found; or zones excludes them all"
        raise UsageError(f"the subnets of {spec.name} {what}; see: aws ec2 describe-subnets")
    vpc = vpcs.pop()
    hidden = without_gateway(aws, vpc, rows) if spec.access.address == "public" else set()
    subnets: dict[str, str] = {}
    for row in rows:
        if row["SubnetId"] not in hidden:
            subnets.setdefault(row["AvailabilityZone"], row["SubnetId"])
    zones = {row["SubnetId"]: row["AvailabilityZone"] for row in rows}
    if not subnets or hidden & set(spec.subnets):
        raise UsageError(
            f"{', '.join(sorted(hidden))} have no route to an internet gateway, so that public"
            " nodes there could not be reached: name other subnets:, or access: {address: private}"
            " and a way to them (a VPN, access: jump)"
        )
    offered = _offered(aws, spec, set(subnets))
    if not any(offered.values()):
        raise UsageError(
            f"none of {', '.join(spec.types)} is offered in {', '.join(sorted(subnets))}"
        )
    pools = sum(len(types) for types in offered.values())
    if pools > _POOLS:
        raise UsageError(
            f"{len(spec.types)} types in {len(subnets)} zones are {pools} pools, and EC2 takes"
            f" {_POOLS}: name fewer types or zones"
        )
    lost = [f"{one} ({zones[one]})" for one in sorted(hidden) if zones[one] not in subnets]
    return Network(vpc, dict(sorted(subnets.items())), offered, tuple(lost))


def _subnets(aws: Aws, spec: Spec) -> list[Any]:
    """Return the subnets that the fleet's file allows, those with most free addresses first."""
    filters: list[dict[str, Any]] = [{"Name": "state", "Values": ["available"]}]
    if spec.subnets:
        filters.append({"Name": "subnet-id", "Values": list(spec.subnets)})
    else:
        filters.append({"Name": "vpc-id", "Values": [spec.vpc or _default_vpc(aws)]})
    rows = aws.pages("describe_subnets", "Subnets", Filters=filters)
    allowed = [row for row in rows if _is_allowed(spec, row["AvailabilityZone"])]
    return sorted(allowed, key=lambda row: -row.get("AvailableIpAddressCount", 0))


def _is_allowed(spec: Spec, zone: str) -> bool:
    return not spec.zones or zone in spec.zones or zone.removeprefix(spec.region) in spec.zones


def _default_vpc(aws: Aws) -> str:
    filters = [{"Name": "is-default", "Values": ["true"]}]
    for row in aws.pages("describe_vpcs", "Vpcs", Filters=filters):
        return str(row["VpcId"])
    raise UsageError(f"{aws.region} has no default VPC; name vpc: or subnets: in the fleet's file")


def _offered(aws: Aws, spec: Spec, zones: set[str]) -> dict[str, tuple[str, ...]]:
    operation, key = "describe_instance_type_offerings", "InstanceTypeOfferings"
    rows = _of_types(aws, spec.types, operation, key, LocationType="availability-zone")
    pairs = {(row["Location"], row["InstanceType"]) for row in rows}
    return {
        zone: tuple(name for name in spec.types if (zone, name) in pairs) for zone in sorted(zones)
    }


# -- login key -------------------------------------------------------------------------------------


def login_key(aws: Aws, spec: Spec, *, in_use: bool) -> str:
    """Return the public half of the fleet's login key, which is made and imported if need be.

    Raises:
        UsageError: the fleet has another one, and is in use.
    """
    mine = _public_half(spec.identity)
    if _is_imported(aws, spec, mine, in_use=in_use):
        return mine
    if mine:
        loginkey.share(spec)
    else:
        mine = make_login_key(spec.identity, loginkey.mark(spec))
    for pause_s in aws.pauses_s():
        if _imports(aws, spec, mine) or _is_imported(aws, spec, mine, in_use=in_use):
            return mine
        time.sleep(pause_s)
    raise FleetError(
        f"EC2 has a key pair {_key_name(spec)} and does not show it: type it again, or:"
        f" aws ec2 delete-key-pair --key-name {_key_name(spec)}"
    )


def _imports(aws: Aws, spec: Spec, public: str) -> bool:
    """Import the login key; return False if there is one of its name.

    That was imported a moment ago, by a call whose answer was lost, and may not show yet.
    """
    try:
        aws.call(
            "import_key_pair",
            KeyName=_key_name(spec),
            PublicKeyMaterial=public.encode(),
            TagSpecifications=tagged("key-pair", common_tags(spec)),
        )
    except FleetError as error:
        if error.code != "InvalidKeyPair.Duplicate":
            raise
        return False
    return True


def _key_name(spec: Spec) -> str:
    return f"workflows-{spec.name}"


def _is_imported(aws: Aws, spec: Spec, mine: str, *, in_use: bool) -> bool:
    """Tell whether EC2 has the fleet's login key; another one of its name is deleted.

    Raises:
        UsageError: there is another one, and it is in use.
    """
    filters = [{"Name": "key-name", "Values": [_key_name(spec)]}]
    answer = aws.call("describe_key_pairs", Filters=filters, IncludePublicKey=True)
    there = [" ".join(row.get("PublicKey", "").split()[:2]) for row in answer["KeyPairs"]]
    if there and there[0] == mine:
        return True
    if there and in_use:
        raise UsageError(
            f"the nodes of {spec.name} know another login key than {spec.identity}: copy it from"
            f" the machine that made the fleet, or start over: workflows fleet down {spec.name}"
        )
    if there:
        aws.call("delete_key_pair", KeyName=_key_name(spec))
    return False


def make_login_key(path: str, comment: str) -> str:
    """Make a key pair at `path`, mode 0600; return its public half, without the comment."""
    private, public = key_pair()
    os.makedirs(os.path.dirname(path) or ".", mode=0o700, exist_ok=True)
    _write_whole(path + ".pub", f"{public} {comment}\n", 0o644)
    _write_whole(path, private, 0o600)
    return public


def key_pair() -> tuple[str, str]:
    """Return a new ed25519 key pair: private as OpenSSH has it, public as ``type base64``."""
    from cryptography.hazmat.primitives import serialization as form
    from cryptography.hazmat.primitives.asymmetric import ed25519

    key = ed25519.Ed25519PrivateKey.generate()
    private = key.private_bytes(
        form.Encoding.PEM, form.PrivateFormat.OpenSSH, form.NoEncryption()
    ).decode()
    public = key.public_key().public_bytes(form.Encoding.OpenSSH, form.PublicFormat.OpenSSH)
    return private, public.decode()


def _public_half(path: str) -> str:
    """Return the public half of a private key file; empty if there is no such file."""
    from cryptography.hazmat.primitives import serialization as form

    try:
        with open(path, "rb") as file:
            key = form.load_ssh_private_key(file.read(), None)
    except FileNotFoundError:
        return ""
    except (OSError, ValueError, TypeError) as error:
        raise UsageError(f"cannot read the login key {path}: {error}") from error
    public = key.public_key().public_bytes(form.Encoding.OpenSSH, form.PublicFormat.OpenSSH)
    return public.decode()


def _write_whole(path: str, text: str, mode: int) -> None:
    """Write a file that is never half there, nor ever readable by others."""
    tmp = f"{path}.{os.getpid()}"
    with contextlib.suppress(FileNotFoundError):
        os.unlink(tmp)
    with os.fdopen(os.open(tmp, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode), "w") as file:
        file.write(text)
    os.replace(tmp, path)


# -- security group --------------------------------------------------------------------------------


def security_group(aws: Aws, spec: Spec, vpc: str) -> str:
    """Return the fleet's security group: its members among themselves, and who may log in.

    Raises:
        UsageError: nobody knows from where logins come; nothing was made.
    """
    mine = caller.described()
    wanted = dict.fromkeys(caller.sources(aws, spec, vpc), mine)
    group = _group(aws, spec, vpc)
    _authorize(
        aws, group["GroupId"], _rule("-1", UserIdGroupPairs=[_self(group["GroupId"])]), group
    )
    for source, text in wanted.items():
        ranges = [{"CidrIp": source, "Description": text}]
        _authorize(
            aws, group["GroupId"], _rule("tcp", spec.access.ssh_port, IpRanges=ranges), group
        )
    # Where this machine was before it moved: somebody else may be there now.
    for permission in group.get("IpPermissions", []):
        stale = [
            entry
            for entry in permission.get("IpRanges", [])
            if entry.get("Description") == mine and entry["CidrIp"] not in wanted
        ]
        for entry in stale:
            old = _rule("tcp", permission["FromPort"], IpRanges=[{"CidrIp": entry["CidrIp"]}])
            _revoke(aws, group["GroupId"], old)
    return str(group["GroupId"])


def find_group(aws: Aws, fleet: str, vpc: str = "") -> dict[str, Any] | None:
    """Return the security group of a fleet."""
    filters = [fleet_filter(fleet)] + ([{"Name": "vpc-id", "Values": [vpc]}] if vpc else [])
    for row in aws.pages("describe_security_groups", "SecurityGroups", Filters=filters):
        return dict(row)
    return None


def _group(aws: Aws, spec: Spec, vpc: str) -> dict[str, Any]:
    found = find_group(aws, spec.name, vpc)
    if found is not None:
        return found
    try:
        made = aws.call(
            "create_security_group",
            GroupName=f"workflows-{spec.name}",
            Description=f"nodes of the fleet {spec.name}",
            VpcId=vpc,
            TagSpecifications=tagged("security-group", common_tags(spec)),
        )
    except FleetError as error:
        if error.code != "InvalidGroup.Duplicate":
            raise
        return _named_group(aws, spec, vpc, error)
    return {"GroupId": made["GroupId"], "IpPermissions": []}


def _named_group(aws: Aws, spec: Spec, vpc: str, refused: FleetError) -> dict[str, Any]:
    """Return the group that has the fleet's name, as soon as EC2 shows it.

    It was made a moment ago, by a call whose answer was lost or whose process was killed.
    """
    by_name = [
        {"Name": "group-name", "Values": [f"workflows-{spec.name}"]},
        {"Name": "vpc-id", "Values": [vpc]},
    ]
    for pause_s in (*aws.pauses_s(), 0.0):
        rows = aws.call("describe_security_groups", Filters=by_name)["SecurityGroups"]
        if rows:
            return dict(rows[0])
        time.sleep(pause_s)
    raise refused


def _self(group: str) -> dict[str, str]:
    return {"GroupId": group, "Description": _MEMBERS}


def _rule(protocol: str, port: int | None = None, **what: Any) -> dict[str, Any]:
    ports = {} if port is None else {"FromPort": port, "ToPort": port}
    return {"IpProtocol": protocol, **ports, **what}


def _authorize(aws: Aws, group: str, rule: dict[str, Any], known: Mapping[str, Any]) -> None:
    if any(_covers(permission, rule) for permission in known.get("IpPermissions", [])):
        return
    try:
        aws.call(
            "authorize_security_group_ingress",
            settles=True,
            GroupId=group,
            IpPermissions=[rule],
        )
    except FleetError as error:
        if error.code != "InvalidPermission.Duplicate":
            raise


def _revoke(aws: Aws, group: str, rule: dict[str, Any]) -> None:
    """Take a rule out of a group; that it is out already is no error: EC2 may show it still."""
    try:
        aws.call("revoke_security_group_ingress", settles=True, GroupId=group, IpPermissions=[rule])
    except FleetError as error:
        if error.code != "InvalidPermission.NotFound":
            raise


def _covers(permission: Mapping[str, Any], rule: Mapping[str, Any]) -> bool:
    same = all(permission.get(k) == rule.get(k) for k in ("IpProtocol", "FromPort", "ToPort"))
    groups = {one["GroupId"] for one in permission.get("UserIdGroupPairs", [])}
    ranges = {one["CidrIp"] for one in permission.get("IpRanges", [])}
    wanted_groups = {one["GroupId"] for one in rule.get("UserIdGroupPairs", [])}
    wanted_ranges = {one["CidrIp"] for one in rule.get("IpRanges", [])}
    return same and wanted_groups <= groups and wanted_ranges <= ranges
