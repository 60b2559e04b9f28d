"""AWS calls: clients that retry, pages that are all read, errors in our own words. Knows boto3."""

import contextlib
import dataclasses
import datetime as dt
import json
import re
import threading
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from workflows.errors import FleetError, NotAllowed, OverQuota

FLEET, SLOT, LAUNCH = "workflows:fleet", "workflows:slot", "workflows:launch"
BOOT_KEY, HOST_KEY = "workflows:bootkey", "workflows:hostkey"
AMI, EXPIRES = "workflows:ami", "workflows:expires"
REACHED, READY, LEAVING = "workflows:reached", "workflows:ready", "workflows:leaving"
ACCESS, ROLE = "workflows:access", "workflows:role"
GROUP = "workflows:group"  # the security group: another one each time that a fleet is begun
RESULTS = "results"  # the role of a host that holds no keys; all others are nodes
RESULTS_SLOT = 1 << 20  # above all on which keys are placed
LIVE = ("pending", "running")
QUOTA = {
    "InstanceLimitExceeded",
    "MaxFleetCountExceeded",
    "MaxSpotInstanceCountExceeded",
    "VcpuLimitExceeded",
}
DENIED = {
    "AccessDenied",
    "AccessDeniedException",
    "AuthFailure",
    "AuthFailure.ServiceLinkedRoleCreationNotPermitted",
    "Blocked",
    "ExpiredToken",
    "InvalidClientTokenId",
    "OptInRequired",
    "PendingVerification",
    "RequestExpired",
    "SignatureDoesNotMatch",
    "UnauthorizedOperation",
    "UnrecognizedClientException",
}
_FIXES = {
    "AuthFailure.ServiceLinkedRoleCreationNotPermitted": (
        "the account has no role for spot instances; once, as an administrator:"
        " aws iam create-service-linked-role --aws-service-name spot.amazonaws.com"
    ),
    "RequestExpired": "this machine's clock is wrong; workflows fleet doctor shows by how much",
}


class Aws:
    """The AWS services of one region; making one connects to nothing."""

    def __init__(self, region: str) -> None:
        self.region = region
        self._clients: dict[tuple[str, str], Any] = {}
        self._mutex = threading.Lock()  # making clients is not safe in threads; using them is

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

    def call(self, operation: str, *, service: str = "ec2", region: str = "", **given: Any) -> Any:
        """Call one operation and return its answer.

        Raises:
            FleetError: AWS refused or could not be reached; its kind says which.
        """
        client = self.client(service, region)
        with _named(operation):
            return getattr(client, operation)(**given)

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
        raise FleetError(f"{operation}: {error}", type(error).__name__) from error


def refusal(code: str, why: str) -> FleetError:
    """Return the error that a code of EC2's stands for."""
    text = f"{why} ({code})" + (f"; {_FIXES[code]}" if code in _FIXES else "")
    if code in QUOTA:
        more = "; ask for more in Service Quotas, or name fewer or smaller nodes"
        return OverQuota(text + more, code)
    if code in DENIED:
        more = "" if code in _FIXES else "; workflows fleet policy prints what is needed"
        return NotAllowed(text + more, code)
    return FleetError(text, code)


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
        if len(name) > 128 or len(value) > 256:
            raise FleetError(
                f"tag {name} is too long for EC2: {len(value)} characters, 256 allowed"
            )
    return [{"Key": name, "Value": value} for name, value in tags.items()]


def set_tags(aws: Aws, ids: list[str], tags: Mapping[str, str]) -> None:
    """Write tags onto resources."""
    aws.call("create_tags", Resources=ids, Tags=tag_list(tags))


def canonical(body: Mapping[str, Any]) -> str:
    """Return a request body as text, the same for the same body."""
    return json.dumps(body, sort_keys=True, separators=(",", ":"))
