"""One key with a cap on two gateways at once: the overshoot of all of them together is bounded, and it is suspended."""

import asyncio
import signal
import time

import pytest

from shared.access.model import DisabledReason, Pak, Quality
from shared.access.secrets import SecretBox
from shared.access.table import get_pak, mint
from shared.guard.table import entries
from shared.kernel.ids import PakId
from shared.metering.live import read_used
from shared.runtime.clock import now_ms
from tests.support.dataplane import ACCOUNT, Plane
from tests.support.gateway import Download, GatewayProcess, StartsGateway, pour
from tests.support.stores import PREFIX

pytestmark = [pytest.mark.slow, pytest.mark.timeout(90)]
CAP_BYTES = 60_000_000
OVERSHOOT_PER_GATEWAY_BYTES = 1 << 20
SUSPENDED_WITHIN_S = 5.0
SECRET = "pak_" + "7" * 24
PAK = PakId("capped")


async def mint_capped(plane: Plane) -> None:
    box, now = SecretBox(bytes(32), bytes(32)), now_ms()
    pak = Pak(
        PAK, ACCOUNT, "capped", box.hash(SECRET), box.seal(SECRET, PAK), CAP_BYTES, 0, True, None, None,
        Quality.STANDARD, True, now, now,
    )  # fmt: skip
    assert await plane.dynamo.run(mint(PREFIX + "access", pak)) is None


async def read_key(plane: Plane) -> Pak:
    pak = await plane.dynamo.run(get_pak(PREFIX + "access", PAK))
    assert pak is not None
    return pak


class Customer:
    """Downloads through one gateway, and again after every cut, until the key is suspended."""

    def __init__(self) -> None:
        self.received = 0
        self.cut_s = 0.0

    async def run(self, plane: Plane, gateway: GatewayProcess, port: int) -> None:
        while (await read_key(plane)).enabled:
            reader, writer, line = await gateway.ask(port, SECRET)
            if " 200 " in line:
                download = Download((reader, writer), slow=False)
                await download.task
                self.received += download.received
                self.cut_s = time.monotonic()
            else:
                writer.close()
                await asyncio.sleep(0.1)


async def test_two_gateways_share_one_cap(plane: Plane, gateway_process: StartsGateway) -> None:
    await mint_capped(plane)
    for name in ("p1", "p2", "p3"):
        await plane.add_peer(name)
    port = await plane.target(pour)
    gateways = [gateway_process(port, f"gw-{n}") for n in "ab"]
    await asyncio.gather(*(g.start() for g in gateways))
    customers = [(Customer(), gateway) for gateway in (*gateways, *gateways)]
    await asyncio.gather(*(customer.run(plane, gateway, port) for customer, gateway in customers))
    suspended_s = time.monotonic()
    assert suspended_s - max(customer.cut_s for customer, _ in customers) < SUSPENDED_WITHIN_S
    assert (await read_key(plane)).disabled_reason is DisabledReason.CAP
    for gateway in gateways:
        _, writer, line = await gateway.ask(port, SECRET)
        writer.close()
        assert " 407 " in line
        await gateway.end(signal.SIGTERM)
    delivered = sum(customer.received for customer, _ in customers)
    used = await plane.redis.run(read_used(PAK))
    assert used is not None
    assert CAP_BYTES <= used <= CAP_BYTES + 2 * OVERSHOOT_PER_GATEWAY_BYTES
    assert delivered <= used
    history = await plane.dynamo.run(entries(PREFIX + "audit", f"pak#{PAK}", 10))
    assert [e.event.action for e in history.rows if e.event.action.startswith("auto_")] == [
        "auto_suspended_cap_exceeded"
    ]


async def test_a_gateway_that_falls_idle_gives_its_lease_back(
    plane: Plane, gateway_process: StartsGateway
) -> None:
    await mint_capped(plane)
    for name in ("p1", "p2"):
        await plane.add_peer(name)
    port = await plane.target(pour)
    gateways = [gateway_process(port, f"gw-{n}") for n in "ab"]
    await asyncio.gather(*(g.start() for g in gateways))
    reader, writer = await gateways[0].connect(port, SECRET)
    await reader.readexactly(5_000_000)
    writer.transport.abort()
    await Customer().run(plane, gateways[1], port)
    for gateway in gateways:
        await gateway.end(signal.SIGTERM)
    used = await plane.redis.run(read_used(PAK))
    assert used is not None
    assert CAP_BYTES <= used <= CAP_BYTES + 2 * OVERSHOOT_PER_GATEWAY_BYTES
