"""What begins and ends with every tunnel: counting, its place, its hold on the exit, and what is said of the exit."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Final

from prometheus_client import Counter

from gateway_node.buyer import Buyer
from gateway_node.leases import Leases
from gateway_node.meter import MeterService
from gateway_node.places import Places
from gateway_node.resolve import Target
from gateway_node.sessions import SessionKeeper
from gateway_node.tunnel import ExitPath, Tunnel
from shared.access.model import Pak
from shared.kernel.ids import EndpointId
from shared.pool.model import Acquired
from shared.runtime.tallies import Tallies, level

BARREN_CUSTOMERS: Final = 2
"""So many different customers whose tunnels an exit accepted and closed without a byte make it suspect at once; one alone,
who may own the target, only has it probed.
"""
BARREN_KEPT: Final = 10_000

OPENED: Final = Tallies("psx_gateway_tunnels", "Tunnels opened", "pool")
OPEN: Final = level("psx_gateway_open_tunnels", "Tunnels open now")
EXIT_FAULTS: Final = Counter("psx_gateway_exit_faults", "Exits that failed a customer", ["reason"])


class _Both:
    """Calls `then` when it was called by both ends of a tunnel."""

    __slots__ = ("_is_left", "_then")

    def __init__(self, then: Callable[[], None]) -> None:
        self._is_left = False
        self._then = then

    def __call__(self) -> None:
        if self._is_left:
            self._then()
        self._is_left = True


def _customer_left(side: ExitPath, both_left: _Both) -> None:
    """What came through the exit waits for the customer no more."""
    side.forget()
    both_left()


class Tunnels:
    """This gateway's tunnels, from the moment an exit stands."""

    def __init__(
        self, leases: Leases, meter: MeterService, places: Places, sessions: SessionKeeper | None = None
    ) -> None:
        self.sessions = sessions
        self._leases = leases
        self._meter = meter
        self.places = places
        self._barren: dict[EndpointId, set[str]] = {}

    def begin(
        self, buyer: Buyer, pak: Pak, acquired: Acquired, side: ExitPath, target: Target, began_ms: int
    ) -> Tunnel:
        """Let a buyer's bytes through an exit; `pak` is its key as it is now. `began_ms`: when it asked."""
        ended, answered = partial(self._ended, buyer, target), partial(self._served, buyer)
        tunnel = Tunnel(pak, acquired, side, self._meter.budget(pak.pak_id), ended, answered)
        tunnel.host = target.host
        self._meter.opened(tunnel)
        OPENED.of(acquired.endpoint.pool).inc()
        OPEN.inc()
        if self.sessions is not None:
            self.sessions.opened(tunnel, buyer.route, began_ms)
        both_left = _Both(partial(self.places.give, buyer.owner))
        side.place.held(partial(self._exit_left, buyer, acquired, both_left))
        tunnel.place.held(partial(_customer_left, side, both_left))
        return tunnel

    def _exit_left(self, buyer: Buyer, acquired: Acquired, both_left: _Both) -> None:
        """The exit may have another connection: nothing of this one waits there any more."""
        self._leases.give_back(acquired, buyer.pak_id)
        both_left()

    def fared(self, buyer: Buyer, acquired: Acquired, failed_target: str = "") -> None:
        """A customer was served, or failed by what may be the exit as well as the target: others' word will tell."""
        self._leases.fared.note(acquired, buyer.pak.account_id, buyer.owner, failed_target)

    def _served(self, buyer: Buyer, tunnel: Tunnel) -> None:
        self.fared(buyer, tunnel.acquired)

    def _ended(self, buyer: Buyer, target: Target, tunnel: Tunnel, exit_broke: bool) -> None:
        self._meter.closed(tunnel)
        if self.sessions is not None:
            self.sessions.closed(tunnel)
        OPEN.inc(-1)
        if tunnel.barren or exit_broke or tunnel.was_reset or self._barren:
            self._judge(buyer, target, tunnel, exit_broke=exit_broke)

    def _judge(self, buyer: Buyer, target: Target, tunnel: Tunnel, *, exit_broke: bool) -> None:
        """Whether an exit is to blame for how a tunnel ended."""
        endpoint_id = tunnel.acquired.endpoint.endpoint_id
        if tunnel.barren:
            if len(self._barren) >= BARREN_KEPT:
                self._barren.clear()
            self._barren.setdefault(endpoint_id, set()).add(buyer.owner)
        elif tunnel.down_bytes:
            self._barren.pop(endpoint_id, None)
        drops = len(self._barren.get(endpoint_id, ())) >= BARREN_CUSTOMERS
        if drops:
            del self._barren[endpoint_id]
        exit_broke = exit_broke or tunnel.barren
        if (exit_broke or tunnel.was_reset) and not tunnel.down_bytes:
            self.fared(buyer, tunnel.acquired, target.name)
        if exit_broke or drops:
            EXIT_FAULTS.labels("accepts_and_drops" if drops else "broke_mid_stream").inc()
            if drops:
                self._leases.report_suspect(tunnel.acquired)
            else:
                self._leases.report(tunnel.acquired, suspect=False)
