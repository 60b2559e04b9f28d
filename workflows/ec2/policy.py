"""The least IAM policy that fleets need; `workflows fleet policy` prints it."""

from typing import Any

from workflows.ec2.api import FLEET, partition_of
from workflows.errors import UsageError

_OWN_REQUEST = {"StringLike": {f"aws:RequestTag/{FLEET}": "*"}}
_OWN = {"StringLike": {f"aws:ResourceTag/{FLEET}": "*"}}
_MADE = (
    "instance",
    "volume",
    "network-interface",
    "fleet",
    "launch-template",
    "key-pair",
    "security-group",
    "spot-instances-request",  # of RunInstances, where CreateFleet is not allowed
)


_LOOK = [
    "ec2:Describe*",
    "iam:GetRole",
    "pricing:GetProducts",
    "servicequotas:GetAWSDefaultServiceQuota",
    "servicequotas:GetServiceQuota",
    "sts:GetCallerIdentity",
]
_MAKE = [
    "CreateFleet",
    "CreateLaunchTemplate",
    "CreateSecurityGroup",
    "ImportKeyPair",
    "RunInstances",
]
_CHANGE = [
    "ec2:AuthorizeSecurityGroupIngress",
    "ec2:CreateTags",
    "ec2:DeleteKeyPair",
    "ec2:DeleteLaunchTemplate",
    "ec2:DeleteSecurityGroup",
    "ec2:DeleteTags",
    "ec2:DeleteVolume",
    "ec2:RevokeSecurityGroupIngress",
    "ec2:TerminateInstances",
]
_LAUNCH = ["ec2:CreateFleet", "ec2:RunInstances"]


def policy(profile_role: str = "", region: str = "") -> dict[str, Any]:
    """Return the policy; `profile_role` is the ARN of the role of the profile of the nodes.

    `region`, or else that ARN, says in which partition of AWS it is to hold: that of China, of
    GovCloud, or the usual one.

    Raises:
        UsageError: the ARN is none, or of another partition than the region.
    """
    partition = _partition(profile_role, region)
    ec2 = f"arn:{partition}:ec2"
    made = [f"{ec2}:*:*:{kind}/*" for kind in _MADE]
    own = [f"{ec2}:*:*:{kind}/*" for kind in ("launch-template", "key-pair", "security-group")]
    # Resources that a launch only refers to have no tags of ours.
    others = [f"{ec2}:*::{kind}/*" for kind in ("image", "snapshot")]
    others += [f"{ec2}:*:*:{kind}/*" for kind in ("subnet", "vpc")]
    public = [f"arn:{partition}:ssm:*::parameter/aws/service/*"]
    spot = {"StringEquals": {"iam:AWSServiceName": "spot.amazonaws.com"}}
    statements = [
        _allow("Look", _LOOK, ["*"]),
        _allow("Images", ["ssm:GetParameter"], public),
        _allow("MakeTagged", [f"ec2:{action}" for action in _MAKE], made, _OWN_REQUEST),
        _allow("LaunchFrom", [*_LAUNCH, "ec2:CreateSecurityGroup"], others),
        _allow("LaunchFromOwn", _LAUNCH, own, _OWN),
        _allow(
            "TagWhenMade", ["ec2:CreateTags"], made, {"StringEquals": {"ec2:CreateAction": _MAKE}}
        ),
        _allow("ChangeOwn", _CHANGE, made, _OWN),
        _allow("SpotRoleOnce", ["iam:CreateServiceLinkedRole"], ["*"], spot),
    ]
    if profile_role:
        service = "ec2.amazonaws.com.cn" if partition == "aws-cn" else "ec2.amazonaws.com"
        passed = {"StringEquals": {"iam:PassedToService": service}}
        statements.append(_allow("NodesRole", ["iam:PassRole"], [profile_role], passed))
    return {"Version": "2012-10-17", "Statement": statements}


def _partition(role: str, region: str) -> str:
    """Return the partition of a region, or of an ARN; the usual one if neither is given."""
    named = role.split(":")[1] if role.startswith("arn:") and role.count(":") >= 5 else ""
    if role and not named:
        raise UsageError(f"--role: {role!r} is not an ARN: arn:aws:iam::123456789012:role/NAME")
    if not region:
        return named or "aws"
    found = partition_of(region)
    if not found:
        raise UsageError(f"--region: AWS has no region {region!r}")
    if named not in ("", found):
        raise UsageError(f"--role is of the partition {named}, --region {region} of {found}")
    return found


def _allow(
    name: str, actions: list[str], resources: list[str], condition: dict[str, Any] | None = None
) -> dict[str, Any]:
    more = {"Condition": condition} if condition else {}
    return {"Sid": name, "Effect": "Allow", "Action": actions, "Resource": resources, **more}
