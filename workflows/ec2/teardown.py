"""Terminating instances, and removing all else that is tagged with a fleet's name."""

import time
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from workflows.ec2.api import Aws, fleet_filter, instances, tags_of
from workflows.ec2.launch import PAUSES_S, Say
from workflows.errors import FleetError

_GONE_S = 300.0
_THERE = ("pending", "running", "stopping", "stopped", "shutting-down")


def terminate(aws: Aws, ids: Sequence[str]) -> None:
    """Terminate instances; those that are gone already are no error."""
    for start in range(0, len(ids), 100):
        some = list(ids[start : start + 100])
        try:
            # One that was launched a moment ago may be unknown for some seconds, and yet is there.
            aws.call("terminate_instances", settles=len(some) == 1, InstanceIds=some)
        except FleetError as error:
            if not error.code.startswith("InvalidInstanceID") or len(some) == 1:
                if len(some) == 1 and error.code.startswith("InvalidInstanceID"):
                    continue
                raise
            for one in some:  # one unknown id fails the call for all
                terminate(aws, [one])


def tear_down(aws: Aws, fleet: str, *, say: Say) -> None:
    """Remove everything that is tagged with the fleet's name, and wait until it is gone.

    Raises:
        FleetError: something would not go.
    """
    asked = _terminate_new(aws, fleet, set(), say)
    clear_templates(aws, fleet)  # nothing more can be launched from them
    asked |= _await_gone(aws, fleet, asked, say)
    for row in aws.call("describe_key_pairs", Filters=[fleet_filter(fleet)])["KeyPairs"]:
        aws.call("delete_key_pair", KeyName=row["KeyName"])
    filters = [fleet_filter(fleet), {"Name": "status", "Values": ["available"]}]
    for row in aws.pages("describe_volumes", "Volumes", Filters=filters):
        _delete(aws, "volume", "InvalidVolume", VolumeId=row["VolumeId"])
    for row in aws.pages(
        "describe_security_groups", "SecurityGroups", Filters=[fleet_filter(fleet)]
    ):
        _delete_group(aws, row["GroupId"])
    if late := _terminate_new(aws, fleet, asked, say):
        raise FleetError(
            f"{', '.join(sorted(late))} came while {fleet} was removed; type it again:"
            f" workflows fleet down {fleet}"
        )


def _terminate_new(aws: Aws, fleet: str, asked: set[str], say: Say) -> set[str]:
    """Terminate what is there now, but for those in `asked`, on which it was done; return it."""
    found = {one.id for one in instances(aws, fleet, states=_THERE[:-1])} - asked
    if found:
        say(f"terminating {len(found)}: {', '.join(sorted(found))}")
        terminate(aws, sorted(found))
    return found


def clear_templates(aws: Aws, fleet: str) -> None:
    """Delete the launch templates of a fleet: they hold the keys of first contacts."""
    filters = [fleet_filter(fleet)]
    for row in list(aws.pages("describe_launch_templates", "LaunchTemplates", Filters=filters)):
        own = row["LaunchTemplateId"]
        _delete(aws, "launch_template", "InvalidLaunchTemplate", LaunchTemplateId=own)


def leftovers(aws: Aws, fleet: str = "") -> dict[str, dict[str, dict[str, str]]]:
    """Return kind -> id -> tags of everything tagged that still exists in this region."""
    own = [fleet_filter(fleet)]
    kinds = {
        "instances": {one.id: dict(one.tags) for one in instances(aws, fleet, states=_THERE)},
        "volumes": _ids(aws.pages("describe_volumes", "Volumes", Filters=own), "VolumeId"),
        "launch templates": _ids(
            aws.pages("describe_launch_templates", "LaunchTemplates", Filters=own),
            "LaunchTemplateId",
        ),
        "key pairs": _ids(aws.call("describe_key_pairs", Filters=own)["KeyPairs"], "KeyPairId"),
        "security groups": _ids(
            aws.pages("describe_security_groups", "SecurityGroups", Filters=own), "GroupId"
        ),
    }
    return {kind: found for kind, found in kinds.items() if found}


def _ids(rows: Iterable[Mapping[str, Any]], key: str) -> dict[str, dict[str, str]]:
    return {row[key]: tags_of(row) for row in rows}


def _await_gone(aws: Aws, fleet: str, asked: set[str], say: Say) -> set[str]:
    """Wait until no instance is left; return those that came meanwhile, and were terminated too."""
    came: set[str] = set()
    deadline = time.monotonic() + _GONE_S
    pauses = iter(PAUSES_S)
    while left := instances(aws, fleet, states=_THERE):
        if time.monotonic() > deadline:
            break
        time.sleep(next(pauses, 2.0))
        # EC2 shows some late, and an `up` elsewhere may launch more.
        came |= _terminate_new(aws, fleet, asked | came, say)
    else:
        return came
    raise FleetError(
        f"still there after {_GONE_S:g} s: {', '.join(one.id for one in left)}; type it again:"
        f" workflows fleet down {fleet}"
    )


def _delete_group(aws: Aws, group: str) -> None:
    """Delete a security group; EC2 lets go of it some seconds after its last instance."""
    deadline = time.monotonic() + _GONE_S
    pauses = iter(PAUSES_S)
    while True:
        try:
            return _delete(aws, "security_group", "InvalidGroup.NotFound", GroupId=group)
        except FleetError as error:
            if error.code != "DependencyViolation" or time.monotonic() > deadline:
                raise
        time.sleep(next(pauses, 3.0))


def _delete(aws: Aws, what: str, gone: str, **which: str) -> None:
    """Delete something; that it is gone already is no error."""
    try:
        aws.call(f"delete_{what}", settles=True, **which)
    except FleetError as error:
        if not error.code.startswith(gone):
            raise
