"""Domains that operators closed: the setting `domains`, followed, so that a name is closed everywhere within seconds.

Before the first word nothing is closed; while the store is away what was known goes on to hold.
"""

from __future__ import annotations

import asyncio
import logging
from typing import Final

from shared.guard.table import read_setting
from shared.runtime.dynamo import AsyncDynamo, StoreUnavailable
from shared.wire.egress import is_blocked_domain, parse_domains

SETTING: Final = "domains"
FOLLOW_EVERY_S: Final = 5.0

log = logging.getLogger("psx.gateway")


class BlockedDomains:
    """The domains that are closed now."""

    def __init__(self, dynamo: AsyncDynamo, guard_table: str) -> None:
        self._dynamo = dynamo
        self._table = guard_table
        self._now: frozenset[str] = frozenset()

    def covers(self, host: str) -> bool:
        """Whether a target's name is closed."""
        return is_blocked_domain(host, self._now)

    async def follow(self) -> None:
        """Read the setting for ever."""
        while True:
            await self.read()
            await asyncio.sleep(FOLLOW_EVERY_S)

    async def read(self) -> None:
        """Take over what the operator said, if it can be understood."""
        try:
            value = await self._dynamo.run(read_setting(self._table, SETTING))
            self._now = parse_domains(value or {"blocked": []})
        except (StoreUnavailable, ValueError) as error:
            log.warning("blocked domains not read", extra={"reason": str(error)})
