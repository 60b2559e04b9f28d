"""The least IAM policy that fleets need; `workflows fleet policy` prints it."""

from typing import Any

from workflows.ec2.api import FLEET

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
)


def policy(profile_role: str = "") -> dict[str, Any]:
    """Return the policy; `profile_role` is the ARN of the role of the nodes' instance profile."""
    arns = [f"arn:aws:ec2:*:*:{kind}/*" for kind in _MADE]
    statements = [
        _allow(
            "Look",
            [
                "ec2:Describe*",
                "ec2:GetSpotPlacementScores",
                "pricing:GetProducts",
                "servicequotas:GetServiceQuota",
                "sts:GetCallerIdentity",
                "iam:GetRole",
            ],
            ["*"],
        ),
        _allow("Images", ["ssm:GetParameter"], ["arn:aws:ssm:*::parameter/aws/service/*"]),
        _allow(
            "MakeTagged",
            [
                "ec2:CreateFleet",
                "ec2:CreateLaunchTemplate",
                "ec2:CreateSecurityGroup",
                "ec2:ImportKeyPair",
                "ec2:RunInstances",
            ],
            arns,
            _OWN_REQUEST,
        ),
        # What a launch only refers to has no tags of ours.
        _allow(
            "LaunchFrom",
            ["ec2:CreateFleet", "ec2:CreateSecurityGroup", "ec2:RunInstances"],
            [
                "arn:aws:ec2:*::image/*",
                "arn:aws:ec2:*::snapshot/*",
                "arn:aws:ec2:*:*:subnet/*",
                "arn:aws:ec2:*:*:vpc/*",
            ],
        ),
        _allow(
            "LaunchFromOwn",
            ["ec2:CreateFleet", "ec2:RunInstances"],
            [
                f"arn:aws:ec2:*:*:{kind}/*"
                for kind in ("launch-template", "key-pair", "security-group")
            ],
            _OWN,
        ),
        _allow(
            "TagWhenMade",
            ["ec2:CreateTags"],
            arns,
            {
                "StringEquals": {
                    "ec2:CreateAction": [
                        "CreateFleet",
                        "CreateLaunchTemplate",
                        "CreateSecurityGroup",
                        "ImportKeyPair",
                        "RunInstances",
                    ]
                }
            },
        ),
        _allow(
            "ChangeOwn",
            [
                "ec2:AuthorizeSecurityGroupIngress",
                "ec2:CreateTags",
                "ec2:DeleteKeyPair",
                "ec2:DeleteLaunchTemplate",
                "ec2:DeleteSecurityGroup",
                "ec2:DeleteTags",
                "ec2:DeleteVolume",
                "ec2:RevokeSecurityGroupIngress",
                "ec2:TerminateInstances",
            ],
            arns,
            _OWN,
        ),
        _allow(
            "SpotRoleOnce",
            ["iam:CreateServiceLinkedRole"],
            ["*"],
            {"StringEquals": {"iam:AWSServiceName": "spot.amazonaws.com"}},
        ),
    ]
    if profile_role:
        passed = {"StringEquals": {"iam:PassedToService": "ec2.amazonaws.com"}}
        statements.append(_allow("NodesRole", ["iam:PassRole"], [profile_role], passed))
    return {"Version": "2012-10-17", "Statement": statements}


def _allow(
    name: str, actions: list[str], resources: list[str], condition: dict[str, Any] | None = None
) -> dict[str, Any]:
    more = {"Condition": condition} if condition else {}
    return {"Sid": name, "Effect": "Allow", "Action": actions, "Resource": resources, **more}
