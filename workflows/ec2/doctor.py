"""Checks of everything around a fleet, each with its remedy. Changes nothing."""

import dataclasses
import datetime as dt
import email.utils
import os
from collections.abc import Callable

from workflows.ec2 import caller, ground, quotas, rehearsal
from workflows.ec2.api import Aws, instances
from workflows.ec2.config import Spec
from workflows.errors import WorkflowsError

_SKEW_S = 240.0  # EC2 refuses requests whose time is off by more than five minutes


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
        ("permissions", _permissions),
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
    theirs = aws.time_said()
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
    if spec.access.address == "public":
        said = f"{pools} pools in {network}, which an internet gateway serves"
    else:
        said = f"{pools} pools in {network}, private: what nodes fetch needs a NAT or endpoints"
    return said if pools >= 6 else f"{said}: few; more types or zones are interrupted less"


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
    said, wrong = [], []
    for use in quotas.uses(aws, spec, instances(aws, spec.name)):
        needs = use.running + use.added
        if not use.code:
            said.append(f"no quota of {use.what} is known")
            continue
        limit = quotas.allowed(aws, use.code)
        running = f" ({use.running} run already)" if use.running else ""
        if use.added and needs > limit:
            wrong.append(
                f"{spec.nodes} nodes need up to {needs} {use.what} vCPUs{running},"
                f" {limit:g} are allowed: ask for more of {use.code} in Service Quotas"
            )
        said.append(f"{needs} of {limit:g} {use.what} vCPUs{running}")
    if wrong:
        raise _Wrong("; ".join(wrong))
    return ", ".join(said)


def _permissions(aws: Aws, spec: Spec) -> str:
    found = rehearsal.rehearse(aws, spec, instances(aws, spec.name))
    untold = f"; not told: {', '.join(found.untold)}" if found.untold else ""
    if found.denied:
        raise _Wrong(
            f"these credentials may not {', '.join(found.denied)}: workflows fleet policy prints"
            f" what is needed{untold}"
        )
    return f"{found.allowed} calls rehearsed (DryRun), all allowed{untold}"


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
