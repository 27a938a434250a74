"""Connections of one owner over many gateways, on a real server: never more than there are, and none that is lost."""

import asyncio
import random
from collections.abc import AsyncIterator
from typing import Any

import pytest
import pytest_asyncio

from gateway_node.buyer import Buyer
from gateway_node.leases import Leases
from gateway_node.places import Places
from shared.access.model import Pak, Quality
from shared.kernel.codes import Pool
from shared.kernel.ids import AccountId, EndpointId, GatewayId, PakId
from shared.pool import live, places
from shared.pool.model import Acquired, NoStock, NoStockReason
from shared.pool.places import CONNECTIONS_MAX, SPARE_PLACES, hold_places
from shared.pool.presence import put_presence
from shared.pool.username import parse_username
from shared.runtime.clock import now_ms
from shared.runtime.dynamo import StoreUnavailable
from shared.runtime.redis import AsyncRedis
from tests.support.pool import modem, peer, presence

pytestmark = pytest.mark.slow
OWNER = "psx_a"


def key(pak_id: PakId) -> Pak:
    return Pak(pak_id, AccountId(OWNER), "", "h", "", None, 0, True, None, None, Quality.STANDARD, True, 0, 0)


@pytest_asyncio.fixture
async def redis(any_valkey_url: str) -> AsyncIterator[AsyncRedis]:
    executor = AsyncRedis(any_valkey_url)
    yield executor
    await executor.close()


async def test_gateways_together_open_so_many_and_no_more(redis: AsyncRedis) -> None:
    gateways = [Places(redis, GatewayId(f"gw{n}")) for n in range(4)]
    turns = [random.choice(gateways) for _ in range(CONNECTIONS_MAX + 100)]
    taken = await asyncio.gather(*(gateway.take(OWNER) for gateway in turns))
    assert sum(taken) == CONNECTIONS_MAX
    assert sum(gateway.open_of(OWNER) for gateway in gateways) == CONNECTIONS_MAX
    assert await gateways[0].take("psx_b"), "another owner has its own"

    full = max(gateways, key=lambda gateway: gateway.open_of(OWNER))
    other = next(gateway for gateway in gateways if gateway is not full)
    full.give(OWNER)
    assert not await other.take(OWNER), "it is told of by the next renewal"
    await full.renew()
    assert await other.take(OWNER)


async def test_what_one_gateway_no_longer_needs_another_one_has_within_its_wait(redis: AsyncRedis) -> None:
    before, after = Places(redis, GatewayId("gw1")), Places(redis, GatewayId("gw2"))
    running = [asyncio.create_task(gateway.run()) for gateway in (before, after)]
    taken = await asyncio.gather(*(before.take(OWNER) for _ in range(CONNECTIONS_MAX)))
    assert all(taken)
    for _ in taken:
        before.give(OWNER)
    assert all(await asyncio.gather(*(after.take(OWNER) for _ in range(20)))), "none is open any more"
    for task in running:
        task.cancel()
    await asyncio.gather(*running, return_exceptions=True)


async def test_what_is_given_back_is_free_and_what_a_dead_gateway_held_is_free_later(
    redis: AsyncRedis, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(places, "PLACES_TTL_S", 1)
    dead = GatewayId("dead")
    await redis.run(hold_places(OWNER, dead, CONNECTIONS_MAX, CONNECTIONS_MAX))
    mine = Places(redis, GatewayId("gw"))
    async with asyncio.timeout(10):
        while not await mine.take(OWNER):
            await asyncio.sleep(0.02)
    mine.give(OWNER)
    await mine.renew()
    assert await redis.run(hold_places(OWNER, dead, CONNECTIONS_MAX, 0)) == CONNECTIONS_MAX


async def test_a_server_that_forgot_everything_is_told_of_what_is_open(redis: AsyncRedis) -> None:
    most = CONNECTIONS_MAX
    assert await redis.run(hold_places(OWNER, GatewayId("new"), most, 0)) == most
    assert await redis.run(hold_places(OWNER, GatewayId("old"), 300, 300, 0)) == 300
    assert await redis.run(hold_places(OWNER, GatewayId("new"), 1, 0, 0)) == 1


async def test_most_connections_cost_no_call_while_there_is_room(redis: AsyncRedis) -> None:
    mine, asked = Places(redis, GatewayId("gw")), 0
    real = redis.run

    async def counted(call: Any, unheard: Any = None) -> Any:
        nonlocal asked
        asked += 1
        return await real(call, unheard)

    redis.run = counted  # type: ignore[method-assign]
    for _ in range(3 * (SPARE_PLACES + 1)):
        assert await mine.take(OWNER)
    assert asked == 3


async def test_a_hold_whose_answer_was_lost_is_given_back_and_no_other(redis: AsyncRedis) -> None:
    await redis.run(live.list_endpoint(modem("m1")))
    leases, pak = Leases(redis, GatewayId("gw"), now_ms), PakId("k")
    asking = Buyer(key(pak), parse_username(f"{OWNER}-mbl-us"), OWNER)
    real = redis.run

    async def lost(call: Any, unheard: Any = None) -> Any:
        await real(call, unheard)
        raise StoreUnavailable("connection lost")

    assert isinstance(await leases.acquire(asking, Pool.MBL), Acquired)
    redis.run = lost  # type: ignore[method-assign]
    with pytest.raises(StoreUnavailable):
        await leases.acquire(asking, Pool.MBL)
    redis.run = real  # type: ignore[method-assign]
    for holds in (2, 1, 1):
        await leases.compare()
        assert await redis.run(live.held(Pool.MBL, GatewayId("gw"))) == ((EndpointId("m1"), pak, holds),)


async def test_sessions_count_over_both_pools(redis: AsyncRedis, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(live, "SESSIONS_MAX", 6)
    for number in range(4):
        await redis.run(live.list_endpoint(modem(f"m{number}")))
        await redis.run(live.list_endpoint(peer(f"p{number}")))
        await redis.run(put_presence(presence(f"p{number}")))
    leases, pak = Leases(redis, GatewayId("gw"), now_ms), PakId("k")

    async def begin(pool: Pool, sid: str) -> Acquired | NoStock:
        found = await leases.acquire(
            Buyer(key(pak), parse_username(f"{OWNER}-{pool.value}-us-sid-{sid}"), OWNER), pool
        )
        if isinstance(found, Acquired):
            leases.give_back(found, pak)
        await leases.drain()
        return found

    for number in range(3):
        assert isinstance(await begin(Pool.MBL, f"a{number}"), Acquired)
        assert isinstance(await begin(Pool.PEER, f"b{number}"), Acquired)
    for pool in Pool:
        assert await begin(pool, "onemore") == NoStock(0, NoStockReason.SESSIONS)
        assert isinstance(await begin(pool, f"{'a' if pool is Pool.MBL else 'b'}1"), Acquired), "it stands"
    for pool in Pool:
        assert await redis.run(live.held(pool, GatewayId("gw"))) == ()
