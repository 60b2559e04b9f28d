"""The stand-in for EC2 refuses what Amazon refuses: each row of its table bites, others pass.

Requests are made by hand where botocore would not send them.
"""

import base64
import dataclasses
import datetime as dt
import html
import re
import secrets
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import pytest
from aws import sigv4
from aws.ec2_rules import RULES

from workflows.ec2.ground import key_pair

if TYPE_CHECKING:
    from ec2cloud import Cloud

VERSION = "2016-11-15"
TAGS = "TagSpecification.1.Tag.1"


class Asker:
    """Asks the stand-in as any client of EC2 may."""

    def __init__(self, cloud: "Cloud") -> None:
        self.cloud = cloud
        self.keys = ("testing", "testing")
        self.token: str | None = None
        self.late_s = 0.0

    def ask(self, action: str, **body: Any) -> str:
        """Return the code with which an action is refused; "" if it is done."""
        return self.said(action, body)[0]

    def said(self, action: str, body: dict[str, Any], *, signed: bool = True) -> tuple[str, str]:
        """Return how an action is refused: code and message."""
        from botocore.auth import SigV4Auth
        from botocore.awsrequest import AWSRequest
        from botocore.credentials import Credentials

        data = urllib.parse.urlencode({"Action": action, "Version": VERSION, **body})
        headers = {"Content-Type": "application/x-www-form-urlencoded"}
        request = AWSRequest("POST", self.cloud.url + "/", headers=headers, data=data)
        if signed:
            credentials = Credentials(*self.keys, self.token)
            SigV4Auth(credentials, "ec2", "us-east-1").add_auth(request)
        sent = dict(request.headers.items())
        real = urllib.request.Request(f"{self.cloud.url}/", data.encode(), sent)
        try:
            urllib.request.urlopen(real, timeout=30).close()
        except urllib.error.HTTPError as error:
            text = html.unescape(error.read().decode())
            return _between(text, "Code"), _between(text, "Message")
        return "", ""


def _between(text: str, name: str) -> str:
    found = re.search(f"<{name}>(.*?)</{name}>", text, re.DOTALL)
    return found[1] if found else text


@pytest.fixture
def asker(cloud: "Cloud") -> Iterator[Asker]:
    """Return one who asks a stand-in in which things are there as soon as they are made."""
    cloud.reset()
    cloud.account.lag = 0
    yield Asker(cloud)
    cloud.reset()


def new(what: str) -> str:
    return f"{what}-{secrets.token_hex(6)}"


def group(description: str = "nodes", **more: str) -> dict[str, str]:
    return {"GroupName": new("group"), "GroupDescription": description, **more}


def tagged(kind: str, key: str = "k", value: str = "v") -> dict[str, str]:
    kinds = {"TagSpecification.1.ResourceType": kind}
    return {**kinds, f"{TAGS}.Key": key, f"{TAGS}.Value": value}


def template(**data: str) -> dict[str, str]:
    inner = {f"LaunchTemplateData.{name}": value for name, value in data.items()}
    return {"LaunchTemplateName": new("template"), **(inner or {"LaunchTemplateData.ImageId": "x"})}


def fleet(name: str, overrides: int = 1, more: dict[str, str] | None = None) -> dict[str, str]:
    first = "LaunchTemplateConfigs.1"
    found = {
        "Type": "instant",
        f"{first}.LaunchTemplateSpecification.LaunchTemplateName": name,
        f"{first}.LaunchTemplateSpecification.Version": "$Latest",
        "TargetCapacitySpecification.TotalTargetCapacity": "1",
        "TargetCapacitySpecification.SpotTargetCapacity": "1",
        "TargetCapacitySpecification.DefaultTargetCapacityType": "spot",
    }
    for number in range(overrides):
        found[f"{first}.Overrides.{number + 1}.InstanceType"] = "m7i.large"
        found[f"{first}.Overrides.{number + 1}.SubnetId"] = f"subnet-{number}"
    return {**found, **(more or {})}


def rule(description: str) -> dict[str, str]:
    first = "IpPermissions.1"
    return {
        "GroupId": "sg-0123",
        f"{first}.IpProtocol": "tcp",
        f"{first}.FromPort": "22",
        f"{first}.ToPort": "22",
        f"{first}.IpRanges.1.CidrIp": "192.0.2.1/32",
        f"{first}.IpRanges.1.Description": description,
    }


def b64(text: bytes) -> str:
    return base64.b64encode(text).decode()


INTERFACE = {"NetworkInterface.1.DeviceIndex": "0"}
# Rule -> an action and parameters that break it, and the like that do not.
CASES: dict[str, tuple[str, dict[str, Any], dict[str, Any] | None]] = {
    "action": ("DescribeInstanzes", {}, None),
    "unknown parameter": ("DescribeInstances", {"Foo": "1"}, {"MaxResults": "5"}),
    "missing parameter": ("CreateSecurityGroup", {"GroupName": "x"}, group()),
    "value": ("DescribeInstances", {"MaxResults": "many"}, {"MaxResults": "5"}),
    "empty": ("CreateSecurityGroup", group() | {"GroupName": ""}, group()),
    "length": ("CreateSecurityGroup", group() | {"GroupName": "x" * 256}, group()),
    "filter": (
        "DescribeInstances",
        {"Filter.1.Name": "colour", "Filter.1.Value.1": "red"},
        {"Filter.1.Name": "tag:colour", "Filter.1.Value.1": "red"},
    ),
    "tag key length": (
        "CreateSecurityGroup",
        group(**tagged("security-group", "k" * 128)),
        group(**tagged("security-group", "k" * 127)),
    ),
    "tag value length": (
        "CreateSecurityGroup",
        group(**tagged("security-group", value="v" * 257)),
        group(**tagged("security-group", value="v" * 256)),
    ),
    "tag prefix": (
        "CreateSecurityGroup",
        group(**tagged("security-group", "aws:x")),
        group(**tagged("security-group", "awsx")),
    ),
    "tag count": (
        "CreateTags",
        {"ResourceId.1": "i-1"} | {f"Tag.{n}.Key": f"k{n}" for n in range(1, 52)},
        None,
    ),
    "tag kind": (
        "CreateFleet",
        fleet("xyz", more=tagged("network-interface")),
        None,
    ),
    "group description": ("CreateSecurityGroup", group("it's"), group("a-z: (x) @ [1] & {2}!")),
    "rule description": ("AuthorizeSecurityGroupIngress", rule("the fleet's"), None),
    "user data base64": ("CreateLaunchTemplate", template(UserData="not base64!"), None),
    "user data length": (
        "CreateLaunchTemplate",
        template(UserData=b64(b"x" * 16385)),
        template(UserData=b64(b"x" * 16384)),
    ),
    "groups beside interfaces": (
        "CreateLaunchTemplate",
        template(**INTERFACE, **{"SecurityGroupId.1": "sg-1"}),
        template(**INTERFACE, **{"NetworkInterface.1.SecurityGroupId.1": "sg-1"}),
    ),
    "subnet beside interfaces": (
        "RunInstances",
        {"MinCount": "1", "MaxCount": "1", "ImageId": "x", "SubnetId": "subnet-1", **INTERFACE},
        None,
    ),
    "overrides": ("CreateFleet", fleet("xyz", 301), None),
    "filter values": (
        "DescribeInstances",
        {"Filter.1.Name": "tag:x"} | {f"Filter.1.Value.{n}": f"v{n}" for n in range(1, 202)},
        {"Filter.1.Name": "tag:x"} | {f"Filter.1.Value.{n}": f"v{n}" for n in range(1, 201)},
    ),
    "duplicate pools": (
        "CreateFleet",
        fleet("xyz", 2, {"LaunchTemplateConfigs.1.Overrides.2.SubnetId": "subnet-0"}),
        None,
    ),
    "max price": (
        "CreateFleet",
        fleet("xyz", more={"LaunchTemplateConfigs.1.Overrides.1.MaxPrice": "0.0009"}),
        None,
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_each_rule_about_a_request_bites_and_lets_the_like_by(asker: Asker, name: str) -> None:
    action, bad, good = CASES[name]
    row = RULES[name]

    code, message = asker.said(action, bad)

    assert code == row.code
    begins = row.message.replace("{{", "{").replace("}}", "}").split("{")[0]
    assert message.startswith(begins.rstrip("'( ["))
    assert [refusal.rule.name for _, refusal in asker.cloud.refused] == [name]
    if good is not None:
        assert asker.ask(action, **good) == ""


def test_every_character_that_a_rules_description_may_hold_is_known(asker: Asker) -> None:
    allowed = "azAZ09. _-:/()#,@[]+=&;{}!$*"
    refused = [
        chr(one)
        for one in [*range(32, 127), 0xE9]
        if asker.ask("AuthorizeSecurityGroupIngress", **rule(chr(one))) == "InvalidParameterValue"
    ]

    assert asker.ask("AuthorizeSecurityGroupIngress", **rule(allowed)) != "InvalidParameterValue"
    assert "".join(refused) == "\"%'<>?\\^`|~\u00e9"
    assert asker.ask("AuthorizeSecurityGroupIngress", **rule("x" * 256)) == "InvalidParameterValue"


# -- signatures ------------------------------------------------------------------------------------


def test_a_request_without_a_signature_is_refused(asker: Asker) -> None:
    code, _ = asker.said("DescribeInstances", {}, signed=False)

    assert code == "MissingAuthenticationToken"


@pytest.mark.parametrize(
    ("keys", "code"),
    [
        (("other", "testing"), "AuthFailure"),
        (("testing", "other"), "SignatureDoesNotMatch"),
        (("testing", "testing"), ""),
    ],
)
def test_a_request_signed_by_other_keys_is_refused(
    asker: Asker, keys: tuple[str, str], code: str
) -> None:
    asker.keys = keys

    assert asker.ask("DescribeInstances") == code


@pytest.mark.parametrize(
    ("ahead_s", "code"),
    [
        *((0, ""), (290, ""), (310, "AuthFailure"), (890, "AuthFailure")),
        *((910, "RequestExpired"), (-290, ""), (-310, "AuthFailure"), (-910, "AuthFailure")),
    ],
)
def test_a_clock_that_is_off_by_more_than_five_minutes_is_refused(
    asker: Asker, ahead_s: float, code: str
) -> None:
    asker.cloud.account.clock_s = ahead_s

    assert asker.ask("DescribeInstances") == code


def test_a_session_that_is_over_is_told_as_ec2_does(asker: Asker) -> None:
    now = dt.datetime.now().timestamp()
    keys = asker.cloud.account.keys
    asker.token = "a session"
    keys["testing"] = sigv4.Credential("testing", "a session", now + 60)
    assert asker.ask("DescribeInstances") == ""
    keys["testing"] = dataclasses.replace(keys["testing"], ends=now - 1)

    assert asker.said("DescribeInstances", {}) == ("RequestExpired", "Request has expired.")


# -- the account -----------------------------------------------------------------------------------


def test_what_is_denied_throttled_or_rehearsed_is_answered_so(asker: Asker) -> None:
    account = asker.cloud.account
    account.denied = {"CreateSecurityGroup"}
    account.throttled = {"DescribeVpcs": 2}

    assert asker.ask("CreateSecurityGroup", **group()) == "UnauthorizedOperation"
    codes = [asker.ask("DescribeVpcs") for _ in range(3)]
    assert codes == ["RequestLimitExceeded", "RequestLimitExceeded", ""]
    key = {"KeyName": new("key"), "PublicKeyMaterial": b64(key_pair()[1].encode())}
    assert asker.ask("ImportKeyPair", DryRun="true", **key) == "DryRunOperation"
    assert asker.ask("ImportKeyPair", **key) == ""  # which was not done before


def test_a_token_that_comes_again_with_other_parameters_is_refused(asker: Asker) -> None:
    made = template(ImageId="ami-1")
    token = {"ClientToken": new("token")}

    first = asker.ask("CreateLaunchTemplate", **made, **token)
    other = asker.ask("CreateLaunchTemplate", **template(ImageId="ami-2"), **token)

    assert (first, other) == ("", "IdempotentParameterMismatch")


def launched(asker: Asker, image: str, **body: str) -> list[tuple[str, str]]:
    """Launch one node; return (code, message) of what did not come."""
    made = template(ImageId=image)
    asker.cloud.account.lag = 0
    assert asker.ask("CreateLaunchTemplate", **made) == ""
    ec2 = client(asker)
    name = made["LaunchTemplateName"]
    target = {"TotalTargetCapacity": 1, "SpotTargetCapacity": 1, "OnDemandTargetCapacity": 0}
    answer = ec2.create_fleet(
        Type="instant",
        LaunchTemplateConfigs=[
            {
                "LaunchTemplateSpecification": {
                    "LaunchTemplateName": name,
                    "Version": "$Latest",
                },
                "Overrides": [{"InstanceType": body.get("type", "m7i.large")}],
            }
        ],
        TargetCapacitySpecification=target,
        SpotOptions={"AllocationStrategy": "lowest-price"},
    )
    return [(one["ErrorCode"], one["ErrorMessage"]) for one in answer["Errors"]]


def client(asker: Asker) -> Any:
    import boto3

    session = boto3.session.Session("testing", "testing", region_name="us-east-1")
    return session.client("ec2", endpoint_url=asker.cloud.url)


def image(asker: Asker, architecture: str) -> str:
    filters = [{"Name": "architecture", "Values": [architecture]}]
    return str(asker.cloud.ec2.describe_images(Filters=filters)["Images"][0]["ImageId"])


def test_an_image_that_is_not_there_or_of_another_architecture_launches_nothing(
    asker: Asker,
) -> None:
    x86 = image(asker, "x86_64")

    (missing,) = launched(asker, "ami-0123456789abcdef0")
    (other,) = launched(asker, x86, type="m7g.large")

    assert missing[0] == "InvalidAMIID.NotFound"
    assert other[0] == "InvalidParameterValue"
    assert "architecture 'arm64' of the specified instance type" in other[1]


@pytest.mark.parametrize(
    ("type_", "code"),
    [
        ("m7i.large", "L-34B43A08"),
        ("t3.micro", "L-34B43A08"),
        ("g5.xlarge", "L-3819A6DF"),
        ("inf2.xlarge", "L-B5D1601B"),
    ],
)
def test_each_family_has_a_quota_of_its_own(asker: Asker, type_: str, code: str) -> None:
    asker.cloud.account.quotas = {code: 0}

    (refused,) = launched(asker, image(asker, "x86_64"), type=type_)

    assert refused == ("MaxSpotInstanceCountExceeded", "Max spot instance count exceeded")


def test_what_was_made_is_not_there_for_the_first_calls_though_a_describe_shows_it(
    cloud: "Cloud",
) -> None:
    """By seed: with this one the group, the template and the key are all late."""
    cloud.reset(seed=3)
    cloud.account.lag = 2
    asker = Asker(cloud)
    ec2 = client(asker)
    late = set()
    for _ in range(6):
        made = ec2.create_security_group(GroupName=new("g"), Description="x")["GroupId"]
        assert ec2.describe_security_groups(Filters=[{"Name": "group-id", "Values": [made]}])[
            "SecurityGroups"
        ]
        codes = [asker.ask("DeleteSecurityGroup", GroupId=made) for _ in range(3)]
        late.add(tuple(codes))

    none = "InvalidGroup.NotFound"
    # As often as the seed says; afterwards it is there, and then it is gone for good.
    assert {codes.index("") for codes in late if "" in codes} == {0, 1, 2}
    assert all(set(codes) <= {"", none, "InvalidGroup.NotFound"} for codes in late)
    cloud.reset()


def test_the_same_seed_makes_the_same_things_late(cloud: "Cloud") -> None:
    def drawn(seed: int) -> list[int]:
        cloud.reset(seed)
        cloud.account.made("group", *[str(number) for number in range(50)])
        return [*cloud.account._new.values()]

    assert drawn(7) == drawn(7) != drawn(8)
    assert set(drawn(7)) == {0, 1, 2}
    cloud.reset()


def test_every_row_of_the_table_has_a_source_and_is_met_by_a_test() -> None:
    elsewhere = {
        *("credentials", "signature", "anonymous", "expired", "token", "image", "architecture"),
        *("small disk", "clock behind", "clock ahead", "private image"),
        *("new group", "new instance", "new key pair", "new template", "new template id"),
        *("spot quota", "on-demand quota", "permission", "dry run", "throttle"),
    }

    assert set(RULES) == set(CASES) | elsewhere
    assert all(row.source for row in RULES.values())


NEW = {
    "new instance": ("CreateTags", "i-new", {"ResourceId.1": "i-new", "Tag.1.Key": "k"}),
    "new template id": ("DeleteLaunchTemplate", "lt-1", {"LaunchTemplateId": "lt-1"}),
    "new template": ("CreateFleet", "t-new", fleet("t-new")),
}


@pytest.mark.parametrize("name", NEW)
def test_each_kind_of_thing_that_is_not_there_yet_has_its_own_answer(
    asker: Asker, name: str
) -> None:
    action, thing, body = NEW[name]
    account = asker.cloud.account
    account.made(name.removeprefix("new "), thing)
    account._new[thing] = 1

    assert asker.ask(action, **body) == RULES[name].code
    assert account._new[thing] == 0


@pytest.mark.parametrize("kind", ["key pair", "group"])
def test_a_launch_whose_template_names_a_new_key_or_group_comes_out_with_that_error(
    asker: Asker, kind: str
) -> None:
    names = {"key pair": {"KeyName": "k-new"}, "group": {"SecurityGroupId.1": "sg-new"}}
    made = template(ImageId=image(asker, "x86_64"), **names[kind])
    assert asker.ask("CreateLaunchTemplate", **made) == ""
    (thing,) = names[kind].values()
    asker.cloud.account.made(kind, thing)
    asker.cloud.account._new[thing] = 1

    assert asker.ask("CreateFleet", **fleet(made["LaunchTemplateName"])) == ""

    (refusal,) = [refusal for _, refusal in asker.cloud.refused]
    assert refusal.rule is RULES[f"new {kind}"]


def test_on_demand_vcpus_are_counted_by_another_quota(asker: Asker) -> None:
    asker.cloud.account.quotas = {"L-1216C47A": 3}
    body = {"MinCount": "1", "MaxCount": "1", "InstanceType": "m7i.large"}
    running = asker.cloud.ec2.describe_instances(
        Filters=[{"Name": "instance-state-name", "Values": ["running"]}]
    )["Reservations"]
    asker.cloud.account.quotas = {"L-1216C47A": 3 + 2 * len(running)}
    token = {"ClientToken": new("t")}

    first = asker.ask("RunInstances", ImageId=image(asker, "x86_64"), **body, **token)
    asker.cloud.account.quotas = {"L-1216C47A": 1}
    second = asker.said(
        "RunInstances", {"ImageId": image(asker, "x86_64"), **body, "ClientToken": new("t")}
    )

    assert first == ""
    assert second[0] == "VcpuLimitExceeded"
    assert "current vCPU limit of 1 allows" in second[1]
