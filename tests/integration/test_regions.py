"""A relay follows the operator's table of regions while it runs, and keeps what it knew when that cannot be read."""

import asyncio

import pytest

from relay_node import peers
from relay_node.regions import RegionTable
from shared.runtime.redis import AsyncRedis, command, ok
from shared.supply.live import put_regions
from shared.supply.model import parse_regions
from shared.supply.rules import assign_region
from tests.support.dataplane import Plane, Relay, echo, until
from tests.support.permissions import as_node

pytestmark = pytest.mark.slow
EU = {"eu": {"url": "wss://eu.example/", "countries": ["*"]}}
WITH_MIAMI = {**EU, "mia": {"url": "wss://mia.example/", "countries": ["br", "us"]}}


async def test_a_new_region_is_followed_and_nonsense_is_not(valkey_url: str) -> None:
    redis = AsyncRedis(valkey_url)
    try:
        await follows(redis)
    finally:
        await redis.close()


async def follows(redis: AsyncRedis) -> None:
    table = RegionTable(redis, parse_regions(EU))
    await table.read()
    assert assign_region("br", table.now).name == "eu"
    await redis.run(put_regions(WITH_MIAMI))
    await table.read()
    assert assign_region("br", table.now).url == "wss://mia.example/"
    assert assign_region("de", table.now).name == "eu"
    for nonsense in ('{"mia": {}}', "[1]", "no json", '{"x": {"url": "http://x/", "countries": ["*"]}}'):
        await redis.run(command("SET", "supply:regions", nonsense, parse=ok))
        await table.read()
        assert assign_region("br", table.now).name == "mia"


async def test_without_redis_the_last_word_holds() -> None:
    redis = AsyncRedis("redis://127.0.0.1:9/0")
    table = RegionTable(redis, parse_regions(WITH_MIAMI))
    await table.read()
    assert assign_region("us", table.now).name == "mia"
    await redis.close()


async def moved(plane: Plane, old: Relay, new: Relay) -> None:
    """The operator gives the country of the plane's devices to another relay, by the setting that relays follow."""
    regions = {
        old.name: {"url": old.url, "countries": ["*"]},
        new.name: {"url": new.url, "countries": ["us"]},
    }
    await plane.redis.run(put_regions(regions))
    for relay in (old, new):
        relay.regions = RegionTable(plane.redis, parse_regions(EU))
        with as_node("relay"):
            await relay.regions.read()


def relays_of(plane: Plane, name: str) -> set[str]:
    """Where the device's ready sockets are."""
    held = [(r.name, s) for r in plane.relays for s in r.registry.sockets]
    return {place for place, s in held if s.ready and s.device and s.device.device_id == name}


async def test_live_sockets_follow_a_changed_table_when_their_tunnels_are_over(plane: Plane) -> None:
    (old,) = plane.relays
    new = await plane.start_relay("relay-b")
    await plane.add_peer("p1", old, new)
    reader, writer = await plane.tunnel(await plane.target(echo))
    await moved(plane, old, new)
    (busy,) = [s for s in plane.sockets_of("p1") if s.load]
    for number in range(3):  # heartbeats pass; a tunnel is not disturbed for a better place
        writer.write(b"%d" % number)
        assert await reader.readexactly(1) == b"%d" % number
        await asyncio.sleep(0.4)
    assert busy.ready
    writer.close()
    await until(lambda: relays_of(plane, "p1") == {"relay-b"})
    await plane.present("p1", new)
    reader, writer = await plane.tunnel(await plane.target(echo))
    writer.write(b"x")
    assert await reader.readexactly(1) == b"x"
    writer.close()


async def test_a_region_that_a_token_does_not_name_is_reached_by_a_fresh_token(plane: Plane) -> None:
    (old,) = plane.relays
    await plane.add_peer("p1", sockets=1, token_age_s=peers.TOKEN_NEW_S + 1)
    await plane.add_peer("young")
    new = await plane.start_relay("relay-b")
    await moved(plane, old, new)
    await until(lambda: relays_of(plane, "p1") == {"relay-b"})
    assert relays_of(plane, "young") == {"relay-a"}, "a token that is new already names all relays there are"
