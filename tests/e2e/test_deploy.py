"""`serverless deploy`, unpatched, into a cloud on this machine; what it deployed answers, sells and lists by itself."""

import asyncio
import base64
import json
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Any, Final

import pytest
import pytest_asyncio
from botocore.exceptions import ClientError

from local.admin import house_account, make_admin
from local.adopt import adopt
from local.bootstrap import CONFIRMATIONS, HOUSE, PRICES, RATES
from local.configure import create_secrets, publish_keys, write_parameters
from local.goods import put_goods
from local.lab import LabFiles, relays_setting
from local.network import LocalNetwork
from local.packaging import Artefact
from local.tables import table_definitions
from shared.guard.table import read_setting
from shared.runtime.clock import now_ms
from shared.runtime.dynamo import SyncDynamo
from tests.support.cloud import Emulator, http_call, serverless

pytestmark = [pytest.mark.slow, pytest.mark.timeout(400)]
STAGE: Final = "dev"
SCHEDULES_FIRE_WITHIN_S: Final = 150
POLL_S: Final = 1.0


@pytest_asyncio.fixture
async def stores() -> AsyncIterator[LocalNetwork]:
    """Redis and both chains."""
    net = LocalNetwork()
    try:
        await net.start_stores_and_chains()
        yield net
    finally:
        await net.close()


def configure(emulator: Emulator, net: LocalNetwork) -> None:
    """What `./psx configure` does, and what the network stack publishes."""
    nodes = {"PSX_EVM_RPC_URLS": net.evm.url, "PSX_SOLANA_RPC_URLS": net.solana.url}
    assert all(create_secrets(emulator.client("secretsmanager"), STAGE, nodes).values())
    # The chain of this machine has a genesis of its own; the template knows the real one.
    lab = {**nodes, "PSX_GAS_KEY": "", "PSX_SOLANA_GENESIS": net.solana.genesis()}
    emulator.client("secretsmanager").put_secret_value(
        SecretId=f"psx/{STAGE}/chains", SecretString=json.dumps(lab)
    )
    for (
        user,
        password,
    ) in net.secrets.cache.items():  # in AWS the network's stack gives the cache what was made
        emulator.client("secretsmanager").put_secret_value(
            SecretId=f"psx/{STAGE}/cache-{user}", SecretString=json.dumps({"PSX_REDIS_PASSWORD": password})
        )
    given = {
        "api-base-url": "https://api.example",
        "api-certificate": "none",
        "gateway-host": "gateway.example",
        "gateway-http-port": "7000",
        "gateway-socks-port": "7001",
        "echo-url": "https://echo.example/ip",
        "house-account": HOUSE,
        "evm-recipient": net.evm_recipient,
        "solana-recipient": net.solana_recipient,
        "relays": json.loads(relays_setting({"eu": 1, "us": 2})),
    }
    parameters = emulator.client("ssm")
    write_parameters(parameters, STAGE, given)
    publish_keys(emulator.client("secretsmanager"), parameters, STAGE)
    published = {
        "vpc": "vpc-1",
        "private-subnets": "subnet-1,subnet-2",
        "functions-security-group": "sg-1",
        "redis-url": net.redis_url,
    }
    for name, value in published.items():
        parameters.put_parameter(Name=f"/psx/{STAGE}/network/{name}", Value=value, Type="String")


async def fired(dynamo: SyncDynamo, *loops: str) -> None:
    """Wait until the cloud's own clock ran every one of these jobs."""
    waiting = set(loops)
    async with asyncio.timeout(SCHEDULES_FIRE_WITHIN_S):
        while waiting:
            rows = await asyncio.to_thread(loop_rows, dynamo)
            waiting -= {row.removeprefix("loop#").partition("#")[0] for row in rows}
            await asyncio.sleep(POLL_S)


def loop_rows(dynamo: SyncDynamo) -> list[str]:
    """Keys of the rows in which the guard counts the runs of jobs."""
    client: Any = dynamo._client
    items = client.scan(TableName=f"psx-{STAGE}-guard")["Items"]
    return [item["pk"]["S"] for item in items if item["pk"]["S"].startswith("loop#")]


def publish_address_data(emulator: Emulator, bucket: str, files: LabFiles) -> None:
    """What an operator uploads, and the job that publishes it."""
    for name, path in (("asn", files.asn_mmdb), ("country", files.country_mmdb)):
        emulator.client("s3").upload_file(str(path), bucket, f"incoming/{name}.mmdb")
    ran = emulator.client("lambda").invoke(
        FunctionName=f"psx-{STAGE}-refresh-ip-data", Payload=json.dumps({"job": "refresh_ip_data"})
    )
    assert json.loads(ran["Payload"].read()) == {"asn": "published", "country": "published"}


@dataclass(frozen=True)
class Api:
    """The deployed HTTP API, by its own name."""

    url: str
    host: str

    def call(self, path: str, key: str = "", **sent: Any) -> tuple[int, dict[str, str], Any]:
        return http_call(self.url + path, {"Host": self.host, "X-API-Key": key}, **sent)

    def done(self, path: str, key: str = "", **sent: Any) -> Any:
        status, _, body = self.call(path, key, **sent)
        assert status == 200, (path, body)
        return body


def open_for_business(api: Api, admin: str) -> None:
    """What an operator does after a first deployment, and a first reseller's key, sealed with the deployed KMS key."""
    api.done("/v1/gateway/pool/stock")
    for name, value in (("prices", PRICES), ("rates", RATES), ("confirmations", CONFIRMATIONS)):
        api.done(f"/v1/admin/settings/{name}", admin, body=value, method="PUT")
    api.done("/v1/admin/accounts", admin, body={"accountId": "psx_first", "kind": "reseller"})
    made = api.done("/v1/admin/accounts/psx_first/api-keys", admin, body={"scopes": ["resell"]})
    key = api.done("/v1/reseller/pool-keys", made["apiKey"], body={"label": "deployed", "trafficCapGB": 1})
    shown = api.done(f"/v1/reseller/pool-keys/{key['id']}/reveal", made["apiKey"], body={})
    assert shown["key"] == key["key"]


async def test_what_is_deployed_answers_sells_and_runs_its_jobs(
    emulator: Emulator, stores: LocalNetwork, artefacts: list[Artefact]
) -> None:
    configure(emulator, stores)
    env = emulator.environment()
    packages = ["--param", f"packages={artefacts[0].path.parent}"]
    await asyncio.to_thread(serverless, "deploy", "--stage", STAGE, *packages, env=env)
    cloudformation = emulator.client("cloudformation")
    stack = cloudformation.describe_stacks(StackName=f"psx-{STAGE}")["Stacks"][0]
    outputs = {entry["OutputKey"]: entry["OutputValue"] for entry in stack["Outputs"]}

    database = emulator.client("dynamodb")
    for definition in table_definitions(STAGE):
        found = database.describe_table(TableName=definition["TableName"])["Table"]
        assert found["KeySchema"] == definition["KeySchema"]
    dynamo = SyncDynamo(database)
    await asyncio.to_thread(publish_address_data, emulator, outputs["IpDataBucket"], stores.files)
    api = Api(emulator.url, f"{outputs['HttpApiId']}.execute-api.localhost")
    first = make_admin(dynamo, STAGE, house_account(emulator.client("ssm"), STAGE), now_ms())
    await asyncio.to_thread(open_for_business, api, first)
    await fired(dynamo, "list_exits", "roll_up", "validate_sale", "serve_owed")
    async with asyncio.timeout(SCHEDULES_FIRE_WITHIN_S):
        while not (dynamo.run(read_setting(f"psx-{STAGE}-guard", "sale")) or {}).get("ok"):
            await asyncio.sleep(POLL_S)
    empty, _, told = await asyncio.to_thread(api.call, "/v1/x402/pool?traffic=0.1")
    assert (empty, told["code"]) == (503, "NO_STOCK"), "no device has joined yet"
    put_goods(stores.redis)
    status, headers, body = await asyncio.to_thread(api.call, "/v1/x402/pool?traffic=0.1")
    assert status == 402, body
    offered = json.loads(base64.b64decode(headers["payment-required"]))["accepts"]
    assert {rail["payTo"] for rail in offered} == {stores.evm_recipient, stores.solana_recipient}

    await asyncio.to_thread(serverless, "remove", "--stage", STAGE, *packages, env=env)
    kept = set(database.list_tables()["TableNames"])
    assert {definition["TableName"] for definition in table_definitions(STAGE)} <= kept
    await asyncio.to_thread(comes_back, emulator, packages, stores)
    assert dynamo.run(read_setting(f"psx-{STAGE}-guard", "prices")) == PRICES, "what the tables held is there"


def comes_back(emulator: Emulator, packages: list[str], stores: LocalNetwork) -> None:
    """A removed stage is put back around what stayed, as an operator does it: packaged, adopted, deployed."""
    env = emulator.environment()
    serverless("package", "--stage", STAGE, *packages, env=env)
    assert adopt(STAGE, write=False, clients=emulator.client) == 0
    stacks = emulator.client("cloudformation")
    with pytest.raises(ClientError, match="does not exist"):
        stacks.describe_stacks(StackName=f"psx-{STAGE}")
    assert adopt(STAGE, write=True, clients=emulator.client) == 0
    held = {
        entry["ResourceType"]
        for entry in stacks.describe_stack_resources(StackName=f"psx-{STAGE}")["StackResources"]
    }
    assert held == {"AWS::DynamoDB::Table", "AWS::KMS::Key", "AWS::S3::Bucket"}
    serverless("deploy", "--stage", STAGE, *packages, env=env)
    outputs = {
        e["OutputKey"]: e["OutputValue"]
        for e in stacks.describe_stacks(StackName=f"psx-{STAGE}")["Stacks"][0]["Outputs"]
    }
    api = Api(emulator.url, f"{outputs['HttpApiId']}.execute-api.localhost")
    until_s, status, told = time.monotonic() + SCHEDULES_FIRE_WITHIN_S, 0, None
    while status != 402:  # the sale opens when its validation ran again
        assert time.monotonic() < until_s, told
        put_goods(stores.redis)
        status, _, told = api.call("/v1/x402/pool?traffic=0.1")
        time.sleep(POLL_S)
