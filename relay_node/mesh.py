"""The private side: gateways and probers reach targets through a named device.

`CONNECT host:port` with `X-PSX-Mesh-Token`, `X-PSX-Device`, `X-Request-ID` is one tunnel. Answers: 200, then bytes both
ways; 403 wrong token, 404 device not here, 429 device is full, 502 with `X-PSX-Reason`, 503 this relay drains, 504 the open
took too long. `GET /` with `Upgrade: psx-mux-2` and the token turns the connection into a link for many tunnels.
"""

from __future__ import annotations

import asyncio
import hmac
import socket
from collections.abc import Callable
from typing import Final, cast

from relay_node.connect_stream import ConnectStream
from relay_node.figures import Reason, count
from relay_node.links import LinkConnection
from relay_node.peers import PeerSocket
from relay_node.registry import MAX_TUNNELS_PER_DEVICE, Device, Registry
from relay_node.tunnel import (
    ASSUME_OPEN_AFTER_S,
    HELD_MAX_BYTES,
    OPEN_TIMEOUT_S,
    SEND_BUFFER_BYTES,
    SHARED_STALL_EARNED_MAX_S,
    SHARED_STALL_MAX_S,
    STALL_EARNED_BYTES,
    STALL_MAX_S,
    Tunnel,
)
from shared.runtime.transports import reset, set_option
from shared.wire.cork import GATHER_BULK_BYTES, Cork
from shared.wire.http1 import HeadError, RequestHead, build_head, split_authority, take_request_head
from shared.wire.mux import FIRST_REASONS_MAX, LINK_UPGRADE, REASONS_HEADER, Bytes

WRITE_HIGH_BYTES: Final = 1024 * 1024
REQUEST_TIMEOUT_S: Final = 5.0
STALL_LOOK_S: Final = 0.5
REASON_DIGITS_MAX: Final = 3


class MeshConnection(asyncio.Protocol):
    """One CONNECT of a gateway."""

    def __init__(self, registry: Registry, token: str, new_session_id: Callable[[], str]) -> None:
        self._registry = registry
        self._token = token.encode()
        self._new_session_id = new_session_id
        self._loop = asyncio.get_running_loop()
        self._transport: asyncio.Transport | None = None
        self._buffer: bytearray = bytearray()
        self._tunnel: Tunnel | ConnectStream | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._blocked_s = self._progress_s = 0.0
        self._may_block_s = SHARED_STALL_MAX_S
        self._taken_bytes = 0
        self._unsent_bytes = 0
        self._cork = Cork(self._loop.call_soon, GATHER_BULK_BYTES)

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        transport = cast(asyncio.Transport, transport)  # uvloop's own are no subclass of it
        self._transport = self._cork.connection = transport
        transport.set_write_buffer_limits(high=WRITE_HIGH_BYTES)
        self._timer = self._loop.call_later(
            REQUEST_TIMEOUT_S, self._answer, 408, Reason.BAD_REQUEST, "request_timeout"
        )

    def data_received(self, data: bytes) -> None:
        if self._tunnel is not None and not self._buffer:
            self._tunnel.to_peer(data)
            return
        self._buffer += data
        if self._tunnel is not None:
            return
        try:
            head = take_request_head(self._buffer)
        except HeadError:
            self._answer(400, Reason.BAD_REQUEST, "malformed_request")
            return
        if head is not None:
            self._connect(head)

    def eof_received(self) -> bool:
        return self._tunnel is not None and self._tunnel.gateway_ended()

    def connection_lost(self, exc: Exception | None) -> None:
        self._cancel_timer()
        if self._tunnel is not None:
            self._tunnel.closed_by_gateway()

    def pause_writing(self) -> None:
        if self._tunnel is not None and self._transport is not None:
            self._blocked_s = self._progress_s = self._loop.time()
            earned_s = self._taken_bytes // STALL_EARNED_BYTES
            self._may_block_s = min(self._may_block_s + earned_s, SHARED_STALL_EARNED_MAX_S)
            self._taken_bytes = 0
            self._unsent_bytes = self._transport.get_write_buffer_size()
            self._tunnel.block()
            self._timer = self._loop.call_later(STALL_LOOK_S, self._look_at_stall)

    def resume_writing(self) -> None:
        self._cancel_timer()
        if self._tunnel is not None:
            self._may_block_s = max(self._may_block_s - (self._loop.time() - self._blocked_s), 0.0)
            self._tunnel.unblock()

    # from the tunnel

    def tunnel_opened(self) -> None:
        """The target is connected: answer, and send on what the gateway sent early."""
        self._cancel_timer()
        self.write(build_head("HTTP/1.1 200 Connection established", []))
        early, self._buffer = bytes(self._buffer), bytearray()
        if early and self._tunnel is not None:
            self._tunnel.to_peer(early)

    def tunnel_refused(self, reason: str) -> None:
        """The peer could not connect, or went away."""
        status = 504 if reason == "timeout" else 502
        self._answer(status, None, reason)

    def write(self, data: Bytes) -> None:
        """Bytes for the gateway."""
        self._taken_bytes += len(data)
        self._cork.write(data)

    def write_eof(self) -> None:
        """The target says no more; the gateway may."""
        self._cork.flush()
        if (
            self._transport is not None
            and not self._transport.is_closing()
            and self._transport.can_write_eof()
        ):
            self._transport.write_eof()

    def finish(self) -> None:
        """A clean end: what is written still arrives."""
        self._cork.flush()
        if self._transport is not None:
            self._transport.close()

    def abort(self) -> None:
        """A broken stream, visible as a reset and never as a clean end."""
        self._cork.flush()
        reset(self._transport)

    def pause_reading(self) -> None:
        """The peer's socket is full."""
        if self._transport is not None and not self._transport.is_closing():
            self._transport.pause_reading()

    def resume_reading(self) -> None:
        """The peer's socket has room."""
        if self._transport is not None and not self._transport.is_closing():
            self._transport.resume_reading()

    def _look_at_stall(self) -> None:
        """Now and then while this side does not read: progress is bytes leaving."""
        if self._transport is None or self._tunnel is None:
            return
        now_s, unsent = self._loop.time(), self._transport.get_write_buffer_size()
        if unsent < self._unsent_bytes:
            self._progress_s = now_s
        self._unsent_bytes = unsent
        shared = self._tunnel.shares_socket and now_s - self._blocked_s >= self._may_block_s
        if shared or now_s - self._progress_s >= STALL_MAX_S:
            self._tunnel.give_up(Reason.STALLED)
        else:
            self._timer = self._loop.call_later(STALL_LOOK_S, self._look_at_stall)

    # requests

    def _connect(self, head: RequestHead) -> None:
        given = (head.header("x-psx-mesh-token") or "").encode("latin-1")
        if not hmac.compare_digest(given, self._token):
            self._answer(403, Reason.MESH_TOKEN, "mesh_token_refused")
            return
        if head.method == "GET" and head.header("upgrade") == LINK_UPGRADE:
            self._become_link(head)
            return
        try:
            host, port = split_authority(head.target)
        except HeadError:
            host, port = "", 0
        if head.method != "CONNECT" or not host:
            self._answer(400, Reason.BAD_REQUEST, "malformed_request")
            return
        device = self._registry.devices.get(head.header("x-psx-device") or "")
        peer_socket = device.least_loaded() if device else None
        if device is None or peer_socket is None:
            self._answer(404, Reason.UNKNOWN_DEVICE, "unknown_device")
        elif device.leaving:
            self._answer(503, Reason.DRAIN, "draining")
        elif device.tunnel_count() >= MAX_TUNNELS_PER_DEVICE:
            self._answer(429, Reason.TOO_MANY_TUNNELS, "too_many_tunnels")
        else:
            self._cancel_timer()
            self._tunnel = self._through(device, peer_socket)
            self._tunnel.open(host, port)
            if peer_socket.outbox.paused and not peer_socket.v2:
                self.pause_reading()  # it began while the peer does not read: nobody else would tell it

    def _through(self, device: Device, peer_socket: PeerSocket) -> Tunnel | ConnectStream:
        tunnel: Tunnel | ConnectStream
        if peer_socket.v2:
            tunnel = ConnectStream(peer_socket, self)
        else:
            tunnel = Tunnel(self._new_session_id(), peer_socket, self)
            if self._transport is not None:
                self._transport.set_write_buffer_limits(high=HELD_MAX_BYTES)
                set_option(self._transport, socket.SOL_SOCKET, socket.SO_SNDBUF, SEND_BUFFER_BYTES)
            peer_socket.tunnels[tunnel.session_id] = tunnel
            if not device.confirms_open:
                self._timer = self._loop.call_later(ASSUME_OPEN_AFTER_S, tunnel.opened)
                return tunnel
        self._timer = self._loop.call_later(OPEN_TIMEOUT_S, tunnel.give_up, Reason.OPEN_TIMEOUT)
        return tunnel

    def _become_link(self, head: RequestHead) -> None:
        transport = self._transport
        if transport is None:
            return
        self._cancel_timer()
        fields = [("Upgrade", LINK_UPGRADE), ("Connection", "Upgrade")]
        self.write(build_head("HTTP/1.1 101 Switching Protocols", fields))
        self._cork.flush()
        known = head.header(REASONS_HEADER.lower()) or ""
        is_number = known.isascii() and known.isdecimal() and len(known) <= REASON_DIGITS_MAX
        reasons_max = int(known) if is_number else FIRST_REASONS_MAX
        link = LinkConnection(self._registry, transport, reasons_max)
        transport.set_protocol(link)
        if self._buffer:
            link.data_received(bytes(self._buffer))

    def _answer(self, status: int, reason: Reason | None, detail: str) -> None:
        self._cancel_timer()
        self._tunnel = None
        if reason is not None:
            count("tunnel", reason)
        fields = [("X-PSX-Reason", detail), ("Content-Length", "0"), ("Connection", "close")]
        self.write(build_head(f"HTTP/1.1 {status} refused", fields))
        self.finish()

    def _cancel_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
