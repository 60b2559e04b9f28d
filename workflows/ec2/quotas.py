"""Quotas of vCPUs: which one counts an instance type, what runs already, and what a fleet needs."""

import re
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

from workflows.ec2 import ground
from workflows.ec2.api import LIVE, Aws, Instance
from workflows.ec2.config import Spec
from workflows.errors import FleetError


class Family(NamedTuple):
    """Instance types that are counted together: Service Quotas' codes for spot and on demand."""

    name: str
    spot: str
    on_demand: str


_STANDARD = Family("standard", "L-34B43A08", "L-1216C47A")  # A, C, D, H, I, M, R, T, Z
_G = Family("G and VT", "L-3819A6DF", "L-DB2E81BA")
# EC2 user guide, "Amazon EC2 instance type quotas". Empty: there is no such quota.
_FAMILIES = {
    "dl": Family("DL", "L-85EED4F7", "L-6E869C2A"),
    "f": Family("F", "L-88CF9481", "L-74FC7D96"),
    "g": _G,
    "gr": _G,
    "hpc": Family("HPC", "", "L-F7808C92"),
    "inf": Family("Inf", "L-B5D1601B", "L-1945791B"),
    "p": Family("P", "L-7212CCBC", "L-417A185B"),
    "trn": Family("Trn", "L-6B0D517C", "L-2C3B7624"),
    "u": Family("high memory", "", "L-43DA4232"),
    "vt": _G,
    "x": Family("X", "L-E3A00192", "L-7295265B"),
}
_P5 = Family("P5", "L-C4BD4855", "L-417A185B")


class Use(NamedTuple):
    """Use of one quota: vCPUs that run already, and those that a fleet adds."""

    family: Family
    is_spot: bool
    running: int
    added: int

    @property
    def code(self) -> str:
        """Return Service Quotas' code."""
        return self.family.spot if self.is_spot else self.family.on_demand

    @property
    def what(self) -> str:
        """Return what it counts, in words."""
        kind = "spot" if self.is_spot else "on-demand"
        return kind if self.family is _STANDARD else f"{kind} {self.family.name}"


def family_of(name: str) -> Family:
    """Return the family of an instance type.

    >>> family_of("m7i.large").name, family_of("g5.xlarge").name, family_of("inf2.xlarge").name
    ('standard', 'G and VT', 'Inf')
    """
    if name.startswith("p5"):
        return _P5
    letters = re.match(r"[a-z]+", name)
    return _FAMILIES.get(letters[0] if letters else "", _STANDARD)


def uses(aws: Aws, spec: Spec, live: Iterable[Instance]) -> list[Use]:
    """Return what a fleet would use of each quota that counts its types.

    EC2 chooses among the types: of each family the largest counts. `live` are the fleet's own.
    """
    running = _running(aws)
    names = {row["InstanceType"] for row in running} | set(spec.types)
    details = ground.type_details(aws, tuple(sorted(names)))
    cores = {name: int(about["VCpuInfo"]["DefaultVCpus"]) for name, about in details.items()}
    there = [one for one in live if not one.is_results]
    bought = sum(not one.is_spot for one in there)
    missing = max(0, spec.nodes - len(there))
    base = min(missing, max(0, spec.spot.on_demand_base - bought))
    host = spec.results_host and not any(one.is_results for one in live)
    found = []
    for family in dict.fromkeys(family_of(name) for name in spec.types):
        largest = max(cores[name] for name in spec.types if family_of(name) is family)
        for is_spot, nodes in ((True, missing - base), (False, base + host)):
            used = sum(
                cores[row["InstanceType"]]
                for row in running
                if family_of(row["InstanceType"]) is family
                and (row.get("InstanceLifecycle") == "spot") == is_spot
            )
            found.append(Use(family, is_spot, used, nodes * largest))
    return found


def _running(aws: Aws) -> list[Mapping[str, Any]]:
    """Return all instances of the account in the region: quotas count them whosever they are."""
    filters = [{"Name": "instance-state-name", "Values": list(LIVE)}]
    rows = aws.pages("describe_instances", "Reservations", Filters=filters)
    return [one for each in rows for one in each["Instances"]]


def allowed(aws: Aws, code: str) -> float:
    """Return how many vCPUs a quota allows."""
    words: dict[str, Any] = {"ServiceCode": "ec2", "QuotaCode": code}
    try:
        answer = aws.call("get_service_quota", service="service-quotas", **words)
    except FleetError as error:
        if error.code != "NoSuchResourceException":
            raise
        # It was never changed.
        answer = aws.call("get_aws_default_service_quota", service="service-quotas", **words)
    return float(answer["Quota"]["Value"])
