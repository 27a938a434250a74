"""What a key may still carry on this gateway, and the counting of one tunnel against it.

A key with a cap runs on leases: bytes that this gateway may carry and no other one. Half-way through a lease the next one
is asked for. Where the answer is slower than the customers, its tunnels wait from three quarters on; what is on its way to
them still passes, up to `OVERDRAFT_MAX_BYTES` beyond the lease; then they are cut.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Final

from gateway_node.journal import Line
from gateway_node.tunnel import Budget, Tunnel
from shared.metering.model import OVERDRAFT_MAX_BYTES, Ask, Meter
from shared.wire.stream import WINDOW_MAX_BYTES

NEVER: Final = 1 << 62
SETTLE_AGAIN_S: Final = 0.01
SETTLE_AGAIN_MAX_S: Final = 1.0
"""How soon bytes that a slow customer had not taken are looked at again, and when it takes none for longer."""
KEPT_S: Final = 60.0
"""So long a denial is remembered, so that the overdraft is not had again by connecting again."""
WANT_TIMES_CARRIED: Final = 4
WANT_LEAST_BYTES: Final = 64 * 1024 * 1024
"""Far from the cap; near it Redis gives what is free, or a quarter of it to one of several."""
DENIED_S: Final = 0.25
"""So long a key without a lease is refused to newcomers; then they may ask again."""


class KeyBudget(Budget):
    """The budget that all tunnels of a key share on this gateway.

    `pending_bytes` are counted and not flushed; `left_bytes` is how far they may go on the lease, None without a cap. From
    `hold_bytes` on tunnels wait for the answer that is on its way.
    `total_bytes` only grows, so an answer can be placed whatever was flushed while it was on its way.
    """

    __slots__ = (
        "_carried_at",
        "_flushed",
        "asking",
        "denied_until_s",
        "hold_bytes",
        "kept_until_s",
        "meter",
        "truth_cap_bytes",
        "waiting_tunnels",
    )

    def __init__(self, spent: Callable[[], None]) -> None:
        super().__init__(spent)
        self.meter: Meter | None = None
        self.truth_cap_bytes: int | None = None
        self.asking = False
        self.waiting_tunnels = 0
        self.hold_bytes = NEVER
        self.denied_until_s = self.kept_until_s = 0.0
        self._flushed = 0
        self._carried_at = 0

    @property
    def total_bytes(self) -> int:
        """All that was ever counted here."""
        return self._flushed + self.pending_bytes

    def ask(self, in_flight_bytes: int, *, wanted: bool) -> Ask:
        """What to ask for: four times what passed since the last answer, or to give all back. `in_flight_bytes` are in the
        flush that carries the question."""
        unreported = self.pending_bytes - in_flight_bytes
        carried = self.total_bytes - self._carried_at
        return Ask(unreported, max(WANT_TIMES_CARRIED * carried, WANT_LEAST_BYTES) if wanted else 0)

    def answered(self, meter: Meter, asked_total_bytes: int, now_s: float, *, wanted: bool) -> None:
        """The lease that was asked for when so much had been counted, or none."""
        self.meter, self.waiting_tunnels = meter, 0
        self._carried_at = self.total_bytes
        if meter.cap_bytes is None:
            self.left_bytes, self.wake_bytes = None, NEVER
            return
        asked_at = asked_total_bytes - self._flushed
        self.left_bytes = asked_at + meter.lease_bytes
        if meter.lease_bytes > 0 or not wanted:
            self.denied_until_s = 0.0
            self.wake_bytes = asked_at + meter.lease_bytes // 2
            self.hold_bytes = asked_at + meter.lease_bytes * 3 // 4
        else:
            self.denied_until_s = now_s + DENIED_S
            self.kept_until_s = now_s + KEPT_S
            self.wake_bytes = self.cut_bytes

    def flushed(self, size: int) -> None:
        """So many pending bytes are in the stores."""
        self._flushed += size
        self.pending_bytes -= size
        if self.left_bytes is not None:
            self.left_bytes -= size
            self.wake_bytes -= size
            self.hold_bytes -= size

    def without_lease(self, meter: Meter) -> None:
        """A key that nobody asked Redis about yet: the overdraft carries it until the answer."""
        self.meter = meter
        self.left_bytes, self.wake_bytes = (None, NEVER) if meter.cap_bytes is None else (0, 0)
        self.hold_bytes = OVERDRAFT_MAX_BYTES // 4

    def unknown(self, meter: Meter) -> None:
        """Redis does not answer: what was last known of the whole key is the budget, until it does."""
        self.meter, self.waiting_tunnels = meter, 0
        self.left_bytes = meter.left_bytes
        self.wake_bytes = NEVER if meter.left_bytes is None else meter.left_bytes

    @property
    def cut_bytes(self) -> int:
        """How many pending bytes end the key's tunnels. While an answer is on its way, and they wait for it, what their
        windows have let in may still come.
        """
        left = None if self.meter is None else self.meter.left_bytes
        if self.left_bytes is None or left is None:
            return NEVER
        on_its_way = self.waiting_tunnels * WINDOW_MAX_BYTES if self.asking else 0
        return max(min(self.left_bytes + OVERDRAFT_MAX_BYTES + on_its_way, left), 0)

    def spent_now(self, now_s: float) -> bool:
        """Whether nothing is left here: the whole key is used up, or all that is left is leased elsewhere."""
        if self.left_bytes is None:
            return False
        return self.pending_bytes >= self.cut_bytes or now_s < self.denied_until_s


class TunnelBudget(Budget):
    """The budget as one tunnel sees it: the key's, with the tunnel's bytes counted on its line at every read."""

    __slots__ = ("_again", "_key", "_line", "_tunnel", "_unsent", "_wait_s")

    def __init__(self, key: KeyBudget, line: Line, tunnel: Tunnel) -> None:
        super().__init__(key.spent)
        self._key = key
        self._line = line
        self._tunnel = tunnel
        self._again: asyncio.TimerHandle | None = None
        self._unsent, self._wait_s = 0, SETTLE_AGAIN_S

    def add(self, size: int) -> None:
        """Count bytes that the tunnel has just passed on."""
        self.settle()
        key = self._key
        key.pending_bytes += size
        if key.pending_bytes >= key.wake_bytes:
            key.spent()

    def settle(self) -> None:
        """Bring the line to what really left this process: the customer's unsent bytes would die with it."""
        tunnel = self._tunnel
        up = tunnel.up_bytes - tunnel.flushed_up
        down = tunnel.down_bytes - tunnel.flushed_down
        if down and tunnel.customer is not None and (unsent := tunnel.customer.unsent_bytes):
            down = max(down - unsent, 0)
            if self._again is None:
                self._wait_s = (
                    min(self._wait_s * 2, SETTLE_AGAIN_MAX_S) if unsent == self._unsent else SETTLE_AGAIN_S
                )
                self._unsent = unsent
                self._again = asyncio.get_running_loop().call_later(self._wait_s, self._settle_again)
        if up or down:
            tunnel.flushed_up += up
            tunnel.flushed_down += down
            self._line.add(up, down)

    def _settle_again(self) -> None:
        self._again = None
        if self._tunnel.open:
            self.settle()

    def close(self) -> None:
        """The tunnel is over. What still leaves for the customer counts; what was cut off with it never will."""
        tunnel, line = self._tunnel, self._line
        if tunnel.was_cut:
            self.settle()
            lost = tunnel.up_bytes - tunnel.flushed_up + tunnel.down_bytes - tunnel.flushed_down
            self._key.flushed(lost)
        else:
            up, down = tunnel.up_bytes - tunnel.flushed_up, tunnel.down_bytes - tunnel.flushed_down
            if up or down:
                line.add(up, down)
                tunnel.flushed_up, tunnel.flushed_down = tunnel.up_bytes, tunnel.down_bytes
        tunnel.budget = self._key  # no cycle is left for the collector
        line.tunnels -= 1
