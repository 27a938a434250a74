"""A key that ends while something else is going on ends all the same; a store that is away ends none."""

import asyncio
from collections.abc import AsyncIterator
from dataclasses import replace
from types import SimpleNamespace
from typing import Any, cast

import pytest

from gateway_node import revocation
from gateway_node.auth import Authenticator
from shared.access.model import Pak, Quality
from shared.access.secrets import SecretBox
from shared.kernel.codes import IpType, Pool, Refusal
from shared.kernel.ids import AccountId, PakId
from shared.runtime.dynamo import StoreUnavailable

BOX = SecretBox(bytes(32), bytes(32))
ACCOUNT, KEY = AccountId("psx_a"), PakId("k")
PAK = Pak(
    KEY,
    ACCOUNT,
    "",
    BOX.hash("s"),
    BOX.seal("s", KEY),
    None,
    0,
    True,
    None,
    None,
    Quality.STANDARD,
    True,
    0,
    0,
)


class Store:
    """A table with one key; a read of it sees what it is now and answers when `gate` lets it."""

    def __init__(self) -> None:
        self.pak, self.gate, self.away = PAK, asyncio.Event(), False
        self.gate.set()
        self.reads = 0

    async def run(self, request: Any) -> Any:
        if "secret#" in str(request.params["Key"]):
            return KEY
        self.reads += 1
        seen = self.pak
        await self.gate.wait()
        if self.away:
            raise StoreUnavailable("away")
        return seen


async def met(pak: Pak) -> None:
    """No meter here."""


def authenticator(store: Store) -> Authenticator:
    return Authenticator(store, "t", BOX, asyncio.get_running_loop().time, lambda: 1, met)  # type: ignore[arg-type]


class Tunnels:
    """A meter with one open tunnel of the key."""

    def __init__(self) -> None:
        self.cuts = 0
        self.pak = PAK
        self.acquired = SimpleNamespace(endpoint=SimpleNamespace(pool=Pool.PEER, ip_type=IpType.MOBILE))

    def cut(self) -> None:
        self.cuts += 1

    def open_tunnels(self, pak_id: PakId) -> list[Any]:
        return [self] if pak_id == KEY else []


async def test_a_key_that_ends_while_it_is_read_is_read_again() -> None:
    store = Store()
    auth = authenticator(store)
    store.gate.clear()
    asked = asyncio.create_task(auth.authenticate(ACCOUNT, "s", "192.0.2.1"))
    while not store.reads:
        await asyncio.sleep(0)
    store.pak = replace(PAK, enabled=False)
    changed = asyncio.create_task(auth.recheck(KEY))
    await asyncio.sleep(0)
    store.gate.set()
    assert await changed is None
    assert await asked is Refusal.AUTH_INVALID
    assert await auth.authenticate(ACCOUNT, "s", "192.0.2.1") is Refusal.AUTH_INVALID


async def test_a_key_that_ended_since_it_was_let_in_is_not_confirmed() -> None:
    store = Store()
    auth = authenticator(store)
    pak = await auth.authenticate(ACCOUNT, "s", "192.0.2.1")
    assert isinstance(pak, Pak)
    assert await auth.confirm(pak) == PAK
    assert store.reads == 1
    store.pak = replace(PAK, enabled=False)
    await auth.recheck(KEY)
    assert await auth.confirm(pak) is Refusal.AUTH_INVALID


@pytest.mark.parametrize(
    ("now", "cuts"),
    [
        (replace(PAK, label="new"), 0),
        (replace(PAK, quality=Quality.SAFE), 1),
        (replace(PAK, ip_type="mobile"), 0),
        (replace(PAK, ip_type="residential"), 1),
    ],
)
async def test_an_open_tunnel_ends_when_its_key_may_no_longer_have_such_an_exit(now: Pak, cuts: int) -> None:
    store, meter = Store(), Tunnels()
    store.pak = now
    await revocation._recheck(authenticator(store), cast(Any, meter), KEY)
    assert meter.cuts == cuts


async def test_a_change_that_cannot_be_read_in_time_cuts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(revocation, "RECHECK_MAX_S", 0.02)
    store, meter = Store(), Tunnels()
    store.gate.clear()

    async def messages(channel: str) -> AsyncIterator[tuple[str, str]]:
        yield "", ""
        yield channel, "another"  # whose read does not come back either, and holds up nobody
        yield channel, KEY
        await asyncio.Event().wait()

    redis: Any = SimpleNamespace(messages=messages)
    follower = asyncio.create_task(revocation.follow_revocations(redis, authenticator(store), meter))  # type: ignore[arg-type]
    async with asyncio.timeout(1):
        while not meter.cuts:
            await asyncio.sleep(0.005)
    follower.cancel()


async def test_a_sweep_cuts_what_ended_and_nothing_because_the_store_is_away() -> None:
    store, meter = Store(), Tunnels()
    auth: Any = authenticator(store)
    store.away = True
    await revocation.sweep_keys(auth, meter, [KEY])  # type: ignore[arg-type]
    assert meter.cuts == 0
    store.away, store.pak = False, replace(PAK, enabled=False)
    await revocation.sweep_keys(auth, meter, [KEY])  # type: ignore[arg-type]
    assert meter.cuts == 1
