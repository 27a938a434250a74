"""What both listeners share: a customer's connection, until and while it has a tunnel."""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import logging
import os
import socket
import struct
import termios
from array import array
from collections.abc import Coroutine
from functools import partial
from typing import Any, Final, cast

from prometheus_client import Counter

from gateway_node.lobby import Lobby
from gateway_node.pipeline import Pipeline
from gateway_node.tunnel import NEVER_SENT_BYTES, Tunnel, hold_little
from shared.runtime.deadlines import Deadline
from shared.runtime.transports import reset
from shared.wire.mux import Bytes

WRITE_HIGH_BYTES: Final = 512 * 1024
FLUSH_LOOK_S: Final = 30.0
FLUSH_MIN_BYTES: Final = 8 * 1024
"""So much of its last bytes a customer has to take from one look to the next, or all of them."""
TLS_HANDSHAKE_MAX_BYTES: Final = 8 * 1024
TLS_OVERHEAD_MAX: Final = 256
"""What TLS adds: a handshake, and of each record less than this part."""
_TCP_INFO_BYTES: Final = 192
_BYTES_ACKED: Final = struct.Struct("=Q")
_BYTES_ACKED_AT: Final = 120
"""`tcpi_bytes_acked` of linux/tcp.h, since Linux 4.1."""
EARLY_MAX_BYTES: Final = 64 * 1024
"""What a customer may send before its tunnel is open; beyond it reading stops."""

CROWDED: Final = Counter(
    "psx_gateway_crowded", "Connections cut at once: too many of one address had no tunnel yet"
)

log = logging.getLogger("psx.gateway")


class CustomerSide(asyncio.Protocol):
    """One connection of a customer. A listener adds how requests are read and answered; this is the tunnel's `Path`."""

    def __init__(self, pipeline: Pipeline) -> None:
        self._pipeline = pipeline
        self._loop = asyncio.get_running_loop()
        self._transport: asyncio.Transport | None = None
        self._tunnel: Tunnel | None = None
        self._opening: asyncio.Task[None] | None = None
        self._deadline: Deadline | None = None
        self._address = ""
        self.told_address: str | None = None
        self._ended = self._gone = False
        self._written_bytes = self._never_left_bytes = 0
        self._below_tls: socket.socket | None = None
        self._eof_sent = False
        self._full = False
        self._lobby: Lobby | None = None
        self._held_by_tunnel = False
        self._held_by_buffer = False

    # transport callbacks

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        transport = cast(asyncio.Transport, transport)  # uvloop's own are no subclass of it
        self._transport = transport
        transport.set_write_buffer_limits(high=WRITE_HIGH_BYTES)
        self._hold_below_tls(transport)
        self._address = self.told_address or str((transport.get_extra_info("peername") or ("",))[0])
        if not self.enter(self._pipeline.lobby):
            CROWDED.inc()
            self.cut()

    def pause_writing(self) -> None:
        self._full = True
        if self._tunnel is not None:
            self._tunnel.customer_full()

    def resume_writing(self) -> None:
        self._full = False
        if self._tunnel is not None:
            self._tunnel.customer_drained()

    def eof_received(self) -> bool:
        self._ended = True
        if self._tunnel is not None:
            self._tunnel.customer_ended()
        elif self._opening is None:
            return False
        half_closes = self._transport is not None and self._transport.can_write_eof()  # TLS does not
        return half_closes and not self._eof_sent

    def connection_lost(self, exc: Exception | None) -> None:
        self.stop_timer()
        self.leave_lobby()
        if self._opening is not None:
            self._pipeline.attempts.leave(self._opening)
        self._gone = True
        self._never_left_bytes = self._count_what_never_left()
        self._let_go_below_tls()
        self._transport = None
        tunnel = self._tunnel
        if tunnel is not None:
            if exc is None and self._ended:
                tunnel.finish()
            else:
                tunnel.cut()
            tunnel.place.leave()
        self._tunnel = None  # no cycle is left for the collector

    def enter(self, lobby: Lobby) -> bool:
        """Count there until a tunnel counts this connection. False when too many do already."""
        if self._lobby is None and lobby.enter(self._address):
            self._lobby = lobby
        return self._lobby is not None

    def leave_lobby(self) -> None:
        """A tunnel counts it, or it is gone."""
        lobby, self._lobby = self._lobby, None
        if lobby is not None:
            lobby.leave(self._address)

    # path

    @property
    def unsent_bytes(self) -> int:
        if self._gone:
            return self._never_left_bytes
        return 0 if self._transport is None else self._transport.get_write_buffer_size()

    def _count_what_never_left(self) -> int:
        """Its transport has forgotten what it had not sent; the kernel still knows what the other end acknowledged."""
        transport, below_tls = self._transport, self._below_tls
        raw = below_tls
        if raw is None and transport is not None:
            raw = transport.get_extra_info("socket")
        if raw is None:
            return NEVER_SENT_BYTES
        try:
            info = raw.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, _TCP_INFO_BYTES)
            taken: int = _BYTES_ACKED.unpack_from(info, _BYTES_ACKED_AT)[0]
        except (OSError, struct.error):
            return NEVER_SENT_BYTES
        if below_tls is not None:
            taken -= TLS_HANDSHAKE_MAX_BYTES + taken // TLS_OVERHEAD_MAX
        return max(self._written_bytes - max(taken, 0), 0)

    def _hold_below_tls(self, transport: asyncio.Transport) -> None:
        """A transport of TLS has let go of its socket before it says that it is lost."""
        raw = transport.get_extra_info("socket")
        if raw is not None and transport.get_extra_info("sslcontext") is not None:
            with contextlib.suppress(OSError):  # too many descriptors: then nothing is known
                self._below_tls = socket.socket(fileno=os.dup(raw.fileno()))

    def _let_go_below_tls(self) -> None:
        below_tls, self._below_tls = self._below_tls, None
        if below_tls is not None:
            below_tls.close()

    @property
    def bare_socket(self) -> int | None:
        transport = self._transport
        if transport is None or transport.is_closing() or self._eof_sent or transport.get_write_buffer_size():
            return None
        if transport.get_extra_info("sslcontext") is not None:
            return None
        raw = transport.get_extra_info("socket")
        return None if raw is None else int(raw.fileno())

    def send(self, data: Bytes) -> None:
        transport = self._transport
        if transport is not None and not transport.is_closing():
            try:
                transport.write(data)
            except RuntimeError:  # uvloop raises when the transport closed in this very turn
                return
            self._written_bytes += len(data)

    def passed(self, size: int) -> None:
        self._written_bytes += size

    def send_eof(self) -> None:
        transport = self._transport
        if transport is None or transport.is_closing() or self._eof_sent:
            return
        if not transport.can_write_eof():  # TLS in front: there is no half-close
            transport.close()
            return
        self._eof_sent = True
        with contextlib.suppress(RuntimeError, OSError):
            transport.write_eof()

    def hold(self) -> None:
        self._held_by_tunnel = True
        self._read_or_wait()

    def release(self) -> None:
        self._held_by_tunnel = False
        self._read_or_wait()

    def hold_if_stuffed(self, buffered_bytes: int) -> None:
        """Read no more while so much waits for an answer that it can be sent behind."""
        stuffed = buffered_bytes > EARLY_MAX_BYTES
        if stuffed is not self._held_by_buffer:
            self._held_by_buffer = stuffed
            self._read_or_wait()

    def _read_or_wait(self) -> None:
        """Both the tunnel and the listener may want this side to wait; it reads when neither does."""
        transport = self._transport
        if transport is None or transport.is_closing():
            return
        if self._held_by_tunnel or self._held_by_buffer:
            transport.pause_reading()
        else:
            transport.resume_reading()

    def finish(self) -> None:
        if self._transport is not None:
            self._transport.close()
            if self._transport.get_write_buffer_size() or not self._transport.can_write_eof():
                self._look_again(_on_its_way(self._transport))

    def _abort_unless_taken(self, unsent_before: int) -> None:
        """Who never reads, or never ends TLS, would keep its socket for ever; who reads slowly gets all of it."""
        transport = self._transport
        if transport is None:
            return
        unsent = _on_its_way(transport)
        if unsent > unsent_before - FLUSH_MIN_BYTES:
            self.cut()
        else:
            self._look_again(unsent)

    def _look_again(self, unsent: int) -> None:
        self.stop_timer()
        then = partial(self._abort_unless_taken, unsent)
        self._deadline = self._pipeline.deadlines.call_after(FLUSH_LOOK_S, then)

    def cut(self) -> None:
        reset(self._transport)

    # tunnels

    def attach(self, tunnel: Tunnel, answer: bytes, early: bytes) -> None:
        """Answer the customer, pass on what it sent early, and let bytes flow."""
        transport = self._transport
        if transport is None or transport.is_closing():
            tunnel.cut()
            return
        tunnel.customer = self
        self._tunnel = tunnel
        self.leave_lobby()
        if answer:
            transport.write(answer)
            self._written_bytes += len(answer)
        self.hold_if_stuffed(0)
        if early:
            tunnel.to_exit(early)
        self.tell_if_full(tunnel)
        tunnel.exit.attach(tunnel)
        self.tell_if_full(tunnel)
        if self._ended and tunnel.open:
            tunnel.customer_ended()

    def tell_if_full(self, tunnel: Tunnel) -> None:
        """A tunnel that begins while the customer does not read must know it. One of v1 wants little to lie between."""
        if not tunnel.exit.carries_eof:
            hold_little(self._transport, socket.SO_SNDBUF)
        if self._full:
            tunnel.customer_full()

    def open_in_background(self, opening: Coroutine[Any, Any, None]) -> None:
        """Run what opens the tunnel; a fault in it ends the connection, visibly."""
        self._opening = self._loop.create_task(opening)
        self._opening.add_done_callback(self._opened_or_broke)

    def _opened_or_broke(self, task: asyncio.Task[None]) -> None:
        if not task.cancelled() and task.exception() is not None:
            log.error("connection failed", exc_info=task.exception())
            self.cut()

    def abort_after(self, timeout_s: float) -> None:
        """Hang up unless the timer is stopped: slow heads hold no connection."""
        self.stop_timer()
        self._deadline = self._pipeline.deadlines.call_after(timeout_s, self.cut)

    def stop_timer(self) -> None:
        """What was waited for came."""
        if self._deadline is not None:
            self._deadline.cancel()
            self._deadline = None


def _on_its_way(transport: asyncio.Transport) -> int:
    """Bytes that the other end has not acknowledged. The kernel may hold megabytes and take no more of ours for minutes."""
    unsent, held = transport.get_write_buffer_size(), array("i", [0])
    raw = transport.get_extra_info("socket")
    if raw is not None:
        with contextlib.suppress(OSError):
            fcntl.ioctl(raw.fileno(), termios.TIOCOUTQ, held)
    return unsent + held[0]
