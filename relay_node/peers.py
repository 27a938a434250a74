"""Peers' sockets: the opening handshake, frames, and which device holds which sockets.

Callbacks on the transport, no task and no timer per socket: one sweeper looks at all of them. A socket belongs to the
device its JWT names; a device has up to 8 sockets and its tunnels are spread over them by load.
"""

from __future__ import annotations

import asyncio
import base64
import contextlib
import logging
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Final, cast

from relay_node.figures import DEVICES, SOCKETS, Reason, count
from relay_node.tunnel import Tunnel
from shared.supply.model import Origin
from shared.supply.tokens import Claims, TokenFault
from shared.wire import handshake, peer
from shared.wire.http1 import HeadError, build_head, take_request_head
from shared.wire.peer import Binary, FrameType, MalformedFrame, Text, Type
from shared.wire.websocket import (
    CloseCode,
    FrameReader,
    Message,
    Opcode,
    WebSocketFault,
    encode_close,
    encode_frame,
    frame_header,
)

HANDSHAKE_TIMEOUT_S: Final = 10.0
IDLE_TIMEOUT_S: Final = 75.0
WRITE_HIGH_BYTES: Final = 256 * 1024
MAX_TUNNELS_PER_DEVICE: Final = 256
MAX_HANDSHAKE_BYTES: Final = 8 * 1024
MAX_SOCKETS_PER_ADDRESS: Final = 4096

log = logging.getLogger("psx.relay")


@dataclass(slots=True)
class Device:
    """One enrolled device while it has sockets here. `confirms_open`: it has said `tunnel_connected` before."""

    device_id: str
    account_id: str
    origin: Origin
    address: str
    connected_ms: int
    confirms_open: bool = False
    sockets: list[PeerSocket] = field(default_factory=list)

    def tunnel_count(self) -> int:
        """Tunnels over all its sockets."""
        return sum(len(s.tunnels) for s in self.sockets)

    def least_loaded(self) -> PeerSocket | None:
        """The ready socket that carries the fewest tunnels."""
        ready = [s for s in self.sockets if s.ready]
        return min(ready, key=lambda s: len(s.tunnels), default=None)


@dataclass(frozen=True, slots=True)
class Hooks:
    """What the registry asks of its process: verify tokens, look addresses up, hear of arrivals and departures."""

    verify: Callable[[str], Claims | TokenFault]
    origin: Callable[[str], Origin]
    now_ms: Callable[[], int]
    arrived: Callable[[Device], None]
    left: Callable[[Device], None]
    redirect_for: Callable[[Device], str | None]


class Registry:
    """All devices connected to this relay."""

    def __init__(self, hooks: Hooks) -> None:
        self.hooks = hooks
        self.devices: dict[str, Device] = {}
        self.sockets: set[PeerSocket] = set()
        self.per_address: dict[str, int] = {}
        self.draining = False

    def attach(self, socket: PeerSocket, claims: Claims) -> bool:
        """Give an accepted socket to its device; False when the device has all its sockets already."""
        device = self.devices.get(claims.device_id)
        if device is None:
            origin = self.hooks.origin(socket.address)
            device = Device(claims.device_id, claims.account_id, origin, socket.address, self.hooks.now_ms())
            self.devices[claims.device_id] = device
            DEVICES.set(len(self.devices))
        if len(device.sockets) >= peer.MAX_SOCKETS_PER_DEVICE:
            return False
        device.sockets.append(socket)
        socket.device = device
        return True

    def detach(self, socket: PeerSocket) -> None:
        """A socket is gone; with the last one its device leaves."""
        device = socket.device
        if device is None or socket not in device.sockets:
            return
        device.sockets.remove(socket)
        if not device.sockets and self.devices.pop(device.device_id, None) is not None:
            DEVICES.set(len(self.devices))
            self.hooks.left(device)

    def revoke(self, device_id: str) -> None:
        """Close every socket of a device whose identity ended."""
        device = self.devices.get(device_id)
        for socket in list(device.sockets) if device else ():
            socket.close(CloseCode.IDENTITY_INVALID, "identity revoked", Reason.REVOKED)

    def sweep(self, now_s: float) -> None:
        """Close what is idle, late or stalled. Called every few seconds."""
        for socket in list(self.sockets):
            socket.sweep(now_s)


class PeerSocket(asyncio.Protocol):
    """One WebSocket of one peer."""

    def __init__(self, registry: Registry) -> None:
        self.registry = registry
        self.loop = asyncio.get_running_loop()
        self.device: Device | None = None
        self.tunnels: dict[str, Tunnel] = {}
        self.ready = False
        self.address = ""
        self.lost_reason = Reason.PEER_GONE
        self._transport: asyncio.Transport | None = None
        self._head: bytearray | None = bytearray()
        self._frames = FrameReader(masked=True)
        self._binary = False
        self._heard_s = self.loop.time()
        self._blocked: set[Tunnel] = set()
        self._closing = False

    # transport callbacks

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        transport = cast(asyncio.Transport, transport)  # uvloop's own are no subclass of it
        self._transport = transport
        self.address = str((transport.get_extra_info("peername") or ("",))[0])
        transport.set_write_buffer_limits(high=WRITE_HIGH_BYTES)
        registry = self.registry
        held = registry.per_address.get(self.address, 0)
        registry.per_address[self.address] = held + 1
        registry.sockets.add(self)
        SOCKETS.set(len(registry.sockets))
        if held >= MAX_SOCKETS_PER_ADDRESS or registry.draining:
            self._refuse("503 Service Unavailable", Reason.TOO_MANY_SOCKETS)

    def data_received(self, data: bytes) -> None:
        self._heard_s = self.loop.time()
        if self._head is not None:
            self._head += data
            self._handshake(self._head)
            return
        self._frames_received(data)

    def pause_writing(self) -> None:
        for tunnel in self.tunnels.values():
            tunnel.mesh.pause_reading()

    def resume_writing(self) -> None:
        for tunnel in self.tunnels.values():
            tunnel.mesh.resume_reading()

    def eof_received(self) -> bool:
        return False

    def connection_lost(self, exc: Exception | None) -> None:
        registry = self.registry
        registry.sockets.discard(self)
        SOCKETS.set(len(registry.sockets))
        left = registry.per_address.get(self.address, 1) - 1
        if left > 0:
            registry.per_address[self.address] = left
        else:
            registry.per_address.pop(self.address, None)
        self.ready = False
        for tunnel in list(self.tunnels.values()):
            tunnel.socket_lost(self.lost_reason)
        registry.detach(self)
        count("socket", self.lost_reason)

    # handshake

    def _handshake(self, head: bytearray) -> None:
        try:
            request = take_request_head(head, MAX_HANDSHAKE_BYTES)
        except HeadError:
            self._refuse("400 Bad Request", Reason.HANDSHAKE)
            return
        if request is None:
            return
        offer = handshake.offered_token(request)
        if offer is None:
            self._refuse("400 Bad Request", Reason.HANDSHAKE)
            return
        subprotocol, token = offer
        claims = self.registry.hooks.verify(token)
        if isinstance(claims, TokenFault):
            self._refuse("401 Unauthorized", Reason.TOKEN_REFUSED)
            return
        if not self.registry.attach(self, claims):
            self._refuse("429 Too Many Requests", Reason.TOO_MANY_SOCKETS)
            return
        rest, self._head = bytes(head), None
        self._write(handshake.accept_answer(request, subprotocol))
        if rest:
            self._frames_received(rest)

    def _refuse(self, status: str, reason: Reason) -> None:
        self.lost_reason = reason
        self._closing = True
        self._write(build_head(f"HTTP/1.1 {status}", [("Content-Length", "0"), ("Connection", "close")]))
        if self._transport:
            self._transport.close()

    # frames in

    def _frames_received(self, data: bytes) -> None:
        try:
            for message in self._frames.receive(data):
                if self._closing:
                    return
                self._message(message)
        except WebSocketFault as fault:
            self.close(fault.code, fault.reason, Reason.PROTOCOL)
        except MalformedFrame as fault:
            self.close(CloseCode.PROTOCOL_ERROR, str(fault), Reason.PROTOCOL)

    def _message(self, message: Message) -> None:
        match message.opcode:
            case Opcode.BINARY:
                self._binary_frame(peer.parse_binary(message.payload))
            case Opcode.TEXT:
                text = peer.parse_text(message.payload)
                if text is not None:
                    self._text_frame(text)
            case Opcode.PING:
                self._write(encode_frame(Opcode.PONG, message.payload))
            case Opcode.CLOSE:
                self.close(CloseCode.NORMAL, "", Reason.PEER_CLOSED)

    def _binary_frame(self, frame: Binary) -> None:
        tunnel = self.tunnels.get(frame.session_id)
        if tunnel is None:
            return
        if frame.type is FrameType.DATA:
            tunnel.from_peer(frame.payload)
        else:
            tunnel.closed_by_peer("")

    def _text_frame(self, frame: Text) -> None:
        match frame.type:
            case Type.DEVICE_INFO:
                self._device_info(frame)
            case Type.HEARTBEAT:
                self.send_text(Type.HEARTBEAT_ACK)
            case _:
                tunnel = self.tunnels.get(frame.text("sessionId"))
                if tunnel is not None:
                    self._tunnel_frame(tunnel, frame)

    def _tunnel_frame(self, tunnel: Tunnel, frame: Text) -> None:
        match frame.type:
            case Type.TUNNEL_CONNECTED:
                if self.device is not None:
                    self.device.confirms_open = True
                tunnel.opened()
            case Type.TUNNEL_OPEN_FAILED:
                tunnel.open_failed(frame.text("reason") or "unknown")
            case Type.TUNNEL_CLOSED | Type.TUNNEL_CLOSE:
                tunnel.closed_by_peer(frame.text("error"))
            case Type.TUNNEL_DATA:
                tunnel.from_peer(peer.legacy_payload(frame))

    def _device_info(self, frame: Text) -> None:
        device = self.device
        if device is None or self.ready:
            return
        self._binary = frame.text("protocol") == peer.PROTOCOL
        first = not any(s.ready for s in device.sockets)
        self.ready = True
        self.send_text(Type.CONNECTED, deviceId=device.device_id, ip=self.address, protocol=peer.PROTOCOL)
        target = (
            self.registry.hooks.redirect_for(device)
            if frame.payload.get("supportsRelayRedirect") is True
            else None
        )
        if target is not None:
            self.send_text(Type.RELAY_REDIRECT, relay=target, reason="nearest_region")
        if first:
            self.registry.hooks.arrived(device)

    # frames out

    def send_text(self, kind: Type, **payload: Any) -> None:
        """A JSON frame."""
        self._write(encode_frame(Opcode.TEXT, peer.encode_text(kind, **payload)))

    def send_data(self, session_id: str, prefix: bytes, data: bytes | memoryview) -> None:
        """Tunnel bytes, in the form that this peer announced."""
        if self._binary:
            size = len(prefix) + len(data)
            self._write(b"".join((frame_header(Opcode.BINARY, size), prefix, data)))
        else:
            self.send_text(Type.TUNNEL_DATA, sessionId=session_id, data=base64.b64encode(data).decode())

    def send_close(self, session_id: str) -> None:
        """End a session at the peer."""
        self.send_text(Type.TUNNEL_CLOSE, sessionId=session_id)

    def forget(self, tunnel: Tunnel) -> None:
        """A tunnel ended."""
        self.tunnels.pop(tunnel.session_id, None)
        self.unblock(tunnel)

    def block(self, tunnel: Tunnel) -> None:
        """A gateway does not read: stop reading this socket until it does (v1 has no other way)."""
        self._blocked.add(tunnel)
        if self._transport and len(self._blocked) == 1 and not self._transport.is_closing():
            self._transport.pause_reading()

    def unblock(self, tunnel: Tunnel) -> None:
        """The gateway reads again, or its tunnel ended."""
        if tunnel in self._blocked:
            self._blocked.discard(tunnel)
            self._heard_s = self.loop.time()
            if self._transport and not self._blocked and not self._transport.is_closing():
                self._transport.resume_reading()

    def close(self, code: int, text: str, reason: Reason) -> None:
        """Say why and hang up; tunnels learn of it when the transport is gone."""
        if self._closing or self._transport is None:
            return
        self._closing = True
        self.ready = False
        self.lost_reason = reason
        self._write(encode_close(code, text))
        self._transport.close()

    def sweep(self, now_s: float) -> None:
        """Close a socket that was silent for too long, or whose handshake is late; end stalled tunnels."""
        limit = HANDSHAKE_TIMEOUT_S if self._head is not None else IDLE_TIMEOUT_S
        if self._closing or (now_s - self._heard_s > limit and not self._blocked):
            late = self._head is not None
            if not self._closing:
                self.lost_reason = Reason.HANDSHAKE_TIMEOUT if late else Reason.IDLE
            if self._transport:
                self._transport.abort()
        for tunnel in list(self._blocked):
            tunnel.mesh.sweep(now_s)

    def _write(self, data: bytes) -> None:
        if self._transport is not None and not self._transport.is_closing():
            with contextlib.suppress(
                RuntimeError
            ):  # uvloop raises when the transport closed in this very turn
                self._transport.write(data)
