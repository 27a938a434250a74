"""`./psx peer STAGE REGION`: let relays of another region reach the cache of the home region; `--remove`: no longer.

Both regions have their network (`infra/network.yml`), which says in Parameter Store what it made. Every step looks before
it acts, so a command that was interrupted is run again. The home region is that of the environment (`AWS_REGION`).
Source: Amazon VPC peering guide.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial
from ipaddress import IPv4Network, ip_network
from typing import Any, Final

import boto3
import botocore.exceptions

from infra.mesh.rules import MESH

CACHE_PORT: Final = 6379
OPEN_STATES: Final = ("pending-acceptance", "provisioning", "active", "initiating-request")


class PeerRefused(Exception):
    """These networks cannot be joined as they are; the message says why."""


@dataclass(frozen=True, slots=True)
class Side:
    """One region's network, as its stack published it."""

    region: str
    vpc: str
    cidr: str
    subnets: tuple[str, ...]
    """The subnets that have something to say to the other side: relays' there, the cache's at home."""


def _published(ssm: Any, stage: str, name: str) -> str:
    return str(ssm.get_parameter(Name=f"/psx/{stage}/network/{name}")["Parameter"]["Value"])


def side(session: Any, stage: str, subnets: str) -> Side:
    """What the network of a session's region published. Raises botocore's ClientError."""
    ssm, ec2 = session.client("ssm"), session.client("ec2")
    vpc = _published(ssm, stage, "vpc")
    cidr = ec2.describe_vpcs(VpcIds=[vpc])["Vpcs"][0]["CidrBlock"]
    found = tuple(_published(ssm, stage, subnets).split(","))
    return Side(session.region_name, vpc, cidr, found)


def check(home: Side, away: Side) -> None:
    """Raises PeerRefused for networks that share addresses, with one another or with the mesh."""
    if home.region == away.region:
        raise PeerRefused(f"{away.region} is the home region")
    networks: list[tuple[str, IPv4Network]] = [
        (side.region, IPv4Network(str(ip_network(side.cidr)))) for side in (home, away)
    ]
    networks.append(("the mesh", MESH))
    for number, (name, network) in enumerate(networks):
        for other, taken in networks[:number]:
            if network.overlaps(taken):
                raise PeerRefused(f"{name} and {other} share addresses: {network}, {taken}")


def connection(ec2: Any, home: Side, away: Side) -> str | None:
    """The peering that stands or is on its way, asked from the side of the other region."""
    filters = [
        {"Name": "requester-vpc-info.vpc-id", "Values": [away.vpc]},
        {"Name": "accepter-vpc-info.vpc-id", "Values": [home.vpc]},
    ]
    found = ec2.describe_vpc_peering_connections(Filters=filters)["VpcPeeringConnections"]
    standing = [one["VpcPeeringConnectionId"] for one in found if one["Status"]["Code"] in OPEN_STATES]
    return standing[0] if standing else None


def connect(home_ec2: Any, away_ec2: Any, home: Side, away: Side) -> str:
    """Ask and accept; answers the peering's id."""
    ident = connection(away_ec2, home, away)
    if ident is None:
        asked = away_ec2.create_vpc_peering_connection(
            VpcId=away.vpc, PeerVpcId=home.vpc, PeerRegion=home.region
        )
        ident = str(asked["VpcPeeringConnection"]["VpcPeeringConnectionId"])
    home_ec2.get_waiter("vpc_peering_connection_exists").wait(VpcPeeringConnectionIds=[ident])
    (seen,) = home_ec2.describe_vpc_peering_connections(VpcPeeringConnectionIds=[ident])[
        "VpcPeeringConnections"
    ]
    if seen["Status"]["Code"] != "active":
        home_ec2.accept_vpc_peering_connection(VpcPeeringConnectionId=ident)
    return ident


def route_tables(ec2: Any, subnets: Iterable[str]) -> list[str]:
    """The tables that subnets use; each of ours has one of its own or shares one."""
    filters = [{"Name": "association.subnet-id", "Values": list(subnets)}]
    return sorted(
        table["RouteTableId"] for table in ec2.describe_route_tables(Filters=filters)["RouteTables"]
    )


def add_routes(ec2: Any, own: Side, other: Side, ident: str) -> list[str]:
    """Send what is for the other side through the peering; answers the tables."""
    tables = route_tables(ec2, own.subnets)
    for table in tables:
        route = {"DestinationCidrBlock": other.cidr, "VpcPeeringConnectionId": ident}
        _once(partial(ec2.create_route, RouteTableId=table, **route), "RouteAlreadyExists")
    return tables


def remove_routes(ec2: Any, own: Side, other: Side) -> None:
    """The opposite."""
    for table in route_tables(ec2, own.subnets):
        gone = partial(ec2.delete_route, RouteTableId=table, DestinationCidrBlock=other.cidr)
        _once(gone, "InvalidRoute.NotFound")


def _opening(cidr: str) -> list[dict[str, Any]]:
    ranges = [{"CidrIp": cidr, "Description": "relays of another region"}]
    return [{"IpProtocol": "tcp", "FromPort": CACHE_PORT, "ToPort": CACHE_PORT, "IpRanges": ranges}]


def _once(call: Callable[[], Any], done_already: str) -> None:
    try:
        call()
    except botocore.exceptions.ClientError as error:
        if error.response["Error"]["Code"] != done_already:
            raise


def join(stage: str, home_session: Any, away_session: Any) -> str:
    """Join both networks; answers the peering's id. Raises PeerRefused, and botocore's errors."""
    home, away = side(home_session, stage, "private-subnets"), side(away_session, stage, "public-subnets")
    check(home, away)
    home_ec2, away_ec2 = home_session.client("ec2"), away_session.client("ec2")
    ident = connect(home_ec2, away_ec2, home, away)
    add_routes(away_ec2, away, home, ident)
    add_routes(home_ec2, home, away, ident)
    group = _published(home_session.client("ssm"), stage, "cache-security-group")
    _once(
        lambda: home_ec2.authorize_security_group_ingress(GroupId=group, IpPermissions=_opening(away.cidr)),
        "InvalidPermission.Duplicate",
    )
    return ident


def part(stage: str, home_session: Any, away_session: Any) -> str | None:
    """Take it away again; answers the peering's id, None when there was none."""
    home, away = side(home_session, stage, "private-subnets"), side(away_session, stage, "public-subnets")
    home_ec2, away_ec2 = home_session.client("ec2"), away_session.client("ec2")
    group = _published(home_session.client("ssm"), stage, "cache-security-group")
    _once(
        lambda: home_ec2.revoke_security_group_ingress(GroupId=group, IpPermissions=_opening(away.cidr)),
        "InvalidPermission.NotFound",
    )
    remove_routes(home_ec2, home, away)
    remove_routes(away_ec2, away, home)
    ident = connection(away_ec2, home, away)
    if ident is not None:
        away_ec2.delete_vpc_peering_connection(VpcPeeringConnectionId=ident)
    return ident


def peer(stage: str, region: str, *, remove: bool) -> int:
    """Run the command; answers the exit status."""
    home, away = boto3.Session(), boto3.Session(region_name=region)
    try:
        ident = (part if remove else join)(stage, home, away)
    except (PeerRefused, botocore.exceptions.BotoCoreError, botocore.exceptions.ClientError) as refused:
        sys.stderr.write(f"psx: {refused}\n")
        return 2
    sys.stdout.write(f"{region} and {home.region_name}: {'parted' if remove else 'joined'} ({ident})\n")
    return 0
