"""Which subnets the internet reaches: those whose route table leads to an internet gateway."""

from collections.abc import Iterable, Mapping
from typing import Any

from workflows.ec2.api import Aws


def without_gateway(aws: Aws, vpc: str, subnets: Iterable[Mapping[str, Any]]) -> set[str]:
    """Return the ids of those of a VPC's `subnets` in which a public address is of no use.

    A subnet has the route table that it is associated with, or else the VPC's main one.
    """
    filters = [{"Name": "vpc-id", "Values": [vpc]}]
    tables = list(aws.pages("describe_route_tables", "RouteTables", Filters=filters))
    main, own = False, {}
    for table in tables:
        for link in table.get("Associations", []):
            if link.get("Main"):
                main = _is_public(table)
            if link.get("SubnetId"):
                own[link["SubnetId"]] = _is_public(table)
    return {row["SubnetId"] for row in subnets if not own.get(row["SubnetId"], main)}


def _is_public(table: Mapping[str, Any]) -> bool:
    return any(
        route.get("DestinationCidrBlock") == "0.0.0.0/0"
        and route.get("GatewayId", "").startswith("igw-")
        and route.get("State", "active") == "active"
        for route in table.get("Routes", [])
    )
