"""A simulated fleet registers, connects and heartbeats from one process."""

import asyncio

import pytest

from local.fleet import Fleet, Plan
from tests.conformance.relay import ScriptedApi, ScriptedRelay

pytestmark = pytest.mark.slow

COUNT = 300


async def test_every_device_registers_connects_and_is_acknowledged() -> None:
    api, relay = ScriptedApi(), ScriptedRelay()
    await api.start()
    await relay.start()
    api.relays.append(relay.url)
    fleet = Fleet(Plan(api.url, "psx_key", "sim", COUNT, heartbeat_s=1))
    await fleet.start()
    beating = asyncio.ensure_future(fleet.beat())
    async with asyncio.timeout(30):
        while fleet.seen["acks"] < COUNT:
            await asyncio.sleep(0.05)
    beating.cancel()
    assert fleet.seen["registered"] == fleet.seen["connected"] == COUNT
    assert len({body["name"] for body in api.named("register")}) == COUNT
    fleet.stop()
    async with asyncio.timeout(10):
        while relay.open:
            await asyncio.sleep(0.05)
    await relay.stop()
    await api.stop()


async def test_what_does_not_come_is_counted() -> None:
    api = ScriptedApi()
    await api.start()
    api.relays.append("ws://127.0.0.1:1/")
    api.statuses["register"] = [401, 429]
    fleet = Fleet(Plan(api.url, "psx_key", "sim", 3))
    await fleet.start()
    assert fleet.seen["registered"] == 1
    assert sum(count for name, count in fleet.seen.items() if name.startswith("failed")) == 3
    await api.stop()
