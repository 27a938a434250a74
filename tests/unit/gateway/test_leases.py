"""A gateway tells others that it lives as soon as it can."""

import asyncio
from typing import Any

import pytest

from gateway_node import leases
from gateway_node.leases import Leases
from shared.kernel.codes import Pool
from shared.kernel.ids import EndpointId, GatewayId, PakId
from shared.runtime.dynamo import StoreUnavailable


class Away:
    """A Redis that is away at first."""

    def __init__(self) -> None:
        self.calls = 0

    async def run(self, call: Any) -> list[Any]:
        self.calls += 1
        if self.calls == 1:
            raise StoreUnavailable("away")
        return []


async def test_a_gateway_that_starts_without_redis_lives_for_others_once_it_is_back(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(leases, "BEAT_S", 0.001)
    redis: Any = Away()
    beating = asyncio.create_task(Leases(redis, GatewayId("g"), lambda: 0).beat_for_ever())
    async with asyncio.timeout(1):
        while redis.calls < 10:
            await asyncio.sleep(0.001)
    beating.cancel()


class Holding:
    """A Redis that knows what this gateway holds."""

    def __init__(self, held: list[tuple[EndpointId, PakId, int]]) -> None:
        self.held = held
        self.released: list[tuple[str, ...]] = []

    async def run(self, call: Any) -> Any:
        if call.script is None:
            return self.held
        self.released.append(tuple(str(argument) for argument in call.args))
        return None


async def test_what_a_gateway_took_before_its_first_beat_is_no_leftover() -> None:
    endpoint, pak = EndpointId("m1"), PakId("k")
    redis: Any = Holding([(endpoint, pak, 5)])
    here = Leases(redis, GatewayId("g"), lambda: 0)
    for pool in Pool:
        here._held[pool][endpoint, pak] = 5
    await here._own_leftovers()
    assert redis.released == []
    here._held[Pool.MBL][endpoint, pak] = 2
    await here._own_leftovers()
    assert len(redis.released) == 1
    assert "3" in redis.released[0]
