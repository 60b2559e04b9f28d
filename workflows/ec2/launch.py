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
    GROUP,
    LAUNCH,
    RESULTS,
    ROLE,
    Aws,
    Instance,
    instances,
    refusal,
)
from workflows.ec2.config import Spec, Ttl
from workflows.ec2.request import Request, Site, template_data
from workflows.ec2.singly import FORBIDDEN, is_final, one_by_one
from workflows.ec2.userdata import user_data
from workflows.errors import FleetError, NoCapacity, NotAllowed, OverQuota

Say = Callable[[str], None]
_VISIBLE_S = 30.0  # until DescribeInstances shows what CreateFleet has returned
PAUSES_S = (0.1, 0.2, 0.5, 1.0, 2.0)


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
    base = max(0, spec.spot.on_demand_base - _on_demand_count(aws, spec))
    first = _request(aws, spec, stand, spot=count - min(base, count), demand=min(base, count))
    ids, refusals = _launched(aws, first, say)
    left = count - len(ids)
    if left and spec.spot.fallback and not is_final(refusals):
        say(f"{len(ids)} of {count} came; trying on-demand for {left}: {summary(refusals)}")
        second = dataclasses.replace(first, spot=0, demand=left)
        more, others = _launched(aws, second, say)
        ids, refusals = ids + more, refusals + others
    if not ids:
        raise _refused(refusals, spec)
    if len(ids) < count:
        say(f"only {len(ids)} of {count} came: {summary(refusals)}")
    _await_visible(aws, spec, ids)
    return ids


def launch_results_host(aws: Aws, spec: Spec, stand: Site, say: Say) -> None:
    """Launch the host without keys: on demand, and to live until `down`, or as long as it may.

    Raises:
        NoCapacity, OverQuota, NotAllowed, FleetError: it did not come, for this reason.
    """
    lasting = dataclasses.replace(spec, ttl=Ttl(spec.ttl.max, spec.ttl.max))
    request = _request(aws, lasting, stand, spot=0, demand=1)
    request = dataclasses.replace(request, tags={**request.tags, ROLE: RESULTS})
    ids, refusals = _launched(aws, request, say)
    if not ids:
        raise _refused(refusals, spec)
    say(f"the results host is {ids[0]}")
    _await_visible(aws, spec, ids)


def _request(aws: Aws, spec: Spec, stand: Site, *, spot: int, demand: int) -> Request:
    boot_key = ground.key_pair()
    template = _template(aws, spec, stand, boot_key)
    tags = {
        **ground.common_tags(spec),
        LAUNCH: template,
        AMI: stand.image.id,
        GROUP: stand.group,
        BOOT_KEY: boot_key[1],
        ACCESS: f"{spec.access.user} {spec.access.ssh_port} {spec.access.address}",
        ROLE: "node",
    }
    return Request(spec, stand, template, tags, spot=spot, demand=demand)


def _template(aws: Aws, spec: Spec, stand: Site, boot_key: tuple[str, str]) -> str:
    """Create a launch template, which holds the key of the first contact; return its name."""
    name = f"workflows-{spec.name}-{stand.mark}-{secrets.token_hex(4)}"
    text = user_data(spec, boot_key, stand.login_key)
    aws.call(
        "create_launch_template",
        LaunchTemplateName=name,
        ClientToken=name,
        LaunchTemplateData=template_data(spec, stand, text),
        TagSpecifications=ground.tagged("launch-template", ground.common_tags(spec)),
    )
    return name


def _launched(aws: Aws, request: Request, say: Say) -> tuple[list[str], list[FleetError]]:
    """Return the ids of what came, and why the rest did not."""
    try:
        answer = aws.call("create_fleet", **request.fleet())
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


def _refused(refusals: list[FleetError], spec: Spec) -> FleetError:
    for kind in (NotAllowed, OverQuota):
        for one in refusals:
            if isinstance(one, kind):
                return one
    hint = "name more types or zones, or try again later; workflows fleet prices"
    code = refusals[0].code if refusals else ""
    return NoCapacity(f"EC2 launched nothing: {summary(refusals)}; {hint} {spec.name}", code)


def _on_demand_count(aws: Aws, spec: Spec) -> int:
    if not spec.spot.on_demand_base:
        return 0
    return sum(not (one.is_spot or one.is_results) for one in instances(aws, spec.name))


def _await_visible(aws: Aws, spec: Spec, ids: Sequence[str]) -> None:
    """Wait until EC2 shows all that it said it has launched; those that died at once count too."""
    deadline = time.monotonic() + _VISIBLE_S
    states = ("pending", "running", "shutting-down", "terminated")
    for pause_s in (*PAUSES_S, *[2.0] * 20):
        shown = {one.id for one in instances(aws, spec.name, states=states)}
        if set(ids) <= shown or time.monotonic() > deadline:
            return
        time.sleep(pause_s)
