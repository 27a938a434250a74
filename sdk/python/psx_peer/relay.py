"""One socket to a relay: upgrade, device_info, heartbeats, and its tunnels; callbacks on the transport.

The relay chooses binary-v1 or binary-v2 in `connected`. Tunnels of v1 end with the socket; streams of v2 are handed back to
the device's table and wait there to be resumed.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import time
from collections.abc import Callable
from typing import Any, Final, cast
from urllib.parse import urlsplit

from psx_peer import __version__
from psx_peer.identity import Identity, tls_context
from psx_peer.options import Options
from psx_peer.pulse import Pulse
from psx_peer.streams import StreamTable, StreamTarget
from psx_peer.tunnels import Dialer, TargetSide
from psx_peer.wire import Outbox, cork, handshake, http1, mux, peer, stream, websocket

CONNECT_TIMEOUT_S: Final = 15.0
WRITE_HIGH_BYTES: Final = 256 * 1024
FRAME_SLOW_BYTES: Final = 16 * 1024
UNSENT_FAST_BYTES: Final = 256 * 1024
FAST_BYTES_PER_S: Final = 20_000_000
PACE_BYTES: Final = 2 * 1024 * 1024
"""So often the uplink is judged: on a slow one small frames and little in the socket let small answers pass; on a fast one
large frames cost less, and many of them in one write: what is unsent then is gone in a hundredth of a second.
"""
TCP_NOTSENT_LOWAT: Final = 25
LOGGED_MAX_CHARS: Final = 200
UNSENT_MAX_BYTES: Final = 32 * 1024 * 1024
"""A relay that asks and asks but never reads is left before its answers fill the device's memory."""
_ALLOWANCE: Final = "allowance"
_BINARY: Final = websocket.Opcode.BINARY  # an enum's own attributes are slow to look up before Python 3.12
_BEGINNINGS: Final = frozenset({mux.MuxType.OPEN, mux.MuxType.RESUME})

log = logging.getLogger("psx_peer")


def _printable(text: str) -> str:
    """What a relay wrote, fit for a log: one line, bounded."""
    return "".join(c if c.isprintable() else "?" for c in text[:LOGGED_MAX_CHARS])


class RelaySocket(asyncio.Protocol):
    """Await `run` for the close code."""

    def __init__(
        self,
        options: Options,
        identity: Identity,
        dialer: Dialer,
        table: StreamTable,
        allow_redirect: Callable[[str], bool],
        elsewhere: Callable[[], None],
        seen_at: Callable[[str], None],
        rotate: Callable[[str], None],
    ) -> None:
        self._options = options
        self._identity = identity
        self._dialer = dialer
        self._table = table
        self._allow_redirect = allow_redirect
        self._elsewhere = elsewhere
        self._seen_at = seen_at
        self._rotate = rotate
        self._loop = asyncio.get_running_loop()
        self._transport: asyncio.Transport | None = None
        self._head: bytearray | None = bytearray()
        self._key = os.urandom(16)
        self._frames = websocket.FrameReader(masked=False)
        self._tunnels: dict[str, TargetSide] = {}
        self._streams: dict[int, StreamTarget] = {}
        self._blocked: set[object] = set()
        self._ended: asyncio.Future[int] = self._loop.create_future()
        self._pulse = Pulse(options.times, self._loop.time(), time.time())
        self._v2 = False
        self._leaving = False
        self._cork = cork.Cork(self._loop.call_soon)
        self.outbox = Outbox(self._send_frame, FRAME_SLOW_BYTES)
        self._paced_bytes = 0
        self._paced_s = self._loop.time()
        self.write_paused = False
        self.connected = asyncio.Event()

    async def run(self, url: str) -> int:
        """Connect, serve until the socket ends, and say with which close code. Raises OSError."""
        parts = urlsplit(url)
        secure = parts.scheme == "wss"
        host, port = parts.hostname or "", parts.port or (443 if secure else 80)
        local = (self._options.bind, 0) if self._options.bind else None
        tls = tls_context(self._options) if secure else None
        connecting = self._loop.create_connection(lambda: self, host, port, ssl=tls, local_addr=local)
        async with asyncio.timeout(
            CONNECT_TIMEOUT_S
        ):  # `wait_for` swallows a cancellation that meets its answer
            transport, _ = await connecting
        transport.write(handshake.upgrade_request(parts.netloc, parts.path, self._key, self._identity.token))
        beat = self._loop.create_task(self._heartbeats())
        try:
            return await self._ended
        finally:
            beat.cancel()
            transport.abort()
            self._leave_tunnels()

    def stop(self) -> None:
        """End the socket and every tunnel of v1 on it, at once."""
        for tunnel in list(self._tunnels.values()):
            tunnel.abort()
        self._finish(websocket.CloseCode.NORMAL, "stopped by its owner")

    def lose(self) -> None:
        """The address changed under it: whatever it carries goes on over another socket, where it can."""
        if self._transport is not None:
            self._transport.abort()
        self._end(1006)

    @property
    def is_connected(self) -> bool:
        """Whether the relay has taken it and it was not lost since."""
        return self.connected.is_set() and not self._ended.done()

    # transport callbacks

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        transport = cast(asyncio.Transport, transport)  # uvloop's own are no subclass of it
        self._transport = self._cork.connection = transport
        transport.set_write_buffer_limits(high=WRITE_HIGH_BYTES)

    def data_received(self, data: bytes) -> None:
        self._pulse.heard(self._loop.time())
        try:
            if self._head is not None:
                self._head += data
                data = self._upgraded(self._head)
            if data:
                for message in self._frames.receive(data):
                    if not self._v2 or message.opcode is not _BINARY:
                        self._message(message)
                    elif (frame := mux.parse(message.payload)) is not None:
                        self._frame(frame)
        except websocket.WebSocketFault as fault:
            self._finish(fault.code, fault.reason)
        except (
            peer.MalformedFrame,
            mux.MalformedMux,
            http1.HeadError,
        ) as fault:
            self._finish(websocket.CloseCode.PROTOCOL_ERROR, str(fault))

    def pause_writing(self) -> None:
        self.outbox.pause()
        self.write_paused = True
        for tunnel in self._tunnels.values():
            tunnel.pause_reading()

    def resume_writing(self) -> None:
        self.outbox.resume()
        self.write_paused = False
        for tunnel in self._tunnels.values():
            tunnel.resume_reading()

    def connection_lost(self, exc: Exception | None) -> None:
        self._leave_tunnels()
        self._end(1006)

    def _leave_tunnels(self) -> None:
        for tunnel in list(self._tunnels.values()):
            tunnel.abort()
        self._table.leave(len(self._tunnels))
        self._tunnels.clear()
        streams, self._streams = list(self._streams.values()), {}
        self._table.path_lost(streams)

    def _end(self, code: int) -> None:
        if not self._ended.done():
            self._ended.set_result(code)

    # frames in

    def _upgraded(self, head: bytearray) -> bytes:
        answer = http1.take_response_head(head)
        if answer is None:
            return b""
        if answer.status == 401:
            self._end(websocket.CloseCode.IDENTITY_INVALID)
            return b""
        if not handshake.is_accepted(answer, self._key, self._identity.token):
            log.warning("relay refused the upgrade: %d", answer.status)
            self._end(1006)
            return b""
        rest, self._head = bytes(head), None
        self._send_text(
            peer.Type.DEVICE_INFO,
            country=self._options.country,
            carrier="",
            currentIp="auto",
            protocol=self._options.protocol,
            supportsRelayRedirect=self._options.relay is None,
            sdkVersion=f"python-{__version__}",
        )
        return rest

    def _message(self, message: websocket.Message) -> None:
        match message.opcode:
            case websocket.Opcode.BINARY:
                binary = peer.parse_binary(message.payload)
                tunnel = self._tunnels.get(binary.session_id)
                if tunnel is not None and binary.type is peer.FrameType.DATA:
                    tunnel.to_target(binary.payload)
                elif tunnel is not None:
                    self._drop(tunnel)
            case websocket.Opcode.TEXT:
                text = peer.parse_text(message.payload)
                if text is not None:
                    self._text(text)
            case websocket.Opcode.PING:
                self._send(websocket.Opcode.PONG, message.payload)
            case websocket.Opcode.CLOSE:
                self._end(message.close_code())

    def _text(self, text: peer.Text) -> None:
        session_id = text.text("sessionId")
        match text.type:
            case peer.Type.CONNECTED:
                self._connected(text)
            case peer.Type.TUNNEL_CONNECT:
                self._tunnel_connect(session_id, text.text("host"), text.integer("port"))
            case peer.Type.TUNNEL_DATA if session_id in self._tunnels:
                self._tunnels[session_id].to_target(peer.legacy_payload(text))
            case peer.Type.TUNNEL_CLOSE if session_id in self._tunnels:
                self._drop(self._tunnels[session_id])
            case peer.Type.RELAY_REDIRECT if self._allow_redirect(text.text("relay")):
                self._finish(websocket.CloseCode.REDIRECTED, "redirect followed")
            case peer.Type.ROTATE_IP_REQUEST:
                self._rotate(text.text("requestId"))
            case peer.Type.HEARTBEAT_ACK:
                log.debug("[ACK]")
            case peer.Type.ERROR:
                log.warning("relay says: %s", _printable(text.text("message")))

    def tell_rotated(self, request_id: str, error: str) -> None:
        """Say that the address was changed, or (with an error) that it was not."""
        failed = {"error": error} if error else {}
        self._send_text(peer.Type.ROTATION_COMPLETE, requestId=request_id, success=not error, **failed)

    def _connected(self, text: peer.Text) -> None:
        self._seen_at(text.text("ip"))
        self._v2 = text.text("protocol") == mux.PROTOCOL == self._options.protocol
        if self._v2 and self._transport is not None:
            self._keep_unsent(self._transport, FRAME_SLOW_BYTES)
        self.connected.set()
        log.info("[CONNECTED] device=%s", _printable(text.text("deviceId")))

    # tunnels of v2

    def _frame(self, frame: mux.Frame) -> None:
        target = self._streams.get(frame.tunnel)
        if target is not None and frame.type not in _BEGINNINGS:
            try:
                target.receive(frame)
            except stream.FlowViolation as fault:
                self._violated(target, fault)
            return
        match frame.type:
            case mux.MuxType.OPEN if target is None:
                self._open(frame)
            case mux.MuxType.RESUME if target is None:
                self._resume(frame)
            case mux.MuxType.OPEN | mux.MuxType.RESUME:
                raise mux.MalformedMux("tunnel id is in use")
            case mux.MuxType.PING:
                self._send_frame(mux.header(mux.MuxType.PONG, 0), frame.body)
            case mux.MuxType.GOAWAY:
                reconnect_in_ms, _ = mux.read_goaway(frame.body)
                if not self._leaving:  # the first one counts
                    self._leaving = True
                    self._loop.call_later(reconnect_in_ms / 1000, self._go_away)

    def _open(self, frame: mux.Frame) -> None:
        given = mux.read_open(frame.body)
        if log.isEnabledFor(logging.DEBUG):
            log.debug("[TUNNEL_CONNECT] %s:%d", _printable(given.host), given.port)
        if self._table.full or self._table.find(given.token) is not None:
            self._send_frame(mux.refused_frame(frame.tunnel, mux.MuxReason.TOO_MANY_TUNNELS))
            return
        target = StreamTarget(self._table, given.token, self, frame.tunnel)
        self._streams[frame.tunnel] = target
        target.start(self._dialer, given)

    def _resume(self, frame: mux.Frame) -> None:
        given = mux.read_resume(frame.body)
        target = self._table.find(given.token)
        if target is None:
            self._send_frame(mux.refused_frame(frame.tunnel, mux.MuxReason.UNKNOWN_TUNNEL))
            return
        self._streams[frame.tunnel] = target
        try:
            target.resume(self, frame.tunnel, given.received, given.limit)
        except stream.FlowViolation as fault:
            self._violated(target, fault)

    def _violated(self, target: StreamTarget, fault: stream.FlowViolation) -> None:
        log.warning("tunnel ended: %s", fault)
        target.violated()

    def _go_away(self) -> None:
        if not self._ended.done():
            self._elsewhere()
            self._finish(websocket.CloseCode.REDIRECTED, "relay goes away")

    def forget(self, tunnel_id: int) -> None:
        """A stream is over, or moved to another socket."""
        self._streams.pop(tunnel_id, None)

    # tunnels of v1

    def _tunnel_connect(self, session_id: str, host: str, port: int) -> None:
        if not session_id or session_id in self._tunnels:
            return
        if len(session_id.encode()) > peer.MAX_SESSION_ID_BYTES:
            raise peer.MalformedFrame("session id too long")
        if self._table.full:
            self._failed(session_id, peer.OpenFailure.UNKNOWN, "too many tunnels", 0)
            return
        log.debug("[TUNNEL_CONNECT] %s:%d", _printable(host), port)
        tunnel = TargetSide(self, session_id)
        self._tunnels[session_id] = tunnel
        self._table.enter()
        if self.write_paused:
            tunnel.pause_reading()
        tunnel.start(self._dialer, host, port)

    def _drop(self, tunnel: TargetSide) -> None:
        self._forget_session(tunnel.session_id)
        self.unblock(tunnel)
        tunnel.close()

    def _forget_session(self, session_id: str) -> None:
        if self._tunnels.pop(session_id, None) is not None:
            self._table.leave()

    # from tunnels

    def opened(self, session_id: str) -> None:
        """A target is connected."""
        self._send_text(peer.Type.TUNNEL_CONNECTED, sessionId=session_id)

    def open_failed(self, session_id: str, reason: peer.OpenFailure, detail: str, took_ms: int) -> None:
        """A target could not be dialled."""
        self._forget_session(session_id)
        self._failed(session_id, reason, detail, took_ms)

    def _failed(self, session_id: str, reason: peer.OpenFailure, detail: str, took_ms: int) -> None:
        self._send_text(
            peer.Type.TUNNEL_OPEN_FAILED,
            sessionId=session_id,
            reason=reason.value,
            detail=detail,
            durationMs=took_ms,
        )

    def send_data(self, prefix: bytes, data: bytes) -> None:
        """Target's bytes."""
        self._send(websocket.Opcode.BINARY, prefix + data)

    def target_closed(self, tunnel: TargetSide, *, tell: bool) -> None:
        """A target's connection ended."""
        if self._tunnels.get(tunnel.session_id) is tunnel:
            self._forget_session(tunnel.session_id)
        self.unblock(tunnel)
        if tell:
            self._send_text(peer.Type.TUNNEL_CLOSED, sessionId=tunnel.session_id)

    def spend(self, size: int) -> float:
        """Carried bytes, off the owner's allowance; seconds to wait."""
        return self._table.allowance.spend(size, self._loop.time())

    def pause_for(self, wait_s: float) -> None:
        """The allowance is spent: read the relay no more for a while (binary-v1 has no other way)."""
        if wait_s and _ALLOWANCE not in self._blocked:  # one timer, however small the pieces are
            self.block(_ALLOWANCE)
            self._loop.call_later(wait_s, self.unblock, _ALLOWANCE)

    def block(self, reason: object) -> None:
        """A target does not read: stop reading the relay (binary-v1 has no other way)."""
        self._blocked.add(reason)
        if self._transport and len(self._blocked) == 1 and not self._transport.is_closing():
            self._transport.pause_reading()

    def unblock(self, reason: object) -> None:
        """The target reads again, or is gone."""
        if reason in self._blocked:
            self._blocked.discard(reason)
            if self._transport and not self._blocked and not self._transport.is_closing():
                self._transport.resume_reading()

    # frames out

    async def _heartbeats(self) -> None:
        while not self._ended.done():
            await asyncio.sleep(self._pulse.tick_s)
            now_s = self._loop.time()
            beat = self._pulse.tick(
                now_s, time.time(), streams=bool(self._streams), reading=not self._blocked
            )
            if beat.dead:
                log.warning("relay is silent: dialling again")
                self._end(1006)
                return
            if beat.ping:
                self._send_frame(mux.header(mux.MuxType.PING, 0), bytes(8))
            if beat.heartbeat and self.connected.is_set():
                self._send_text(peer.Type.HEARTBEAT)
            self._reap(now_s - self._options.times.idle)

    def _reap(self, oldest_s: float) -> None:
        """End tunnels on which nothing moved since then."""
        for target in list(self._streams.values()):
            if target.moved_s < oldest_s:
                target.reaped()
        for tunnel in list(self._tunnels.values()):
            if tunnel.moved_s < oldest_s:
                tunnel.abort()

    def _send_text(self, kind: peer.Type, **payload: Any) -> None:
        self._send(websocket.Opcode.TEXT, peer.encode_text(kind, **payload))

    def _pace(self, transport: asyncio.Transport, sent: int) -> None:
        """Judge the uplink by what it took."""
        self._paced_bytes += sent
        if self._paced_bytes < PACE_BYTES:
            return
        now_s = self._loop.time()
        fast = self._paced_bytes > FAST_BYTES_PER_S * (now_s - self._paced_s)
        frame_bytes = mux.DATA_MAX_BYTES if fast else FRAME_SLOW_BYTES
        if frame_bytes != self.outbox.frame_bytes:
            self.outbox.frame_bytes = frame_bytes
            self._cork.gather_max_bytes = cork.GATHER_BULK_BYTES if fast else cork.GATHER_MAX_BYTES
            self._keep_unsent(transport, UNSENT_FAST_BYTES if fast else FRAME_SLOW_BYTES)
        self._paced_bytes, self._paced_s = 0, now_s

    @staticmethod
    def _keep_unsent(transport: asyncio.Transport, size: int) -> None:
        transport.set_write_buffer_limits(high=size)
        raw = transport.get_extra_info("socket")
        with contextlib.suppress(OSError, AttributeError):  # a kernel without it only queues more
            raw.setsockopt(6, TCP_NOTSENT_LOWAT, size)

    def _send_frame(self, head: bytes, payload: mux.Bytes = b"") -> None:
        transport = self._transport
        if transport is None or self._drowning():
            return
        self._pace(transport, len(payload))
        mask = os.urandom(4)
        turn = len(head) % 4
        parts = [
            websocket.frame_header(_BINARY, len(head) + len(payload), mask) + websocket.apply_mask(head, mask)
        ]
        if payload:
            parts.append(websocket.apply_mask(payload, mask[turn:] + mask[:turn]))
        self._cork.write(*parts)

    def _send(self, opcode: websocket.Opcode, payload: bytes) -> None:
        if not self._drowning():
            self._cork.write(websocket.encode_frame(opcode, payload, os.urandom(4)))

    def _drowning(self) -> bool:
        """The socket is closing, or its relay never reads: then it is left."""
        transport = self._transport
        if transport is None or transport.is_closing():
            return True
        if transport.get_write_buffer_size() <= UNSENT_MAX_BYTES:
            return False
        self._end(1006)
        return True

    def _finish(self, code: websocket.CloseCode, reason: str) -> None:
        if self._transport is not None and not self._transport.is_closing():
            self._cork.write(websocket.encode_close(code, reason, os.urandom(4)))
            self._cork.flush()
            self._transport.close()
        self._end(code)
