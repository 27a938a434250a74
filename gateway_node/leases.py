"""Connections held on endpoints: taken and given back in Redis, kept alive by a heartbeat, reaped from gateways that died.

Giving back and reporting never block the byte path; what Redis could not take waits here and is sent again. An answer that
was lost after Redis acted leaves a place held for nobody: what is held is compared now and then with what is known here.
"""

from __future__ import annotations

import asyncio
import logging
from collections import Counter, deque
from collections.abc import Callable, Sequence
from functools import partial
from itertools import count
from typing import Any, Final

from gateway_node.buyer import Buyer
from gateway_node.fared import FaredBook, digest
from shared.grading.live import count_conduct, report_fault
from shared.kernel.codes import Pool
from shared.kernel.ids import AccountId, DeviceId, EndpointId, GatewayId, PakId
from shared.pool import live
from shared.pool.model import Acquired, NoStock, NoStockReason, Route
from shared.pool.sessions import close_session, count_sessions, has_session
from shared.runtime.dynamo import StoreUnavailable
from shared.runtime.redis import AsyncRedis, RedisCall

BEAT_S: Final = 10.0
RETRY_S: Final = 1.0
GATHER_S: Final = 0.005
"""What ends within this time is given back in one call."""
RELEASE_BATCH: Final = 500
WAITING_MAX: Final = 100_000
FARED_BATCH: Final = 500
COMPARE_EVERY_BEATS: Final = 3

Hold = tuple[EndpointId, PakId]

log = logging.getLogger("psx.gateway")


class Leases:
    """This gateway's hold on endpoints."""

    def __init__(self, redis: AsyncRedis, gateway_id: GatewayId, now_ms: Callable[[], int]) -> None:
        self.redis = redis
        self.fared = FaredBook()
        self._gateway_id = gateway_id
        self._now_ms = now_ms
        self._waiting: deque[tuple[RedisCall[Any], Callable[[Any], None] | None]] = deque(maxlen=WAITING_MAX)
        self._held: dict[Pool, Counter[Hold]] = {pool: Counter() for pool in Pool}
        self._returned: dict[Pool, Counter[Hold]] = {pool: Counter() for pool in Pool}
        self._excess: dict[Pool, Counter[Hold]] = {pool: Counter() for pool in Pool}
        self._wake = asyncio.Event()

    async def acquire(
        self,
        buyer: Buyer,
        pool: Pool,
        excluded: Sequence[EndpointId] = (),
        *,
        has_many: bool = False,
        away: Sequence[str] = (),
    ) -> Acquired | NoStock:
        """Hold one connection on an endpoint that matches. `has_many`, `away`: as `Selection.acquire` has them."""
        selection = buyer.selection(pool, self._gateway_id)
        call = selection.acquire(self._now_ms(), excluded, has_many=has_many, away=away)
        acquired = await self.redis.run(call, partial(self._unheard, buyer.pak_id))
        if isinstance(acquired, NoStock):
            return acquired
        self._held[pool][acquired.endpoint.endpoint_id, buyer.pak_id] += 1
        if acquired.sessions:
            try:
                if await self._is_one_too_many(acquired.sessions, buyer, pool):
                    self.give_back(acquired, buyer.pak_id)
                    return NoStock(0, NoStockReason.SESSIONS)
            except BaseException:
                self.give_back(acquired, buyer.pak_id)
                raise
        return acquired

    async def _is_one_too_many(self, sessions: int, buyer: Buyer, pool: Pool) -> bool:
        """Whether the session that just began here exceeds what its owner may have over all pools; it ends again then."""
        owner, now_ms = AccountId(buyer.owner), self._now_ms()
        for other in Pool:
            if other is not pool:
                sessions += await self.redis.run(count_sessions(other, owner, now_ms))
        if sessions <= live.SESSIONS_MAX:
            return False
        session_id = buyer.route.session_id or ""
        await self.redis.run(close_session(pool, owner, buyer.pak_id, session_id, now_ms))
        return True

    async def pools_of(self, route: Route, pak_id: PakId) -> tuple[Pool, ...]:
        """The pools of a route in their order, but first the one that has its session: that one pins its device."""
        if route.session_id is not None:
            for pool in route.pools[1:]:
                if await self.redis.run(has_session(pool, pak_id, route.session_id)):
                    return (pool, *(p for p in route.pools if p is not pool))
        return route.pools

    def _unheard(self, pak_id: PakId, acquired: Acquired | NoStock) -> None:
        """The customer left while the answer was on its way: it is held all the same."""
        if isinstance(acquired, Acquired):
            self._held[acquired.endpoint.pool][acquired.endpoint.endpoint_id, pak_id] += 1
            self.give_back(acquired, pak_id)

    def give_back(self, acquired: Acquired, pak_id: PakId) -> None:
        """The connection ended."""
        endpoint = acquired.endpoint
        self._returned[endpoint.pool][endpoint.endpoint_id, pak_id] += 1
        self._wake.set()

    def report(self, acquired: Acquired, *, suspect: bool) -> None:
        """The exit failed a customer: have it probed next. A stream that broke may be the target's doing or the last
        word of a careless close, so only an exit that is plainly suspect is kept from others until the probe has spoken;
        others are probed for it once in a while.
        """
        endpoint = acquired.endpoint
        if suspect:
            self._later(live.trip(endpoint.pool, endpoint.endpoint_id))
        self._later(report_fault(DeviceId(endpoint.endpoint_id), doubtful=not suspect))

    def report_suspect(self, acquired: Acquired) -> None:
        """Several customers speak against it: kept from others until a probe has spoken, if one is due now. An exit that
        passed such probes again and again is believed, until more customers than these say otherwise.
        """
        endpoint = acquired.endpoint
        trip = live.trip(endpoint.pool, endpoint.endpoint_id)

        def asked(is_due: bool) -> None:
            if is_due:
                self._later(trip)

        self._later(report_fault(DeviceId(endpoint.endpoint_id)), asked)

    def report_target(self, acquired: Acquired, owner: str, host: str) -> None:
        """A target was not reached through this exit and was through another one. Several of several owners are the
        exit's fault for sure.
        """
        endpoint = acquired.endpoint
        about = live.Doubt(digest(owner), digest(host))

        def told(is_enough: bool) -> None:
            if is_enough:
                self.report_suspect(acquired)

        self._later(live.suspect(endpoint.pool, endpoint.endpoint_id, about), told)
        self.doubt(DeviceId(endpoint.endpoint_id))

    def doubt(self, device_id: DeviceId) -> None:
        """An exit, or the target that it was to reach, is slow or does not answer: have it probed, once in a while."""
        self._later(report_fault(device_id, doubtful=True))

    def path_lost(self, device_id: DeviceId) -> None:
        """A peer with open tunnels is gone and not back: have it probed next."""
        self._later(report_fault(device_id))

    def _later(self, call: RedisCall[Any], then: Callable[[Any], None] | None = None) -> None:
        self._waiting.append((call, then))
        self._wake.set()

    async def run(self) -> None:
        """Send what waits, until cancelled."""
        while True:
            await self._wake.wait()
            await asyncio.sleep(GATHER_S)
            self._wake.clear()
            await self.drain()

    async def drain(self) -> None:
        """Send everything that waits now: what is given back in one call per pool, the rest one by one."""
        for pool, returned in self._returned.items():
            held = [(endpoint_id, pak_id, n) for (endpoint_id, pak_id), n in returned.items()]
            returned.clear()
            for start in range(0, len(held), RELEASE_BATCH):
                part = held[start : start + RELEASE_BATCH]
                release = live.release(pool, self._gateway_id, part)
                self._waiting.append((release, partial(self._released, pool, part)))
        while self._waiting:
            call, then = self._waiting.popleft()
            try:
                answer = await self.redis.run(call)
            except StoreUnavailable:
                self._waiting.appendleft((call, then))
                await asyncio.sleep(RETRY_S)
                continue
            if then is not None:
                then(answer)

    def _released(self, pool: Pool, holds: Sequence[tuple[EndpointId, PakId, int]], _: Any) -> None:
        held = self._held[pool]
        for endpoint_id, pak_id, given in holds:
            held[endpoint_id, pak_id] -= given
            if held[endpoint_id, pak_id] <= 0:
                del held[endpoint_id, pak_id]

    async def compare(self) -> None:
        """Give back what Redis holds for this gateway and nobody here has, twice in a row. Raises StoreUnavailable."""
        for pool in Pool:
            found = await self.redis.run(live.held(pool, self._gateway_id))
            before = self._excess[pool]
            excess = Counter({(e, p): n for e, p, n in self._beyond_ours(pool, found)})
            lost = [(e, p, min(n, before[e, p])) for (e, p), n in excess.items() if before[e, p]]
            self._excess[pool] = Counter() if lost else excess
            if lost:
                log.warning("answers were lost, places given back", extra={"endpoints": len(lost)})
                await self.redis.run(live.release(pool, self._gateway_id, lost))

    def _beyond_ours(
        self, pool: Pool, found: Sequence[tuple[EndpointId, PakId, int]]
    ) -> list[tuple[EndpointId, PakId, int]]:
        """What Redis holds for this gateway beyond what is known here."""
        here = self._held[pool]
        return [(e, p, n - here[e, p]) for e, p, n in found if n > here[e, p]]

    async def beat_for_ever(self) -> None:
        """Say that this gateway lives, and give back what dead ones still hold."""
        fresh = True
        for beat in count(1):
            try:
                if fresh:
                    await self._own_leftovers()
                    fresh = False
                for pool in Pool:
                    for call in live.beat(pool, self._gateway_id):
                        await self.redis.run(call)
                    for gateway_id in await self.redis.run(live.gateways(pool)):
                        if gateway_id != self._gateway_id:
                            await self._reap(pool, gateway_id)
                if beat % COMPARE_EVERY_BEATS == 0:
                    await self.compare()
                await self.tell_fared()
            except StoreUnavailable as error:
                log.warning("heartbeat missed", extra={"reason": str(error)})
            await asyncio.sleep(BEAT_S)

    async def tell_fared(self) -> None:
        """Tell all gateways' count how customers fared here. What a Redis that is away misses is lost: it is no money."""
        while told := self.fared.take(FARED_BATCH):
            await self.redis.run(count_conduct(told))

    async def _own_leftovers(self) -> None:
        """A restart under the same id: what the last life held is not real any more. What this one has taken meanwhile is;
        answers come in order, so whatever Redis counted before it told is known here.
        """
        for pool in Pool:
            found = await self.redis.run(live.held(pool, self._gateway_id))
            left = self._beyond_ours(pool, found)
            for start in range(0, len(left), RELEASE_BATCH):
                part = left[start : start + RELEASE_BATCH]
                await self.redis.run(live.release(pool, self._gateway_id, part))

    async def _reap(self, pool: Pool, gateway_id: GatewayId) -> None:
        held = await self.redis.run(live.leftover(pool, gateway_id))
        if held:
            await self.redis.run(live.release(pool, gateway_id, held))
            log.info("reaped", extra={"gateway": gateway_id, "entries": len(held)})
