"""Room for connections: how many each owner has open here, within what all gateways may have together.

A place that is leased already costs nothing. One ask is under way per owner at a time, for all that wait. What was not used
for two looks is given back, so whoever finds no place waits that long, once, for what others hold unused.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Sequence
from functools import partial
from typing import Final

from shared.kernel.ids import GatewayId
from shared.pool.places import SPARE_PLACES, hold_places
from shared.runtime.dynamo import StoreUnavailable
from shared.runtime.redis import AsyncRedis

RENEW_EVERY_S: Final = 5.0
GIVE_BACK_EVERY_S: Final = 0.25
WAIT_FOR_OTHERS_S: Final = 3 * GIVE_BACK_EVERY_S
MANY_CONNECTIONS: Final = 100
"""Of one owner on this gateway; whoever has more leaves the last place of an exit to others."""
WAITING_MAX: Final = 64
"""Of one owner; beyond it refusals come at once."""
RENEWED_AT_ONCE: Final = 100

log = logging.getLogger("psx.gateway")


class _Owner:
    """`wanted` are open ones and those that wait, `peak` the most of them at once since the last look; `full` is whether
    the last answer was less than what was asked for."""

    __slots__ = ("asking", "full", "held", "open", "peak", "waiting", "wanted")

    def __init__(self) -> None:
        self.open = self.wanted = self.peak = self.held = self.waiting = 0
        self.full = False
        self.asking: asyncio.Task[None] | None = None


class Places:
    """Connections of this gateway's customers."""

    def __init__(self, redis: AsyncRedis, gateway_id: GatewayId) -> None:
        self._redis = redis
        self._gateway_id = gateway_id
        self._owners: dict[str, _Owner] = {}

    def open_of(self, name: str) -> int:
        """How many an owner has open here."""
        owner = self._owners.get(name)
        return owner.open if owner else 0

    def has_many(self, name: str) -> bool:
        """Whether an owner has so many open here that it has to leave room to others."""
        return self.open_of(name) > MANY_CONNECTIONS

    async def take(self, name: str) -> bool:
        """A place, until `give`; False when the owner has all of its places. Raises StoreUnavailable."""
        owner = self._owners.get(name)
        if owner is None:
            owner = self._owners[name] = _Owner()
        owner.wanted += 1
        owner.peak = max(owner.peak, owner.wanted)
        taken = waited = False
        try:
            while owner.open >= owner.held:
                await asyncio.shield(self._ask(name, owner, SPARE_PLACES))
                if owner.full and owner.open >= owner.held:
                    if waited or owner.waiting >= WAITING_MAX:
                        return False
                    waited = await self._wait_for_others(owner)
            owner.open += 1
            taken = True
        finally:
            if not taken:
                owner.wanted -= 1
        return True

    async def _wait_for_others(self, owner: _Owner) -> bool:
        owner.waiting += 1
        try:
            await asyncio.sleep(WAIT_FOR_OTHERS_S)
        finally:
            owner.waiting -= 1
        return True

    def give(self, name: str) -> None:
        """A connection ended."""
        owner = self._owners[name]
        owner.open -= 1
        owner.wanted -= 1

    def _ask(self, name: str, owner: _Owner, spare: int, least: int = 0) -> asyncio.Task[None]:
        if owner.asking is None:
            owner.asking = asyncio.get_running_loop().create_task(self._hold(name, owner, spare, least))
            owner.asking.add_done_callback(_heard)
        return owner.asking

    async def _hold(self, name: str, owner: _Owner, spare: int, least: int) -> None:
        try:
            needed = max(owner.wanted, least)
            owner.held = await self._redis.run(hold_places(name, self._gateway_id, needed, owner.open, spare))
            owner.full = owner.held < needed
        finally:
            owner.asking = None

    async def run(self) -> None:
        """Renew what is held and give back what is not needed, until cancelled."""
        loop = asyncio.get_running_loop()
        renewed_s = loop.time()
        while True:
            await asyncio.sleep(GIVE_BACK_EVERY_S)
            try:
                if loop.time() - renewed_s >= RENEW_EVERY_S:
                    renewed_s = loop.time()
                    await self.renew()
                else:
                    await self.give_back()
            except StoreUnavailable as error:
                log.warning("places not renewed", extra={"reason": str(error)})

    async def renew(self) -> None:
        """Hold exactly what is needed. Raises StoreUnavailable."""
        await _in_turns([partial(self._renew, name) for name in self._owners])

    async def give_back(self) -> None:
        """Give back what nobody needed since the last look, where that is much. Raises StoreUnavailable."""
        asks = []
        for name, owner in self._owners.items():
            if owner.held - owner.peak > SPARE_PLACES:
                asks.append(partial(self._ask, name, owner, 0, owner.peak))
            owner.peak = owner.wanted
        await _in_turns(asks)

    async def _renew(self, name: str) -> None:
        owner = self._owners[name]
        await self._ask(name, owner, 0)
        if not owner.wanted and owner.asking is None:
            del self._owners[name]


async def _in_turns(asks: Sequence[Callable[[], Awaitable[None]]]) -> None:
    for start in range(0, len(asks), RENEWED_AT_ONCE):
        await asyncio.gather(*(ask() for ask in asks[start : start + RENEWED_AT_ONCE]))


def _heard(asked: asyncio.Task[None]) -> None:
    """Whoever waited knows what went wrong; they may all have left."""
    if not asked.cancelled():
        asked.exception()
