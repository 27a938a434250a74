"""What peers say on their sockets, and what is said to them. How a socket is opened, read and closed is in `websocket.py`,
which device holds which sockets in `registry.py`.

A socket speaks binary-v1 or binary-v2, whichever its peer asked for; tunnels of v1 are sessions here, those of v2 are ends
that frames pass through. One sweeper looks at all sockets.
"""

from __future__ import annotations

import asyncio
import base64
import socket
from collections.abc import Sequence
from typing import Any, Final

from relay_node.figures import SOCKETS, Reason, count
from relay_node.forward import SOCKET_BUFFER_MAX_BYTES, Buffers, PeerEnd
from relay_node.registry import Registry
from relay_node.tunnel import Tunnel
from relay_node.websocket import HANDSHAKE_TIMEOUT_S, PeerConnection
from shared.runtime.transports import set_option
from shared.supply.tokens import TokenFault
from shared.wire import mux, peer
from shared.wire.outbox import Outbox
from shared.wire.peer import Binary, FrameType, Text, Type
from shared.wire.websocket import (
    MAX_MESSAGE_BYTES,
    CloseCode,
    Message,
    Opcode,
    encode_frame,
    frame_header,
)

IDLE_TIMEOUT_S: Final = 75.0
WRITE_HIGH_V2_BYTES: Final = 64 * 1024
NOT_SENT_LOW_BYTES: Final = 64 * 1024
TCP_NOTSENT_LOWAT: Final = 25
MAX_UNSENT_BYTES: Final = 16 * 1024 * 1024
"""A peer that lets more than this wait for it does not read; only control frames can get there in v2."""
FULL_MAX_S: Final = 30.0
"""A peer of v2 that does not take in this time what a socket keeps (48 KB) is gone, or will not: its tunnels resume."""
PING_AFTER_S: Final = 5.0
DEAD_WITH_TUNNELS_AFTER_S: Final = 15.0
REDIRECT_AGAIN_AFTER_S: Final = 120.0
TOKEN_NEW_S: Final = 600
"""A token younger than this names the relays of now, or else a new one would name no others."""

_BINARY: Final = Opcode.BINARY  # an enum's own attributes are slow to look up before Python 3.12
_BARE_HEARTBEAT: Final = peer.encode_text(Type.HEARTBEAT)
_HEARTBEAT_ACK: Final = encode_frame(Opcode.TEXT, peer.encode_text(Type.HEARTBEAT_ACK))
_ONLY_GATEWAYS_SEND: Final = frozenset(
    {mux.MuxType.OPEN, mux.MuxType.RESUME, mux.MuxType.CLOSE, mux.MuxType.GOAWAY}
)


class PeerSocket(PeerConnection):
    """One WebSocket of one peer, and its tunnels."""

    __slots__ = (
        "_binary", "_busy_since_s", "_follows_redirects", "_full_since_s", "_last_id", "_owed_pong", "_owes_ack",
        "_redirected_s", "account_generation", "buffers", "ends", "generation", "known_relays", "outbox", "owned",
        "token_issued_s", "tunnels", "v2",
    )  # fmt: skip

    def __init__(self, registry: Registry) -> None:
        super().__init__(registry)
        self.known_relays: tuple[str, ...] = ()
        self.token_issued_s = 0
        self.generation = 0
        self.account_generation = 0
        self.owned = False
        self.tunnels: dict[str, Tunnel] = {}
        self.ends: dict[int, PeerEnd] = {}
        self.outbox = Outbox(self._send_frame)
        self.buffers = Buffers(SOCKET_BUFFER_MAX_BYTES, registry.buffers)
        self.v2 = False
        self._binary = False
        self._last_id = 0
        self._busy_since_s = self._heard_s
        self._full_since_s = 0.0
        self._follows_redirects = False
        self._redirected_s = 0.0
        self._owed_pong: bytes | None = None
        self._owes_ack = False

    @property
    def load(self) -> int:
        """Tunnels on this socket."""
        return len(self.tunnels) + len(self.ends)

    def next_tunnel_id(self) -> int:
        """An id that no tunnel of this socket has."""
        while True:
            self._last_id = self._last_id % 0xFFFF_FFFF + 1
            if self._last_id not in self.ends:
                return self._last_id

    def carry(self, tunnel_id: int, end: PeerEnd) -> None:
        """A tunnel of v2 begins; from its first one on the peer is expected to answer pings soon."""
        if not self.ends:
            self._busy_since_s = self.loop.time()
        self.ends[tunnel_id] = end

    # transport callbacks

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.registry.sockets.add(self)
        SOCKETS.value = len(self.registry.sockets)
        super().connection_made(transport)

    def pause_writing(self) -> None:
        self._full_since_s = self.loop.time()
        self.outbox.pause()
        for tunnel in self.tunnels.values():
            tunnel.mesh.pause_reading()

    def resume_writing(self) -> None:
        if self._owed_pong is not None:
            self._write(encode_frame(Opcode.PONG, self._owed_pong))
        if self._owes_ack:
            self._write(_HEARTBEAT_ACK)
        self._owed_pong, self._owes_ack = None, False
        self.outbox.resume()
        for tunnel in self.tunnels.values():
            tunnel.mesh.resume_reading()

    def connection_lost(self, exc: Exception | None) -> None:
        registry = self.registry
        registry.sockets.discard(self)
        SOCKETS.value = len(registry.sockets)
        super().connection_lost(exc)
        for tunnel in list(self.tunnels.values()):
            tunnel.socket_lost(self.lost_reason)
        for end in list(self.ends.values()):
            end.socket_lost(self.lost_reason)
        registry.detach(self)
        count("socket", self.lost_reason)

    def _let_in(self, token: str) -> Reason | None:
        claims = self.registry.hooks.verify(token)
        return Reason.TOKEN_REFUSED if isinstance(claims, TokenFault) else self.registry.attach(self, claims)

    # frames in

    def _take(self, messages: Sequence[Message]) -> None:
        for message in messages:
            if self._closing:
                return
            if self.v2 and message.opcode is _BINARY:
                self._mux_frame(message.payload)
            else:
                self._message(message)

    def _message(self, message: Message) -> None:
        match message.opcode:
            case Opcode.BINARY:
                self._binary_frame(peer.parse_binary(message.payload))
            case Opcode.TEXT if message.payload == _BARE_HEARTBEAT:
                self._heartbeat()
            case Opcode.TEXT:
                text = peer.parse_text(message.payload)
                if text is not None:
                    self._text_frame(text)
            case Opcode.PING if self.outbox.paused:  # only the last one is owed an answer (RFC 6455, 5.5.3)
                self._owed_pong = bytes(message.payload)
            case Opcode.PING:
                self._write(encode_frame(Opcode.PONG, message.payload))
            case Opcode.CLOSE:
                stops = message.close_code() == CloseCode.NORMAL
                self.close(CloseCode.NORMAL, "", Reason.PEER_STOPPED if stops else Reason.PEER_CLOSED)

    def _binary_frame(self, frame: Binary) -> None:
        tunnel = self.tunnels.get(frame.session_id)
        if tunnel is None:
            return
        if frame.type is FrameType.DATA:
            tunnel.from_peer(frame.payload)
        else:
            tunnel.closed_by_peer("")

    def _mux_frame(self, payload: bytes) -> None:
        frame = mux.parse(payload)
        if frame is None:
            return
        end = self.ends.get(frame.tunnel)
        if end is not None:
            if frame.type in _ONLY_GATEWAYS_SEND:
                raise mux.MalformedMux("not for a peer to send")
            end.from_peer(frame)
        elif frame.type is mux.MuxType.PING and not self.outbox.paused:
            self._send_frame(mux.header(mux.MuxType.PONG, 0), frame.body)

    def _text_frame(self, frame: Text) -> None:
        match frame.type:
            case Type.DEVICE_INFO:
                self._device_info(frame)
            case Type.HEARTBEAT:
                self._heartbeat()
            case Type.ROTATION_COMPLETE:
                self.registry.answer_rotation(self, frame)
            case _:
                tunnel = self.tunnels.get(frame.text("sessionId"))
                if tunnel is not None:
                    self._tunnel_frame(tunnel, frame)

    def _heartbeat(self) -> None:
        if self.outbox.paused:
            self._owes_ack = True
        else:
            self._write(_HEARTBEAT_ACK)
        if self.ready and self.load == 0:
            self._offer_redirect()

    def _tunnel_frame(self, tunnel: Tunnel, frame: Text) -> None:
        match frame.type:
            case Type.TUNNEL_CONNECTED:
                if self.device is not None:
                    self.device.confirms_open = True
                tunnel.opened()
            case Type.TUNNEL_OPEN_FAILED:
                tunnel.open_failed(frame.text("reason"))
            case Type.TUNNEL_CLOSED | Type.TUNNEL_CLOSE:
                tunnel.closed_by_peer(frame.text("error"))
            case Type.TUNNEL_DATA:
                tunnel.from_peer(peer.legacy_payload(frame))

    def _device_info(self, frame: Text) -> None:
        device = self.device
        if device is None or self.ready:
            return
        wanted = frame.text("protocol")
        self.v2 = wanted == mux.PROTOCOL
        self._binary = wanted == peer.PROTOCOL
        first = not any(s.ready for s in device.sockets)
        if self.v2:
            self._use_v2()
        else:
            self._frames.max_message_bytes = MAX_MESSAGE_BYTES
        self.ready = True
        chosen = mux.PROTOCOL if self.v2 else peer.PROTOCOL
        self.send_text(Type.CONNECTED, deviceId=device.device_id, ip=self.address, protocol=chosen)
        self._follows_redirects = frame.payload.get("supportsRelayRedirect") is True
        self._offer_redirect()
        if self.registry.speaks_from(device, self) or first:
            self.registry.hooks.arrived(device)

    def _use_v2(self) -> None:
        """Keep little in the socket: what waits there can no longer be overtaken."""
        transport = self._transport
        if transport is not None:
            transport.set_write_buffer_limits(high=WRITE_HIGH_V2_BYTES)
            set_option(transport, socket.IPPROTO_TCP, TCP_NOTSENT_LOWAT, NOT_SENT_LOW_BYTES)

    def _offer_redirect(self) -> None:
        """Send a peer that belongs elsewhere there; again now and then, because it may have had reasons to stay.

        A peer goes only to relays that its token names: for one that was added since, it has to fetch another token.
        """
        device, now_s = self.device, self.loop.time()
        if device is None or not self._follows_redirects:
            return
        if self._redirected_s and now_s - self._redirected_s < REDIRECT_AGAIN_AFTER_S:
            return
        target = self.registry.hooks.redirect_for(device)
        if target is None:
            return
        age_s = self.registry.hooks.now_ms() // 1000 - self.token_issued_s
        if target in self.known_relays or age_s < TOKEN_NEW_S:
            self.redirect(target, "nearest_region")
        else:
            self.close(CloseCode.IDENTITY_INVALID, "refresh: a new relay serves you", Reason.MOVED)

    def redirect(self, relay: str, reason: str) -> None:
        """Ask the peer to go to another relay."""
        if self.ready and self._follows_redirects:
            self._redirected_s = self.loop.time()
            self.send_text(Type.RELAY_REDIRECT, relay=relay, reason=reason)

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

    def _send_frame(self, head: bytes, payload: mux.Bytes = b"") -> None:
        self._cork.write(frame_header(_BINARY, len(head) + len(payload)) + head, payload)

    def send_close(self, session_id: str) -> None:
        """End a session at the peer."""
        self.send_text(Type.TUNNEL_CLOSE, sessionId=session_id)

    def forget(self, tunnel_id: int) -> None:
        """A tunnel of v2 is over."""
        self.ends.pop(tunnel_id, None)

    def forget_session(self, tunnel: Tunnel) -> None:
        """A tunnel of v1 is over."""
        self.tunnels.pop(tunnel.session_id, None)
        self.unblock(tunnel)

    def give_way(self) -> None:
        """Too much is held here and most of it for this peer: let it go at once."""
        self.ready = False
        for end in list(self.ends.values()):
            end.socket_lost(Reason.OVERLOADED)
        self._abort_if(True, Reason.OVERLOADED)

    def go_away(self, reconnect_in_ms: int, try_for_ms: int) -> None:
        """This relay drains: a peer of v2 comes back elsewhere and its tunnels are resumed there, however it leaves."""
        self.lost_reason = Reason.DRAIN
        self._send_frame(mux.goaway_frame(reconnect_in_ms, try_for_ms))

    def sweep(self, now_s: float) -> None:
        """Close a socket that is silent or stuck for too long, or whose handshake is late."""
        transport = self._transport
        if transport is None:
            return
        silent_s = now_s - self._heard_s
        if self._closing:
            transport.abort()
        elif self._head is not None:
            self._abort_if(now_s - self._born_s > HANDSHAKE_TIMEOUT_S, Reason.HANDSHAKE_TIMEOUT)
        elif transport.get_write_buffer_size() > MAX_UNSENT_BYTES or self._takes_nothing(now_s):
            self._abort_if(True, Reason.STALLED)
        elif not self._blocked:
            with_tunnels = self.v2 and self.ends
            if with_tunnels:
                silent_s = now_s - max(self._heard_s, self._busy_since_s)
            self._abort_if(
                silent_s > (DEAD_WITH_TUNNELS_AFTER_S if with_tunnels else IDLE_TIMEOUT_S), Reason.IDLE
            )
            if with_tunnels and now_s - self._heard_s >= PING_AFTER_S:
                self._send_frame(mux.header(mux.MuxType.PING, 0), bytes(8))

    def _takes_nothing(self, now_s: float) -> bool:
        return self.v2 and self.outbox.paused and now_s - self._full_since_s > FULL_MAX_S
