"""The byte path: a customer's transport and an exit's transport, spliced with backpressure and counted both ways.

Bytes are counted as the customer sees them, after the answer that opened the tunnel. Each side is closed by hand when the
other ends; a broken exit aborts the customer's side, so that a cut is never taken for an end.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
import struct
from collections.abc import Callable
from typing import Final, cast

from shared.access.model import Pak
from shared.kernel.ids import DeviceId
from shared.metering.model import LineKey
from shared.pool.model import Acquired
from shared.wire.http1 import HeadError, ResponseHead, take_response_head

WRITE_HIGH_BYTES: Final = 512 * 1024
_RESET_ON_CLOSE: Final = struct.pack("ii", 1, 0)


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


class Tunnel:
    """One open tunnel. `ended` is called once, with whether the exit broke it."""

    def __init__(
        self, pak: Pak, acquired: Acquired, budget: Budget, ended: Callable[[Tunnel, bool], None]
    ) -> None:
        endpoint = acquired.endpoint
        self.pak = pak
        self.acquired = acquired
        self.budget = budget
        self.up_bytes = 0
        self.down_bytes = 0
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
        self.customer: asyncio.Transport | None = None
        self.exit: asyncio.Transport | None = None

    def to_exit(self, data: bytes) -> None:
        """Customer's bytes."""
        if self.exit is not None and not self.exit.is_closing():
            self.up_bytes += len(data)
            self.exit.write(data)
            self.budget.add(len(data))

    def to_customer(self, data: bytes) -> None:
        """Target's bytes."""
        if self.customer is not None and not self.customer.is_closing():
            self.down_bytes += len(data)
            self.customer.write(data)
            self.budget.add(len(data))

    def finish(self) -> None:
        """One side ended cleanly: what is written still leaves on the other."""
        for transport in (self.customer, self.exit):
            if transport is not None:
                transport.close()
        self._end(False)

    def cut(self, *, exit_broke: bool = False) -> None:
        """End at once, visibly: revoked, spent, or broken by the exit."""
        reset(self.customer)
        reset(self.exit)
        self._end(exit_broke)

    def _end(self, exit_broke: bool) -> None:
        ended, self._ended = self._ended, None
        if ended is not None:
            ended(self, exit_broke)


def reset(transport: asyncio.Transport | None) -> None:
    """Abort so that the other side sees a reset, not an end."""
    if transport is None:
        return
    raw = transport.get_extra_info("socket")
    if raw is not None:
        with contextlib.suppress(OSError):
            raw.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET_ON_CLOSE)
    transport.abort()


class ExitSide(asyncio.Protocol):
    """The gateway's connection to a relay or a modem: a CONNECT answer first, then the tunnel's bytes."""

    def __init__(self, request: bytes) -> None:
        self._request = request
        self._buffer = bytearray()
        self.transport: asyncio.Transport | None = None
        self.answer: asyncio.Future[ResponseHead] = asyncio.get_running_loop().create_future()
        self._tunnel: Tunnel | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        transport = cast(asyncio.Transport, transport)  # uvloop's own are no subclass of it
        self.transport = transport
        transport.set_write_buffer_limits(high=WRITE_HIGH_BYTES)
        transport.write(self._request)

    def data_received(self, data: bytes) -> None:
        if self._tunnel is not None:
            self._tunnel.to_customer(data)
            return
        self._buffer += data
        if self.answer.done():
            return
        try:
            head = take_response_head(self._buffer)
        except HeadError:
            self.answer.set_exception(ConnectionAbortedError("malformed answer"))
            return
        if head is not None:
            if self.transport is not None:
                self.transport.pause_reading()
            self.answer.set_result(head)

    def attach(self, tunnel: Tunnel) -> None:
        """The tunnel stands: what came early goes first."""
        self._tunnel = tunnel
        tunnel.exit = self.transport
        if self._buffer:
            early, self._buffer = bytes(self._buffer), bytearray()
            tunnel.to_customer(early)
        if self.transport is not None and not self.transport.is_closing():
            self.transport.resume_reading()

    def pause_writing(self) -> None:
        if self._tunnel is not None and self._tunnel.customer is not None:
            _pause(self._tunnel.customer)

    def resume_writing(self) -> None:
        if self._tunnel is not None and self._tunnel.customer is not None:
            _resume(self._tunnel.customer)

    def eof_received(self) -> bool:
        return False

    def connection_lost(self, exc: Exception | None) -> None:
        if not self.answer.done():
            self.answer.set_exception(exc or ConnectionAbortedError("closed before it answered"))
            self.answer.exception()  # whoever waits has read it; nobody may be left waiting
        if self._tunnel is not None:
            if exc is not None:
                self._tunnel.cut(exit_broke=True)
            else:
                self._tunnel.finish()


def pause_exit(tunnel: Tunnel | None) -> None:
    """The customer does not read."""
    if tunnel is not None and tunnel.exit is not None:
        _pause(tunnel.exit)


def resume_exit(tunnel: Tunnel | None) -> None:
    """The customer reads again."""
    if tunnel is not None and tunnel.exit is not None:
        _resume(tunnel.exit)


def _pause(transport: asyncio.Transport) -> None:
    if not transport.is_closing():
        transport.pause_reading()


def _resume(transport: asyncio.Transport) -> None:
    if not transport.is_closing():
        transport.resume_reading()
