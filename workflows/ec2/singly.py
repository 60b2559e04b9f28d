"""Launching one instance a call, by RunInstances: for accounts whose policy forbids CreateFleet.

EC2 then chooses nothing: instances are spread over the pools, the cheapest first, and a pool that
has none left is not asked again.
"""

import datetime as dt
from collections.abc import Callable

from workflows.ec2 import prices
from workflows.ec2.api import Aws
from workflows.ec2.request import Pool, Request
from workflows.errors import FleetError, NotAllowed, OverQuota, Rejected

# What CreateFleet says to those who may not call it; that a role is missing is another matter.
FORBIDDEN = ("AccessDenied", "AccessDeniedException", "UnauthorizedOperation")


def one_by_one(
    aws: Aws, request: Request, say: Callable[[str], None]
) -> tuple[list[str], list[FleetError]]:
    """Return the ids of what came, and why the rest did not, as CreateFleet does."""
    ids: list[str] = []
    refusals: list[FleetError] = []
    for spot, count in ((True, request.spot), (False, request.demand)):
        left = _cheapest_first(aws, request, spot=spot) if count else []
        until = len(ids) + count
        while len(ids) < until and left:
            asked = request.single(left[0], len(ids), spot=spot)
            try:
                answer = aws.call("run_instances", settles=True, **asked)
            except FleetError as error:
                refusals.append(error)
                left.pop(0)
                if not is_elsewhere(error):
                    return ids, refusals
                if isinstance(error, OverQuota):
                    break  # that of spot is another than that of on-demand
                continue
            ids.append(str(answer["Instances"][0]["InstanceId"]))
            say(f"EC2 launched 1 {'spot' if spot else 'on-demand'}: {ids[-1]}")
            if request.spec.spot.strategy != "lowest-price":
                left.append(left.pop(0))  # or one reclaim would take them all
    return ids, refusals


def _cheapest_first(aws: Aws, request: Request, *, spot: bool) -> list[Pool]:
    found = request.pools()
    types = tuple(dict.fromkeys(pool.type for pool in found))
    if not spot:
        demand = {name: prices.on_demand(aws, name) or 0.0 for name in types}
        return sorted(found, key=lambda pool: demand[pool.type])
    now = dt.datetime.now(dt.timezone.utc)
    history = prices.spot_history(aws, types, now - dt.timedelta(hours=1), now)
    last = {where: rows[-1][1] for where, rows in history.items()}
    return sorted(found, key=lambda pool: last.get((pool.type, pool.zone), float("inf")))


def is_elsewhere(one: FleetError) -> bool:
    """Tell whether another pool, or buying it otherwise, may help against a refusal."""
    if isinstance(one, Rejected):
        return one.code == "Unsupported"  # this type in this zone
    return not isinstance(one, NotAllowed)
