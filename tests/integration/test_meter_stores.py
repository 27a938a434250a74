"""Stores that are away: counts wait in the journal, bounded, and arrive once; leases go on to what was last known."""

import asyncio
from pathlib import Path
from typing import Any, cast

import pytest

from gateway_node.journal import Journal
from gateway_node.meter import MeterService
from gateway_node.tunnel import Place, Tunnel
from shared.access.model import Pak, Quality
from shared.access.secrets import SecretBox
from shared.access.table import get_pak, mint, top_up_item
from shared.kernel.codes import IpType, Pool, SpeedTier
from shared.kernel.ids import AccountId, Country, EndpointId, GatewayId, PakId
from shared.metering.live import read_used
from shared.metering.table import pending_batches
from shared.pool.model import Acquired, Endpoint, Selected
from shared.runtime.clock import now_ms
from shared.runtime.dynamo import AsyncDynamo, StoreUnavailable, transact
from shared.runtime.redis import AsyncRedis, command, ok
from tests.support.dataplane import ACCOUNT, Plane, until
from tests.support.stores import PREFIX

pytestmark = pytest.mark.slow
PAK = PakId("p")


class Broken:
    """A store in front of the real one that can be away, or answer late."""

    def __init__(self, real: Any) -> None:
        self._real = real
        self.away = False
        self.answers = asyncio.Event()
        self.answers.set()

    async def run(self, request: Any) -> Any:
        await self.answers.wait()
        if self.away:
            raise StoreUnavailable("away")
        return await self._real.run(request)


class Side:
    """Either side of a tunnel; only its end, and whether it is read, is looked at."""

    carries_eof = True
    place = Place()
    unsent_bytes = 0
    bare_socket = None
    held = False

    def send(self, data: Any) -> None: ...
    def send_eof(self) -> None: ...
    def hold(self) -> None:
        self.held = True

    def release(self) -> None:
        self.held = False

    def finish(self) -> None: ...
    def cut(self) -> None: ...
    def try_again(self) -> None: ...
    def passed(self, size: int) -> None: ...
    def forget(self) -> None: ...
    def attach(self, tunnel: Tunnel) -> None: ...


async def minted(plane: Plane, cap: int | None) -> Pak:
    box, now = SecretBox(bytes(32), bytes(32)), now_ms()
    pak = Pak(
        PAK, ACCOUNT, "k", box.hash("s"), box.seal("s", PAK), cap, 0, True, None, None,
        Quality.STANDARD, True, now, now,
    )  # fmt: skip
    assert await plane.dynamo.run(mint(PREFIX + "access", pak)) is None
    return pak


def tunnel_of(meter: MeterService, pak: Pak, device: str = "d") -> Tunnel:
    endpoint = Endpoint(
        EndpointId(device), Pool.MBL, AccountId("psx_s"), Country("us"), "c", 1, "i", IpType.MOBILE, SpeedTier.FAST
    )  # fmt: skip
    acquired = Acquired(endpoint, "", 0, "", "", Selected.FRESH)
    tunnel = Tunnel(pak, acquired, Side(), meter.budget(PAK), lambda ended, _: meter.closed(ended))
    tunnel.customer = Side()
    meter.opened(tunnel)
    return tunnel


async def service(plane: Plane, path: Path | None = None) -> tuple[MeterService, Broken, Broken]:
    redis, dynamo = Broken(plane.redis), Broken(plane.dynamo)
    name = GatewayId("gw-stores")
    meter = MeterService(
        cast(AsyncDynamo, dynamo),
        cast(AsyncRedis, redis),
        lambda n: PREFIX + n,
        name,
        now_ms,
        Journal(name, path),
    )
    await meter.start()
    return meter, redis, dynamo


async def billed(plane: Plane) -> int:
    page = await plane.dynamo.run(pending_batches(PREFIX + "usage", 100))
    return sum(line.total_bytes for batch in page.rows for line in batch.lines)


@pytest.mark.parametrize("which", ["redis", "dynamo", "both"])
async def test_counts_wait_for_a_store_and_arrive_once(plane: Plane, tmp_path: Path, which: str) -> None:
    pak = await minted(plane, None)
    meter, redis, dynamo = await service(plane, tmp_path / "j")
    await meter.met(pak)
    tunnel = tunnel_of(meter, pak)
    tunnel.to_exit(bytes(1000))
    redis.away, dynamo.away = which != "dynamo", which != "redis"
    for _ in range(2):
        assert not await meter.flush()
        tunnel.to_customer(bytes(500))
    assert meter.fault is not None
    redis.away = dynamo.away = False
    assert await meter.flush()
    assert await plane.redis.run(read_used(PAK)) == await billed(plane) == 2000
    tunnel.finish()
    await meter.stop()


async def test_a_life_that_ends_while_stores_are_away_is_finished_by_the_next(
    plane: Plane, tmp_path: Path
) -> None:
    pak = await minted(plane, None)
    first, redis, _ = await service(plane, tmp_path / "j")
    tunnel = tunnel_of(first, pak)
    tunnel.to_exit(bytes(1000))
    redis.away = True
    assert not await first.flush()
    tunnel.to_exit(bytes(10))
    first._journal.close()
    second, _, _ = await service(plane, tmp_path / "j")
    assert await second.flush()
    assert await plane.redis.run(read_used(PAK)) == await billed(plane) == 1010
    await second.stop()


async def test_the_last_flush_is_tried_until_the_store_is_back(plane: Plane, tmp_path: Path) -> None:
    pak = await minted(plane, None)
    meter, redis, _ = await service(plane, tmp_path / "j")
    tunnel_of(meter, pak).to_exit(bytes(1000))
    redis.away = True
    stopping = asyncio.create_task(meter.stop())
    async with asyncio.timeout(20):
        while meter.fault is None:
            await asyncio.sleep(0.01)
    redis.away = False
    assert await stopping
    assert await plane.redis.run(read_used(PAK)) == await billed(plane) == 1000


async def test_a_gateway_that_cannot_write_its_counts_says_so_at_its_end(
    plane: Plane, tmp_path: Path
) -> None:
    pak = await minted(plane, None)
    meter, _, dynamo = await service(plane, tmp_path / "j")
    tunnel_of(meter, pak).to_exit(bytes(1000))
    dynamo.away = True
    assert not await meter.stop(max_s=0.1)
    second, _, _ = await service(plane, tmp_path / "j")
    assert await second.stop()
    assert await billed(plane) == 1000


async def test_without_redis_an_open_tunnel_goes_on_to_what_was_left(plane: Plane) -> None:
    pak = await minted(plane, 50_000_000)
    meter, redis, _ = await service(plane)
    await meter.met(pak)
    tunnel = tunnel_of(meter, pak)
    await asyncio.sleep(0.1)
    redis.away = True
    carried = 0
    while tunnel.open and carried < 60_000_000:
        tunnel.to_customer(bytes(100_000))
        carried += 100_000
        await asyncio.sleep(0)
    assert not tunnel.open
    assert 49_000_000 <= carried <= 50_000_000 + (1 << 20)
    redis.away = False
    await meter.stop()


async def test_a_redis_that_forgot_a_key_cuts_nobody_and_is_told_what_was_used(plane: Plane) -> None:
    pak = await minted(plane, 50_000_000_000)
    meter, _, _ = await service(plane)
    await meter.met(pak)
    tunnel = tunnel_of(meter, pak)
    await until(lambda: bool(meter.budget(pak.pak_id).left_bytes))
    tunnel.to_customer(bytes(5_000_000))
    await meter.flush()
    await plane.redis.run(command("FLUSHALL", "SYNC", parse=ok))
    for _ in range(20):
        tunnel.to_customer(bytes(500_000))
        await meter.flush()
        assert tunnel.open
        assert not meter.is_spent(pak.pak_id)
    await meter.stop()
    used = await plane.redis.run(read_used(pak.pak_id))
    assert used is not None
    assert used >= 14_000_000, "but what the flush that met the empty store had added"


async def test_customers_that_are_faster_than_the_store_wait_for_it_and_are_not_cut(plane: Plane) -> None:
    pak = await minted(plane, 10**12)
    meter, redis, _ = await service(plane)
    await meter.met(pak)
    tunnel = tunnel_of(meter, pak)
    sides = cast(Side, tunnel.exit), cast(Side, tunnel.customer)

    def held() -> list[bool]:
        return [side.held for side in sides]

    piece = bytes(1_000_000)
    for _ in range(3):
        await asyncio.sleep(0.1)
        redis.answers.clear()
        while held() == [False, False]:
            tunnel.to_customer(piece)
            await asyncio.sleep(0)
            assert tunnel.open
        assert held() == [True, True]
        tunnel.to_customer(piece)  # what was on its way
        tunnel.customer_full()
        redis.answers.set()
        async with asyncio.timeout(5):
            while held() == [True, True]:
                await asyncio.sleep(0.01)
        assert tunnel.open
        assert held() == [True, False], "the customer is still full"
        tunnel.customer_drained()
        assert held() == [False, False]
    tunnel.finish()
    await meter.stop()


async def test_a_top_up_in_the_moment_of_the_suspension_is_not_undone(plane: Plane) -> None:
    pak = await minted(plane, 1_000_000)
    meter, _, _ = await service(plane)
    await meter.met(pak)
    tunnel = tunnel_of(meter, pak)
    await asyncio.sleep(0.1)
    tunnel.to_customer(bytes(1_000_000))
    raised = top_up_item(PREFIX + "access", PAK, 1_000_000, None, now_ms(), reenable=True)
    assert await plane.dynamo.run(transact([raised])) is None
    await meter.stop()
    found = await plane.dynamo.run(get_pak(PREFIX + "access", PAK))
    assert found is not None
    assert (found.enabled, found.cap_bytes) == (True, 2_000_000)
