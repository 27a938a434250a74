"""Domains that operators closed: the setting `domains`, followed, so that a name is closed everywhere within seconds,
also to tunnels that are open.

Before the first word nothing is closed; while the store is away what was known goes on to hold.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Iterable
from typing import Final, Protocol

from shared.guard.table import read_setting
from shared.runtime.dynamo import AsyncDynamo, StoreUnavailable
from shared.wire.egress import is_blocked_domain, parse_domains

SETTING: Final = "domains"
FOLLOW_EVERY_S: Final = 5.0

log = logging.getLogger("psx.gateway")


class OpenTunnel(Protocol):
    """A tunnel and what it was asked to lead to."""

    host: str

    def cut(self) -> None: ...


class BlockedDomains:
    """The domains that are closed now. `open_tunnels` are looked through when that changes."""

    def __init__(
        self,
        dynamo: AsyncDynamo,
        guard_table: str,
        open_tunnels: Callable[[], Iterable[OpenTunnel]] = tuple,
    ) -> None:
        self._dynamo = dynamo
        self._table = guard_table
        self._open_tunnels = open_tunnels
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
            blocked = parse_domains(value or {"blocked": []})
        except (StoreUnavailable, ValueError) as error:
            log.warning("blocked domains not read", extra={"reason": str(error)})
            return
        added, self._now = blocked - self._now, blocked
        if added:
            for tunnel in list(self._open_tunnels()):
                if is_blocked_domain(tunnel.host, added):
                    tunnel.cut()
