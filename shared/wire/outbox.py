"""One connection's way out, shared among its tunnels. No I/O, no clock.

Control frames leave at once, data goes round-robin, a frame each, while the connection has room. So a bulk transfer never
delays another tunnel's bytes by more than the connection's own small buffer.
"""

from __future__ import annotations

from collections import deque
from typing import Protocol

from shared.wire.mux import DATA_MAX_BYTES, Bytes


class Lane(Protocol):
    """Something with data frames to send over a shared connection. `queued` belongs to the Outbox."""

    queued: bool

    def take(self, max_bytes: int) -> tuple[bytes, Bytes] | None:
        """The next (header, payload of at most `max_bytes`), or None when there is nothing to send now."""


class FrameWriter(Protocol):
    """Writes one frame, in two parts so that no payload is copied, to a connection."""

    def __call__(self, head: bytes, payload: Bytes = b"") -> None: ...


class Outbox:
    """One connection's way out. The owner calls `pause` and `resume` as its transport does."""

    __slots__ = ("_ready", "frame_bytes", "paused", "send")

    def __init__(self, send: FrameWriter, frame_bytes: int = DATA_MAX_BYTES) -> None:
        self.send = send
        self.frame_bytes = frame_bytes
        self.paused = False
        self._ready: deque[Lane] | None = None  # an empty one takes 700 bytes, and most connections are idle

    def offer(self, lane: Lane) -> None:
        """A lane has something to send."""
        if not lane.queued:
            lane.queued = True
            if self._ready is None:
                self._ready = deque()
            self._ready.append(lane)
            if not self.paused and len(self._ready) == 1:
                self._pump()

    def withdraw(self, lane: Lane) -> None:
        """A lane is gone."""
        if lane.queued and self._ready is not None:
            lane.queued = False
            self._ready.remove(lane)

    def pause(self) -> None:
        """The connection is full."""
        self.paused = True

    def resume(self) -> None:
        """The connection has room."""
        self.paused = False
        self._pump()

    def _pump(self) -> None:
        ready = self._ready
        while ready and not self.paused:
            lane = ready[0]
            parts = lane.take(self.frame_bytes)
            if parts is None:
                lane.queued = False
                if ready and ready[0] is lane:
                    ready.popleft()
            else:
                ready.rotate(-1)
                self.send(*parts)
