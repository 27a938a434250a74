"""Nodes under load: memory comes back, relays are restarted one after the other, a gateway is killed without a word."""

import asyncio
import signal
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio

from local import lab
from local.client import call, curl
from local.network import LocalNetwork
from shared.runtime.redis import command
from tests.support.network import LISTED_TIMEOUT_S, put_on_sale, reseller_key

pytestmark = [pytest.mark.slow, pytest.mark.timeout(150), pytest.mark.asyncio(loop_scope="module")]
STREAM_BYTES = 12_000_000
GROWTH_MAX_MB = 25
PEERS_STARTED = 8


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def net() -> AsyncIterator[LocalNetwork]:
    async with LocalNetwork() as made:
        await put_on_sale(made, PEERS_STARTED)
        yield made


def resident_mb(net: LocalNetwork) -> dict[str, float]:
    """Resident memory of the nodes."""
    found = {}
    for name in ("gateway", *(f"relay-{region}" for region in lab.RELAY_NAMES)):
        status = Path(f"/proc/{net.supervisor.parts[name].process.pid}/status").read_text()
        line = next(line for line in status.splitlines() if line.startswith("VmRSS:"))
        found[name] = int(line.split()[1]) / 1024
    return found


async def test_memory_comes_back_after_load(net: LocalNetwork) -> None:
    secret, ca = (await reseller_key(net, "restarts"))["key"], str(net.files.ca)
    proxy = f"http://psx_reseller1-peer-any:{secret}@127.0.0.1:{net.ports.http}"

    async def load() -> None:
        for _ in range(3):
            fetched = await asyncio.gather(
                *(curl(proxy, f"{net.target_url}/bytes/8000000", ca, keep_body=False) for _ in range(12))
            )
            assert [f.size for f in fetched] == [8_000_000] * 12

    await load()
    before = resident_mb(net)
    await load()
    await load()
    after = resident_mb(net)
    assert {
        name: after[name] - before[name] for name in before if after[name] - before[name] > GROWTH_MAX_MB
    } == {}


async def settled(net: LocalNetwork, finished: list[Any]) -> None:
    """What a rolling update waits for before the next node: every device is connected, and customers are served."""
    async with asyncio.timeout(LISTED_TIMEOUT_S):
        while await connected(net) < PEERS_STARTED:
            await asyncio.sleep(0.1)
        enough = len(finished) + 4
        while len(finished) < enough:
            await asyncio.sleep(0.1)


async def connected(net: LocalNetwork) -> int:
    """Devices that the relays count."""
    count = 0
    for port in net.ports.relay_private.values():
        text = (await call(f"http://127.0.0.1:{port}/metrics")).body
        line = next(line for line in text.splitlines() if line.startswith("psx_relay_devices "))
        count += int(float(line.split()[1]))
    return count


async def test_restarting_both_relays_costs_no_stream_and_no_request(net: LocalNetwork) -> None:
    secret, ca = (await reseller_key(net, "restarts"))["key"], str(net.files.ca)
    proxy = f"http://psx_reseller1-peer-any:{secret}@127.0.0.1:{net.ports.http}"
    streams = [
        asyncio.create_task(curl(proxy, f"{net.target_url}/slow/{STREAM_BYTES}", ca, keep_body=False))
        for _ in range(4)
    ]
    stop = asyncio.Event()
    finished: list[Any] = []
    failed: list[Any] = []

    async def requests() -> None:
        while not stop.is_set():
            done = await curl(proxy, net.target_url + "/ip", ca)
            (finished if done.status == 200 else failed).append(done)

    asking = asyncio.create_task(requests())
    for region in lab.RELAY_NAMES:
        await settled(net, finished)
        await net.supervisor.stop_part(f"relay-{region}", signal.SIGTERM)
        await net.start_relay(region)
    await settled(net, finished)
    done = await asyncio.gather(*streams)
    stop.set()
    await asyncio.gather(asking)
    assert [(d.exit_code, d.size) for d in done] == [(0, STREAM_BYTES)] * 4
    assert failed == []
    assert len(finished) > 10


async def test_a_killed_gateway_leaves_no_place_taken(net: LocalNetwork) -> None:
    secret, ca = (await reseller_key(net, "restarts"))["key"], str(net.files.ca)
    proxy = f"http://psx_reseller1-peer-any:{secret}@127.0.0.1:{net.ports.http}"
    stream = asyncio.create_task(curl(proxy, f"{net.target_url}/slow/60000000", ca, keep_body=False))
    async with asyncio.timeout(10):
        while not net.redis.run(command("KEYS", "{peer}:lease:*", parse=list)):
            await asyncio.sleep(0.05)
    await net.supervisor.stop_part("gateway", signal.SIGKILL)
    assert (await stream).exit_code != 0
    await net.start_gateway()
    async with asyncio.timeout(10):
        while net.redis.run(command("KEYS", "{peer}:lease:*", parse=list)):
            await asyncio.sleep(0.05)
    assert (await curl(proxy, net.target_url + "/ip", ca)).status == 200
