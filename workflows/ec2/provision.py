"""Converge EC2 on a fleet's file; safe to repeat after any failure.

Existing resources are found by tags alone. A launch is a tagged launch template, CreateFleet, then
slots written onto the instances: cut off anywhere, the next call sees what is there and does the
rest.
"""

import dataclasses
from collections.abc import Sequence

from workflows.ec2 import ground
from workflows.ec2.api import LEAVING, SLOT, Aws, Instance, instances, set_tags
from workflows.ec2.config import Spec
from workflows.ec2.launch import Say, described, launch, launch_results_host, shortage, site
from workflows.ec2.request import Site
from workflows.ec2.teardown import clear_templates, terminate
from workflows.errors import FleetError, NoCapacity, OverQuota


def converge(aws: Aws, spec: Spec, *, say: Say, refresh_ami: bool = False) -> list[Instance]:
    """Launch what is missing, terminate what is too much; return the live instances by slot.

    Raises:
        NoCapacity: fewer than `min_nodes` could be launched; these were terminated.
        FleetError: AWS refused.
    """
    live = _without_surplus(aws, spec, say)
    missing = spec.nodes - len(_workers(live))
    lacks_host = spec.results_host and len(_workers(live)) == len(live)
    if not missing and not lacks_host:
        ground.security_group(aws, spec, ground.network(aws, spec).vpc)
        clear_templates(aws, spec.name)
        return live
    if missing:
        say(f"{spec.nodes - missing} of {spec.nodes} nodes are there, launching {missing}")
    stand = site(aws, spec, live, refresh_ami=refresh_ami)
    try:
        came, refusals = _launch_missing(aws, spec, stand, len(_workers(live)), say)
        if lacks_host:
            came += launch_results_host(aws, spec, stand, say)
        # Again: what an earlier call launched that was cut off may only show now.
        live = _without_surplus(aws, spec, say, described(aws, spec, came))
        if len(_workers(live)) < spec.least:
            there = f"only {len(_workers(live))} of at least {spec.least} nodes could be launched"
            raise shortage(refusals, there, spec)
    except BaseException as error:
        try:
            _undo(aws, spec, stand, error, say)
        except FleetError as more:
            say(f"nodes may be up: {more}; workflows fleet down {spec.name}")
        raise
    clear_templates(aws, spec.name)
    return live


def _launch_missing(
    aws: Aws, spec: Spec, stand: Site, there: int, say: Say
) -> tuple[list[str], list[FleetError]]:
    """Launch what is missing; return the ids of what came, and why the rest did not.

    If nothing comes and those `there` are enough, it is gone on with them.
    """
    if there >= spec.nodes:
        return [], []
    try:
        return launch(aws, spec, stand, spec.nodes - there, say)
    except (NoCapacity, OverQuota) as error:
        if there < spec.least:
            raise
        say(f"{error}; going on with {there} nodes, at least {spec.least} are asked for")
        return [], [error]


def _without_surplus(
    aws: Aws, spec: Spec, say: Say, found: Sequence[Instance] | None = None
) -> list[Instance]:
    live = slotted(aws, spec, found)
    surplus = [one.id for one in _workers(live) if one.slot >= spec.nodes]
    if surplus:
        terminate(aws, surplus)
        say(f"terminating {len(surplus)} above {spec.nodes} nodes: {', '.join(surplus)}")
    more = [one.id for one in live if one.is_results][1:]  # of two calls of `up` at once
    if more:
        terminate(aws, more)
        say(f"terminating all results hosts but the oldest: {', '.join(more)}")
        surplus += more
    return [one for one in live if one.id not in surplus]


def _workers(live: Sequence[Instance]) -> list[Instance]:
    """Return those on which keys are placed: not the results host, which only `down` removes."""
    return [one for one in live if not one.is_results]


def _undo(aws: Aws, spec: Spec, stand: Site, error: BaseException, say: Say) -> None:
    """After a launch that broke: terminate what came, unless it is enough to be of use.

    Nothing else: another call of `up` may have launched something meanwhile.
    """
    live = instances(aws, spec.name)
    came = [one.id for one in live if stand.has_launched(one)]
    too_few = isinstance(error, (NoCapacity, OverQuota))
    if came and (len(_workers(live)) < spec.least or too_few):
        terminate(aws, came)
        say(f"terminating the {len(came)} that came: {', '.join(came)}")
    clear_templates(aws, spec.name)


def slotted(aws: Aws, spec: Spec, found: Sequence[Instance] | None = None) -> list[Instance]:
    """Return the live instances in order of slot, after giving one to those that have none.

    `found` are the live ones, if they were asked for just now.

    Those that EC2 has announced to take back do not count: their slots are to be filled.
    Where two have the same slot, which two calls of `up` at once can bring about, the older one
    keeps it.
    """
    everything = instances(aws, spec.name) if found is None else found
    live = [one for one in everything if LEAVING not in one.tags]
    given = slots_for(_workers(live), spec.nodes)
    changed = [one for one in live if one.is_results]
    for one in _workers(live):
        if given[one.id] != one.slot:
            set_tags(aws, [one.id], {SLOT: str(given[one.id])})
        changed.append(dataclasses.replace(one, tags={**one.tags, SLOT: str(given[one.id])}))
    return sorted(changed, key=lambda one: one.slot)


def slots_for(live: Sequence[Instance], nodes: int) -> dict[str, int]:
    """Return id -> slot: kept where it is unique, else the lowest that is free."""
    taken: dict[int, str] = {}
    for one in live:  # the oldest first
        if one.slot >= 0:
            taken.setdefault(one.slot, one.id)
    found = {owner: slot for slot, owner in taken.items()}
    free = iter(slot for slot in range(nodes + len(live)) if slot not in taken)
    for one in live:
        if one.id not in found:
            found[one.id] = next(free)
    return found
