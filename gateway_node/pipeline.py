"""The way of every request, whatever transport it came by: authenticate, parse, check the target, select, dial, count.

Before the first byte a lost exit is replaced, within the customer's policy and a bound; after it nothing is replayed.
"""

from __future__ import annotations

import asyncio
import logging
import time
import uuid
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import Final, Protocol

from prometheus_client import Counter, Gauge

from gateway_node.auth import Authenticator
from gateway_node.dial import ExitDialer, ExitFailed, Fault
from gateway_node.leases import Leases
from gateway_node.lobby import Lobby
from gateway_node.meter import MeterService
from gateway_node.places import Places
from gateway_node.refusals import RefusedRequest
from gateway_node.resolve import Resolver, Target
from gateway_node.sessions import SessionKeeper
from gateway_node.tries import (
    EXIT_ATTEMPTS_MAX,
    MOVING_RETRIES_MAX,
    MOVING_RETRY_S,
    ONE_DEVICE,
    Doubts,
    Patience,
    wants_a_second_word,
)
from gateway_node.tunnel import ExitPath, Tunnel
from shared.access.model import Pak, Quality
from shared.kernel.codes import IpType, Pool, Refusal
from shared.kernel.ids import DeviceId, EndpointId
from shared.pool.live import SESSIONS_MAX
from shared.pool.model import Acquired, Failover, NoStock, NoStockReason, Route, Selected
from shared.pool.numbers import live_numbers, run_async
from shared.pool.places import CONNECTIONS_MAX
from shared.pool.username import UsernameMissing, parse_username
from shared.runtime.deadlines import Deadlines
from shared.runtime.dynamo import StoreUnavailable
from shared.wire.mux import MuxReason

OPEN_TOTAL_MAX_S: Final = 25.0
SLOW_OPEN_S: Final = 3.0
"""An exit that has not answered by then is probed while its customer goes on waiting: whoever comes next need not."""
BARREN_CUSTOMERS: Final = 2
"""So many different customers whose tunnels an exit accepted and closed without a byte make it suspect at once; one alone,
who may own the target, only has it probed.
"""
BARREN_KEPT: Final = 10_000

OPENED = Counter("psx_gateway_tunnels", "Tunnels opened", ["pool"])
REFUSED = Counter("psx_gateway_refused", "Requests refused", ["code"])
OPEN = Gauge("psx_gateway_open_tunnels", "Tunnels open now")
EXIT_FAULTS = Counter("psx_gateway_exit_faults", "Exits that failed a customer", ["reason"])

_OPENED_IN: Final = {pool: OPENED.labels(pool.value) for pool in Pool}

log = logging.getLogger("psx.gateway")


@dataclass(frozen=True, slots=True)
class Request:
    """What a customer asked for."""

    username: str
    password: str
    host: str
    port: int
    address: str
    socks: bool
    request_id: str

    @property
    def target(self) -> str:
        """Where it is to go."""
        return f"{self.host}:{self.port}"


@dataclass(frozen=True, slots=True)
class Outcome:
    """A tunnel to attach to, or a refusal; with what was healed in the username."""

    result: Tunnel | RefusedRequest
    corrections: tuple[str, ...] = ()


class Kept(Protocol):
    """A customer's connection that carries one request after the other."""

    def leave_when_idle(self) -> None:
        """No request may follow the one that is under way."""


class Pipeline:
    """Opens tunnels for customers."""

    def __init__(
        self,
        auth: Authenticator,
        resolver: Resolver,
        leases: Leases,
        dialer: ExitDialer,
        meter: MeterService,
        places: Places,
        now_ms: Callable[[], int],
        house_account: str = "",
        sessions: SessionKeeper | None = None,
    ) -> None:
        self._house_account = house_account
        self._auth = auth
        self._resolver = resolver
        self._leases = leases
        self._dialer = dialer
        self._meter = meter
        self._now_ms = now_ms
        self._sessions = sessions
        self._places = places
        self._barren: dict[EndpointId, set[str]] = {}
        self.opening = 0
        self.draining = False
        self.kept: set[Kept] = set()
        self.deadlines = Deadlines()
        self.lobby = Lobby()

    def drain(self) -> None:
        """Kept connections end with the request that is under way; those without one end now."""
        self.draining = True
        for kept in list(self.kept):
            kept.leave_when_idle()

    async def open(self, request: Request) -> Outcome:
        """Open a tunnel, or say why not. Never raises for anything a customer, an exit or a store can do."""
        try:
            route = parse_username(request.username)
        except UsernameMissing:
            return self._refuse(RefusedRequest(Refusal.USERNAME_PARSE, "the username is missing or too long"))
        self.opening += 1
        try:
            with self.deadlines.within(OPEN_TOTAL_MAX_S):
                result = await self._open(request, route)
        except StoreUnavailable:
            result = RefusedRequest(Refusal.INTERNAL, "temporarily unavailable, please retry")
        except TimeoutError:
            result = RefusedRequest(Refusal.STOCK_DEGRADED, "no exit opened the tunnel in time, please retry")
        except Exception:  # a fault of ours: the customer gets an answer, the log the whole story
            log.exception("request failed", extra={"request": request.request_id})
            result = RefusedRequest(Refusal.INTERNAL, "something went wrong here, please retry")
        finally:
            self.opening -= 1
        if isinstance(result, RefusedRequest):
            return self._refuse(result, route.corrections)
        stood_in = result.acquired.selected is Selected.INSTEAD_OF_PIN
        return Outcome(result, (*route.corrections, "pin=substituted") if stood_in else route.corrections)

    def _refuse(self, refused: RefusedRequest, corrections: tuple[str, ...] = ()) -> Outcome:
        REFUSED.labels(refused.code.value).inc()
        return Outcome(refused, corrections)

    async def _open(self, request: Request, route: Route) -> Tunnel | RefusedRequest:
        pak = await self._auth.authenticate(
            route.account_id, request.password, request.address, request.request_id
        )
        if isinstance(pak, Refusal):
            return RefusedRequest(pak, _AUTH_MESSAGES[pak])
        fault = self._standing(pak, request)
        if fault is not None:
            return fault
        owner = self._limited_as(pak)
        if not await self._places.take(owner):
            message = f"more than {CONNECTIONS_MAX} connections at once"
            return RefusedRequest(Refusal.RATE_LIMITED_CONN, message)
        opened = False
        try:
            target = await self._resolver.resolve(request.host, request.port, owner)
            if isinstance(target, RefusedRequest):
                return target
            result = await self._through_some_exit(request, lock_quality(route, pak), pak, target)
            if isinstance(result, RefusedRequest):
                return result
            opened, result.host = True, request.host
            closed = self._resolver.closed(request.host)  # it may have been since
            if closed is not None:
                result.cut()
            return closed or result
        finally:
            if not opened:
                self._places.give(owner)

    def _standing(self, pak: Pak, request: Request) -> RefusedRequest | None:
        if request.socks and not pak.socks_allowed:
            return RefusedRequest(Refusal.PROTOCOL_NOT_ALLOWED, "this key works on the HTTP port only")
        if self._meter.is_spent(pak.pak_id):
            return RefusedRequest(Refusal.CAP_EXCEEDED, _AUTH_MESSAGES[Refusal.CAP_EXCEEDED])
        if self._meter.overloaded():
            return RefusedRequest(Refusal.INTERNAL, "temporarily unavailable, please retry")
        self._meter.expect(pak)
        return None

    async def _through_some_exit(
        self, request: Request, route: Route, pak: Pak, target: Target
    ) -> Tunnel | RefusedRequest:
        excluded: list[EndpointId] = []
        doubts = Doubts(self._leases, self._limited_as(pak), target)
        began_ms = self._now_ms()
        patience, missing = Patience(), NoStockReason.STOCK
        attempts = 1 if route.failover in ONE_DEVICE else EXIT_ATTEMPTS_MAX
        while attempts:
            acquired = await self._acquire(route, pak, excluded)
            if isinstance(acquired, NoStock):
                missing = acquired.reason
                wait_s = None if doubts.verdict is not None else patience.until_stock(missing)
                if wait_s is None:
                    break
                if patience.moves:
                    excluded.clear()
                await asyncio.sleep(wait_s)
                continue
            away = self._resolver.away_from((acquired.exit_ip, acquired.endpoint.modem_host), target)
            if isinstance(away, RefusedRequest):  # its own address is nobody's fault
                self._leases.give_back(acquired, pak.pak_id)
                return away
            side = await self._dial(acquired, pak, away, request)
            if not isinstance(side, ExitFailed | RefusedRequest):
                doubts.are_the_exits()
                return await self._admit(request, pak, acquired, side, route, began_ms)
            self._leases.give_back(acquired, pak.pak_id)
            excluded.append(acquired.endpoint.endpoint_id)
            if isinstance(side, RefusedRequest):
                doubts.add(acquired)
                if doubts.verdict is not None or not wants_a_second_word(route, side):
                    return doubts.verdict or side
                doubts.verdict, attempts = side, 1
                continue
            EXIT_FAULTS.labels(side.reason if side.reason in _KNOWN_REASONS else "other").inc()
            if side.moving and patience.moves < MOVING_RETRIES_MAX:
                patience.moves += 1
                await asyncio.sleep(MOVING_RETRY_S if route.failover in ONE_DEVICE else 0)
                continue
            attempts -= 1
            if side.fault is Fault.EXIT:
                self._leases.report(acquired, suspect=True)
            else:
                doubts.add(acquired)
        if doubts:
            return doubts.answer()
        gone = RefusedRequest(Refusal.STOCK_DEGRADED, "the exits that were chosen went away, please retry")
        return gone if excluded else await self._no_stock(route, missing)

    async def _dial(
        self, acquired: Acquired, pak: Pak, target: Target, request: Request
    ) -> ExitPath | ExitFailed | RefusedRequest:
        device_id = DeviceId(acquired.endpoint.endpoint_id)
        slow = self.deadlines.call_after(SLOW_OPEN_S, partial(self._leases.doubt, device_id))
        began_s = time.monotonic()
        try:
            side = await self._dialer.open(acquired, target, request.request_id)
        except BaseException:
            self._leases.give_back(acquired, pak.pak_id)
            if time.monotonic() - began_s >= SLOW_OPEN_S:  # nobody waits for ever: the customer left
                self._fared(acquired, pak, request.target)
            raise
        finally:
            slow.cancel()
        if isinstance(side, RefusedRequest) or (isinstance(side, ExitFailed) and not side.moving):
            self._fared(acquired, pak, request.target)
        return side

    def _fared(self, acquired: Acquired, pak: Pak, failed_target: str = "") -> None:
        """A customer was served, or failed by what may be the exit as well as the target: others' word will tell."""
        self._leases.fared.note(acquired, pak.account_id, self._limited_as(pak), failed_target)

    async def _admit(
        self, request: Request, pak: Pak, acquired: Acquired, side: ExitPath, route: Route, began_ms: int
    ) -> Tunnel | RefusedRequest:
        """Let bytes through what was dialled, unless the key ended while it was."""
        current: Pak | Refusal | None = None
        try:
            current = await self._auth.confirm(pak)
        finally:
            if not isinstance(current, Pak):
                side.cut()
                self._leases.give_back(acquired, pak.pak_id)
        if isinstance(current, Refusal):
            return RefusedRequest(current, _AUTH_MESSAGES[current])
        return self._opened(request, current, acquired, side, route, began_ms)

    async def _acquire(self, route: Route, pak: Pak, excluded: list[EndpointId]) -> Acquired | NoStock:
        if route.unusable:
            return NoStock(0, NoStockReason.UNUSABLE)
        if route.pin is not None and len(route.pools) > 1 and route.failover is not Failover.STRICT:
            # Whichever pool has what is pinned comes before a stand-in from either.
            pinned = await self._from_pools(replace(route, failover=Failover.STRICT), pak, excluded)
            if isinstance(pinned, Acquired):
                return pinned
        return await self._from_pools(route, pak, excluded)

    async def _from_pools(self, route: Route, pak: Pak, excluded: list[EndpointId]) -> Acquired | NoStock:
        missing = NoStock(0, NoStockReason.STOCK)
        for pool in await self._leases.pools_of(route, pak.pak_id):
            acquired = await self._leases.acquire(route, pool, pak.pak_id, excluded, self._limited_as(pak))
            if isinstance(acquired, Acquired):
                return acquired
            if acquired.reason is not NoStockReason.STOCK:
                missing = acquired
        return missing

    async def _no_stock(self, route: Route, reason: NoStockReason) -> RefusedRequest:
        if reason is NoStockReason.UNUSABLE:
            names = ", ".join(route.unusable)
            hint = "nearest alternative: the same without it"
            return RefusedRequest(Refusal.NO_STOCK, f"no exit matches: unusable value for {names}; {hint}")
        if reason is NoStockReason.SESSIONS:
            return RefusedRequest(Refusal.SESSION_LIMIT, f"more than {SESSIONS_MAX} sessions at once")
        if reason is NoStockReason.LEASE:
            return RefusedRequest(
                Refusal.NO_STOCK, "that lease was released, has expired or is not this account's"
            )
        counts: dict[str, int] = {}
        numbers = await run_async(self._leases.redis, live_numbers(self._now_ms()))
        for pool in route.pools:
            for country, count in numbers.stock_of(pool).items():
                counts[country] = counts.get(country, 0) + count
        wanted = route.country.upper() if route.country else "any country"
        others = sorted((c for c in counts if c != route.country), key=lambda c: -counts[c])
        hint = f"; nearest alternative: {others[0].upper()}" if others else ""
        busy = " (all exits there are busy or filtered out)" if route.country in counts else ""
        return RefusedRequest(Refusal.NO_STOCK, f"nothing online matches {wanted}{busy}{hint}")

    def _opened(
        self, request: Request, pak: Pak, acquired: Acquired, side: ExitPath, route: Route, began_ms: int
    ) -> Tunnel:
        budget, ended = self._meter.budget(pak.pak_id), partial(self._ended, request.target)
        tunnel = Tunnel(pak, acquired, side, budget, ended, lambda it: self._fared(it.acquired, it.pak))
        self._meter.opened(tunnel)
        _OPENED_IN[acquired.endpoint.pool].inc()
        OPEN.inc()
        if self._sessions is not None:
            self._sessions.opened(tunnel, route, began_ms)
        return tunnel

    def _ended(self, target: str, tunnel: Tunnel, exit_broke: bool) -> None:
        self._meter.closed(tunnel)
        if self._sessions is not None:
            self._sessions.closed(tunnel)
        self._places.give(self._limited_as(tunnel.pak))
        self._leases.give_back(tunnel.acquired, tunnel.pak.pak_id)
        OPEN.dec()
        endpoint_id = tunnel.acquired.endpoint.endpoint_id
        if tunnel.barren:
            if len(self._barren) >= BARREN_KEPT:
                self._barren.clear()
            self._barren.setdefault(endpoint_id, set()).add(self._limited_as(tunnel.pak))
        elif tunnel.down_bytes:
            self._barren.pop(endpoint_id, None)
        drops = len(self._barren.get(endpoint_id, ())) >= BARREN_CUSTOMERS
        if drops:
            del self._barren[endpoint_id]
        exit_broke = exit_broke or tunnel.barren
        if (exit_broke or tunnel.was_reset) and not tunnel.down_bytes:
            self._fared(tunnel.acquired, tunnel.pak, target)
        if exit_broke or drops:
            EXIT_FAULTS.labels("accepts_and_drops" if drops else "broke_mid_stream").inc()
            if drops:
                self._leases.report_suspect(tunnel.acquired)
            else:
                self._leases.report(tunnel.acquired, suspect=False)

    def _limited_as(self, pak: Pak) -> str:
        """Whose connections and sessions count together: the house account is shared by strangers."""
        return pak.pak_id if pak.account_id == self._house_account else pak.account_id


def new_request_id() -> str:
    """A UUID, as the contract has it: customers quote it, and clients look for its form."""
    return str(uuid.uuid4())


def lock_quality(route: Route, pak: Pak) -> Route:
    """A `safe` key never leaves the modems, one of a peer tier never leaves its IP type, whatever its username says."""
    if pak.ip_type:
        return replace(route, pools=(Pool.PEER,), ip_type=IpType(pak.ip_type))
    if pak.quality is Quality.SAFE and route.pools != (Pool.MBL,):
        return replace(route, pools=(Pool.MBL,))
    return route


_KNOWN_REASONS: Final = frozenset(
    {
        *(reason.name.lower() for reason in MuxReason),
        *(
            "modem_credentials_unreadable",
            "peer_gone",
            "unknown_device",
            "draining",
            "too_many_tunnels",
            "unknown",
        ),
        *("exit_timeouterror", "exit_connectionrefusederror", "exit_connectionreseterror", "exit_linklost"),
        *("exit_connectionabortederror", "modem_407", "modem_502", "modem_503", "modem_504"),
    }
)
"""Reasons that become a metric's label; what a peer makes up does not."""
_AUTH_MESSAGES: Final = {
    Refusal.AUTH_INVALID: "wrong username or password, or the key is disabled or expired",
    Refusal.CAP_EXCEEDED: "the key has used all of its traffic; top it up to go on",
    Refusal.RATE_LIMITED_AUTH: "too many failed attempts from this address, please wait",
}
