"""A CONNECT through a binary-v2 peer, as probers use it: here the relay itself is the gateway's end of the tunnel."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Final

from relay_node.figures import DOWN, TUNNELS, UP, Reason, count
from shared.wire.mux import (
    TOKEN_BYTES,
    Bytes,
    Frame,
    MalformedMux,
    MuxReason,
    MuxType,
    header,
    open_frame,
    read_limit,
    read_reason,
    read_window,
    reset_frame,
)
from shared.wire.stream import FlowViolation, Stream, WindowBudget

if TYPE_CHECKING:
    from relay_node.mesh import MeshConnection
    from relay_node.peers import PeerSocket

WINDOWS_MAX_BYTES: Final = 64 * 1024 * 1024
"""What all windows of probes may grow by together: a path that is long and fast is to be measured as such."""
_BUDGET: Final = WindowBudget(WINDOWS_MAX_BYTES)
_DATA: Final = MuxType.DATA
_TARGET_WORDS: Final = {
    MuxReason.CONNECTION_REFUSED: "connection_refused",
    MuxReason.EGRESS_POLICY: "connection_refused",
    MuxReason.DNS_FAILED: "dns_failed",
    MuxReason.TIMEOUT: "timeout",
}


class ConnectStream:
    """The same calls as `Tunnel` has, for a peer of v2."""

    shares_socket: Final = False  # windows hold its own bytes back, and nobody else's

    def __init__(self, socket: PeerSocket, mesh: MeshConnection) -> None:
        self.socket = socket
        self.mesh = mesh
        self._id = socket.next_tunnel_id()
        self._stream = Stream(self, os.urandom(TOKEN_BYTES), _BUDGET)
        self._open = False
        self._over = False
        self._gateway_ended = False
        socket.carry(self._id, self)
        TUNNELS.inc()

    def open(self, host: str, port: int) -> None:
        """Ask the peer to dial the target."""
        frame = open_frame(self._id, self._stream.token, self._stream.told_limit, host, port)
        self.socket.outbox.send(frame)

    # from the mesh connection

    def to_peer(self, data: bytes) -> None:
        """Bytes of the prober."""
        UP.inc(len(data))
        self._stream.write(data)

    def gateway_ended(self) -> bool:
        """No more comes from the gateway; True: the connection stays for what the target still says."""
        self._gateway_ended = True
        self._stream.write_eof()
        return not self._stream.eof_received

    def closed_by_gateway(self) -> None:
        """The gateway hung up."""
        if not self._over:
            self._say(MuxReason.CUSTOMER_RESET)
            self._leave(Reason.GATEWAY_CLOSED)

    def give_up(self, reason: Reason) -> None:
        """The open takes too long, or the gateway does not read."""
        if not self._over:
            self._say(MuxReason.TIMEOUT)
            self._lose(reason, "timeout")

    def block(self) -> None:
        """The gateway does not read."""
        self._stream.stall()

    def unblock(self) -> None:
        """The gateway reads again."""
        self._stream.drained()

    # from the peer's socket

    def from_peer(self, frame: Frame) -> None:
        """A frame for this tunnel. Raises MalformedMux."""
        try:
            if frame.type is _DATA and self._open:
                self._stream.on_data(frame.body)
            else:
                self._frame(frame)
        except FlowViolation:
            self._say(MuxReason.FLOW_VIOLATION)
            self._lose(Reason.PROTOCOL, "flow_violation")

    def _frame(self, frame: Frame) -> None:
        match frame.type:
            case MuxType.OPENED if not self._open:
                self._open = True
                self._stream.attach(self.socket.outbox, self._id)
                self._stream.on_opened(read_limit(frame.body))
                self.mesh.tunnel_opened()
            case MuxType.REFUSED:
                reason = read_reason(frame.body)
                self._lose(Reason.OPEN_FAILED, _TARGET_WORDS.get(reason, reason.name.lower()))
            case MuxType.WINDOW:
                self._stream.on_window(*read_window(frame.body))
                self._close_if_over()
            case MuxType.BLOCKED:
                self._stream.on_blocked(read_limit(frame.body))
            case MuxType.EOF if self._open:
                self._stream.on_eof(closes=True)
                self._close_if_over()
            case MuxType.RESET:
                self._lose(Reason.TARGET_CLOSED, "target_reset")
            case MuxType.DATA | MuxType.EOF:
                raise MalformedMux("bytes before OPENED")

    def socket_lost(self, reason: Reason) -> None:
        """The peer's socket is gone."""
        self._lose(reason, Reason.PEER_GONE.value)

    # sink

    def deliver(self, data: Bytes) -> None:
        DOWN.inc(len(data))
        self.mesh.write(data)

    def ended(self) -> None:
        if self._gateway_ended:
            self.mesh.finish()  # uvloop must not be left with both directions half-closed
        else:
            self.mesh.write_eof()

    def pause_source(self) -> None:
        self.mesh.pause_reading()

    def resume_source(self) -> None:
        self.mesh.resume_reading()

    # ends

    def _close_if_over(self) -> None:
        if self._stream.over and not self._over:
            self.socket.outbox.send(header(MuxType.CLOSE, self._id))
            self._leave(Reason.TARGET_CLOSED)
            self.mesh.finish()

    def _lose(self, reason: Reason, word: str) -> None:
        if self._over:
            return
        self._leave(reason)
        if self._open:
            self.mesh.abort()
        else:
            self.mesh.tunnel_refused(word)

    def _say(self, reason: MuxReason) -> None:
        self.socket.outbox.send(reset_frame(self._id, reason))

    def _leave(self, reason: Reason) -> None:
        self._over = True
        self._stream.close()
        self.socket.forget(self._id)
        TUNNELS.inc(-1)
        count("tunnel", reason)
