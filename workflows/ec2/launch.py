"""Launching: one tagged template, one CreateFleet, one more on demand for what is missing.

Who may not call CreateFleet launches one node a call: `singly`.
"""

import collections
import dataclasses
import secrets
import time
from collections.abc import Callable, Iterable, Sequence

from workflows.ec2 import ground
from workflows.ec2.api import (
    ACCESS,
    AMI,
    BOOT_KEY,
    ENDED,
    GROUP,
    LAUNCH,
    LIVE,
    NOT_YET,
    RESULTS,
    ROLE,
    SPOT_QUOTA,
    Aws,
    Instance,
    instances,
    refusal,
)
from workflows.ec2.config import Spec, Ttl
from workflows.ec2.request import Request, Site, template_data
from workflows.ec2.singly import FORBIDDEN, is_elsewhere, one_by_one
from workflows.ec2.userdata import user_data
from workflows.errors import FleetError, NoCapacity, NotAllowed, OverQuota, Rejected

Say = Callable[[str], None]
PAUSES_S = (0.1, 0.2, 0.5, 1.0, 2.0)


def site(aws: Aws, spec: Spec, live: Sequence[Instance], *, refresh_ami: bool = False) -> Site:
    """Make sure of what instances stand on. The image is the one that live instances have."""
    pinned = "" if refresh_ami else pinned_image(live)
    network = ground.network(aws, spec)
    image = ground.image(aws, spec, pinned)
    group = ground.security_group(aws, spec, network.vpc)
    login_key = ground.login_key(aws, spec, in_use=bool(live))
    return Site(image, network, group, login_key)


def pinned_image(live: Sequence[Instance]) -> str:
    """Return the image that a fleet's live instances have; empty if there are none."""
    return next((one.tags[AMI] for one in live if AMI in one.tags), "")


def launch(
    aws: Aws, spec: Spec, stand: Site, count: int, say: Say
) -> tuple[list[str], list[FleetError]]:
    """Launch `count` instances, as spot as the spec says; return what came, and why not the rest.

    Raises:
        NoCapacity, OverQuota, NotAllowed, Rejected, FleetError: none of them came, for this reason.
    """
    base = max(0, spec.spot.on_demand_base - _on_demand_count(aws, spec))
    first = _request(aws, spec, stand, spot=count - min(base, count), demand=min(base, count))
    ids, refusals = _launched(aws, first, say)
    left = count - len(ids)
    if left and spec.spot.fallback and first.spot and not _is_final(refusals):
        say(f"{len(ids)} of {count} came; trying on-demand for {left}: {summary(refusals)}")
        second = dataclasses.replace(first, spot=0, demand=left)
        more, others = _launched(aws, second, say)
        ids, refusals = ids + more, refusals + others
    if not ids:
        raise shortage(refusals, "EC2 launched nothing", spec)
    if len(ids) < count:
        say(f"only {len(ids)} of {count} came: {summary(refusals)}")
    return ids, refusals


def launch_results_host(aws: Aws, spec: Spec, stand: Site, say: Say) -> list[str]:
    """Launch the host without keys: on demand, and to live until `down`, or as long as it may.

    Raises:
        NoCapacity, OverQuota, NotAllowed, Rejected, FleetError: it did not come, for this reason.
    """
    lasting = dataclasses.replace(spec, ttl=Ttl(spec.ttl.max, spec.ttl.max))
    request = _request(aws, lasting, stand, spot=0, demand=1)
    request = dataclasses.replace(request, tags={**request.tags, ROLE: RESULTS})
    ids, refusals = _launched(aws, request, say)
    if not ids:
        raise shortage(refusals, "EC2 launched no results host", spec)
    say(f"the results host is {ids[0]}")
    return ids


def _request(aws: Aws, spec: Spec, stand: Site, *, spot: int, demand: int) -> Request:
    boot_key = ground.key_pair()
    template = f"workflows-{spec.name}-{stand.mark}-{secrets.token_hex(4)}"
    tags = {
        **ground.common_tags(spec),
        LAUNCH: template,
        AMI: stand.image.id,
        GROUP: stand.group,
        BOOT_KEY: boot_key[1],
        ACCESS: f"{spec.access.user} {spec.access.ssh_port} {spec.access.address}",
        ROLE: "node",
    }
    _make_template(aws, spec, stand, template, user_data(spec, boot_key, stand.login_key))
    return Request(spec, stand, template, tags, spot=spot, demand=demand)


def _make_template(aws: Aws, spec: Spec, stand: Site, name: str, text: str) -> None:
    """Create a launch template; its user data holds the key of the first contact."""
    tags = ground.common_tags(spec)
    aws.call(
        "create_launch_template",
        LaunchTemplateName=name,
        ClientToken=name,
        LaunchTemplateData=template_data(spec, stand, text, tags),
        TagSpecifications=ground.tagged("launch-template", tags),
    )


def _launched(aws: Aws, request: Request, say: Say) -> tuple[list[str], list[FleetError]]:
    """Return the ids of what came, and why the rest did not.

    EC2 may not find the group or the key that was made a moment ago, and says so in the answer of
    CreateFleet. A token stands for its answer: the next try has another one.
    """
    ids: list[str] = []
    refusals: list[FleetError] = []
    for number, pause_s in enumerate((*aws.pauses_s(), 0.0)):
        ids, refusals = _one_fleet(aws, request, number, say)
        if ids or not refusals or not all(one.code in NOT_YET for one in refusals):
            break
        time.sleep(pause_s)
    return ids, refusals


def _one_fleet(
    aws: Aws, request: Request, number: int, say: Say
) -> tuple[list[str], list[FleetError]]:
    try:
        answer = aws.call("create_fleet", settles=True, **request.fleet(number))
    except FleetError as error:
        if error.code not in FORBIDDEN:
            return [], [error]
        say("CreateFleet is not allowed here; launching by RunInstances, one node a call")
        return one_by_one(aws, request, say)
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


def _is_final(refusals: Iterable[FleetError]) -> bool:
    """Tell whether on-demand will not be had either: its quota is another than that of spot."""
    return any(
        not is_elsewhere(one) or (isinstance(one, OverQuota) and one.code not in SPOT_QUOTA)
        for one in refusals
    )


def summary(refusals: Iterable[FleetError]) -> str:
    """Return why instances did not come, in as many words as there are different reasons.

    >>> summary([FleetError("a: none left (Insufficient); wait", "Insufficient")] * 2)
    'Insufficient x 2 (a: none left)'
    """
    groups = collections.defaultdict(list)
    for one in refusals:
        groups[one.code].append(one.why.split(f" ({one.code})")[0])
    return (
        "; ".join(f"{code} x {len(whys)} ({whys[0]})" for code, whys in groups.items())
        or "no reason given"
    )


def shortage(refusals: Sequence[FleetError], what: str, spec: Spec) -> FleetError:
    """Return the error of too few instances: of the kind that says whether waiting helps.

    It carries all refusals. Only a want of capacity passes by itself.
    """
    kinds: list[type[FleetError]] = [NotAllowed, Rejected, OverQuota, NoCapacity]
    firm = [one for one in refusals if one.code != _UNSUPPORTED] or refusals
    for kind in kinds:
        for one in firm:
            if isinstance(one, kind):
                hint = _HINTS.get(kind, "") or one.why.partition(f" ({one.code})")[2].lstrip("; ")
                text = "; ".join(part for part in (f"{what}: {summary(refusals)}", hint) if part)
                return kind(text.replace("NAME", spec.name), one.code)
    if not refusals:
        return NoCapacity(f"{what}: {_HINTS[NoCapacity]}".replace("NAME", spec.name))
    return FleetError(f"{what}: {summary(refusals)}; type it again", refusals[0].code)


_UNSUPPORTED = "Unsupported"  # a type in a zone: another pool may have it
_HINTS: dict[type[FleetError], str] = {
    NoCapacity: "name more types or zones, or try again later; workflows fleet prices NAME",
    OverQuota: (
        "waiting does not help: ask for more in Service Quotas, or name fewer or smaller"
        " nodes; workflows fleet doctor NAME counts them"
    ),
    Rejected: (
        "waiting does not help: if it is no value of the fleet's file, please report this;"
        " workflows fleet doctor NAME"
    ),
}


def _on_demand_count(aws: Aws, spec: Spec) -> int:
    if not spec.spot.on_demand_base:
        return 0
    return sum(not (one.is_spot or one.is_results) for one in instances(aws, spec.name))


def described(aws: Aws, spec: Spec, ids: Sequence[str]) -> list[Instance]:
    """Return the fleet's live instances as soon as EC2 shows all of `ids`, which it has launched.

    One that has died at once is shown too, and waited for no longer.
    """
    live: list[Instance] = []
    for pause_s in (*aws.pauses_s(), 0.0):
        shown = instances(aws, spec.name, states=(*LIVE, *ENDED))
        live = [one for one in shown if one.state in LIVE]
        if set(ids) <= {one.id for one in shown}:
            break
        time.sleep(pause_s)
    return live
