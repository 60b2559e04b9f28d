"""A fleet's instances as shown to a person or another program."""

import datetime as dt
from collections.abc import Sequence

from workflows.ec2.api import EXPIRES, HOST_KEY, LEAVING, READY, Instance
from workflows.reporting.runlog import aligned


def state_of(one: Instance) -> str:
    """Return what an instance is doing, in one word."""
    if LEAVING in one.tags:
        return "leaving"
    if one.state != "running":
        return one.state
    if READY in one.tags:
        return "ready"
    return "bootstrapping" if HOST_KEY in one.tags else "booting"


def as_json(one: Instance) -> dict[str, object]:
    """Return an instance as an inventory for other programs has it."""
    return {
        "name": f"{one.fleet}-{one.label}",
        "slot": None if one.is_results else one.slot,
        "id": one.id,
        "state": state_of(one),
        "type": one.type,
        "zone": one.zone,
        "spot": one.is_spot,
        "private_ip": one.private_ip,
        "public_ip": one.public_ip,
        "public_dns": one.public_dns,
        "launched": one.launched.isoformat(),
        "expires": one.tags.get(EXPIRES, ""),
    }


def table(found: Sequence[Instance], which: str) -> str:
    """Return instances as a table, with their public or private addresses."""
    now = dt.datetime.now(dt.timezone.utc)
    rows = [("slot", "id", "state", "type", "zone", "bought", "address", "age", "expires")]
    for one in found:
        rows.append(
            (
                one.label,
                one.id,
                state_of(one),
                one.type,
                one.zone,
                "spot" if one.is_spot else "on-demand",
                one.address(which) or "-",
                f"{(now - one.launched).total_seconds() / 60:.0f} min",
                one.tags.get(EXPIRES, "-"),
            )
        )
    return aligned(rows, left=range(9))
