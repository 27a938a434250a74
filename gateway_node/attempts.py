"""One request's way to an exit that answers: select, dial, and select again within the customer's policy and a bound.

Who may ask at all stands in `pipeline.py`; how long a request waits and whom it blames, in `tries.py`.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, Final, cast

from gateway_node.buyer import Buyer
from gateway_node.dial import ExitDialer, ExitFailed, Fault
from gateway_node.leases import Leases
from gateway_node.refusals import RefusedRequest
from gateway_node.resolve import Resolver, Target
from gateway_node.tries import (
    EXIT_ATTEMPTS_MAX,
    MOVING_RETRIES_MAX,
    MOVING_RETRY_S,
    ONE_DEVICE,
    Doubts,
    Patience,
    is_bound,
    wants_a_second_word,
)
from gateway_node.tunnel import ExitPath
from gateway_node.tunnels import EXIT_FAULTS, Tunnels
from shared.kernel.codes import Refusal
from shared.kernel.ids import DeviceId, EndpointId
from shared.pool.live import SESSIONS_MAX
from shared.pool.model import Acquired, NoStock, NoStockReason, Route
from shared.pool.numbers import live_numbers, run_async
from shared.runtime.deadlines import Deadlines
from shared.wire.mux import PROTOCOL, MuxReason

SLOW_OPEN_S: Final = 3.0
"""An exit that has not answered by then is probed while its customer goes on waiting: whoever comes next need not."""

_NOT_OPENED: Final = (ExitFailed, RefusedRequest)
_UNUSABLE: Final = NoStock(0, NoStockReason.UNUSABLE)
_NONE_LEFT: Final = NoStock(0, NoStockReason.STOCK)


class Attempts:
    """Selects and dials. What it answers holds a connection on an exit, which the caller gives back."""

    def __init__(
        self,
        resolver: Resolver,
        leases: Leases,
        dialer: ExitDialer,
        tunnels: Tunnels,
        deadlines: Deadlines,
        now_ms: Callable[[], int],
    ) -> None:
        self._resolver = resolver
        self._leases = leases
        self._dialer = dialer
        self._tunnels = tunnels
        self._deadlines = deadlines
        self._now_ms = now_ms
        self._looking_up: dict[asyncio.Task[Any], bool] = {}

    def leave(self, opening: asyncio.Task[None]) -> None:
        """The customer of a request is gone. A peer that was told a name may be looking it up, which cannot be stopped: its
        place, and the customer's, are kept until it has answered (decision 0096).
        """
        if opening in self._looking_up:
            self._looking_up[opening] = True
        else:
            opening.cancel()

    async def reach(
        self, buyer: Buyer, target: Target, request_id: str
    ) -> tuple[Acquired, ExitPath] | RefusedRequest:
        """An exit whose next bytes are the target's, or why there is none."""
        route, excluded = buyer.route, list[EndpointId]()
        doubts = Doubts(self._leases, buyer.owner, target)
        patience, missing = Patience(), NoStockReason.STOCK
        attempts = 1 if route.failover in ONE_DEVICE else EXIT_ATTEMPTS_MAX
        while attempts:
            acquired = await self._acquire(buyer, excluded)
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
                self._leases.give_back(acquired, buyer.pak_id)
                return away
            side = await self._dial(buyer, acquired, away, request_id)
            if not isinstance(side, _NOT_OPENED):
                doubts.are_the_exits()
                return acquired, side
            self._leases.give_back(acquired, buyer.pak_id)
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
            elif side.fault is Fault.EITHER:
                doubts.add(acquired)
                # a dead target moves no session: if it is the exit, a probe will tell
                attempts *= not is_bound(route)
        if doubts:
            return doubts.answer()
        gone = RefusedRequest(Refusal.STOCK_DEGRADED, "the exits that were chosen went away, please retry")
        was_away = bool(self._dialer.away) and missing is NoStockReason.ABSENT
        return gone if excluded or was_away else await self.no_stock(route, missing)

    async def _dial(
        self, buyer: Buyer, acquired: Acquired, target: Target, request_id: str
    ) -> ExitPath | ExitFailed | RefusedRequest:
        device_id = DeviceId(acquired.endpoint.endpoint_id)
        task = cast("asyncio.Task[Any]", asyncio.current_task())
        if acquired.protocol == PROTOCOL and target.host != target.address:
            self._looking_up[task] = False
        slow = self._deadlines.call_after(SLOW_OPEN_S, partial(self._leases.doubt, device_id))
        began_s = time.monotonic()
        try:
            side = await self._dialer.open(acquired, target, request_id, buyer.owner)
        except BaseException:
            self._leases.give_back(acquired, buyer.pak_id)
            if time.monotonic() - began_s >= SLOW_OPEN_S:  # nobody waits for ever: the customer left
                self._tunnels.fared(buyer, acquired, target.name)
            raise
        finally:
            slow.cancel()
            left = self._looking_up.pop(task, False)
        if isinstance(side, RefusedRequest) or (isinstance(side, ExitFailed) and not side.moving):
            self._tunnels.fared(buyer, acquired, target.name)
        if left:
            self._leases.give_back(acquired, buyer.pak_id)
            if not isinstance(side, _NOT_OPENED):
                side.cut()
            raise asyncio.CancelledError
        return side

    async def _acquire(self, buyer: Buyer, excluded: Sequence[EndpointId]) -> Acquired | NoStock:
        missing = _UNUSABLE
        if buyer.route.unusable:
            return missing
        for asking in buyer.turns():
            missing, has_many = _NONE_LEFT, self._tunnels.places.has_many(buyer.owner)
            for pool in await self._leases.pools_of(asking.route, buyer.pak_id):
                acquired = await self._leases.acquire(
                    asking, pool, excluded, has_many=has_many, away=self._dialer.away
                )
                if isinstance(acquired, Acquired):
                    return acquired
                if acquired.reason is not NoStockReason.STOCK:
                    missing = acquired
        return missing

    async def no_stock(self, route: Route, reason: NoStockReason) -> RefusedRequest:
        """What a customer is told for whom there is no exit."""
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


_KNOWN_REASONS: Final = frozenset(
    {
        *(reason.name.lower() for reason in MuxReason),
        *(
            "modem_credentials_unreadable",
            "peer_gone",
            "unknown_device",
            "draining",
            "relay_away",
            "too_many_tunnels",
            "unknown",
        ),
        *("exit_timeouterror", "exit_connectionrefusederror", "exit_connectionreseterror", "exit_linklost"),
        *("exit_connectionabortederror", "modem_407", "modem_502", "modem_503", "modem_504"),
    }
)
"""Reasons that become a metric's label; what a peer makes up does not."""
