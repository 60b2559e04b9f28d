"""IAM's part in a call of EC2: which resources it needs, and whether a policy allows all of them.

A call is allowed if for each resource that it makes, changes or refers to some statement allows the
action. `aws:RequestTag` is what the call tags that very resource with: nothing if it does not.

Source: Service Authorization Reference, "Actions, resources, and condition keys for Amazon EC2".
What is not here (Describe and other services) is let pass; Deny, wildcards within a condition's
value other than *, and organizations are not played.
"""

import dataclasses
import fnmatch
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

Tags = Mapping[str, str]


@dataclasses.dataclass(frozen=True)
class Needed:
    """One resource of a call: its kind, the tags that it gets, and those that it has."""

    kind: str
    given: Tags = dataclasses.field(default_factory=dict)
    has: Tags = dataclasses.field(default_factory=dict)
    made_by: str = ""  # ec2:CreateAction of a CreateTags that belongs to another call


def denied(
    policy: Mapping[str, Any],
    action: str,
    found: Mapping[str, Any],
    template: Mapping[str, Any],
    tags_of: Callable[[str], Tags],
) -> str:
    """Return what a policy does not allow of a call: "ACTION on KIND"; "" if it allows all.

    `template` is what the launch template of a launch holds; `tags_of` the tags of what there is,
    by id or name.
    """
    for one in _needed(action, found, template, tags_of):
        asked = "CreateTags" if one.made_by else action
        if not any(_allows(row, f"ec2:{asked}", one) for row in policy["Statement"]):
            return f"ec2:{asked} on {one.kind}"
    return ""


_MADE = {
    "CreateSecurityGroup": ("security-group", "vpc"),
    "ImportKeyPair": ("key-pair",),
    "CreateLaunchTemplate": ("launch-template",),
}
_NAMED = {
    "AuthorizeSecurityGroupIngress": ("security-group", "GroupId"),
    "RevokeSecurityGroupIngress": ("security-group", "GroupId"),
    "DeleteSecurityGroup": ("security-group", "GroupId"),
    "DeleteKeyPair": ("key-pair", "KeyName"),
    "DeleteLaunchTemplate": ("launch-template", "LaunchTemplateId"),
    "DeleteVolume": ("volume", "VolumeId"),
    "TerminateInstances": ("instance", "InstanceIds"),
    "CreateTags": ("", "Resources"),
    "DeleteTags": ("", "Resources"),
}
_KINDS = {"i": "instance", "sg": "security-group", "vol": "volume", "lt": "launch-template"}


def _needed(
    action: str,
    found: Mapping[str, Any],
    template: Mapping[str, Any],
    tags_of: Callable[[str], Tags],
) -> Iterator[Needed]:
    given = _given(found)
    if action in _MADE:
        for kind in _MADE[action]:
            yield Needed(kind, given.get(kind, {}))
    elif action in ("RunInstances", "CreateFleet"):
        given = {**_given(template), **given}
        yield from _launched(action, {**template, **found}, given, tags_of)
    elif action in _NAMED:
        kind, member = _NAMED[action]
        names = found.get(member, "")
        for name in [names] if isinstance(names, str) else names:
            yield Needed(kind or _KINDS.get(name.split("-")[0], "?"), {}, tags_of(name))
    for kind, tags in given.items():
        yield Needed(kind, tags, {}, action)


def _launched(
    action: str,
    data: Mapping[str, Any],
    given: Mapping[str, Tags],
    tags_of: Callable[[str], Tags],
) -> Iterator[Needed]:
    own = ["fleet"] if action == "CreateFleet" else []
    own += ["spot-instances-request"] if "InstanceMarketOptions" in data else []
    for kind in ("instance", "volume", "network-interface", *own):
        yield Needed(kind, given.get(kind, {}))
    for kind in ("image", "snapshot", "subnet"):
        yield Needed(kind)
    # Without a group EC2 takes the VPC's own, which nobody has tagged.
    groups = [one for each in data.get("NetworkInterfaces", []) for one in each.get("Groups", [])]
    for name in [*groups, *data.get("SecurityGroupIds", [])] or ["the default group"]:
        yield Needed("security-group", {}, tags_of(name))
    if "KeyName" in data:
        yield Needed("key-pair", {}, tags_of(data["KeyName"]))
    specs = [
        one.get("LaunchTemplateSpecification") for one in data.get("LaunchTemplateConfigs", [])
    ]
    for one in filter(None, [*specs, data.get("LaunchTemplate")]):
        yield Needed("launch-template", {}, tags_of(one["LaunchTemplateName"]))


def _given(found: Mapping[str, Any]) -> dict[str, Tags]:
    return {
        one["ResourceType"]: {tag["Key"]: tag["Value"] for tag in one["Tags"]}
        for one in found.get("TagSpecifications", [])
    }


def _allows(row: Mapping[str, Any], action: str, one: Needed) -> bool:
    arn = f"arn:aws:ec2:us-east-1:123456789012:{one.kind}/x"
    if one.kind in ("image", "snapshot"):
        arn = f"arn:aws:ec2:us-east-1::{one.kind}/x"
    return (
        row["Effect"] == "Allow"
        and any(fnmatch.fnmatchcase(action, each) for each in _list(row["Action"]))
        and any(fnmatch.fnmatchcase(arn, each) for each in _list(row["Resource"]))
        and all(_holds(test, one) for test in row.get("Condition", {}).values())
    )


def _holds(test: Mapping[str, Any], one: Needed) -> bool:
    context = {
        **{f"aws:RequestTag/{key}": value for key, value in one.given.items()},
        **{f"aws:ResourceTag/{key}": value for key, value in one.has.items()},
        **({"ec2:CreateAction": one.made_by} if one.made_by else {}),
    }
    return all(
        key in context and any(fnmatch.fnmatchcase(context[key], each) for each in _list(values))
        for key, values in test.items()
    )


def _list(value: Any) -> Sequence[str]:
    return [value] if isinstance(value, str) else value
