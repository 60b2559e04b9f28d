"""Dollars: what nodes cost now, what spot saves, and what a fleet's nodes have cost."""

import dataclasses
import datetime as dt
import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from workflows.ec2.api import ACCESS, Aws, Instance
from workflows.ec2.config import Spec
from workflows.errors import FleetError, NoCapacity
from workflows.reporting.runlog import aligned

# Only us-east-1 answers for the prices of all regions.
_PRICING_REGION = "us-east-1"
_PRICING_REGIONS = {"cn-": "cn-northwest-1"}  # by the beginning of a region's name
# gp3 in us-east-1, where AWS does not tell that of the region.
EBS_USD_PER_GB_HOUR = 0.08 / 730
_MONTH_H = 730
# Of each public address, in all regions, since February 2024.
IPV4_USD_PER_HOUR = 0.005
# Between zones of one region, for each direction.
ZONES_USD_PER_GB = 0.01
_HISTORY_DAYS = 7


@dataclasses.dataclass(frozen=True)
class Pool:
    """One instance type in one zone; dollars per hour, None where AWS tells none."""

    type: str
    zone: str
    spot: float | None
    highest: float | None  # of the last seven days
    on_demand: float | None

    @property
    def savings(self) -> float | None:
        """Return the share of the on-demand price that spot saves."""
        if not self.spot or not self.on_demand:
            return None
        return 1 - self.spot / self.on_demand


@dataclasses.dataclass(frozen=True)
class Cost:
    """Dollars per hour of a fleet: with the cheapest pools of now, and at worst."""

    expected: float
    at_most: float
    worst: str  # what `at_most` is made of
    unknown: tuple[str, ...] = ()  # types that may be bought, but whose price AWS does not tell
    beside: float = 0.0  # of both: disks and public addresses

    def check(self, spec: Spec) -> None:
        """Refuse what may cost more than the fleet's file allows.

        Raises:
            FleetError: it may, or nobody can tell.
        """
        limit = spec.max_hourly_cost
        if limit is not None and self.unknown:
            raise FleetError(
                f"AWS does not tell the price of {', '.join(self.unknown)}, so that {spec.name}"
                f" might cost more than max_hourly_cost {limit:g}; see: workflows fleet prices"
                f" {spec.name} (it needs pricing:GetProducts), or take max_hourly_cost out"
            )
        if limit is not None and self.at_most > limit:
            raise FleetError(
                f"{spec.nodes} nodes of {spec.name} could cost ${self.at_most:.4f} an hour"
                f" ({self.worst}, disks and addresses ${self.beside:.4f}), above max_hourly_cost"
                f" {limit:g}: name cheaper types or fewer nodes, turn spot fallback off, or raise"
                " it"
            )


def pools(aws: Aws, types: Sequence[str], zones: Mapping[str, Iterable[str]]) -> list[Pool]:
    """Return the pools of `zones` (zone -> types offered there), the cheapest first."""
    now = dt.datetime.now(dt.timezone.utc)
    history = spot_history(aws, types, now - dt.timedelta(days=_HISTORY_DAYS), now)
    demand = {name: on_demand(aws, name) for name in types}
    found = []
    for zone, offered in zones.items():
        for name in offered:
            prices = history.get((name, zone), [])
            spot = prices[-1][1] if prices else None
            highest = max((price for _, price in prices), default=None)
            found.append(Pool(name, zone, spot, highest, demand[name]))
    return sorted(found, key=lambda pool: (pool.spot or float("inf"), pool.zone, pool.type))


History = dict[tuple[str, str], list[tuple[dt.datetime, float]]]


def spot_history(aws: Aws, types: Sequence[str], since: dt.datetime, until: dt.datetime) -> History:
    """Return (type, zone) -> (time, dollars per hour), oldest first.

    The price before `since` that was valid then comes first: AWS adds it.
    """
    rows = aws.pages(
        "describe_spot_price_history",
        "SpotPriceHistory",
        InstanceTypes=list(types),
        ProductDescriptions=["Linux/UNIX"],
        StartTime=since,
        EndTime=until,
    )
    found: History = {}
    for row in rows:
        key = (row["InstanceType"], row["AvailabilityZone"])
        found.setdefault(key, []).append((row["Timestamp"], float(row["SpotPrice"])))
    return {key: sorted(prices) for key, prices in found.items()}


def on_demand(aws: Aws, name: str) -> float | None:
    """Return the on-demand price of a type, Linux, in this region; None if AWS does not tell."""
    wanted = {
        "instanceType": name,
        "operatingSystem": "Linux",
        "tenancy": "Shared",
        "preInstalledSw": "NA",
        "capacitystatus": "Used",
    }
    return _listed(aws, wanted)


def disk_usd(aws: Aws) -> float:
    """Return the dollars per GB and hour of a gp3 disk in this region, or else in us-east-1."""
    month = _listed(aws, {"productFamily": "Storage", "volumeApiName": "gp3"})
    return month / _MONTH_H if month else EBS_USD_PER_GB_HOUR


def beside_usd(spec: Spec, per_gb_hour: float) -> float:
    """Return the dollars per hour of what each host of a fleet has: a disk, a public address."""
    address = IPV4_USD_PER_HOUR if spec.access.address == "public" else 0.0
    return spec.disk_gb * per_gb_hour + address


def _listed(aws: Aws, wanted: Mapping[str, str]) -> float | None:
    """Return the list price of a product of EC2's in this region; None if AWS does not tell."""
    filters = [
        {"Type": "TERM_MATCH", "Field": name, "Value": value}
        for name, value in {**wanted, "regionCode": aws.region}.items()
    ]
    asked = next((to for of, to in _PRICING_REGIONS.items() if aws.region.startswith(of)), "")
    try:
        answer = aws.call(
            "get_products",
            service="pricing",
            region=asked or _PRICING_REGION,
            ServiceCode="AmazonEC2",
            Filters=filters,
        )
    except FleetError:
        return None  # a price is good to know, and no reason to stop
    return _price_in(answer.get("PriceList", []))


def _price_in(products: Iterable[Any]) -> float | None:
    for product in products:
        found = json.loads(product) if isinstance(product, str) else product
        for term in found["terms"].get("OnDemand", {}).values():
            for dimension in term["priceDimensions"].values():
                price = float(dimension["pricePerUnit"].get("USD", 0))
                if price:
                    return price
    return None


def table(found: Sequence[Pool]) -> str:
    """Return the prices: on-demand and savings of each type, then its zones, cheapest first."""
    lines = []
    for name in dict.fromkeys(pool.type for pool in found):
        own = [pool for pool in found if pool.type == name]
        best = next((pool.savings for pool in own if pool.savings is not None), None)
        demand = f"{own[0].on_demand:g}" if own[0].on_demand else "unknown"
        offers = f", spot offers {best:.0%} savings" if best is not None else ""
        lines.append(f"{name}: on demand: {demand}{offers}")
        rows = [("zone", "spot", "7 days' highest", "savings")]
        rows += [(pool.zone, _usd(pool.spot), _usd(pool.highest), _share(pool)) for pool in own]
        lines += ["  " + line for line in aligned(rows, left=(0,)).splitlines()]
    return "\n".join(lines)


def hourly(
    spec: Spec, found: Sequence[Pool], nodes: int, per_gb_hour: float = EBS_USD_PER_GB_HOUR
) -> Cost:
    """Return what `nodes` nodes cost: expected in the cheapest pools, and at worst.

    Their disks, at `per_gb_hour` dollars, and public addresses are counted.

    Raises:
        NoCapacity: none of the pools may be used at the fleet's max_price.
    """
    limit = spec.spot.max_price
    spots = [p.spot for p in found if p.spot and (limit is None or p.spot <= limit)]
    if not spots and limit is not None and any(pool.spot for pool in found):
        cheapest = min(pool.spot for pool in found if pool.spot)
        raise NoCapacity(
            f"spot: max_price {limit:g} is below the cheapest price of now, {cheapest:.4f};"
            f" workflows fleet prices {spec.name}"
        )
    demands = [pool.on_demand for pool in found if pool.on_demand]
    base = min(spec.spot.on_demand_base, nodes)
    bought = base + spec.results_host
    cheapest, dearest = min(spots, default=0.0), limit or max(spots, default=0.0)
    # EC2 buys the cheapest type that there is on demand, which may be the dearest of all.
    demand = max(demands, default=0.0)
    fallback = demand if spec.spot.fallback else 0.0
    expected = (nodes - base) * cheapest + bought * min(demands, default=0.0)
    worst_each = max(dearest, fallback)
    at_most = (nodes - base) * worst_each + bought * demand
    what = "the on-demand fallback" if fallback >= dearest else "the most expensive spot pool"
    beside = (nodes + spec.results_host) * beside_usd(spec, per_gb_hour)
    worst = f"{what} at ${worst_each:.4f} each"
    return Cost(expected + beside, at_most + beside, worst, _unknown(spec, found), beside)


def _unknown(spec: Spec, found: Sequence[Pool]) -> tuple[str, ...]:
    """Return the types that a fleet may buy, but of which AWS does not tell the price."""
    buys = spec.spot.fallback or spec.spot.on_demand_base or spec.results_host
    names = [pool.type for pool in found if buys and not pool.on_demand]
    if spec.spot.max_price is None and not any(pool.spot for pool in found):
        names += [pool.type for pool in found]
    return tuple(dict.fromkeys(names))


@dataclasses.dataclass(frozen=True)
class Spent:
    """The cost of one instance so far; dollars, and hours it was there."""

    instance: Instance
    hours: float
    usd: float
    on_demand_usd: float | None
    ebs_usd: float
    address_usd: float = 0.0

    @property
    def total_usd(self) -> float:
        """Return the dollars for the instance, its disk and its public address."""
        return self.usd + self.beside_usd

    @property
    def beside_usd(self) -> float:
        """Return the dollars for its disk and its public address."""
        return self.ebs_usd + self.address_usd


def spent(
    aws: Aws, found: Sequence[Instance], disk_gb: int, now: dt.datetime | None = None
) -> list[Spent]:
    """Return what instances have cost, by their observed lives and the spot prices of that time."""
    if not found:
        return []
    until = now or dt.datetime.now(dt.timezone.utc)
    types = sorted({one.type for one in found})
    history = spot_history(aws, types, min(one.launched for one in found), until)
    demand = {name: on_demand(aws, name) for name in types}
    per_gb_hour = disk_usd(aws)
    rows = []
    for one in found:
        end = min(one.ended or until, until)
        hours = max(0.0, (end - one.launched).total_seconds() / 3600)
        price = demand[one.type]
        full = price * hours if price else None
        prices = history.get((one.type, one.zone), [])
        usd = integrated(prices, one.launched, end) if one.is_spot else (full or 0.0)
        address = IPV4_USD_PER_HOUR * hours if _has_public(one) else 0.0
        rows.append(Spent(one, hours, usd, full, hours * disk_gb * per_gb_hour, address))
    return rows


def _has_public(one: Instance) -> bool:
    """Tell whether an instance has, or had while it lived, a public address."""
    return bool(one.public_ip) or one.tags.get(ACCESS, "").endswith(" public")


def integrated(
    prices: Sequence[tuple[dt.datetime, float]], start: dt.datetime, end: dt.datetime
) -> float:
    """Return the dollars of one instance from `start` to `end` under changing prices.

    >>> hour = lambda h: dt.datetime(2026, 11, 21, h, tzinfo=dt.timezone.utc)
    >>> integrated([(hour(0), 0.1), (hour(2), 0.2)], hour(1), hour(4))
    0.5
    """
    total = 0.0
    for number, (at, price) in enumerate(prices):
        begins = start if number == 0 else max(at, start)
        ends = prices[number + 1][0] if number + 1 < len(prices) else end
        seconds = (min(ends, end) - begins).total_seconds()
        total += max(0.0, seconds) / 3600 * price
    return total


def _usd(price: float | None) -> str:
    return "-" if price is None else f"{price:.6f}"


def _share(pool: Pool) -> str:
    return "-" if pool.savings is None else f"{pool.savings:.0%}"
