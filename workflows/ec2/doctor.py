"""What can be wrong before and beside a fleet, each with what to do. Changes nothing."""

import dataclasses
import datetime as dt
import email.utils
import os
from collections.abc import Callable

from workflows.ec2 import caller, ground
from workflows.ec2.api import Aws, instances
from workflows.ec2.config import Spec
from workflows.errors import WorkflowsError

_SKEW_S = 240.0  # AWS refuses requests whose time is off by more than five minutes
# Service Quotas: vCPUs of standard instances (A, C, D, H, I, M, R, T, Z).
_SPOT_QUOTA, _DEMAND_QUOTA = "L-34B43A08", "L-1216C47A"


@dataclasses.dataclass(frozen=True)
class Finding:
    """One thing that was looked at."""

    what: str
    is_well: bool
    says: str


def examine(aws: Aws, spec: Spec) -> list[Finding]:
    """Look at everything; a check that cannot be made is a finding too."""
    checks: list[tuple[str, Callable[[Aws, Spec], str]]] = [
        ("identity", _identity),
        ("clock", _clock),
        ("types", _types),
        ("image", lambda aws, spec: ground.image(aws, spec).id),
        ("subnets", _subnets),
        ("spot role", _spot_role),
        ("quotas", _quotas),
        ("caller", _caller),
        ("login key", _login_key),
    ]
    found = []
    for what, check in checks:
        try:
            found.append(Finding(what, True, check(aws, spec)))
        except WorkflowsError as error:
            found.append(Finding(what, False, str(error)))
    return found


class _Wrong(WorkflowsError):
    """A check that came out badly."""


def _identity(aws: Aws, _: Spec) -> str:
    who = aws.call("get_caller_identity", service="sts")
    return f"{who['Arn']} in account {who['Account']}"


def _clock(aws: Aws, _: Spec) -> str:
    answer = aws.call("get_caller_identity", service="sts")
    theirs = answer["ResponseMetadata"]["HTTPHeaders"].get("date", "")
    if not theirs:
        return "AWS sent no time"
    at = email.utils.parsedate_to_datetime(theirs)
    off = (dt.datetime.now(dt.timezone.utc) - at).total_seconds()
    if abs(off) > _SKEW_S:
        raise _Wrong(f"this machine's clock is off by {off:.0f} s; set it (chronyc, timedatectl)")
    return f"{abs(off):.0f} s off"


def _types(aws: Aws, spec: Spec) -> str:
    return f"{', '.join(spec.types)} ({ground.architecture(aws, spec)})"


def _subnets(aws: Aws, spec: Spec) -> str:
    network = ground.network(aws, spec)
    pools = sum(len(offered) for offered in network.offered.values())
    zones = ", ".join(network.subnets)
    if pools < 6:
        return f"{pools} pools in {zones}: few; more types or zones are interrupted less"
    return f"{pools} pools in {zones}"


def _spot_role(aws: Aws, _: Spec) -> str:
    try:
        aws.call("get_role", service="iam", RoleName="AWSServiceRoleForEC2Spot")
    except WorkflowsError as error:
        raise _Wrong(
            f"{error}; once, as an administrator:"
            " aws iam create-service-linked-role --aws-service-name spot.amazonaws.com"
        ) from error
    return "there"


def _quotas(aws: Aws, spec: Spec) -> str:
    about = ground.type_details(aws, spec.types)
    cores = max(row["VCpuInfo"]["DefaultVCpus"] for row in about.values())
    said = []
    for kind, code, nodes in (
        ("spot", _SPOT_QUOTA, spec.nodes - spec.spot.on_demand_base),
        ("on-demand", _DEMAND_QUOTA, spec.spot.on_demand_base + spec.results_host),
    ):
        answer = aws.call(
            "get_service_quota", service="service-quotas", ServiceCode="ec2", QuotaCode=code
        )
        allowed = float(answer["Quota"]["Value"])
        if nodes * cores > allowed:
            raise _Wrong(
                f"{nodes} {kind} nodes need up to {nodes * cores} vCPUs, {allowed:g} are allowed:"
                f" ask for more of {code} in Service Quotas"
            )
        said.append(f"{nodes * cores} of {allowed:g} {kind} vCPUs")
    return ", ".join(said)


def _caller(aws: Aws, spec: Spec) -> str:
    wanted = caller.sources(aws, spec, ground.network(aws, spec).vpc)
    group = ground.find_group(aws, spec.name)
    if group is None:
        return f"{', '.join(wanted)} (the fleet has no security group yet)"
    allowed = {
        entry["CidrIp"]
        for permission in group.get("IpPermissions", [])
        if permission.get("FromPort") == spec.access.ssh_port
        for entry in permission.get("IpRanges", [])
    }
    missing = [source for source in wanted if source not in allowed]
    if missing:
        raise _Wrong(
            f"the security group lets in {', '.join(sorted(allowed))}, not {', '.join(missing)}:"
            f" this machine has moved; workflows fleet up {spec.name} lets it in"
        )
    return f"{', '.join(wanted)} may log in"


def _login_key(aws: Aws, spec: Spec) -> str:
    if os.path.exists(spec.identity):
        return spec.identity
    if instances(aws, spec.name):
        raise _Wrong(f"{spec.identity} is not here, and nodes are up: copy it from where it is")
    return f"{spec.identity} will be made"
