"""AWS calls: clients that retry, pages that are all read, errors in our own words. Knows boto3."""

import contextlib
import dataclasses
import datetime as dt
import json
import os
import re
import threading
import time
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from workflows.errors import FleetError, NoCapacity, NotAllowed, OverQuota, Rejected

FLEET, SLOT, LAUNCH = "workflows:fleet", "workflows:slot", "workflows:launch"
BOOT_KEY, HOST_KEY = "workflows:bootkey", "workflows:hostkey"
AMI, EXPIRES = "workflows:ami", "workflows:expires"
REACHED, READY, LEAVING = "workflows:reached", "workflows:ready", "workflows:leaving"
ACCESS, ROLE = "workflows:access", "workflows:role"
GROUP = "workflows:group"  # the security group: another one each time that a fleet is begun
RESULTS = "results"  # the role of a host that holds no keys; all others are nodes
RESULTS_SLOT = 1 << 20  # above all on which keys are placed
LIVE = ("pending", "running")
ENDED = ("shutting-down", "terminated")
KEY_LENGTH, VALUE_LENGTH = 127, 256  # of tags, in characters
CAPACITY = {
    "InsufficientAddressCapacity",
    "InsufficientCapacity",
    "InsufficientCapacityOnHost",
    "InsufficientFreeAddressesInSubnet",
    "InsufficientHostCapacity",
    "InsufficientInstanceCapacity",
    "InsufficientReservedInstanceCapacity",
    "InsufficientVolumeCapacity",
    "Server.InsufficientInstanceCapacity",
    "SpotMaxPriceTooLow",
    "UnfulfillableCapacity",
}
SPOT_QUOTA = {"MaxSpotInstanceCountExceeded"}
# Of anything: VcpuLimitExceeded, SecurityGroupLimitExceeded, MaxFleetCountExceeded, ...
_QUOTA = re.compile(
    r"(Client\.)?(Max\w+CountExceeded|\w+LimitExceeded|\w+QuotaExceeded|ResourceLimit\w*)"
)
# These are about one request, and no quota of the account.
_NO_QUOTA = {"FilterLimitExceeded", "RequestLimitExceeded", "TagLimitExceeded"}
DENIED = {
    "AccessDenied",
    "AccessDeniedException",
    "AuthFailure",
    "AuthFailure.ServiceLinkedRoleCreationNotPermitted",
    "Blocked",
    "ExpiredToken",
    "ExpiredTokenException",
    "InvalidClientTokenId",
    "OptInRequired",
    "PendingVerification",
    "RequestExpired",
    "SignatureDoesNotMatch",
    "UnauthorizedOperation",
    "UnrecognizedClientException",
}
_UNPERMITTED = {"AccessDenied", "AccessDeniedException", "UnauthorizedOperation"}
# EC2's own trouble, which passes.
_BUSY = {
    "InternalError",
    "InternalFailure",
    "RequestLimitExceeded",
    "Server.InternalError",
    "ServiceUnavailable",
    "Throttling",
    "ThrottlingException",
    "Unavailable",
}
# For some seconds after a thing was made, calls that name it may not find it.
NOT_YET = {
    "InvalidGroup.NotFound",
    "InvalidInstanceID.NotFound",
    "InvalidKeyPair.NotFound",
    "InvalidLaunchTemplateId.NotFound",
    "InvalidLaunchTemplateId.VersionNotFound",
    "InvalidLaunchTemplateName.NotFoundException",
    "InvalidSecurityGroupID.NotFound",
}
_REJECTED = re.compile(
    r"(Client\.)?(Invalid|Missing|Malformed|Unknown|Unsupported|Incorrect|Idempotent|KMS|KMSKey"
    r"|Param|Validation|Operation|Gateway|Dependency|SnapshotC|VolumeTypeNot|ReservedC|Encrypted"
    r"|FilterLimit|TagLimit)"
)
# Refusals of values that this program has chosen: the file's own are checked before.
_OUR_FAULT = re.compile(
    r"(InvalidParameter|UnknownParameter|MissingParameter|Malformed|InvalidAction|Idempotent"
    r"|ParamValidation|ValidationError|InvalidUserData|MissingAction|FilterLimit|TagLimit)"
)
_LOGIN = "log in again (aws sso login, aws configure, or new session keys)"
_CLOCK = "this machine's clock may be wrong: workflows fleet doctor shows by how much"
_FIXES = {
    "AuthFailure": f"the keys are wrong: {_LOGIN}; if they are right, {_CLOCK}",
    "AuthFailure.ServiceLinkedRoleCreationNotPermitted": (
        "the account has no role for spot instances; once, as an administrator:"
        " aws iam create-service-linked-role --aws-service-name spot.amazonaws.com"
    ),
    "ExpiredToken": f"the login has expired: {_LOGIN}",
    "ExpiredTokenException": f"the login has expired: {_LOGIN}",
    "InvalidClientTokenId": f"AWS does not know the keys: {_LOGIN}",
    "RequestExpired": f"the login has expired: {_LOGIN}; if it is not, {_CLOCK}",
    "SignatureDoesNotMatch": (
        "the secret key does not fit the key id: aws configure; if `aws sts get-caller-identity`"
        " works, please report this"
    ),
    "UnrecognizedClientException": f"AWS does not know the keys: {_LOGIN}",
}
# Codes that mean something else with some messages: code, message, what to do.
_OTHERWISE = (
    (
        "AuthFailure",
        re.compile("Not authorized for image"),
        "the image is another account's, which does not share it with this one: name another ami",
    ),
    ("SignatureDoesNotMatch", re.compile("Signature (expired|not yet current)"), _CLOCK),
)
# A thousand letters that nobody reads; the sentence before it says what is missing.
_ENCODED = re.compile(r"\s*Encoded authorization failure message: \S*")
# Errors of botocore about credentials, before anything is sent.
_LOGIN_ERRORS = {
    "CredentialRetrievalError",
    "PartialCredentialsError",
    "ProfileNotFound",
    "SSOError",
    "SSOTokenLoadError",
    "TokenRetrievalError",
    "UnauthorizedSSOTokenError",
}


class Aws:
    """The AWS services of one region; making one connects to nothing."""

    def __init__(self, region: str) -> None:
        self.region = region
        self._clients: dict[tuple[str, str], Any] = {}
        self._mutex = threading.Lock()  # making clients is not safe in threads; using them is

    # How long EC2 may not find, or not show, what was made a moment ago.
    settle_s = 30.0

    def pauses_s(self) -> Iterator[float]:
        """Yield how long to wait before each further look at what EC2 does not show yet."""
        pause_s, left_s = 0.05, self.settle_s
        while left_s > 0:
            yield pause_s
            left_s -= pause_s
            pause_s = min(2.0, 2 * pause_s)

    def client(self, service: str, region: str = "") -> Any:
        """Return the client of a service, made when it is first needed."""
        import boto3
        from botocore.config import Config

        where = region or self.region
        with self._mutex:
            if (service, where) not in self._clients:
                settings = Config(
                    retries={"mode": "standard", "total_max_attempts": 8},
                    connect_timeout=5,
                    read_timeout=60,
                    max_pool_connections=32,
                )
                with _named(service):
                    session: Any = boto3.session.Session()
                    made = session.client(service, where, config=settings)
                self._clients[service, where] = made
            return self._clients[service, where]

    def call(
        self,
        operation: str,
        *,
        service: str = "ec2",
        region: str = "",
        settles: bool = False,
        **given: Any,
    ) -> Any:
        """Call one operation and return its answer.

        `settles`: it names what may have been made a moment ago. EC2 may not find that for some
        seconds, also after it has shown it; the call is repeated for half a minute.

        Raises:
            FleetError: AWS refused or could not be reached; its kind says which.
        """
        client = self.client(service, region)
        for pause_s in self.pauses_s() if settles else ():
            try:
                with _named(operation):
                    return getattr(client, operation)(**given)
            except FleetError as error:
                if error.code not in NOT_YET:
                    raise
            time.sleep(pause_s)
        with _named(operation):
            return getattr(client, operation)(**given)

    def time_said(self) -> str:
        """Return the time on AWS's clock, as HTTP writes it; it is said with a refusal too.

        Raises:
            FleetError: AWS could not be reached.
        """
        from botocore.exceptions import ClientError

        client = self.client("sts")
        with _named("get_caller_identity"):
            try:
                answer = client.get_caller_identity()
            except ClientError as error:  # a clock that is off is a reason
                answer = error.response
        return str(answer["ResponseMetadata"]["HTTPHeaders"].get("date", ""))

    def pages(
        self, operation: str, key: str, *, service: str = "ec2", **given: Any
    ) -> Iterator[Any]:
        """Yield what all pages of an operation hold under `key`.

        Raises:
            FleetError: as in `call`.
        """
        client = self.client(service)
        with _named(operation):
            for page in client.get_paginator(operation).paginate(**given):
                yield from page.get(key, [])


@contextlib.contextmanager
def _named(operation: str) -> Iterator[None]:
    """Turn botocore's errors into ours."""
    from botocore.exceptions import BotoCoreError, ClientError, NoCredentialsError
    from botocore.parsers import ResponseParserError  # what answered is no AWS; a proxy, perhaps

    try:
        yield
    except ClientError as error:
        about = error.response.get("Error", {})
        code = str(about.get("Code", ""))
        raise refusal(code, f"{operation}: {about.get('Message', '')}") from error
    except NoCredentialsError as error:
        why = "no AWS credentials; aws configure, or set AWS_ACCESS_KEY_ID"
        raise NotAllowed(f"{operation}: {why}", "NoCredentials") from error
    except (BotoCoreError, ResponseParserError) as error:
        kind = type(error).__name__
        if kind in _LOGIN_ERRORS:
            raise NotAllowed(f"{operation}: {error}; {_LOGIN}", kind) from error
        raise FleetError(f"{operation}: {error}", kind) from error


def is_quota(code: str) -> bool:
    """Tell whether a code says that a quota of the account does not allow more.

    >>> [is_quota(code) for code in ("SecurityGroupLimitExceeded", "RequestLimitExceeded")]
    [True, False]
    """
    return _QUOTA.fullmatch(code) is not None and code not in _NO_QUOTA


def refusal(code: str, why: str) -> FleetError:
    """Return the error that a code of EC2's stands for."""
    why = _ENCODED.sub("", why)
    fix = next((said for of, at, said in _OTHERWISE if of == code and at.search(why)), "")
    fix = fix or _FIXES.get(code, "")
    text = f"{why} ({code})" + (f"; {fix}" if fix else "")
    if code in CAPACITY:
        return NoCapacity(text, code)
    if is_quota(code):
        more = "; ask for more in Service Quotas, or name fewer or smaller nodes"
        return OverQuota(text + more, code)
    if code in DENIED:
        more = "; workflows fleet policy prints what is needed" if code in _UNPERMITTED else ""
        return NotAllowed(text + more, code)
    if code in _BUSY:
        return FleetError(f"{text}; EC2 has an internal error: try again in some minutes", code)
    if _OUR_FAULT.match(code):
        more = "; if this is no value of the fleet's file, please report this"
        return Rejected(text + more, code)
    return Rejected(text, code) if _REJECTED.match(code) else FleetError(text, code)


@dataclasses.dataclass(frozen=True)
class Instance:
    """One EC2 instance of a fleet, as described a moment ago."""

    id: str
    state: str
    type: str
    zone: str
    is_spot: bool
    private_ip: str
    public_ip: str
    launched: dt.datetime
    ended: dt.datetime | None
    tags: Mapping[str, str]
    public_dns: str = ""
    reason: str = ""  # why it ended: EC2's code and words

    @property
    def slot(self) -> int:
        """Return the slot it fills, or -1 for none yet."""
        if self.is_results:
            return RESULTS_SLOT
        text = self.tags.get(SLOT, "")
        return int(text) if text.isdigit() else -1

    @property
    def is_results(self) -> bool:
        """Tell whether it is the fleet's results host, on which no keys are placed."""
        return self.tags.get(ROLE) == RESULTS

    @property
    def label(self) -> str:
        """Return what people call it: its slot, or its role."""
        return label_of(self.slot)

    @property
    def fleet(self) -> str:
        """Return the name of its fleet."""
        return self.tags.get(FLEET, "")

    def address(self, which: str) -> str:
        """Return its public or private address; empty while it has none."""
        return self.private_ip if which == "private" else self.public_ip


def label_of(slot: int) -> str:
    """Return what people call what fills a slot."""
    return RESULTS if slot == RESULTS_SLOT else "?" if slot < 0 else str(slot)


def instances(aws: Aws, fleet: str = "", *, states: Iterable[str] = LIVE) -> list[Instance]:
    """Return the instances of a fleet, or of all fleets, the oldest first.

    Found by filters, never by ids: an id that is not known yet would fail the whole call.
    """
    filters = [{"Name": "instance-state-name", "Values": list(states)}, fleet_filter(fleet)]
    reservations = aws.pages("describe_instances", "Reservations", Filters=filters)
    found = [_instance(one) for each in reservations for one in each["Instances"]]
    return sorted(found, key=lambda one: (one.launched, one.id))


def fleet_filter(fleet: str) -> dict[str, Any]:
    """Return the filter for what belongs to a fleet, or to any."""
    if fleet:
        return {"Name": f"tag:{FLEET}", "Values": [fleet]}
    return {"Name": "tag-key", "Values": [FLEET]}


def _instance(raw: Mapping[str, Any]) -> Instance:
    return Instance(
        id=raw["InstanceId"],
        state=raw["State"]["Name"],
        type=raw["InstanceType"],
        zone=raw.get("Placement", {}).get("AvailabilityZone", ""),
        is_spot=raw.get("InstanceLifecycle") == "spot",
        private_ip=raw.get("PrivateIpAddress") or "",
        public_ip=raw.get("PublicIpAddress") or "",
        launched=raw["LaunchTime"],
        ended=_ended(raw),
        tags=tags_of(raw),
        public_dns=raw.get("PublicDnsName") or "",
        reason=str(raw.get("StateReason", {}).get("Message") or ""),
    )


def _ended(raw: Mapping[str, Any]) -> dt.datetime | None:
    """Return when an instance ended: 'User initiated (2026-11-21 10:00:00 GMT)'."""
    if raw["State"]["Name"] in (*LIVE, "stopping", "stopped"):
        return None
    match = re.search(r"\((\d{4}-\d\d-\d\d \d\d:\d\d:\d\d)", raw.get("StateTransitionReason", ""))
    if match is None:
        return dt.datetime.now(dt.timezone.utc)
    return dt.datetime.strptime(match[1], "%Y-%m-%d %H:%M:%S").replace(tzinfo=dt.timezone.utc)


def tags_of(raw: Mapping[str, Any]) -> dict[str, str]:
    """Return the tags of anything EC2 describes."""
    return {tag["Key"]: tag["Value"] for tag in raw.get("Tags", [])}


def tag_list(tags: Mapping[str, str]) -> list[dict[str, str]]:
    """Return tags as EC2 wants them.

    Raises:
        FleetError: one is longer than EC2 allows.
    """
    for name, value in tags.items():
        if len(name) > KEY_LENGTH or len(value) > VALUE_LENGTH:
            raise FleetError(
                f"tag {name} is too long for EC2: {len(name)} and {len(value)} characters,"
                f" {KEY_LENGTH} and {VALUE_LENGTH} are allowed"
            )
    return [{"Key": name, "Value": value} for name, value in tags.items()]


def set_tags(aws: Aws, ids: list[str], tags: Mapping[str, str]) -> None:
    """Write tags onto resources."""
    aws.call("create_tags", settles=True, Resources=ids, Tags=tag_list(tags))


def partition_of(region: str) -> str:
    """Return the partition of AWS that a region is in: aws, aws-cn, aws-us-gov; empty if none is.

    >>> partition_of("cn-north-1"), partition_of("mars-north-1")
    ('aws-cn', '')
    """
    from botocore.exceptions import UnknownRegionError
    from botocore.session import get_session

    try:
        return str(get_session().get_partition_for_region(region))
    except UnknownRegionError:
        return ""


def canonical(body: Mapping[str, Any]) -> str:
    """Return a request body as text, the same for the same body."""
    return json.dumps(body, sort_keys=True, separators=(",", ":"))


def home_region() -> str:
    """Return a region of the login's own partition: as the environment or the profile says.

    Keys of GovCloud and China are good for no other partition.
    """
    import boto3

    # boto3 reads AWS_DEFAULT_REGION alone.
    said = os.environ.get("AWS_REGION") or boto3.session.Session().region_name
    return said or "us-east-1"
