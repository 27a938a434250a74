"""Failed attempts are limited per address, for a while; a store that hangs holds up no known key."""

import asyncio
from typing import Any, cast

import pytest

from gateway_node import auth
from gateway_node.auth import Authenticator, FailureLimiter
from shared.access.model import Pak, Quality
from shared.access.secrets import SecretBox
from shared.kernel.codes import Refusal
from shared.kernel.ids import AccountId, PakId
from shared.runtime.dynamo import StoreUnavailable


def test_ten_failures_in_a_minute_wait_half_a_minute_and_thirty_wait_five() -> None:
    now = [0.0]
    limiter = FailureLimiter(lambda: now[0])
    for _ in range(9):
        limiter.failed("a")
    assert not limiter.banned("a")
    limiter.failed("a")
    assert limiter.banned("a")
    assert not limiter.banned("b")
    now[0] = 30.0
    assert not limiter.banned("a")
    for _ in range(20):
        limiter.failed("a")
    now[0] = 300.0
    assert limiter.banned("a")
    now[0] = 331.0
    assert not limiter.banned("a")


def test_slow_failures_are_forgiven() -> None:
    now = [0.0]
    limiter = FailureLimiter(lambda: now[0])
    for _ in range(50):
        now[0] += 10
        limiter.failed("a")
    assert not limiter.banned("a")


def test_strangers_of_ever_new_addresses_use_up_no_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(auth, "TRACKED_MAX", 100)
    limiter = FailureLimiter(lambda: 0.0)
    for number in range(1000):
        for _ in range(10):
            limiter.failed(f"{number}")
    assert len(limiter._tracked) == 100
    assert limiter.banned("999"), "who failed last is remembered"
    assert not limiter.banned("0")


class Hangs:
    """A store that answers, hangs, or is away."""

    def __init__(self) -> None:
        self.asked = 0
        self.answers = asyncio.Event()
        self.answers.set()
        self.away = False

    async def run(self, request: Any) -> Any:
        self.asked += 1
        await self.answers.wait()
        if self.away:
            raise StoreUnavailable("away")
        return PakId("k") if self.asked % 2 else PAK


BOX = SecretBox(bytes(32), bytes(32))
PAK = Pak(
    PakId("k"), AccountId("a"), "", BOX.hash("s"), "", None, 0, True, None, None, Quality.STANDARD, True, 0, 0
)


async def test_a_known_key_goes_on_while_the_store_hangs_and_one_read_of_it_is_under_way(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(auth, "KNOWN_READ_MAX_S", 0.01)
    now, store = [0.0], Hangs()

    async def met(pak: Pak) -> None: ...

    here = Authenticator(cast(Any, store), "t", BOX, lambda: now[0], lambda: 1, met)

    async def asks() -> Pak | Refusal:
        return await here.authenticate(AccountId("a"), "s", "192.0.2.1")

    assert await asks() == PAK
    store.answers.clear()
    now[0] = auth.FRESH_S + 1
    asked = store.asked
    assert await asyncio.gather(*(asks() for _ in range(20))) == [PAK] * 20
    assert store.asked == asked + 1
    store.away = True
    store.answers.set()
    await asyncio.gather(*here._reading)
    now[0] = auth.STALE_MAX_S + 1
    with pytest.raises(StoreUnavailable):
        await asks()
