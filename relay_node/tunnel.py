"""One tunnel of binary-v1: a gateway's CONNECT on one side, a session on a peer's socket on the other.

States: OPENING -> OPEN -> CLOSED, or OPENING -> CLOSED. v1 has no flow control, so a gateway that does not read makes the
relay stop reading that peer socket. After `STALL_MAX_S` without progress the tunnel is closed instead; where others share
the socket, after `SHARED_STALL_MAX_S` with or without.
"""

from __future__ import annotations

from enum import Enum
from typing import TYPE_CHECKING, Final

from relay_node.figures import DOWN, TUNNELS, UP, Reason, count
from shared.wire.peer import DATA_PAYLOAD_BYTES, FrameType, OpenFailure, Type, binary_prefix

if TYPE_CHECKING:
    from relay_node.mesh import MeshConnection
    from relay_node.peers import PeerSocket

OPEN_TIMEOUT_S: Final = 10.0
ASSUME_OPEN_AFTER_S: Final = 0.75
STALL_MAX_S: Final = 30.0
"""So long a customer may take nothing where it alone waits for that."""
SHARED_STALL_MAX_S: Final = 2.0
"""So long a customer may make others of the same socket wait; and a second longer for each `STALL_EARNED_BYTES` that it
has taken since, up to `SHARED_STALL_EARNED_MAX_S`. What lies between the relay and a customer is let go of in pieces of
some 400 KB: a customer that takes 100 KB a second blocks for some seconds at a time, and is never given up.
"""
STALL_EARNED_BYTES: Final = 64 * 1024
SHARED_STALL_EARNED_MAX_S: Final = 10.0
SEND_BUFFER_BYTES: Final = 128 * 1024
"""Of the kernel, towards the gateway: a slow customer is felt here early, and again as soon as it has read a little."""
HELD_MAX_BYTES: Final = 256 * 1024
"""Held for one tunnel before its socket is read no further; it is read again when three quarters are gone."""

_FAILURES: Final = frozenset(OpenFailure)


class State(Enum):
    """Where a tunnel is in its life."""

    OPENING = 1
    OPEN = 2
    CLOSED = 3


class Tunnel:
    """Carries bytes between one mesh connection and one session of a peer socket."""

    def __init__(self, session_id: str, socket: PeerSocket, mesh: MeshConnection) -> None:
        self.session_id = session_id
        self.socket = socket
        self.mesh = mesh
        self.state = State.OPENING
        self._prefix = binary_prefix(FrameType.DATA, session_id)
        TUNNELS.inc()

    @property
    def shares_socket(self) -> bool:
        """Whether others wait when this one is blocked."""
        return self.socket.load > 1

    def open(self, host: str, port: int) -> None:
        """Ask the peer to dial the target."""
        self.socket.send_text(Type.TUNNEL_CONNECT, sessionId=self.session_id, host=host, port=port)

    def opened(self) -> None:
        """The peer says so, sent data, or has been silent long enough to be one that never says so."""
        if self.state is State.OPENING:
            self.state = State.OPEN
            self.mesh.tunnel_opened()

    def open_failed(self, reason: str) -> None:
        """The peer could not dial the target. Words that are not of the protocol go no further.

        It may come after the gateway was told that the tunnel stands, because peers that never say so are not waited for.
        """
        if self.state is State.OPENING:
            self._leave(Reason.OPEN_FAILED)
            self.mesh.tunnel_refused(reason if reason in _FAILURES else OpenFailure.UNKNOWN)
        elif self.state is State.OPEN:
            self._leave(Reason.OPEN_FAILED)
            self.mesh.abort()

    def to_peer(self, data: bytes) -> None:
        """Bytes of the customer, in frames that the slowest peer can take."""
        UP.inc(len(data))
        if len(data) <= DATA_PAYLOAD_BYTES:
            self.socket.send_data(self.session_id, self._prefix, data)
            return
        view = memoryview(data)
        for start in range(0, len(data), DATA_PAYLOAD_BYTES):
            self.socket.send_data(self.session_id, self._prefix, view[start : start + DATA_PAYLOAD_BYTES])

    def from_peer(self, data: bytes) -> None:
        """Bytes of the target; the first ones count as the answer to the open."""
        if self.state is State.CLOSED:
            return
        self.opened()
        DOWN.inc(len(data))
        self.mesh.write(data)

    def closed_by_peer(self, error: str) -> None:
        """The peer ended the session: a failed open (older peers say it so), or the target's end."""
        if self.state is State.OPENING:
            self.open_failed(error)
        elif self.state is State.OPEN:
            self._leave(Reason.TARGET_CLOSED)
            self.mesh.finish()

    def gateway_ended(self) -> bool:
        """The gateway sends no more. v1 cannot say so to the peer; what the target still answers comes through."""
        return self.state is not State.CLOSED

    def block(self) -> None:
        """The gateway does not read: stop reading the peer's socket, v1 has no other way."""
        self.socket.block(self)

    def unblock(self) -> None:
        """The gateway reads again."""
        self.socket.unblock(self)

    def closed_by_gateway(self) -> None:
        """The gateway hung up."""
        if self.state is not State.CLOSED:
            self._leave(Reason.GATEWAY_CLOSED)
            self.socket.send_close(self.session_id)

    def socket_lost(self, reason: Reason) -> None:
        """The peer's socket is gone: the gateway must see a broken stream, never a clean end."""
        if self.state is State.OPENING:
            self._leave(reason)
            self.mesh.tunnel_refused(Reason.PEER_GONE.value)
        elif self.state is State.OPEN:
            self._leave(reason)
            self.mesh.abort()

    def give_up(self, reason: Reason) -> None:
        """End a tunnel that stalls or whose open takes too long."""
        if self.state is not State.CLOSED:
            opening = self.state is State.OPENING
            self._leave(reason)
            self.socket.send_close(self.session_id)
            if opening:
                self.mesh.tunnel_refused("timeout")
            else:
                self.mesh.abort()

    def _leave(self, reason: Reason) -> None:
        self.state = State.CLOSED
        self.socket.forget_session(self)
        TUNNELS.inc(-1)
        count("tunnel", reason)
