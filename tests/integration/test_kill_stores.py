"""kill -9 of Redis and of the DynamoDB server in mid-transfer: what the target sent is what is metered in the end."""

import asyncio
import contextlib
import signal
import subprocess
from pathlib import Path

import boto3
import pytest

from local.paths import DYNOXIDE
from local.tables import table_definitions
from shared.access import table as access
from shared.access.model import Pak, Quality
from shared.access.secrets import SecretBox
from shared.kernel.codes import IpType, Pool, SpeedTier
from shared.kernel.ids import AccountId, Country, DeviceId, EndpointId, PakId
from shared.metering.table import pending_batches
from shared.pool import live
from shared.pool.model import Endpoint
from shared.pool.presence import beat_relay, put_presence, read_presence
from shared.runtime.clock import now_ms
from shared.runtime.dynamo import StoreUnavailable, SyncDynamo
from shared.runtime.redis import SyncRedis
from tests.support.dataplane import ACCOUNT, SECRET, Plane, pattern, until
from tests.support.gateway import Download, GatewayProcess
from tests.support.stores import PREFIX, _valkey_command, await_port, free_port

pytestmark = [pytest.mark.slow, pytest.mark.timeout(120)]
KEY = PakId("pak1")
CHUNKS, CHUNK_BYTES = 100, 65_536


class Server:
    """A store in a process of its own, killed and started again on the same port."""

    def __init__(self, command: list[str], port: int, log: Path) -> None:
        self._command, self._port, self._log = command, port, log
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Start, and wait until it listens."""
        with self._log.open("ab") as log:
            self._process = subprocess.Popen(self._command, stdout=log, stderr=log)
        await_port(self._process, self._port)

    def kill(self) -> None:
        """SIGKILL."""
        if self._process is not None:
            self._process.send_signal(signal.SIGKILL)
            self._process.wait()
            self._process = None


async def pour_slowly(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """A target that sends a known number of bytes over some seconds, and ends."""
    for _ in range(CHUNKS):
        writer.write(pattern(CHUNK_BYTES))
        await writer.drain()
        await asyncio.sleep(0.1)
    writer.close()


async def all_of_it(dynamo: SyncDynamo, gateway: GatewayProcess, download: Download) -> None:
    """What the target sent arrived whole and is metered to the byte, once."""
    await asyncio.wait_for(download.task, 40)
    assert download.received == CHUNKS * CHUNK_BYTES
    await gateway.end(signal.SIGTERM)
    batches = dynamo.run(pending_batches(PREFIX + "usage", 1000)).rows
    assert len({(b.gateway_id, b.sequence) for b in batches}) == len(batches)
    assert sum(line.total_bytes for batch in batches for line in batch.lines) == CHUNKS * CHUNK_BYTES


async def test_redis_that_is_killed_and_comes_back_empty_costs_no_byte(
    plane: Plane, dynoxide: SyncDynamo, dynoxide_url: str, tmp_path: Path
) -> None:
    port = free_port()
    command = [
        _valkey_command(),
        "--port",
        str(port),
        "--bind",
        "127.0.0.1",
        "--save",
        "",
        "--dir",
        str(tmp_path),
    ]
    redis = Server(command, port, tmp_path / "redis.log")
    redis.start()
    url = f"redis://127.0.0.1:{port}/0"
    await plane.add_peer("p1")
    target = await plane.target(pour_slowly)
    gateway = GatewayProcess(plane, (dynoxide_url, url), target, "gw-redis")
    copy = SyncRedis(url)
    beating = await mirror(plane, copy)
    try:
        await gateway.start()
        download = Download(await gateway.connect(target), slow=False)
        await until(lambda: download.received > 500_000, 20)
        redis.kill()
        before = download.received
        await until(lambda: download.received > before + 500_000, 20)
        redis.start()
        await all_of_it(dynoxide, gateway, download)
    finally:
        beating.cancel()
        await gateway.kill()
        copy.close()
        redis.kill()


async def mirror(plane: Plane, redis: SyncRedis) -> asyncio.Task[None]:
    """Put the plane's peer on sale in another Redis as well; the task goes on to say there that its relay lives."""
    presence = await plane.redis.run(read_presence(DeviceId("p1")))
    assert presence is not None
    redis.run(put_presence(presence))
    owner, country, fast = AccountId("psx_owner"), Country("us"), SpeedTier.FAST
    endpoint = Endpoint(EndpointId("p1"), Pool.PEER, owner, country, "lab", 64601, "Lab", IpType.MOBILE, fast)
    redis.run(live.list_endpoint(endpoint))
    beat = beat_relay(presence.relay_id, presence.relay_life)
    redis.run(beat)

    async def go_on() -> None:
        while True:
            with contextlib.suppress(StoreUnavailable):
                await asyncio.to_thread(redis.run, beat)
            await asyncio.sleep(0.5)

    return asyncio.create_task(go_on())


async def test_a_dynamodb_server_that_is_killed_and_comes_back_is_told_everything_once(
    plane: Plane, valkey_url: str, tmp_path: Path
) -> None:
    port = free_port()
    command = [str(DYNOXIDE), "serve", "--port", str(port), "--db-path", str(tmp_path / "db")]
    server = Server(command, port, tmp_path / "dynamo.log")
    server.start()
    url = f"http://127.0.0.1:{port}"
    client = boto3.client("dynamodb", endpoint_url=url, region_name="eu-central-1")
    for definition in table_definitions("test"):
        client.create_table(**definition)
    dynamo = SyncDynamo(client)
    box, now = SecretBox(bytes(32), bytes(32)), now_ms()
    pak = Pak(
        KEY, ACCOUNT, "test", box.hash(SECRET), "sealed", None, 0, True, None, None, Quality.STANDARD, True, now, now
    )  # fmt: skip
    assert dynamo.run(access.mint(PREFIX + "access", pak)) is None
    await plane.add_peer("p1")
    target = await plane.target(pour_slowly)
    gateway = GatewayProcess(plane, (url, valkey_url), target, "gw-dynamo")
    try:
        await gateway.start()
        download = Download(await gateway.connect(target), slow=False)
        await until(lambda: download.received > 500_000, 20)
        server.kill()
        before = download.received
        await until(lambda: download.received > before + 500_000, 20)
        server.start()
        await all_of_it(dynamo, gateway, download)
    finally:
        await gateway.kill()
        client.close()
        server.kill()
