"""A gateway tells others that it lives as soon as it can."""

import asyncio
from typing import Any

import pytest

from gateway_node import leases
from gateway_node.leases import Leases
from shared.kernel.ids import GatewayId
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
