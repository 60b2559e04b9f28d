"""Find leftovers: every expired resource that is tagged as a fleet's, in all regions."""

import concurrent.futures
import contextlib
import dataclasses
import datetime as dt
from collections.abc import Iterable, Sequence

from workflows.ec2 import loginkey
from workflows.ec2.api import EXPIRES, FLEET, Aws
from workflows.ec2.config import Spec
from workflows.ec2.launch import Say
from workflows.ec2.teardown import leftovers, tear_down, terminate_all
from workflows.errors import FleetError, UsageError
from workflows.reporting.messages import unfailing

_AT_ONCE = 8
NO_TIME = "no time of expiry"


@dataclasses.dataclass(frozen=True)
class Leftover:
    """One tagged resource; `expires` is None if its tag is missing or no time."""

    region: str
    fleet: str
    kind: str
    id: str
    expires: dt.datetime | None

    def is_over(self, now: dt.datetime) -> bool:
        """Tell whether it has expired."""
        return self.expires is None or self.expires < now


def regions(aws: Aws) -> list[str]:
    """Return the regions that this account uses."""
    return sorted(row["RegionName"] for row in aws.call("describe_regions")["Regions"])


def find(names: Iterable[str]) -> tuple[list[Leftover], dict[str, str]]:
    """Return everything tagged in some regions, and region -> why it could not be looked at."""

    def one_region(region: str) -> "list[Leftover] | FleetError":
        try:
            found = leftovers(Aws(region))
        except FleetError as error:
            return error
        return [
            Leftover(region, tags.get(FLEET, ""), kind, name, _time(tags.get(EXPIRES, "")))
            for kind, each in found.items()
            for name, tags in each.items()
        ]

    chosen = list(names)
    with concurrent.futures.ThreadPoolExecutor(_AT_ONCE) as pool:
        answers = dict(zip(chosen, pool.map(one_region, chosen), strict=True))
    there = [one for rows in answers.values() if isinstance(rows, list) for one in rows]
    failed = {name: str(rows) for name, rows in answers.items() if isinstance(rows, FleetError)}
    return there, failed


def look_elsewhere(aws: Aws, fleet: str, say: Say) -> None:
    """Make sure that a fleet of which only the name is known is in no other region.

    Raises:
        UsageError: it is.
    """
    found, failed = find(name for name in regions(aws) if name != aws.region)
    for region, why in failed.items():
        say(f"{region} could not be looked at: {why}")
    for region in sorted({one.region for one in found if one.fleet == fleet}):
        raise UsageError(
            f"no node of {fleet} is in {aws.region}, but something is in {region}:"
            f" workflows fleet down {fleet} --region {region}"
        )


def overdue(found: Sequence[Leftover], now: dt.datetime) -> list[Leftover]:
    """Return what belongs to fleets of which nothing has time left.

    The parts of a fleet renew each other: its newest instance's time counts for all of them.
    """
    alive = {(one.region, one.fleet) for one in found if not one.is_over(now)}
    return [one for one in found if (one.region, one.fleet) not in alive]


def remove(found: Sequence[Leftover], say: Say) -> None:
    """Remove the fleets that these belong to, whole; one that will not go keeps no other.

    All their instances are terminated before anything is waited for.

    Raises:
        FleetError: names those that would not go.
    """
    say = unfailing(say)
    fleets = sorted({(one.region, one.fleet) for one in found})
    for region, fleet in fleets:
        with contextlib.suppress(FleetError):  # it is tried again, and told, below
            terminate_all(Aws(region), fleet, say=say)
    failed = []
    for region, fleet in fleets:
        say(f"removing {fleet} in {region}")
        try:
            tear_down(Aws(region), fleet, say=say)
            with contextlib.suppress(OSError):
                loginkey.remove(Spec(fleet, region))
        except FleetError as error:
            say(str(error))
            failed.append(f"{fleet} in {region}")
    if failed:
        raise FleetError(f"not removed: {', '.join(failed)}; type it again: workflows fleet sweep")


def _time(text: str) -> dt.datetime | None:
    try:
        return dt.datetime.strptime(text, "%Y-%m-%dT%H:%M:%SZ").replace(tzinfo=dt.timezone.utc)
    except ValueError:
        return None
