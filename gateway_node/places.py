"""Room for connections: how many each owner has open here, within what all gateways may have together.

A place that is leased already costs nothing. One ask is under way per owner at a time, for all that wait.
"""

from __future__ import annotations

import asyncio
import logging
from typing import Final

from shared.kernel.ids import GatewayId
from shared.pool.places import SPARE_PLACES, hold_places
from shared.runtime.dynamo import StoreUnavailable
from shared.runtime.redis import AsyncRedis

RENEW_EVERY_S: Final = 5.0
RENEWED_AT_ONCE: Final = 100

log = logging.getLogger("psx.gateway")


class _Owner:
    """`wanted` are open ones and those that wait; `full` is whether the last answer was less than what was asked for."""

    __slots__ = ("asking", "full", "held", "open", "wanted")

    def __init__(self) -> None:
        self.open = self.wanted = self.held = 0
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

    async def take(self, name: str) -> bool:
        """A place, until `give`; False when the owner has all of its places. Raises StoreUnavailable."""
        owner = self._owners.get(name)
        if owner is None:
            owner = self._owners[name] = _Owner()
        owner.wanted += 1
        taken = False
        try:
            while owner.open >= owner.held:
                await asyncio.shield(self._ask(name, owner, SPARE_PLACES))
                if owner.full and owner.open >= owner.held:
                    return False
            owner.open += 1
            taken = True
        finally:
            if not taken:
                owner.wanted -= 1
        return True

    def give(self, name: str) -> None:
        """A connection ended."""
        owner = self._owners[name]
        owner.open -= 1
        owner.wanted -= 1

    def _ask(self, name: str, owner: _Owner, spare: int) -> asyncio.Task[None]:
        if owner.asking is None:
            owner.asking = asyncio.get_running_loop().create_task(self._hold(name, owner, spare))
            owner.asking.add_done_callback(_heard)
        return owner.asking

    async def _hold(self, name: str, owner: _Owner, spare: int) -> None:
        try:
            needed = owner.wanted
            owner.held = await self._redis.run(hold_places(name, self._gateway_id, needed, owner.open, spare))
            owner.full = owner.held < needed
        finally:
            owner.asking = None

    async def run(self) -> None:
        """Renew what is held and give back what is not needed, until cancelled."""
        while True:
            await asyncio.sleep(RENEW_EVERY_S)
            try:
                await self.renew()
            except StoreUnavailable as error:
                log.warning("places not renewed", extra={"reason": str(error)})

    async def renew(self) -> None:
        """Hold exactly what is needed. Raises StoreUnavailable."""
        names = list(self._owners)
        for start in range(0, len(names), RENEWED_AT_ONCE):
            await asyncio.gather(*(self._renew(name) for name in names[start : start + RENEWED_AT_ONCE]))

    async def _renew(self, name: str) -> None:
        owner = self._owners[name]
        await self._ask(name, owner, 0)
        if not owner.wanted and owner.asking is None:
            del self._owners[name]


def _heard(asked: asyncio.Task[None]) -> None:
    """Whoever waited knows what went wrong; they may all have left."""
    if not asked.cancelled():
        asked.exception()
