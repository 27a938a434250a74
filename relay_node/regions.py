"""Which region serves a country, as the operator last said: followed in Redis, so that a new region moves the fleet.

Before the first word, and while Redis is away, what was known goes on to hold.
"""

from __future__ import annotations

import asyncio
import logging
from typing import Final

from shared.runtime.dynamo import StoreUnavailable
from shared.runtime.redis import AsyncRedis
from shared.supply.live import read_regions
from shared.supply.model import Region, parse_regions
from shared.supply.rules import assign_region

FOLLOW_EVERY_S: Final = 5.0

log = logging.getLogger("psx.relay")


class RegionTable:
    """The regions that hold now."""

    def __init__(self, redis: AsyncRedis, first: tuple[Region, ...]) -> None:
        self.now = first
        self._redis = redis

    def elsewhere(self, country: str, region: str) -> str | None:
        """Where a device of a country belongs, as a URL, when that is not this region."""
        found = assign_region(country, self.now)
        return None if found.name == region else found.url

    async def follow(self) -> None:
        """Read the table for ever."""
        while True:
            await self.read()
            await asyncio.sleep(FOLLOW_EVERY_S)

    async def read(self) -> None:
        """Take over what the operator said, if it can be understood."""
        try:
            value = await self._redis.run(read_regions())
            if value:
                self.now = parse_regions(value)
        except (StoreUnavailable, ValueError) as error:
            log.warning("regions not read", extra={"reason": str(error)})
