"""One open tunnel: a customer's connection on one side, an exit on the other, bytes counted both ways.

Bytes are counted as the customer sees them, after the answer that opened the tunnel. Either side may end alone; a broken
exit resets the customer's side, so that a cut is never taken for an end.
"""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Callable
from typing import Final, Protocol

from shared.access.model import Pak
from shared.kernel.ids import DeviceId
from shared.metering.model import LineKey
from shared.pool.model import Acquired
from shared.runtime.transports import set_option
from shared.wire.mux import Bytes

AFTER_EXIT_ENDED_MAX_S: Final = 10.0
"""How long a customer may leave its side open, and silent, after the target ended."""
AFTER_CUSTOMER_ENDED_MAX_S: Final = 30.0
"""How long a target may take, silent, to answer a customer that has ended its side."""
AFTER_CUSTOMER_ENDED_UNTOLD_MAX_S: Final = 4.0
"""The same where the target cannot be told of the end (binary-v1): most customers that end have left."""
UNTOLD_KERNEL_BYTES: Final = 256 * 1024
UNTOLD_WRITE_HIGH_BYTES: Final = 128 * 1024
"""What the kernel and what this process hold for a tunnel of v1 on each of its connections."""
IDLE_MAX_S: Final = 900.0
UNUSED_MAX_S: Final = 60.0
"""The same for a tunnel that never carried a byte: it costs nothing, and takes an exit's place from others."""
TRIES_AGAIN_AFTER_S: Final = 10.0
"""What waits in a tunnel that has been silent for so long is offered again."""
NEVER_SENT_BYTES: Final = 1 << 62
"""Where nothing is known to have left."""
BARREN_AFTER_S: Final = 4.0
"""A customer that hangs up sooner than this, without an answer, says nothing of the exit."""


class Budget:
    """What a key may still carry on this gateway until the next flush says otherwise. Shared by its tunnels."""

    __slots__ = ("left_bytes", "pending_bytes", "spent", "wake_bytes")

    def __init__(self, spent: Callable[[], None]) -> None:
        self.left_bytes: int | None = None
        self.pending_bytes = 0
        self.wake_bytes = 1 << 62
        self.spent = spent

    def add(self, size: int) -> None:
        """Count bytes; tells the meter when a flush is due early."""
        self.pending_bytes += size
        if self.pending_bytes >= self.wake_bytes:
            self.spent()


class Place:
    """A connection that counts, of an exit or of a customer, until its side of the tunnel has ended and no bytes wait for
    it. Whoever counts it is told then, once, whichever comes first.
    """

    __slots__ = ("_give_back", "_left")

    def __init__(self) -> None:
        self._give_back: Callable[[], None] | None = None
        self._left = False

    def held(self, give_back: Callable[[], None]) -> None:
        """A tunnel has it."""
        self._give_back = give_back
        if self._left:
            self.leave()

    def leave(self) -> None:
        """Nothing of the tunnel is left there, or no more than a message that tells it so."""
        self._left = True
        give_back, self._give_back = self._give_back, None
        if give_back is not None:
            give_back()


class Path(Protocol):
    """One side of a tunnel, as the tunnel uses it."""

    def send(self, data: Bytes) -> None:
        """Bytes that came from the other side."""

    def send_eof(self) -> None:
        """The other side ended; this one may go on."""

    def hold(self) -> None:
        """Read no more from this side: the other one is full."""

    def release(self) -> None:
        """Read again."""

    def finish(self) -> None:
        """A clean end: what was sent still leaves."""

    def cut(self) -> None:
        """End at once, visibly."""


class CustomerPath(Path, Protocol):
    """The customer's side. `unsent_bytes`: what waits in this process for a customer that reads slowly; of one that is
    gone, what it did not acknowledge, or `NEVER_SENT_BYTES`.
    """

    def passed(self, size: int) -> None:
        """So much went to it by `bare_socket`."""

    @property
    def unsent_bytes(self) -> int: ...

    @property
    def bare_socket(self) -> int | None:
        """Its descriptor, if what is written to that is what the customer reads next: no TLS, nothing unsent."""


class ExitPath(Path, Protocol):
    """The side of the exit. `carries_eof`: whether the target hears of a half-close."""

    @property
    def carries_eof(self) -> bool: ...

    @property
    def place(self) -> Place:
        """What is held on the exit for it."""

    def attach(self, tunnel: Tunnel) -> None:
        """Bytes flow from now on."""

    def try_again(self) -> None:
        """Nothing has passed for a while: send what waits, if it can be."""

    def forget(self) -> None:
        """The tunnel is over, and the customer has all that it will have of it."""


class Tunnel:
    """`ended` is called once, with whether the exit broke the tunnel; `answered` once, some time after the target's first
    bytes came. `host` is the target as the customer wrote it, `place` the customer's connection: whoever holds that leaves
    it when the tunnel is over and nothing of it waits there.
    """

    def __init__(
        self,
        pak: Pak,
        acquired: Acquired,
        exit_path: ExitPath,
        budget: Budget,
        ended: Callable[[Tunnel, bool], None],
        answered: Callable[[Tunnel], None] | None = None,
    ) -> None:
        endpoint = acquired.endpoint
        self.pak = pak
        self.acquired = acquired
        self.host = ""
        self.exit = exit_path
        self.place = Place()
        self.customer: CustomerPath | None = None
        self.budget = budget
        self.up_bytes = 0
        self.down_bytes = 0
        self.requests = 1
        self.flushed_up = 0
        self.flushed_down = 0
        self.line = LineKey(
            pak.pak_id,
            pak.account_id,
            DeviceId(endpoint.endpoint_id),
            endpoint.account_id,
            endpoint.country,
            endpoint.pool,
            endpoint.ip_type,
        )
        self._ended: Callable[[Tunnel, bool], None] | None = ended
        self._answered = answered
        self.was_reset = self.was_cut = False
        self._customer_ended = False
        self._told = True  # the target has heard of all that it has to
        self._exit_ended = self._deaf = False
        self._customer_full = False
        self._exit_full = False
        self._waits = False
        self._moved = (0, 0)
        self._silent_s = 0.0

    @property
    def barren(self) -> bool:
        """Whether the exit took bytes, gave none back, and is to blame: it hung up, or was silent for long."""
        took = self.up_bytes > 0 and self.down_bytes == 0
        return took and (self._exit_ended or self._silent_s >= BARREN_AFTER_S)

    @property
    def open(self) -> bool:
        """Whether it still carries anything."""
        return self._ended is not None

    # from the customer

    def to_exit(self, data: Bytes) -> None:
        """Customer's bytes."""
        if self._ended is not None and not self._deaf:
            self.up_bytes += len(data)
            self.exit.send(data)
            self.budget.add(len(data))

    def customer_ended(self) -> None:
        """The customer sends no more."""
        self._customer_ended = True
        self._told = self.exit.carries_eof
        if self._exit_ended:
            self.finish()
        else:
            self.exit.send_eof()

    def customer_left(self) -> None:
        """The customer sends no more, which is not for the target to hear: its answer may take as long as any other's."""
        self._customer_ended = self._told = True

    def customer_full(self) -> None:
        """The customer does not read."""
        self._customer_full = True
        self.exit.hold()

    def customer_drained(self) -> None:
        """The customer reads again."""
        self._customer_full = False
        if not self._waits:
            self.exit.release()

    # from the exit

    def to_customer(self, data: Bytes) -> None:
        """Target's bytes."""
        if self._ended is not None and self.customer is not None:
            self.down_bytes += len(data)
            self.customer.send(data)
            self.budget.add(len(data))

    def bare_customer(self) -> int | None:
        """The customer's descriptor, if the target's bytes may go straight to it."""
        if self._ended is None or self.customer is None or self._customer_full or self._waits:
            return None
        return self.customer.bare_socket

    def passed_to_customer(self, size: int) -> None:
        """Target's bytes that went to the customer by themselves."""
        if self._ended is not None:
            self.down_bytes += size
            if self.customer is not None:
                self.customer.passed(size)
            self.budget.add(size)

    def exit_ended(self) -> None:
        """The target sends no more."""
        self._exit_ended = True
        if self._customer_ended or self.customer is None:
            self.finish()
        else:
            self.customer.send_eof()

    def exit_full(self) -> None:
        """The exit does not take more."""
        self._exit_full = True
        if self.customer is not None:
            self.customer.hold()

    def exit_drained(self) -> None:
        """The exit takes again."""
        self._exit_full = False
        if self.customer is not None and not self._waits:
            self.customer.release()

    def exit_reset(self, *, by_target: bool) -> None:
        """The exit broke it off, or says that the target did: what took bytes and gave none is suspicious either way."""
        if by_target and self._exit_ended:
            # it had said all: the customer may have that, and says the rest to nobody
            self._deaf = True
            return
        self._exit_ended = self.was_reset = True
        self.cut(exit_broke=not by_target)

    # the meter

    def wait(self) -> None:
        """Read from neither side until `go_on`."""
        if self.customer is not None and not self._waits and self._ended is not None:
            self._waits = True
            self.exit.hold()
            self.customer.hold()

    def go_on(self) -> None:
        """Read again from the sides that are not held by the other one."""
        if self._waits and self.customer is not None:
            self._waits = False
            if not self._customer_full:
                self.exit.release()
            if not self._exit_full:
                self.customer.release()

    # ends

    def finish(self) -> None:
        """Both sides ended, or one is gone cleanly: what is written still leaves on the other."""
        if self._end(exit_broke=False):
            self.exit.finish()
            if self.customer is not None:
                self.customer.finish()

    def cut(self, *, exit_broke: bool = False) -> None:
        """End at once, visibly: revoked, spent, or broken by the exit."""
        self.was_cut = True
        if self._end(exit_broke=exit_broke):
            self.exit.cut()
            if self.customer is not None:
                self.customer.cut()

    def _end(self, *, exit_broke: bool) -> bool:
        ended, self._ended = self._ended, None
        if ended is not None:
            self._tell_answered()
            ended(self, exit_broke)
            if self.customer is None:
                self.place.leave()
        return ended is not None

    def _tell_answered(self) -> None:
        if self._answered is not None and self.down_bytes:
            answered, self._answered = self._answered, None
            answered(self)

    def sweep(self, elapsed_s: float) -> None:
        """Called every few seconds: end what has been silent for too long. A customer that takes what waits is not."""
        self._tell_answered()
        unsent = self.customer.unsent_bytes if self.customer is not None else 0
        moved = (self.up_bytes + self.down_bytes, unsent)
        self._silent_s = self._silent_s + elapsed_s if moved == self._moved else 0.0
        self._moved = moved
        if self._silent_s >= TRIES_AGAIN_AFTER_S:
            self.exit.try_again()
        if self._silent_s < self.silence_max_s:
            return
        if self._exit_ended:
            self.finish()
        elif self._customer_ended:
            self._give_up_answer()
        else:  # more may have been to come, and what is cut short must not look whole
            self.cut()

    def _give_up_answer(self) -> None:
        """What the customer said still reaches the target; what came for it was cut short, and does not look whole."""
        self.was_cut = True
        if self._end(exit_broke=False):
            self.exit.finish()
            if self.customer is not None:
                self.customer.cut()

    @property
    def silence_max_s(self) -> float:
        """So long it may be silent."""
        if self._exit_ended:
            return AFTER_EXIT_ENDED_MAX_S
        if self._customer_ended and not self._customer_full:
            return AFTER_CUSTOMER_ENDED_MAX_S if self._told else AFTER_CUSTOMER_ENDED_UNTOLD_MAX_S
        return IDLE_MAX_S if self.up_bytes or self.down_bytes else UNUSED_MAX_S


def hold_little(transport: asyncio.Transport | None, option: int) -> None:
    """Hold little for one connection, and let the kernel hold little in one direction (`SO_SNDBUF` or `SO_RCVBUF`): others
    wait for a slow customer of a v1 peer, so it is to be felt early and for short (`relay_node/tunnel.py`).
    """
    if transport is None:
        return
    transport.set_write_buffer_limits(high=UNTOLD_WRITE_HIGH_BYTES)
    set_option(transport, socket.SOL_SOCKET, option, UNTOLD_KERNEL_BYTES)
