"""Terminating instances, and removing all else that is tagged with a fleet's name."""

import contextlib
import datetime as dt
import functools
import time
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from typing import Any

from workflows.ec2.api import Aws, Instance, fleet_filter, instances, tags_of
from workflows.ec2.launch import PAUSES_S, Say
from workflows.errors import FleetError

_GONE_S = 300.0
# An `up` that was killed within CreateFleet: EC2 goes on launching, and shows the instances later.
LATE_S = 30.0
_AT_ONCE = 100
# One bad instance fails the call for all.
_OF_ONE = (
    *("InvalidInstanceID", "IncorrectInstanceState", "OperationNotPermitted"),
    *("UnauthorizedOperation", "Unsupported"),
)
# A thing is gone if EC2 does not know it, and so often in a row does not show it either: 1.5 s.
_ABSENCES = 6
_THERE = ("pending", "running", "stopping", "stopped", "shutting-down")


def terminate(aws: Aws, ids: Sequence[str]) -> None:
    """Terminate instances; those that are gone already are no error.

    Raises:
        FleetError: one could not be terminated; all others are.
    """
    refused: list[FleetError] = []
    unknown = list(ids)
    # One that was launched a moment ago may be unknown for some seconds, and yet is there.
    for pause_s in (*aws.pauses_s(), None):
        asked, unknown = unknown, []
        for start in range(0, len(asked), _AT_ONCE):
            more, errors = _refusals(aws, asked[start : start + _AT_ONCE])
            unknown += more
            refused += errors
        if not unknown or pause_s is None:
            break
        time.sleep(pause_s)
    for error in refused:
        raise error


def _refusals(aws: Aws, ids: list[str]) -> tuple[list[str], list[FleetError]]:
    """Terminate instances; return those that EC2 does not know, and why it refused others."""
    try:
        aws.call("terminate_instances", InstanceIds=ids)
    except FleetError as error:
        if len(ids) > 1 and error.code.startswith(_OF_ONE):
            unknown, refused = list[str](), list[FleetError]()
            for one in ids:
                more, errors = _refusals(aws, [one])
                unknown += more
                refused += errors
            return unknown, refused
        if error.code.startswith("InvalidInstanceID"):
            return ids, []
        return [], [error]
    return [], []


def terminate_all(aws: Aws, fleet: str, *, say: Say, known: Collection[str] = ()) -> list[Instance]:
    """Terminate all instances of a fleet, then say so; return those not `known`, as they were.

    Those that are known too: EC2 may answer once that it does not know an instance that is new.

    Raises:
        FleetError: one could not be terminated; all others are.
    """
    found = instances(aws, fleet, states=_THERE[:-1])
    new = [one for one in found if one.id not in known]
    try:
        terminate(aws, sorted(one.id for one in found))
    finally:
        if new:
            say(f"terminating {len(new)}: {', '.join(sorted(one.id for one in new))}")
    return new


def tear_down(aws: Aws, fleet: str, *, say: Say) -> list[Instance]:
    """Remove everything that is tagged with the fleet's name, and wait until it is gone.

    The instances go first. A part that cannot be removed keeps no other. Return the instances that
    were terminated, as they were before.

    Raises:
        FleetError: something could not be removed.
    """
    found: list[Instance] = []
    errors: list[FleetError] = []
    with _noted(errors):
        found += terminate_all(aws, fleet, say=say)
    late_until = time.monotonic()
    with _noted(errors):
        late_until += clear_templates(aws, fleet)  # nothing more can be launched from them
    with _noted(errors):
        found += _await_gone(aws, fleet, [one.id for one in found], late_until, say)
    with _noted(errors):
        for row in aws.call("describe_key_pairs", Filters=[fleet_filter(fleet)])["KeyPairs"]:
            _delete(aws, "key_pair", "InvalidKeyPair", KeyName=row["KeyName"])
    with _noted(errors):
        filters = [fleet_filter(fleet), {"Name": "status", "Values": ["available"]}]
        for row in list(aws.pages("describe_volumes", "Volumes", Filters=filters)):
            _delete(aws, "volume", "InvalidVolume", VolumeId=row["VolumeId"])
    with _noted(errors):
        patience_s = 0.0 if errors else _GONE_S
        own = [fleet_filter(fleet)]
        for row in list(aws.pages("describe_security_groups", "SecurityGroups", Filters=own)):
            _delete_group(aws, fleet, row["GroupId"], patience_s)
    with _noted(errors):
        _check_none_came(aws, fleet, found, say)
    for error in errors[1:]:
        say(str(error))
    for error in errors:
        raise error
    return found


@contextlib.contextmanager
def _noted(errors: list[FleetError]) -> Iterator[None]:
    """Keep a refusal for the end: what else costs money is removed first."""
    try:
        yield
    except FleetError as error:
        errors.append(error)


def _check_none_came(aws: Aws, fleet: str, known: Sequence[Instance], say: Say) -> None:
    if late := terminate_all(aws, fleet, say=say, known=[one.id for one in known]):
        raise FleetError(
            f"{', '.join(sorted(one.id for one in late))} came while {fleet} was removed; type it"
            f" again: workflows fleet down {fleet}"
        )


def clear_templates(aws: Aws, fleet: str) -> float:
    """Delete the launch templates of a fleet: they hold the keys of first contacts.

    Return for how many seconds instances may still appear that were launched from one of them.
    """
    late_s = 0.0
    filters = [fleet_filter(fleet)]
    for row in list(aws.pages("describe_launch_templates", "LaunchTemplates", Filters=filters)):
        own = row["LaunchTemplateId"]
        age = dt.datetime.now(dt.timezone.utc) - row["CreateTime"]
        late_s = max(late_s, min(LATE_S - age.total_seconds(), LATE_S))
        is_shown = functools.partial(
            _is_shown, aws, fleet, "describe_launch_templates", "LaunchTemplates", own
        )
        kind, gone = "launch_template", "InvalidLaunchTemplate"
        _delete(aws, kind, gone, is_shown, LaunchTemplateId=own)
    return late_s


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


def _await_gone(
    aws: Aws, fleet: str, asked: Sequence[str], late_until: float, say: Say
) -> list[Instance]:
    """Wait until no instance is left; return those that came meanwhile, and were terminated too.

    EC2 shows some late, and an `up` elsewhere may launch more: look until `late_until` at least.
    """
    came: list[Instance] = []
    deadline = time.monotonic() + _GONE_S
    pauses = iter(PAUSES_S)
    while (left := instances(aws, fleet, states=_THERE)) or time.monotonic() < late_until:
        if time.monotonic() > deadline:
            break
        time.sleep(next(pauses, 2.0))
        came += terminate_all(aws, fleet, say=say, known=[*asked, *(one.id for one in came)])
    else:
        return came
    raise FleetError(
        f"still there after {_GONE_S:g} s: {', '.join(one.id for one in left)}; type it again:"
        f" workflows fleet down {fleet}"
    )


def _delete_group(aws: Aws, fleet: str, group: str, patience_s: float) -> None:
    """Delete a security group; EC2 lets go of it some seconds after its last instance."""
    deadline = time.monotonic() + patience_s
    pauses = iter(PAUSES_S)
    operation, key = "describe_security_groups", "SecurityGroups"
    is_shown = functools.partial(_is_shown, aws, fleet, operation, key, group)
    while True:
        try:
            return _delete(aws, "security_group", "InvalidGroup.NotFound", is_shown, GroupId=group)
        except FleetError as error:
            if error.code != "DependencyViolation" or time.monotonic() > deadline:
                raise
        time.sleep(next(pauses, 3.0))


def _delete(
    aws: Aws,
    what: str,
    gone: str,
    is_shown: Callable[[], bool] = lambda: False,
    **which: Any,
) -> None:
    """Delete something; that it is gone already is no error.

    EC2 may not know for some seconds what was just made. A thing that it still shows, or showed a
    moment ago, is tried again.
    """
    absences = 0
    for pause_s in aws.pauses_s():
        try:
            aws.call(f"delete_{what}", **which)
            break
        except FleetError as error:
            if not error.code.startswith(gone):
                raise
        absences = 0 if is_shown() else absences + 1
        if absences == _ABSENCES:
            break
        time.sleep(pause_s)


def _is_shown(aws: Aws, fleet: str, operation: str, key: str, name: str) -> bool:
    rows = aws.pages(operation, key, Filters=[fleet_filter(fleet)])
    return any(name in (row.get("LaunchTemplateId"), row.get("GroupId")) for row in rows)
