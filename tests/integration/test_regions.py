"""A relay follows the operator's table of regions while it runs, and keeps what it knew when that cannot be read."""

import pytest

from relay_node.regions import RegionTable
from shared.runtime.redis import AsyncRedis, command, ok
from shared.supply.live import put_regions
from shared.supply.model import parse_regions
from shared.supply.rules import assign_region

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
