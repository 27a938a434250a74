"""The network of the home region, made by moto's CloudFormation, and another region joined to it and parted again.

moto makes no cache, no cache user and no subnet group of one: those are held by their text, and the users by real servers
(`tests/contract/test_cache_users.py`).
"""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import boto3
import pytest
from moto import mock_aws

from infra.nodes import boot
from local import peering
from local.cache_users import access_strings
from local.configure import SECRETS
from local.paths import ROOT
from tests.support.templates import Template, divided

pytestmark = [
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore:Tried to parse"),
]  # moto names what it leaves out
STAGE, HOME, AWAY = "prod", "eu-central-1", "us-east-1"
NETWORK = ROOT / "infra" / "network.yml"
CACHE_PORT = 6379
CONNECT_PORT = 7443


def make(region: str, home: str, cidr: str) -> None:
    """The stack of a region's network, without what moto does not know."""
    given = {"Stage": STAGE, "Home": home, "VpcCidr": cidr}
    decided = Template(NETWORK, given).decided()
    resources = decided["Resources"]
    for name in [n for n, r in resources.items() if r["Type"].startswith("AWS::ElastiCache::")]:
        del resources[name]
    resources.pop("RedisUrlParameter", None)
    # moto's CloudFormation keeps associations where its EC2 does not look: they are made by hand.
    associations = [n for n, r in resources.items() if r["Type"] == "AWS::EC2::SubnetRouteTableAssociation"]
    joined = [resources.pop(name)["Properties"] for name in associations]
    client = boto3.client("cloudformation", region_name=region)
    client.create_stack(
        StackName="network",
        TemplateBody=json.dumps(divided(decided, cidr)),
        Parameters=[{"ParameterKey": k, "ParameterValue": v} for k, v in given.items()],
    )
    assert client.describe_stacks(StackName="network")["Stacks"][0]["StackStatus"] == "CREATE_COMPLETE"
    found = client.describe_stack_resources(StackName="network")["StackResources"]
    made = {e["LogicalResourceId"]: e["PhysicalResourceId"] for e in found}
    for one in joined:
        boto3.client("ec2", region_name=region).associate_route_table(
            **{kind: made[value["Ref"]] for kind, value in one.items()}
        )


@pytest.fixture(scope="module")
def regions() -> Iterator[tuple[Any, Any]]:
    """Sessions of the home region and of one that has relays alone, each with its network."""
    patch = pytest.MonkeyPatch()
    for name in ("AWS_ENDPOINT_URL", "AWS_CA_BUNDLE"):
        patch.delenv(name, raising=False)
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        patch.setenv(name, "test")
    patch.setenv("MOTO_EC2_LOAD_DEFAULT_AMIS", "false")
    with mock_aws():
        make(HOME, "yes", "10.40.0.0/16")
        make(AWAY, "no", "10.41.0.0/16")
        yield boto3.Session(region_name=HOME), boto3.Session(region_name=AWAY)
    patch.undo()


def published(session: Any, name: str) -> str:
    return str(session.client("ssm").get_parameter(Name=f"/psx/{STAGE}/network/{name}")["Parameter"]["Value"])


def routes(session: Any, subnets: str) -> list[dict[str, Any]]:
    """The routes of each of the named subnets."""
    ec2 = session.client("ec2")
    found = []
    for subnet in published(session, subnets).split(","):
        filters = [{"Name": "association.subnet-id", "Values": [subnet]}]
        (table,) = ec2.describe_route_tables(Filters=filters)["RouteTables"]
        found.append({route.get("DestinationCidrBlock"): route for route in table["Routes"]})
    return found


def group(session: Any, name: str) -> dict[str, Any]:
    found: dict[str, Any] = session.client("ec2").describe_security_groups(
        GroupIds=[published(session, name)]
    )
    return dict(found["SecurityGroups"][0])


def test_functions_and_cache_go_out_through_nat_and_nobody_comes_in(regions: tuple[Any, Any]) -> None:
    home, _ = regions
    inner = [table["0.0.0.0/0"] for table in routes(home, "private-subnets")]
    assert len({route["NatGatewayId"] for route in inner}) == len(inner) == 2, "one for each zone"
    assert not any("GatewayId" in route for route in inner)
    nat = home.client("ec2").describe_nat_gateways()["NatGateways"]
    assert {n["SubnetId"] for n in nat} == {*published(home, "public-subnets").split(",")}
    assert all(t["0.0.0.0/0"]["GatewayId"].startswith("igw-") for t in routes(home, "public-subnets"))
    assert group(home, "functions-security-group")["IpPermissions"] == []
    assert group(home, "nodes-security-group")["IpPermissions"] == []


def test_the_cache_is_reached_by_functions_and_nodes_of_this_network_alone(regions: tuple[Any, Any]) -> None:
    home, _ = regions
    allowed = group(home, "cache-security-group")["IpPermissions"]
    assert {(rule["FromPort"], rule["ToPort"]) for rule in allowed} == {(CACHE_PORT, CACHE_PORT)}
    assert not any(rule["IpRanges"] or rule["Ipv6Ranges"] for rule in allowed)
    sources = {pair["GroupId"] for rule in allowed for pair in rule["UserIdGroupPairs"]}
    assert sources == {published(home, f"{name}-security-group") for name in ("functions", "nodes")}
    made = Template(NETWORK, {"Stage": STAGE})
    (cache,) = made.resources("AWS::ElastiCache::ReplicationGroup").values()
    assert cache["SecurityGroupIds"] == ["<CacheGroup>"]
    (subnets,) = made.resources("AWS::ElastiCache::SubnetGroup").values()
    assert subnets["SubnetIds"] == ["<PrivateA>", "<PrivateB>"]
    assert (cache["TransitEncryptionEnabled"], cache["UserGroupIds"]) == (True, ["<CacheUsers>"])


def test_tables_are_reached_without_leaving_the_network_from_every_subnet(regions: tuple[Any, Any]) -> None:
    for session in regions:
        ec2 = session.client("ec2")
        endpoints = ec2.describe_vpc_endpoints()["VpcEndpoints"]
        assert {e["ServiceName"].rpartition(".")[2] for e in endpoints} == {"dynamodb", "s3"}
        vpc = published(session, "vpc")
        own = ec2.describe_route_tables(Filters=[{"Name": "vpc-id", "Values": [vpc]}])["RouteTables"]
        used = {t["RouteTableId"] for t in own if any("SubnetId" in a for a in t["Associations"])}
        assert all({*e["RouteTableIds"]} == used for e in endpoints)


@pytest.mark.parametrize("role", ["relay", "gateway"])
def test_no_rule_opens_the_listener_that_gateways_dial(role: str) -> None:
    given = {"Stage": STAGE, "HomeRegion": HOME, "RegionName": "eu", "RegionNumber": "0", "Role": role}
    groups = Template(Path(boot.__file__).parent / "nodes.yml", given).resources("AWS::EC2::SecurityGroup")
    rules = [rule for made in groups.values() for rule in made["SecurityGroupIngress"]]
    opened = [rule for rule in rules if rule["FromPort"] <= CONNECT_PORT <= rule["ToPort"]]
    assert opened == []
    assert {r["IpProtocol"] for r in rules if r["FromPort"] == boot.WIREGUARD_PORT} == {"udp"}


def test_each_user_of_the_cache_has_a_password_of_its_own_that_no_template_holds() -> None:
    made = Template(NETWORK, {"Stage": STAGE})
    users = made.resources("AWS::ElastiCache::User")
    assert {user["UserName"] for user in users.values()} == set(access_strings())
    for user in users.values():
        (password,) = user["AuthenticationMode"]["Passwords"]
        secret = f"cache-{user['UserName']}"
        assert (
            password == f"{{{{resolve:secretsmanager:psx/{STAGE}/{secret}:SecretString:PSX_REDIS_PASSWORD}}}}"
        )
        assert SECRETS[secret] == ("PSX_REDIS_PASSWORD",)
        assert user["UserId"] == f"psx-{STAGE}-{user['UserName']}"
    (together,) = made.resources("AWS::ElastiCache::UserGroup").values()
    assert together["UserIds"] == [f"<{name}>" for name in users]


def test_another_region_is_joined_to_the_cache_once_and_parted_again(regions: tuple[Any, Any]) -> None:
    home, away = regions
    before = [sorted(map(str, table)) for table in routes(home, "private-subnets")]
    ident = peering.join(STAGE, home, away)
    assert peering.join(STAGE, home, away) == ident, "a second run changes nothing"
    (stands,) = home.client("ec2").describe_vpc_peering_connections()["VpcPeeringConnections"]
    assert stands["Status"]["Code"] == "active"
    for session, subnets, cidr in (
        (home, "private-subnets", "10.41.0.0/16"),
        (away, "public-subnets", "10.40.0.0/16"),
    ):
        assert {table[cidr]["VpcPeeringConnectionId"] for table in routes(session, subnets)} == {ident}
    opened = [r for rule in group(home, "cache-security-group")["IpPermissions"] for r in rule["IpRanges"]]
    assert [entry["CidrIp"] for entry in opened] == ["10.41.0.0/16"]

    assert peering.part(STAGE, home, away) == ident
    assert peering.part(STAGE, home, away) is None
    assert [sorted(map(str, table)) for table in routes(home, "private-subnets")] == before
    assert not any(rule["IpRanges"] for rule in group(home, "cache-security-group")["IpPermissions"])


@pytest.mark.parametrize(
    ("cidr", "region", "why"),
    [
        ("10.40.128.0/17", AWAY, "us-east-1 and eu-central-1 share addresses"),
        ("10.100.0.0/16", AWAY, "the mesh and us-east-1 share addresses"),
        ("10.41.0.0/16", HOME, "eu-central-1 is the home region"),
    ],
)
def test_networks_that_share_addresses_are_not_joined(cidr: str, region: str, why: str) -> None:
    home = peering.Side(HOME, "vpc-1", "10.40.0.0/16", ())
    with pytest.raises(peering.PeerRefused, match=why):
        peering.check(home, peering.Side(region, "vpc-2", cidr, ()))
