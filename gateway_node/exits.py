"""An exit behind a CONNECT of its own: a modem's proxy, or the relay for a peer of binary-v1."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from typing import Final, cast

from gateway_node.splice import AFTER_BYTES, Over, Splice, Splices
from gateway_node.tunnel import Place, Tunnel, hold_little
from shared.runtime.transports import reset
from shared.wire.http1 import HeadError, ResponseHead, take_response_head
from shared.wire.mux import Bytes

WRITE_HIGH_BYTES: Final = 512 * 1024
NEVER: Final = 1 << 62
LAST_BYTES_MAX_S: Final = 60.0
LAST_BYTES_LOOK_S: Final = 5.0
"""How long an exit may take what was sent to it before the tunnel ended; one that takes nothing from one look to the next
is not waited for: nobody counts its connection any more.
"""
EARLY_MAX_BYTES: Final = 64 * 1024
"""What an exit may send before its tunnel stands; beyond it reading stops."""


class ConnectExit(asyncio.Protocol):
    """The gateway's connection: a CONNECT answer first (`answer`), then the tunnel's bytes."""

    def __init__(self, request: bytes, splices: Splices, *, carries_eof: bool) -> None:
        self.carries_eof = carries_eof
        self.place = Place()
        self._request = request
        self._buffer = bytearray()
        self._transport: asyncio.Transport | None = None
        self._loop = asyncio.get_running_loop()
        self.answer: asyncio.Future[ResponseHead] = self._loop.create_future()
        self._tunnel: Tunnel | None = None
        self._ended = False
        self._eof_sent = False
        self._full = False
        self._early_held = False
        self._lost = False
        self._splices = splices
        self._splice: Splice | None = None
        self._splice_from_bytes = AFTER_BYTES

    def attach(self, tunnel: Tunnel) -> None:
        """The tunnel stands: what came early goes first."""
        self._tunnel = tunnel
        if self._buffer:
            early, self._buffer = bytes(self._buffer), bytearray()
            tunnel.to_customer(early)
        if self._full:
            tunnel.exit_full()
        if self._early_held:
            self.release()
        if self._lost:
            self._tell_lost(tunnel)
        elif self._ended:
            tunnel.exit_ended()

    # transport callbacks

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        transport = cast(asyncio.Transport, transport)  # uvloop's own are no subclass of it
        self._transport = transport
        transport.set_write_buffer_limits(high=WRITE_HIGH_BYTES)
        if not self.carries_eof:
            hold_little(transport, socket.SO_RCVBUF)
        transport.write(self._request)

    def data_received(self, data: bytes) -> None:
        tunnel = self._tunnel
        if tunnel is not None:
            tunnel.to_customer(data)
            if tunnel.down_bytes >= self._splice_from_bytes:
                self._begin_splice(tunnel)
            return
        self._buffer += data
        if self.answer.done():
            if len(self._buffer) > EARLY_MAX_BYTES:
                self._early_held = True
                self.hold()
            return
        try:
            head = take_response_head(self._buffer)
        except HeadError:
            self.answer.set_exception(ConnectionAbortedError("malformed answer"))
            return
        if head is not None:  # what follows is kept for the turn or two until the tunnel stands
            self.answer.set_result(head)

    def pause_writing(self) -> None:
        self._full = True
        if self._tunnel is not None:
            self._tunnel.exit_full()

    def resume_writing(self) -> None:
        self._full = False
        if self._tunnel is not None:
            self._tunnel.exit_drained()

    def eof_received(self) -> bool:
        self._ended = True
        if not self.answer.done():
            return False
        if self._tunnel is not None:
            self._tunnel.exit_ended()
        return not self._eof_sent

    def connection_lost(self, exc: Exception | None) -> None:
        if not self.answer.done():
            self.answer.set_exception(exc or ConnectionAbortedError("closed before it answered"))
            self.answer.exception()  # whoever waits has read it; nobody may be left waiting
        self._lost, self._ended = True, self._ended and exc is None
        if self._tunnel is not None:
            self._tell_lost(self._tunnel)
        self._tunnel = self._transport = None  # no cycle is left for the collector
        self.place.leave()

    def _tell_lost(self, tunnel: Tunnel) -> None:
        if self._ended:
            tunnel.finish()
        else:
            tunnel.exit_reset(by_target=False)

    # long transfers

    def _begin_splice(self, tunnel: Tunnel) -> None:
        """From here on the target's bytes go to the customer by themselves, if nothing of them waits here."""
        raw = None if self._transport is None else self._transport.get_extra_info("socket")
        sink = tunnel.bare_customer()
        if raw is None or sink is None or self._transport is None or self._transport.is_closing():
            return
        try:
            self._splice = self._splices.begin(
                raw.fileno(), sink, tunnel.passed_to_customer, self._splice_over
            )
        except OSError:  # no descriptors left: this tunnel is copied
            self._splice_from_bytes = NEVER
            return
        self._transport.pause_reading()

    def _splice_over(self, why: Over) -> None:
        self._splice, self._splice_from_bytes = None, NEVER
        if why is Over.SOURCE_ENDED:
            self.release()  # the transport reads the end as well
        elif self._tunnel is not None:
            self._tunnel.cut(exit_broke=why is Over.SOURCE_FAILED)

    def _end_splice(self) -> None:
        if self._splice is not None:
            self._splice.close()

    # path

    def send(self, data: Bytes) -> None:
        transport = self._transport
        if transport is not None and not transport.is_closing():
            try:
                transport.write(data)
            except RuntimeError:  # uvloop raises when the transport closed in this very turn
                return

    def send_eof(self) -> None:
        transport = self._transport
        if transport is not None and not transport.is_closing() and not self._eof_sent:
            self._eof_sent = True
            with contextlib.suppress(RuntimeError, OSError):
                transport.write_eof()

    def try_again(self) -> None: ...

    def forget(self) -> None: ...

    def hold(self) -> None:
        if self._splice is not None:
            self._splice.pause()
        elif self._transport is not None and not self._transport.is_closing():
            self._transport.pause_reading()

    def release(self) -> None:
        if self._splice is not None:
            self._splice.resume()
        elif self._transport is not None and not self._transport.is_closing():
            self._transport.resume_reading()

    def finish(self) -> None:
        self._end_splice()
        if self._transport is not None:
            self._transport.close()
            if self._transport.get_write_buffer_size():
                self._wait_for_last_bytes(self._loop.time() + LAST_BYTES_MAX_S)
                return
        self.place.leave()

    def _wait_for_last_bytes(self, until_s: float, unsent_before: int = NEVER) -> None:
        transport = self._transport
        if transport is None:
            return
        unsent = transport.get_write_buffer_size()
        if unsent >= unsent_before or self._loop.time() >= until_s:
            reset(transport)
        else:
            self._loop.call_later(LAST_BYTES_LOOK_S, self._wait_for_last_bytes, until_s, unsent)

    def cut(self) -> None:
        self._end_splice()
        reset(self._transport)
        self.place.leave()
