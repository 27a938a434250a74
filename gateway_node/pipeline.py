"""The way of every request, whatever transport it came by: authenticate, parse, check the target, reach it, count.

How an exit is found stands in `attempts.py`: before the first byte a lost one is replaced, after it nothing is replayed.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable
from typing import Final, NamedTuple, Protocol

from prometheus_client import Counter

from gateway_node.attempts import Attempts
from gateway_node.auth import Authenticator
from gateway_node.buyer import Buyer, Buyers, may_use
from gateway_node.dial import ExitDialer
from gateway_node.leases import Leases
from gateway_node.lobby import Lobby
from gateway_node.meter import MeterService
from gateway_node.places import Places
from gateway_node.refusals import RefusedRequest
from gateway_node.resolve import Resolver, Target
from gateway_node.sessions import SessionKeeper
from gateway_node.tunnel import Tunnel
from gateway_node.tunnels import Tunnels
from shared.access.model import Pak
from shared.kernel.codes import Refusal
from shared.kernel.ids import AccountId
from shared.pool.model import Route, Selected
from shared.pool.places import CONNECTIONS_MAX
from shared.pool.username import UsernameMissing, parse_username
from shared.runtime.deadlines import Deadlines
from shared.runtime.dynamo import StoreUnavailable

OPEN_TOTAL_MAX_S: Final = 25.0

REFUSED = Counter("psx_gateway_refused", "Requests refused", ["code"])

log = logging.getLogger("psx.gateway")


class Request(NamedTuple):
    """What a customer asked for."""

    username: str
    password: str
    host: str
    port: int
    address: str
    socks: bool
    request_id: str


class Outcome(NamedTuple):
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
        self._auth = auth
        self._resolver = resolver
        self._leases = leases
        self._meter = meter
        self._places = places
        self._now_ms = now_ms
        self._buyers = Buyers(AccountId(house_account))
        self.opening = 0
        self.draining = False
        self.kept: set[Kept] = set()
        self.deadlines = Deadlines()
        self.lobby = Lobby()
        self.resting = Lobby()
        self.tunnels = Tunnels(leases, meter, places, sessions)
        self.attempts = Attempts(resolver, leases, dialer, self.tunnels, self.deadlines, now_ms)

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
        buyer = self._buyers.of(request.username, route, pak)
        if not await self._places.take(buyer.owner):
            message = f"more than {CONNECTIONS_MAX} connections at once"
            return RefusedRequest(Refusal.RATE_LIMITED_CONN, message)
        opened = False
        try:
            target = await self._resolver.resolve(request.host, request.port, buyer.owner)
            if isinstance(target, RefusedRequest):
                return target
            result = await self._tunnel(buyer, target, request.request_id)
            if isinstance(result, RefusedRequest):
                return result
            opened = True
            closed = self._resolver.closed(request.host)  # it may have been since
            if closed is not None:
                result.cut()
            return closed or result
        finally:
            if not opened:
                self._places.give(buyer.owner)

    async def _tunnel(self, buyer: Buyer, target: Target, request_id: str) -> Tunnel | RefusedRequest:
        """A tunnel through some exit, unless the key ended while it was dialled."""
        began_ms = self._now_ms()
        reached = await self.attempts.reach(buyer, target, request_id)
        if isinstance(reached, RefusedRequest):
            return reached
        acquired, side = reached
        current: Pak | Refusal | None = None
        try:
            current = await self._auth.confirm(buyer.pak)
        finally:
            if not isinstance(current, Pak):
                side.cut()
                self._leases.give_back(acquired, buyer.pak_id)
        if isinstance(current, Refusal):
            return RefusedRequest(current, _AUTH_MESSAGES[current])
        if not may_use(current, acquired):
            side.cut()
            self._leases.give_back(acquired, buyer.pak_id)
            return RefusedRequest(Refusal.STOCK_DEGRADED, "the key has just changed, please retry")
        return self.tunnels.begin(buyer, current, acquired, side, target, began_ms)

    def _standing(self, pak: Pak, request: Request) -> RefusedRequest | None:
        if request.socks and not pak.socks_allowed:
            return RefusedRequest(Refusal.PROTOCOL_NOT_ALLOWED, "this key works on the HTTP port only")
        if self._meter.is_spent(pak.pak_id):
            return RefusedRequest(Refusal.CAP_EXCEEDED, _AUTH_MESSAGES[Refusal.CAP_EXCEEDED])
        if self._meter.overloaded():
            return RefusedRequest(Refusal.INTERNAL, "temporarily unavailable, please retry")
        self._meter.expect(pak)
        return None


def new_request_id() -> str:
    """A UUID (version 4, RFC 9562), as the contract has it: customers quote it, and clients look for its form."""
    digits = os.urandom(16).hex()
    variant = "89ab"[int(digits[16], 16) & 3]
    return f"{digits[:8]}-{digits[8:12]}-4{digits[13:16]}-{variant}{digits[17:20]}-{digits[20:]}"


_AUTH_MESSAGES: Final = {
    Refusal.AUTH_INVALID: "wrong username or password, or the key is disabled or expired",
    Refusal.CAP_EXCEEDED: "the key has used all of its traffic; top it up to go on",
    Refusal.RATE_LIMITED_AUTH: "too many failed attempts from this address, please wait",
}
