"""What a node may do in AWS: what its programs do, recorded, and nothing that a thief of its credentials would like."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import boto3
import pytest
from botocore.stub import Stubber
from moto import mock_aws

from gateway_node.history import KeyHistory
from gateway_node.prober.settings import ProberSettings
from gateway_node.prober.target import TargetSettings
from gateway_node.prober.targets import TargetWatch
from gateway_node.settings import GatewaySettings
from infra.nodes import boot
from infra.nodes.boot import parameters
from infra.nodes.lifecycle import complete_leaving, leave, signal_ready
from local.configure import create_secrets, publish_keys
from relay_node.settings import RelaySettings
from shared.access import table as access
from shared.access.model import Account, AccountKind
from shared.grading.model import Target
from shared.guard.service import all_incidents
from shared.kernel.codes import Refusal
from shared.kernel.ids import GatewayId
from shared.metering.model import FlushBatch
from shared.metering.table import newest_sequence, put_batch
from shared.runtime.dynamo import AsyncDynamo, DynamoRequest, SyncDynamo
from shared.runtime.redis import AsyncRedis
from shared.runtime.settings import SecretsUnreadable, Settings, load
from shared.supply.ip_data import mirror_of
from tests.support import permissions
from tests.support.permissions import allows, as_function, granted, node_statements
from tests.support.stores import PREFIX
from tests.unit.access.test_access import GOOD

pytestmark = pytest.mark.slow

NOW = 1_800_000_000_000
STAGE = "test"
SETTINGS: dict[str, dict[str, type[Settings]]] = {
    "relay": {"relay": RelaySettings},
    "gateway": {"gateway": GatewaySettings, "prober": ProberSettings},
    "target": {"target": TargetSettings},
}


@pytest.fixture
def cloud(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A configured stage."""
    for name in ("AWS_ENDPOINT_URL", "AWS_CA_BUNDLE"):
        monkeypatch.delenv(name, raising=False)
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.setenv(name, "test")
    monkeypatch.setenv("AWS_DEFAULT_REGION", "eu-central-1")
    chains = {"PSX_EVM_RPC_URLS": "http://127.0.0.1:9", "PSX_SOLANA_RPC_URLS": "http://127.0.0.1:9"}
    with mock_aws():
        secrets, ssm = boto3.client("secretsmanager"), boto3.client("ssm")
        create_secrets(secrets, STAGE, chains)
        publish_keys(secrets, ssm, STAGE)
        yield


@pytest.mark.usefixtures("cloud")
@pytest.mark.parametrize("role", boot.UNITS)
def test_a_start_reads_what_the_role_may_read(
    role: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    s3 = boto3.client("s3")
    for bucket in ("artefacts", "address-data"):
        s3.create_bucket(Bucket=bucket, CreateBucketConfiguration={"LocationConstraint": "eu-central-1"})
    s3.put_object(Bucket="artefacts", Key="nodes/version.zip", Body=b"zip")
    with as_function(f"{role}-node"):
        boto3.client("s3").download_file("artefacts", "nodes/version.zip", str(tmp_path / "artefact"))
        for program, kind in SETTINGS[role].items():
            names = ",".join(f"psx/{STAGE}/{name}" for name in boot.SECRETS[program])
            monkeypatch.setenv("PSX_SECRETS", names)
            with pytest.raises(ValueError, match="validation error") as refused:
                load(kind)  # secrets were read; what user data and parameters say is missing here
            assert "SecretsUnreadable" not in str(refused.value)
        if boot.READS[role]:
            assert "nodes/jwt-public-key" in parameters(boto3.client("ssm"), STAGE)
            mirror_of("address-data", tmp_path / "asn", tmp_path / "country").fetch()


@pytest.mark.parametrize("role", boot.UNITS)
def test_an_end_tells_what_the_role_may_tell(role: str, dynamo: SyncDynamo) -> None:
    said = {
        "PSX_NODE_STACK": "stack",
        "PSX_NODE_GROUP": "Fleet",
        "PSX_NODE_GROUP_NAME": f"psx-{STAGE}-{role}s",
        "PSX_NODE_INSTANCE": "i-1",
    }
    cloudformation, scaling = boto3.client("cloudformation"), boto3.client("autoscaling")
    with Stubber(cloudformation) as first, Stubber(scaling) as second, as_function(f"{role}-node"):
        first.add_response("signal_resource", {})
        second.add_response("complete_lifecycle_action", {})
        signal_ready(cloudformation, said, healthy=True)
        leave(role, "i-1", PREFIX + "mesh", dynamo, lambda unit: None)
        complete_leaving(scaling, said)


class Way:
    """A gateway's way to the in-process tables, and a cache that agrees."""

    def __init__(self, dynamo: SyncDynamo) -> None:
        self._dynamo = dynamo

    async def run(self, request: DynamoRequest[Any]) -> Any:
        with as_function("gateway-node"):
            return self._dynamo.run(request)


class Agrees:
    async def run(self, call: object) -> bool:
        return True


async def test_a_gateway_tells_what_happened_to_keys_as_its_role_may(dynamo: SyncDynamo) -> None:
    pak = replace(GOOD, expires_at_ms=NOW - 1)
    account = Account(pak.account_id, AccountKind.RESELLER, NOW)
    dynamo.run(access.put_account(PREFIX + "access", account))
    assert dynamo.run(access.mint(PREFIX + "access", pak)) is None
    way, agrees = cast("AsyncDynamo", Way(dynamo)), cast("AsyncRedis", Agrees())
    history = KeyHistory(way, agrees, lambda name: PREFIX + name, GatewayId("g"), lambda: NOW)
    history.authenticated(pak, "192.0.2.1", "r")
    history.failed(pak.account_id, None, Refusal.AUTH_INVALID, "192.0.2.1", "r")
    history.expired(pak)
    await history.drain()
    turned_off = dynamo.run(access.get_pak(PREFIX + "access", pak.pak_id))
    assert turned_off is not None
    assert not turned_off.enabled


async def test_a_gateway_counts_bytes_as_its_role_may(dynamo: SyncDynamo) -> None:
    way, table = Way(dynamo), PREFIX + "usage"
    assert await way.run(newest_sequence(table, GatewayId("g"))) < 0
    assert await way.run(put_batch(table, FlushBatch(GatewayId("g"), 1, NOW, ())))
    assert await way.run(newest_sequence(table, GatewayId("g"))) == 1


async def test_a_prober_tells_of_a_target_that_went_and_came_as_its_role_may(dynamo: SyncDynamo) -> None:
    nobody: Any = None
    watch = TargetWatch(cast("AsyncDynamo", Way(dynamo)), PREFIX + "guard", nobody, lambda: NOW)
    target = Target("eu", "probe.example", "192.0.2.9", 443, 80)
    await watch._tell(target, "tls_timeout")
    await watch._tell(target, None)
    (incident,) = all_incidents(dynamo, PREFIX + "guard")
    assert incident.closed_at_ms == NOW


def may(role: str, action: str, resource: str) -> bool:
    return any(allows(grant, (action, resource)) for grant in granted(f"{role}-node"))


@pytest.mark.parametrize(
    ("role", "action", "resource"),
    [
        # a relay: whoever controls one device's host may end here
        ("relay", "dynamodb:GetItem", "access|pak#"),
        ("relay", "dynamodb:UpdateItem", "access|pak#"),
        ("relay", "dynamodb:PutItem", "usage|batch#"),
        ("relay", "dynamodb:PutItem", "mesh|node#gateway"),
        ("relay", "dynamodb:UpdateItem", "mesh|node#gateway"),
        ("relay", "secretsmanager:GetSecretValue", f"psx/{STAGE}/device-tokens"),
        ("relay", "secretsmanager:GetSecretValue", f"psx/{STAGE}/credentials"),
        # a gateway: money, accounts and their keys, the words of operators
        ("gateway", "dynamodb:PutItem", "access|apikey#"),
        ("gateway", "dynamodb:UpdateItem", "access|apikey#"),
        ("gateway", "dynamodb:UpdateItem", "access|acct#"),
        ("gateway", "dynamodb:UpdateItem", "access|prepaid#"),
        ("gateway", "dynamodb:GetItem", "access|user#"),
        ("gateway", "dynamodb:PutItem", "access|secret#"),
        ("gateway", "dynamodb:PutItem", "ledger|transfer#"),
        ("gateway", "dynamodb:PutItem", "sales|owed"),
        ("gateway", "dynamodb:PutItem", "guard|setting#"),
        ("gateway", "dynamodb:UpdateItem", "guard|switch"),
        ("gateway", "dynamodb:DeleteItem", "audit|pak#"),
        ("gateway", "dynamodb:UpdateItem", "audit|pak#"),
        ("gateway", "dynamodb:PutItem", "audit|loop#"),
        ("gateway", "dynamodb:UpdateItem", "devices|dev#"),
        ("gateway", "secretsmanager:GetSecretValue", f"psx/{STAGE}/chains"),
        ("gateway", "secretsmanager:GetSecretValue", f"psx/{STAGE}/device-tokens"),
        ("gateway", "kms:Decrypt", "AccessKey"),
        # a probe target: it answers strangers, and has nothing
        ("target", "dynamodb:GetItem", "guard|setting#"),
        ("target", "ssm:GetParametersByPath", f"psx/{STAGE}"),
        ("target", "secretsmanager:GetSecretValue", f"psx/{STAGE}/mesh"),
        *((role, "ssm:GetParameter", "*") for role in boot.UNITS),
        *((role, "s3:PutObject", "Artefacts/nodes") for role in boot.UNITS),
        *((role, "s3:PutObject", "IpData/published") for role in boot.UNITS),
    ],
)
def test_a_thief_of_a_nodes_credentials_may_not(role: str, action: str, resource: str) -> None:
    assert not may(role, action, resource)


def test_the_same_question_is_answered_yes_where_the_node_needs_it() -> None:
    assert may("relay", "dynamodb:UpdateItem", "mesh|node#relay")
    assert may("gateway", "dynamodb:UpdateItem", "access|pak#")


@pytest.mark.parametrize("role", boot.UNITS)
def test_nothing_is_allowed_by_a_managed_policy_or_a_wildcard_but_the_shell(role: str) -> None:
    statements = [s for s in node_statements(role) if s["Effect"] == "Allow"]
    nameless = [s for s in statements if s["Resource"] == "*"]
    actions: list[str] = [a for s in nameless for a in s["Action"]]
    assert {a.partition(":")[0] for a in actions} == {"ssm", "ssmmessages"}
    assert not any(
        "*" in a for s in statements for a in ([s["Action"]] if isinstance(s["Action"], str) else s["Action"])
    )


def test_what_a_gateway_may_do_to_tables_it_may_do_from_its_own_network_alone() -> None:
    denied = [s for s in node_statements("gateway") if s["Effect"] == "Deny"]
    assert denied == [
        {
            "Effect": "Deny",
            "Action": "dynamodb:*",
            "Resource": "*",
            "Condition": {"StringNotEquals": {"aws:SourceVpc": "<Vpc>"}},
        }
    ]


@pytest.mark.usefixtures("cloud")
def test_a_role_that_lacks_a_grant_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(permissions._used, "target-node", set())
    monkeypatch.setenv("PSX_SECRETS", f"psx/{STAGE}/none")
    with (
        pytest.raises(AssertionError, match=r"role of target-node .*psx/test/none"),
        as_function("target-node"),
        pytest.raises(SecretsUnreadable),
    ):
        load(TargetSettings)
