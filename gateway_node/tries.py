"""What one request has met on its way through exits: how long it waits for others, and whose fault it was.

Policy of the customer and the loop itself are in `pipeline.py`; what is held against exits, in decision 0062.
"""

from __future__ import annotations

from typing import Final

from gateway_node.leases import Leases
from gateway_node.refusals import RefusedRequest
from gateway_node.resolve import Target
from shared.kernel.codes import Refusal
from shared.kernel.ids import DeviceId
from shared.pool.model import Acquired, Failover, NoStockReason, Route

EXIT_ATTEMPTS_MAX: Final = 3
MOVING_RETRIES_MAX: Final = 12
MOVING_RETRY_S: Final = 0.25
"""Devices that change relays are back within a second or so; so long a request waits rather than fails."""
BUSY_RETRIES_MAX: Final = 3
BUSY_RETRY_S: Final = 0.05
"""A connection that its customer just closed gives its place back a moment later."""
ONE_DEVICE: Final = frozenset({Failover.STRICT, Failover.SAME_NODE})
_QUICKLY_SAID: Final = frozenset({Refusal.TARGET_REFUSED, Refusal.TARGET_DNS, Refusal.SSRF_BLOCKED})
_MAY_COME: Final = frozenset({NoStockReason.STOCK, NoStockReason.ABSENT})


class Patience:
    """How often one request waits: for devices on their way to another relay, and for places that come free."""

    def __init__(self) -> None:
        self.moves = self._busy = 0

    def until_stock(self, missing: NoStockReason) -> float | None:
        """Seconds to wait for an exit that there is none of now; None when that is no use."""
        wait_s = BUSY_RETRY_S
        if self.moves or missing is NoStockReason.ABSENT:
            self.moves, wait_s = self.moves + 1, MOVING_RETRY_S
        else:
            self._busy += 1
        waits = missing in _MAY_COME and self.moves <= MOVING_RETRIES_MAX and self._busy <= BUSY_RETRIES_MAX
        return wait_s if waits else None


class Doubts:
    """Exits through which a target was not reached. That is held against them when another exit reaches it, and against the
    target when none does; against nobody when the target has IPv6 alone, which most homes have not. `verdict` is what the
    first one said, if that is an answer.
    """

    def __init__(self, leases: Leases, owner: str, target: Target) -> None:
        self._leases, self._owner, self._target = leases, owner, target
        self._exits: list[Acquired] = []
        self.verdict: RefusedRequest | None = None

    def __bool__(self) -> bool:
        return bool(self._exits)

    def add(self, acquired: Acquired) -> None:
        """Not reached through this one."""
        self._exits.append(acquired)

    def are_the_exits(self) -> None:
        """Another exit reaches the target."""
        if ":" in self._target.address:
            return
        for acquired in self._exits:
            self._leases.report_target(acquired, self._owner, self._target.host)

    def answer(self) -> RefusedRequest:
        """No exit reached it. One exit alone may be broken: a probe tells."""
        if len(self._exits) == 1 and ":" not in self._target.address:
            self._leases.doubt(DeviceId(self._exits[0].endpoint.endpoint_id))
        message = "the target could not be reached from any exit tried"
        return self.verdict or RefusedRequest(Refusal.TARGET_REFUSED, message)


def wants_a_second_word(route: Route, refused: RefusedRequest) -> bool:
    """Whether another exit is asked before a customer is told what one said of its target: not where the customer is to
    stay on its device, and not when the answer took long already.
    """
    return refused.code in _QUICKLY_SAID and not is_bound(route)


def is_bound(route: Route) -> bool:
    """Whether a customer is to stay on its device unless that is lost."""
    return route.failover in ONE_DEVICE or route.session_id is not None or route.pin is not None
