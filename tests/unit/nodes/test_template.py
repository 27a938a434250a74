"""The stacks of nodes and network: what they promise, and that a cloud makes them: moto's, as far as it knows the parts.

What moto does not know it leaves out (alarms, scaling policies); listeners of a network balancer the test leaves out.
"""

import functools
import json
from collections.abc import Iterator
from typing import Any

import boto3
import pytest
from moto import mock_aws

from infra.nodes import boot
from infra.nodes.lifecycle import HOOK
from local.deployment_files import NODES
from local.paths import ROOT
from tests.support.templates import Template, divided, read_template

pytestmark = [
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore:Tried to parse"),
]  # moto names what it leaves out
STAGE = "dev"
MINIMUM = {"Stage": STAGE, "HomeRegion": "eu-central-1", "RegionName": "eu", "RegionNumber": "0"}


@functools.cache
def template(role: str, **more: str) -> Template:
    return Template(NODES / "nodes.yml", {**MINIMUM, "Role": role, **more})


@pytest.mark.parametrize("role", boot.UNITS)
def test_nodes_start_with_imdsv2_an_encrypted_disk_and_no_ssh(role: str) -> None:
    (launched,) = template(role).resources("AWS::EC2::LaunchTemplate").values()
    data = launched["LaunchTemplateData"]
    assert data["MetadataOptions"] == {
        "HttpTokens": "required",
        "HttpPutResponseHopLimit": 1,
        "HttpEndpoint": "enabled",
    }
    assert all(disk["Ebs"]["Encrypted"] for disk in data["BlockDeviceMappings"])
    assert "KeyName" not in data
    assert "systemctl, disable, --now, ssh.service" in data["UserData"]
    assert ("<NodesSecurityGroup>" in data["NetworkInterfaces"][0]["Groups"]) is (role != "target")


@pytest.mark.parametrize(
    ("role", "outside", "inside"),
    [
        ("relay", {443}, {boot.PEER_PORT, boot.PRIVATE_PORTS["relay"]}),
        (
            "gateway",
            {*boot.GATEWAY_PORTS.values()},
            {*boot.GATEWAY_PORTS.values(), boot.PRIVATE_PORTS["gateway"]},
        ),
        ("target", {443, 80}, {*boot.TARGET_PORTS.values()}),
    ],
)
def test_the_world_reaches_the_balancer_and_the_balancer_the_programs(
    role: str, outside: set[int], inside: set[int]
) -> None:
    made = template(role).resources()

    def ports(group: str, source: str) -> set[int]:
        rules = made[group]["SecurityGroupIngress"]
        return {
            p
            for r in rules
            if source in r.values() and r["IpProtocol"] == "tcp"
            for p in range(r["FromPort"], r["ToPort"] + 1)
        }

    assert ports("BalancerGroup", "0.0.0.0/0") == outside
    assert ports("NodeGroup", "0.0.0.0/0") == set()
    assert ports("NodeGroup", "<BalancerGroup>") == inside
    open_udp = [r for r in made["NodeGroup"]["SecurityGroupIngress"] if r["IpProtocol"] == "udp"]
    assert [r["FromPort"] for r in open_udp] == ([] if role == "target" else [boot.WIREGUARD_PORT])
    groups = template(role).resources("AWS::ElasticLoadBalancingV2::TargetGroup").values()
    assert {g["Port"] for g in groups} <= inside
    for group in groups:
        checked = f"http://127.0.0.1:{group['HealthCheckPort']}{group['HealthCheckPath']}"
        assert checked == boot.READY[role].replace("/ready", "/health"), (
            "a store that is away takes no node away"
        )
    listeners = template(role).resources("AWS::ElasticLoadBalancingV2::Listener").values()
    assert {entry["Port"] for entry in listeners} == outside


def test_addresses_of_peers_and_probes_are_kept_and_customers_come_with_proxy_protocol() -> None:
    kept, told = (
        {"Key": "preserve_client_ip.enabled", "Value": "true"},
        {"Key": "proxy_protocol_v2.enabled", "Value": "true"},
    )
    for role in boot.UNITS:
        for group in template(role).resources("AWS::ElasticLoadBalancingV2::TargetGroup").values():
            assert (kept in group["TargetGroupAttributes"]) is (role != "gateway")
            assert (told in group["TargetGroupAttributes"]) is (role == "gateway")


@pytest.mark.parametrize("role", boot.UNITS)
def test_nodes_are_replaced_one_at_a_time_when_the_new_one_serves_and_drained_before_they_go(
    role: str,
) -> None:
    made = template(role, MinNodes="2")
    rolling = made.attribute("Fleet", "UpdatePolicy")["AutoScalingRollingUpdate"]
    assert (rolling["MaxBatchSize"], rolling["WaitOnResourceSignals"]) == (1, True)
    assert rolling["MinInstancesInService"] == "2"
    (hook,) = made.resources()["Fleet"]["LifecycleHookSpecificationList"]
    assert hook["LifecycleHookName"] == HOOK
    drain_s = max(int(v) for f in boot_drains(role) for v in f)
    assert hook["HeartbeatTimeout"] > drain_s


def boot_drains(role: str) -> list[list[str]]:
    units = [(NODES / "units" / f"{u}.service").read_text().splitlines() for u in boot.UNITS[role]]
    return [[line.partition("=")[2] for line in unit if line.startswith("TimeoutStopSec=")] for unit in units]


def test_a_region_without_functions_has_neither_nat_nor_cache() -> None:
    away = Template(ROOT / "infra" / "network.yml", {"Stage": STAGE, "Home": "no"})
    home = Template(ROOT / "infra" / "network.yml", {"Stage": STAGE})
    priced = ("AWS::EC2::NatGateway", "AWS::EC2::EIP", "AWS::ElastiCache::ReplicationGroup")
    assert not any(away.resources(kind) for kind in priced)
    assert all(home.resources(kind) for kind in priced)
    told = {p["Name"].rpartition("/")[2] for p in away.resources("AWS::SSM::Parameter").values()}
    assert told == {"vpc", "public-subnets", "nodes-security-group", "alarms"}


@pytest.fixture(scope="module")
def cloud() -> Iterator[Any]:
    """moto's CloudFormation with the network of a region that has relays alone."""
    patch = pytest.MonkeyPatch()
    for name in ("AWS_ENDPOINT_URL", "AWS_CA_BUNDLE"):
        patch.delenv(name, raising=False)
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        patch.setenv(name, "test")
    patch.setenv("AWS_DEFAULT_REGION", "eu-central-1")
    patch.setenv("MOTO_EC2_LOAD_DEFAULT_AMIS", "false")  # seconds, and nobody looks at them
    with mock_aws():
        boto3.client("ssm").put_parameter(Name="/psx/dev/nodes/image", Value="ami-12c6146b", Type="String")
        made = boto3.client("cloudformation")
        network = divided(read_template(ROOT / "infra" / "network.yml"), "10.40.0.0/16")
        create(made, "network", json.dumps(network), {"Stage": STAGE, "Home": "no"})
        yield made
    patch.undo()


def create(client: Any, name: str, text: str, given: dict[str, str]) -> dict[str, str]:
    """Make a stack; answers logical id -> physical id of what this cloud made of it."""
    client.create_stack(
        StackName=name,
        TemplateBody=text,
        Capabilities=["CAPABILITY_IAM"],
        Parameters=[{"ParameterKey": k, "ParameterValue": v} for k, v in given.items()],
    )
    assert client.describe_stacks(StackName=name)["Stacks"][0]["StackStatus"] == "CREATE_COMPLETE"
    found = client.describe_stack_resources(StackName=name)["StackResources"]
    return {e["LogicalResourceId"]: e["PhysicalResourceId"] for e in found if "LogicalResourceId" in e}


@pytest.mark.parametrize("role", boot.UNITS)
def test_a_cloud_makes_the_fleet_and_takes_it_away(cloud: Any, role: str) -> None:
    network = {
        name: f"/psx/{STAGE}/network/{slug}"
        for name, slug in (
            ("Vpc", "vpc"),
            ("PublicSubnets", "public-subnets"),
            ("NodesSecurityGroup", "nodes-security-group"),
            ("AlarmsTopic", "alarms"),
        )
    }
    given = {
        **MINIMUM,
        **network,
        "Role": role,
        "ArtefactBucket": "artefacts",
        "ArtefactVersion": "a" * 64,
        "IpDataBucket": "data",
        "Image": "/psx/dev/nodes/image",
        "CertificateArn": "" if role == "gateway" else "arn:aws:acm:eu-central-1:1:certificate/c",
        "MinNodes": "1",
        "MaxNodes": "2",
    }
    decided = Template(NODES / "nodes.yml", given).decided()
    decided["Parameters"]["Image"].pop("Default")  # a public parameter of AWS
    for name in Template(NODES / "nodes.yml", given).resources("AWS::ElasticLoadBalancingV2::Listener"):
        del decided["Resources"][name]  # moto takes every balancer for one of HTTP
    text = json.dumps(decided)
    made = create(cloud, f"psx-{STAGE}-{role}s", text, given)
    assert set(made) >= {
        "Fleet",
        "Template",
        "NodeRole",
        "NodeProfile",
        "Balancer",
        "NodeGroup",
        "BalancerGroup",
        "Logs",
    }
    (fleet,) = boto3.client("autoscaling").describe_auto_scaling_groups(
        AutoScalingGroupNames=[f"psx-{STAGE}-{role}s"]
    )["AutoScalingGroups"]
    groups = boto3.client("elbv2").describe_target_groups()["TargetGroups"]
    behind = [g["Port"] for g in groups if g["TargetGroupArn"] in fleet["TargetGroupARNs"]]
    assert len(behind) == (1 if role == "relay" else 2)
    iam = boto3.client("iam")
    attached = set(iam.list_role_policies(RoleName=made["NodeRole"])["PolicyNames"])
    more = {"relay": {"mesh"}, "gateway": {"mesh", "tables"}, "target": set[str]()}
    assert attached == {"node", "secrets"} | more[role]
    assert iam.list_attached_role_policies(RoleName=made["NodeRole"])["AttachedPolicies"] == []
    cloud.delete_stack(StackName=f"psx-{STAGE}-{role}s")
    left = boto3.client("autoscaling").describe_auto_scaling_groups(
        AutoScalingGroupNames=[f"psx-{STAGE}-{role}s"]
    )
    assert left["AutoScalingGroups"] == []
