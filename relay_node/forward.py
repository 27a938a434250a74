"""binary-v2 through the relay: frames pass between a gateway's link and a peer's socket, with the tunnel ids changed.

The relay keeps no windows and no replay: those are the ends' business. It shares each connection fairly, bounds what it
holds for a tunnel and for all of them, and tells one side when the other is gone, and how it went.
"""

from __future__ import annotations

from collections import deque
from typing import Final, Protocol

from relay_node.figures import BUFFERED, DOWN, TUNNELS, UP, Reason, count
from shared.wire.mux import (
    DATA_MAX_BYTES,
    HEADER_BYTES,
    Bytes,
    Frame,
    MuxReason,
    MuxType,
    header,
    reset_frame,
)
from shared.wire.outbox import Outbox
from shared.wire.stream import JOINED_MAX_BYTES, SMALL_BYTES, WINDOW_MAX_BYTES

FRAME_COST_BYTES: Final = HEADER_BYTES + 128
"""What a frame that is held takes besides its body. Small ones are joined: a window of them costs an eighth more."""
TUNNEL_BUFFER_MAX_BYTES: Final = WINDOW_MAX_BYTES + WINDOW_MAX_BYTES // 8 + 64 * 1024
"""A tunnel holds at most one window here; whoever sends more ignores its limit."""
SOCKET_BUFFER_MAX_BYTES: Final = 32 * 1024 * 1024
"""One peer's socket that takes nothing must not use up what all have."""
PROCESS_BUFFER_MAX_BYTES: Final = 512 * 1024 * 1024
_PEER_ENDS: Final = frozenset({MuxType.RESET, MuxType.REFUSED})
_GATEWAY_ENDS: Final = frozenset({MuxType.RESET, MuxType.CLOSE})
_SEQUENCED: Final = frozenset({MuxType.DATA, MuxType.EOF, MuxType.BLOCKED})
_RELAYS_SAY: Final = frozenset(
    {
        *(MuxReason.PATH_LOST, MuxReason.PEER_GONE, MuxReason.UNKNOWN_DEVICE),
        *(MuxReason.DRAINING, MuxReason.OVERLOADED, MuxReason.TOO_MANY_TUNNELS),
    }
)
"""Of paths, devices and their own state relays speak. A gateway holds none of these against an exit, so no exit may hide
behind them.
"""
_WHEN_LOST: Final = {
    Reason.REVOKED: MuxReason.STOPPED,
    Reason.NOT_OWNED: MuxReason.STOPPED,
    Reason.PEER_STOPPED: MuxReason.STOPPED,
    Reason.PEER_GONE: MuxReason.PEER_GONE,
}
CONTROL_WHILE_FULL_MAX: Final = 4096
"""Control frames of one tunnel towards a connection that takes nothing; an honest end has no reason for more."""


class PeerEnd(Protocol):
    """What a peer's socket holds per tunnel of v2: a forward to a link, or a CONNECT of a prober."""

    def from_peer(self, frame: Frame) -> None:
        """A frame of the peer for this tunnel."""

    def socket_lost(self, reason: Reason) -> None:
        """The peer's socket is gone."""


class Side(Protocol):
    """A connection that carries many tunnels."""

    outbox: Outbox
    buffers: Buffers

    def forget(self, tunnel_id: int) -> None:
        """A tunnel left this connection."""


class LinkSide(Side, Protocol):
    """The side of a gateway. `reasons_max` is the highest reason that it knows."""

    reasons_max: int


class Buffers:
    """What is held for connections that are full: of one connection, within what all may hold together (`whole`)."""

    __slots__ = ("_left_at_look", "_left_before", "_left_bytes", "_whole", "held_bytes", "max_bytes")

    def __init__(self, max_bytes: int = PROCESS_BUFFER_MAX_BYTES, whole: Buffers | None = None) -> None:
        self.held_bytes = 0
        self._left_bytes = self._left_at_look = self._left_before = 0
        self.max_bytes = max_bytes
        self._whole = whole

    def hold(self, size: int) -> bool:
        """Take room; False, and nothing taken, when there is not that much."""
        if self.held_bytes + size > self.max_bytes or (
            self._whole is not None and not self._whole.hold(size)
        ):
            return False
        self.held_bytes += size
        if self._whole is None:
            BUFFERED.value = self.held_bytes
        return True

    def let_go(self, size: int) -> None:
        """Give room back."""
        self.held_bytes -= size
        self._left_bytes += size
        if self._whole is None:
            BUFFERED.value = self.held_bytes
        else:
            self._whole.let_go(size)

    @property
    def has_room(self) -> bool:
        """Whether all that a tunnel may hold has room besides."""
        return self.held_bytes + TUNNEL_BUFFER_MAX_BYTES <= self.max_bytes

    def look(self) -> None:
        """Note what has left by now; called for all at once, every few seconds."""
        self._left_before, self._left_at_look = self._left_at_look, self._left_bytes

    def wait(self) -> float:
        """How long what is held would wait, in times of what passed since the look before the last."""
        return self.held_bytes / max(self._left_bytes - self._left_before, 1)

    def crowded(self) -> bool:
        """Whether those that hold up most should give way (`Registry.make_room`)."""
        return self.held_bytes > self.max_bytes // 2

    def nearly_full(self) -> bool:
        """Whether they should however little they hold."""
        return self.held_bytes > self.max_bytes * 7 // 8

    def roomy(self) -> bool:
        """Whether enough of them did."""
        return self.held_bytes <= self.max_bytes * 3 // 8


class _Lane:
    """Sequenced frames of one tunnel in one direction; queued only while the way out is full."""

    __slots__ = ("_buffers", "_frames", "_held_bytes", "outbox", "queued", "tunnel_id")

    def __init__(self, outbox: Outbox, tunnel_id: int, buffers: Buffers) -> None:
        self.outbox = outbox
        self.tunnel_id = tunnel_id
        self.queued = False
        self._buffers = buffers
        self._frames: deque[tuple[MuxType, bytes]] = deque()
        self._held_bytes = 0

    def push(self, kind: MuxType, body: Bytes) -> bool:
        """Send or queue; False when this tunnel, or the process, holds too much."""
        outbox = self.outbox
        if not outbox.paused and not self.queued:
            outbox.send(header(kind, self.tunnel_id), body)
            return True
        frames, held = self._frames, len(body)
        joins = held < SMALL_BYTES and kind is MuxType.DATA and self._ends_small()
        if not joins:
            held += FRAME_COST_BYTES
        if self._held_bytes + held > TUNNEL_BUFFER_MAX_BYTES or not self._buffers.hold(held):
            return False
        self._held_bytes += held
        if joins:
            frames[-1] = (kind, frames[-1][1] + body)
        else:
            frames.append((kind, bytes(body)))  # a copy, so that no large read is kept for a small frame
            outbox.offer(self)
        return True

    def _ends_small(self) -> bool:
        """Whether the last frame is of data, and takes more."""
        if not self._frames:
            return False
        kind, body = self._frames[-1]
        return kind is MuxType.DATA and len(body) < JOINED_MAX_BYTES

    @property
    def full(self) -> bool:
        """Whether another frame would be more than a tunnel may hold."""
        return self._held_bytes + DATA_MAX_BYTES + FRAME_COST_BYTES > TUNNEL_BUFFER_MAX_BYTES

    def take(self, max_bytes: int) -> tuple[bytes, Bytes] | None:
        if not self._frames:
            return None
        kind, body = self._frames.popleft()
        self._let_go(FRAME_COST_BYTES + len(body))
        return header(kind, self.tunnel_id), body

    def clear(self) -> None:
        """Drop what is queued."""
        self.outbox.withdraw(self)
        if self._frames:
            self._frames.clear()
            self._let_go(self._held_bytes)

    def _let_go(self, size: int) -> None:
        self._held_bytes -= size
        self._buffers.let_go(size)


class Forward:
    """One tunnel between a link and a peer's socket."""

    __slots__ = ("_controls", "_link", "_over", "_socket", "_to_link", "_to_peer")

    def __init__(self, socket: Side, peer_id: int, link: LinkSide, link_id: int) -> None:
        self._socket = socket
        self._link = link
        self._to_peer = _Lane(socket.outbox, peer_id, socket.buffers)
        self._to_link = _Lane(link.outbox, link_id, link.buffers)
        self._over = False
        self._controls = 0
        TUNNELS.inc()

    def from_link(self, frame: Frame) -> None:
        """A frame of the gateway for this tunnel."""
        kind, lane = frame.type, self._to_peer
        if kind in _SEQUENCED:
            UP.inc(len(frame.body))
            if not lane.push(kind, frame.body):
                self._no_room(lane)
            return
        lane.outbox.send(header(kind, lane.tunnel_id), frame.body)
        if kind in _GATEWAY_ENDS:
            self._leave(Reason.GATEWAY_CLOSED)

    def from_peer(self, frame: Frame) -> None:
        """A frame of the peer for this tunnel."""
        kind, lane = frame.type, self._to_link
        if kind in _SEQUENCED:
            DOWN.inc(len(frame.body))
            if not lane.push(kind, frame.body):
                self._no_room(lane)
            return
        body = frame.body
        if lane.outbox.paused:
            self._controls += 1
            if self._controls > CONTROL_WHILE_FULL_MAX:
                self._overrun()
                return
        else:
            self._controls = 0
        if kind in _PEER_ENDS and body[0] in _RELAYS_SAY:
            body = bytes((MuxReason.UNKNOWN,)) + bytes(body[1:])
        lane.outbox.send(header(kind, lane.tunnel_id), body)
        if kind in _PEER_ENDS:
            self._leave(Reason.OPEN_FAILED if kind is MuxType.REFUSED else Reason.TARGET_CLOSED)

    def socket_lost(self, reason: Reason) -> None:
        """The peer's socket is gone: the gateway may resume elsewhere, unless the device cannot or will not go on."""
        why = _WHEN_LOST.get(reason, MuxReason.PATH_LOST)
        if why > self._link.reasons_max:
            why = MuxReason.PATH_LOST
        self._to_link.outbox.send(reset_frame(self._to_link.tunnel_id, why))
        self._leave(reason)

    def link_lost(self) -> None:
        """The gateway's link is gone: the peer waits for it to come back."""
        self._to_peer.outbox.send(reset_frame(self._to_peer.tunnel_id, MuxReason.PATH_LOST))
        self._leave(Reason.LINK_GONE)

    def _no_room(self, lane: _Lane) -> None:
        """Whoever sends more than a tunnel may hold has lost it; where others hold too much, it may resume."""
        if lane.full:
            self._overrun()
            return
        for each in (self._to_peer, self._to_link):
            each.outbox.send(reset_frame(each.tunnel_id, MuxReason.PATH_LOST))
        self._leave(Reason.OVERLOADED)

    def _overrun(self) -> None:
        for lane in (self._to_peer, self._to_link):
            lane.outbox.send(reset_frame(lane.tunnel_id, MuxReason.OVERLOADED))
        self._leave(Reason.OVERLOADED)

    def _leave(self, reason: Reason) -> None:
        if self._over:
            return
        self._over = True
        for side, lane in ((self._socket, self._to_peer), (self._link, self._to_link)):
            lane.clear()
            side.forget(lane.tunnel_id)
        TUNNELS.inc(-1)
        count("tunnel", reason)
