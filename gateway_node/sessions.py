"""Named sessions on this gateway: what they carried is told every 2 s, and those that were closed lose their tunnels.

A closing is pushed, and stands in Redis for an hour for whoever missed the push. A tunnel that was still being opened when
its session was closed is cut as it opens.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final

from gateway_node.tunnel import Tunnel
from shared.kernel.codes import Pool
from shared.pool.model import Route
from shared.pool.sessions import CLOSED, SessionFacts, closings, closings_of, tell_sessions
from shared.runtime.dynamo import StoreUnavailable
from shared.runtime.redis import AsyncRedis

TELL_EVERY_S: Final = 2.0
TOLD_AT_ONCE_MAX: Final = 200
RESUBSCRIBE_S: Final = 1.0
HEARD_KEPT_MS: Final = 60_000
HEARD_MAX: Final = 10_000
UNTOLD_MAX: Final = 100_000
"""Sessions whose facts wait for Redis; beyond it they are forgotten: they are for show, not for bills."""

log = logging.getLogger("psx.gateway")


@dataclass(slots=True)
class _Counted:
    """What of a tunnel was told."""

    session: SessionFacts | None
    began_ms: int
    lease_id: str = ""
    requests: int = 0
    up: int = 0
    down: int = 0


class SessionKeeper:
    """Sessions of this gateway's tunnels."""

    def __init__(self, redis: AsyncRedis, now_ms: Callable[[], int]) -> None:
        self._redis = redis
        self._now_ms = now_ms
        self._open: dict[Tunnel, _Counted] = {}
        self._untold: dict[tuple[Pool, str, str], SessionFacts] = {}
        self._heard: dict[str, int] = {}

    def opened(self, tunnel: Tunnel, route: Route, began_ms: int) -> None:
        """A tunnel begins, asked for at `began_ms`; without a session id it belongs to no named session."""
        facts = None
        if route.session_id is not None:
            pool, pak_id = tunnel.acquired.endpoint.pool, tunnel.pak.pak_id
            where = (pool, pak_id, route.session_id)
            facts = self._untold.get(where)
            if facts is None and len(self._untold) < UNTOLD_MAX:
                facts = SessionFacts(pool, pak_id, route.session_id, route.rotation.value)
                self._untold[where] = facts
        kind, pinned = route.pin or ("", "")
        self._open[tunnel] = counted = _Counted(facts, began_ms, pinned if kind == "lease" else "")
        if self._heard and any(self._heard.get(name, -1) >= began_ms for name in _names(tunnel, counted)):
            asyncio.get_running_loop().call_soon(tunnel.cut)

    def closed(self, tunnel: Tunnel) -> None:
        """A tunnel ended: its last bytes are its session's."""
        counted = self._open.pop(tunnel, None)
        if counted is not None:
            self._count(tunnel, counted)

    def _count(self, tunnel: Tunnel, counted: _Counted) -> None:
        facts = counted.session
        if facts is None:
            return
        where = (facts.pool, facts.pak_id, facts.session_id)
        facts = self._untold.setdefault(where, facts)
        facts.requests += tunnel.requests - counted.requests
        facts.up_bytes += tunnel.flushed_up - counted.up
        facts.down_bytes += tunnel.flushed_down - counted.down
        counted.requests, counted.up, counted.down = tunnel.requests, tunnel.flushed_up, tunnel.flushed_down

    # telling

    async def run(self) -> None:
        """Tell Redis what sessions carried, until cancelled."""
        while True:
            await asyncio.sleep(TELL_EVERY_S)
            with contextlib.suppress(StoreUnavailable):  # it waits for the next time
                await self.tell()

    async def tell(self) -> None:
        """Everything that was carried since the last time."""
        for tunnel, counted in self._open.items():
            self._count(tunnel, counted)
        for pool in Pool:
            some = [facts for facts in self._untold.values() if facts.pool is pool and facts.anything]
            for start in range(0, len(some), TOLD_AT_ONCE_MAX):
                part = some[start : start + TOLD_AT_ONCE_MAX]
                sent = [facts.copy() for facts in part]
                await self._redis.run(tell_sessions(pool, sent, self._now_ms()))
                for facts, told in zip(part, sent, strict=True):
                    facts.less(told)
        live = {
            (c.session.pool, c.session.pak_id, c.session.session_id) for c in self._open.values() if c.session
        }
        for where, facts in list(self._untold.items()):
            if not facts.anything and where not in live:
                del self._untold[where]

    # closings

    async def follow(self) -> None:
        """Hear of closed sessions and cut their tunnels; look for missed ones after a lost subscription."""
        while True:
            try:
                async for channel, name in self._redis.messages(CLOSED):
                    if channel:
                        self.hear(name, self._now_ms())
                    else:
                        await self._look_for_missed()
            except StoreUnavailable as error:
                log.warning("closings not heard", extra={"reason": str(error)})
            await asyncio.sleep(RESUBSCRIBE_S)

    def hear(self, name: str, at_ms: int) -> None:
        """Everything under a name was closed: cut what began before."""
        if len(self._heard) >= HEARD_MAX:
            self._heard = {n: at for n, at in self._heard.items() if at > at_ms - HEARD_KEPT_MS}
        self._heard[name] = at_ms
        for tunnel, counted in list(self._open.items()):
            if counted.began_ms <= at_ms and name in _names(tunnel, counted):
                tunnel.cut()

    async def _look_for_missed(self) -> None:
        for pool in Pool:
            opened = [(t, c) for t, c in self._open.items() if t.acquired.endpoint.pool is pool]
            names = sorted({name for tunnel, counted in opened for name in _names(tunnel, counted)})
            for start in range(0, len(names), TOLD_AT_ONCE_MAX):
                found = await self._redis.run(closings(pool, names[start : start + TOLD_AT_ONCE_MAX]))
                for name, at_ms in found.items():
                    self.hear(name, at_ms)


def _names(tunnel: Tunnel, counted: _Counted) -> Sequence[str]:
    """What a tunnel may be closed under."""
    pak, sid = tunnel.pak, counted.session.session_id if counted.session else None
    pool = tunnel.acquired.endpoint.pool
    return closings_of(pool, pak.account_id, pak.pak_id, sid, counted.lease_id)
