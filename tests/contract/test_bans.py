"""Failed authentications count over all gateways, on a real server."""

from collections.abc import AsyncIterator
from typing import Any, cast

import pytest
import pytest_asyncio

from gateway_node.auth import ADDRESS_BANS, Authenticator
from shared.access.model import Pak
from shared.access.secrets import SecretBox
from shared.kernel.codes import Refusal
from shared.kernel.ids import AccountId
from shared.runtime.clock import now_ms
from shared.runtime.dynamo import StoreUnavailable
from shared.runtime.redis import AsyncRedis

pytestmark = pytest.mark.slow
FAILURES = min(ADDRESS_BANS)[0]


class Nobody:
    """A store that knows no key."""

    async def run(self, request: Any) -> None:
        return None


class Away:
    """A Redis that does not answer."""

    async def run(self, call: Any) -> Any:
        raise StoreUnavailable("redis: away")


def gateway(redis: Any) -> Authenticator:
    async def met(pak: Pak) -> None: ...

    box = SecretBox(bytes(32), bytes(32))
    return Authenticator(cast(Any, Nobody()), "t", box, lambda: 0.0, now_ms, met, redis=redis)


async def attempt(by: Authenticator, address: str, account: str = "psx_a") -> Any:
    return await by.authenticate(AccountId(account), "pak_wrong", address)


@pytest_asyncio.fixture
async def redis(any_valkey_url: str) -> AsyncIterator[AsyncRedis]:
    executor = AsyncRedis(any_valkey_url)
    yield executor
    await executor.close()


async def test_an_address_has_its_failures_over_all_gateways(redis: AsyncRedis) -> None:
    gateways = [gateway(redis) for _ in range(FAILURES)]
    for number, one in enumerate(gateways):
        assert await attempt(one, "192.0.2.1", f"psx_{number}") is Refusal.AUTH_INVALID
    assert await attempt(gateways[-1], "192.0.2.1") is Refusal.RATE_LIMITED_AUTH, "it counted the tenth"
    assert await attempt(gateways[0], "192.0.2.1") is Refusal.AUTH_INVALID, "it learns by its next one"
    assert await attempt(gateways[0], "192.0.2.1") is Refusal.RATE_LIMITED_AUTH
    assert await attempt(gateways[0], "192.0.2.2") is Refusal.AUTH_INVALID


async def test_without_redis_each_gateway_counts_its_own() -> None:
    alone = gateway(Away())
    answers = [await attempt(alone, "192.0.2.1") for _ in range(FAILURES + 1)]
    assert answers == [Refusal.AUTH_INVALID] * FAILURES + [Refusal.RATE_LIMITED_AUTH]
