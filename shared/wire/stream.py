"""One end of a binary-v2 tunnel: what may be sent, what was taken, what must be kept for a resumption. No I/O, no clock.

    IDLE --attach--> ATTACHED --detach--> DETACHED --attach--> ATTACHED ... --> over (both directions acknowledged)

A `Stream` has a `Sink`: the connection it feeds (a customer, a target). It sends through an `Outbox`, which shares one
connection among its streams.

Windows: the receiver lets `WINDOW_START_BYTES` in, and doubles that each time the sender says BLOCKED while the sink keeps
up, so that the window finds bandwidth x delay without a clock; to `WINDOW_MAX_BYTES`, and as long as the process's
`WindowBudget` allows. A sink that stalls is granted nothing. What was sent is kept until acknowledged, within the same
start, ceiling and budget whatever the other end lets in, so resumption costs no more memory than flow control does.
Source: the frames in `mux.py`; BLOCKED after QUIC's STREAM_DATA_BLOCKED (RFC 9000 section 4.1).
"""

from __future__ import annotations

from collections import deque
from typing import Final, Protocol

from shared.wire.mux import (
    DATA_MAX_BYTES,
    Bytes,
    MuxType,
    blocked_frame,
    header,
    window_frame,
)
from shared.wire.outbox import Outbox

WINDOW_START_BYTES: Final = 256 * 1024
WINDOW_MAX_BYTES: Final = 4 * 1024 * 1024
PENDING_HIGH_BYTES: Final = 64 * 1024
"""Bytes that wait for credit or room before the source is held."""
RESENT_TIMES: Final = 8
RESENT_MAX_BYTES: Final = 4 * WINDOW_MAX_BYTES
"""What is sent again may come to so many times what was acknowledged, and so much more: an end that keeps losing what came
is not fed for ever. A slow line that loses its path every few seconds is sent its window seven times as often.
"""
LIMITS_KEPT: Final = 4
"""Limits told last: BLOCKED is believed at one of them."""
SMALL_BYTES: Final = 1024
JOINED_MAX_BYTES: Final = 4096
APART_MAX: Final = 64
"""Small pieces of one direction that are kept as they came. Beyond them they are joined: each takes a hundred bytes besides
its own."""
_DATA: Final = MuxType.DATA


class FlowViolation(Exception):
    """The other end sent beyond its limit, or acknowledged what was never sent."""


class SentTooOften(FlowViolation):
    """The path is lost again and again, which may be nobody's fault: no more is sent again."""


class Sink(Protocol):
    """The connection that a stream feeds and is fed by."""

    def deliver(self, data: Bytes) -> None:
        """Bytes from the other end."""

    def ended(self) -> None:
        """The other end will send no more."""

    def pause_source(self) -> None:
        """Read no more from this side: the path is full."""

    def resume_source(self) -> None:
        """The path has room again."""


class WindowRoom(Protocol):
    """What windows draw on when they grow."""

    def draw(self, size: int) -> bool:
        """Take so much; False, and nothing taken, when there is not that much. Nothing may always be taken."""
        ...

    def give_back(self, size: int) -> None:
        """A stream that had drawn is over, or its window is smaller again."""


class WindowBudget:
    """How much all windows of a process may add up to beyond their start; one that grows draws on it."""

    __slots__ = ("left_bytes",)

    def __init__(self, max_bytes: int) -> None:
        self.left_bytes = max_bytes

    def draw(self, size: int) -> bool:
        """Take from the budget; False when that much is not left."""
        if size > self.left_bytes:
            return False
        self.left_bytes -= size
        return True

    def give_back(self, size: int) -> None:
        """A stream that had drawn is over."""
        self.left_bytes += size


class _Nobody:
    """The sink of a stream that is over: neither keeps the other from being freed at once."""

    def deliver(self, data: Bytes) -> None: ...
    def ended(self) -> None: ...
    def pause_source(self) -> None: ...
    def resume_source(self) -> None: ...


_NOBODY: Final = _Nobody()


class Stream:
    """One end of one tunnel. Attach it to an outbox under a tunnel id; feed it frames and the sink's bytes."""

    __slots__ = (
        "_acked", "_asked", "_blocked_at", "_budget", "_drawn", "_eof_sent", "_eof_wanted", "_grown_at", "_held", "_keeps",
        "_limit", "_limits", "_outbox", "_pending", "_pending_bytes", "_received", "_resent", "_sent", "_sink",
        "_stalled", "_start", "_told", "_unacked", "_window", "eof_received", "queued", "token", "tunnel_id",
    )  # fmt: skip

    def __init__(
        self, sink: Sink, token: bytes, budget: WindowRoom, window_bytes: int = WINDOW_START_BYTES
    ) -> None:
        self._sink = sink
        self.token = token
        self.queued = False
        self.tunnel_id = 0
        self._outbox: Outbox | None = None
        self._budget = budget
        self._window = window_bytes
        self._drawn = 0
        # sending: [_acked, _sent) is kept in _unacked, then comes _pending
        self._limit = 0
        self._blocked_at = -1
        self._asked: tuple[int, ...] = ()
        self._acked = 0
        self._sent = 0
        self._resent = 0
        self._start = self._keeps = window_bytes
        self._unacked: deque[Bytes] = deque()
        self._pending: deque[Bytes] = deque()
        self._pending_bytes = 0
        self._held = False
        self._eof_wanted = False
        self._eof_sent = False
        # receiving
        self._received = 0
        self._told = window_bytes
        self._limits: tuple[int, ...] = (window_bytes,)
        self._grown_at = 0
        self._stalled = False
        self.eof_received = False

    # state

    @property
    def told_limit(self) -> int:
        """What the other end has been told it may send up to."""
        return self._told

    @property
    def received(self) -> int:
        """Units taken so far; EOF counts as one."""
        return self._received

    @property
    def attached(self) -> bool:
        """Whether frames can leave now."""
        return self._outbox is not None

    @property
    def held(self) -> bool:
        """Whether the source was told to wait."""
        return self._held

    @property
    def delivered(self) -> bool:
        """All that was written here, and the EOF after it, has been taken by the other end."""
        return self._eof_sent and self._acked == self._sent

    @property
    def all_sent(self) -> bool:
        """All that was written here, and the EOF after it, is on its way."""
        return self._eof_sent and self._outbox is not None

    @property
    def unacked_bytes(self) -> int:
        """What was sent and is not acknowledged."""
        return self._sent - self._acked

    @property
    def over(self) -> bool:
        """Both directions ended and ours is acknowledged: nothing can be asked for again."""
        return self.eof_received and self._eof_sent and self._acked == self._sent

    # path

    def attach(self, outbox: Outbox, tunnel_id: int) -> None:
        """Frames go this way from now on."""
        self.detach()
        self._outbox = outbox
        self.tunnel_id = tunnel_id

    def detach(self) -> None:
        """The path is lost; everything waits."""
        if self._outbox is not None:
            self._outbox.withdraw(self)
            self._outbox = None

    def resume(self, received: int, limit: int) -> None:
        """The other end has `received` units: what came after is sent again, after an acknowledgement of what came here
        meanwhile. Raises FlowViolation, and SentTooOften.
        """
        self._acknowledge(received)
        self._resent += self._sent - self._acked
        if self._resent > RESENT_TIMES * self._acked + RESENT_MAX_BYTES:
            raise SentTooOften("too much would be sent again")
        if self._eof_sent and self._acked < self._sent:
            self._eof_sent = False
            self._sent -= 1
        self._pending.extendleft(reversed(self._unacked))
        self._pending_bytes += self._sent - self._acked
        self._unacked.clear()
        self._sent = self._acked
        self._limit = max(self._limit, limit)
        self._blocked_at, self._asked = -1, ()
        grants = not self._stalled and not self.eof_received
        self._tell(max(self._told, self._received + self._window if grants else self._received))
        self._hold_or_release()
        self._offer()

    def end(self) -> None:
        """The stream is not used again, but what came through it is still somewhere."""
        self.detach()
        self._eof_wanted = True
        self._pending.clear()
        self._unacked.clear()

    def close(self) -> None:
        """The same, and nothing is left of what came: give back what the windows drew."""
        self.end()
        self._budget.give_back(self._drawn)
        self._drawn, self._window, self._keeps = 0, self._start, self._start
        self._sink = _NOBODY

    def try_again(self) -> None:
        """Nothing has passed for a while: what waits for room in the budget may find it now."""
        if self._pending:
            self._offer()

    # from the sink

    def write(self, data: Bytes) -> None:
        """Bytes for the other end."""
        if self._eof_wanted:
            return
        size = len(data)
        if size < SMALL_BYTES:
            _add_small(self._pending, data)
        else:
            self._pending.append(data)
        self._pending_bytes += size
        self._offer()
        self._hold_or_release()

    def write_eof(self) -> None:
        """Nothing follows."""
        if not self._eof_wanted:
            self._eof_wanted = True
            self._offer()

    def stall(self) -> None:
        """The sink is full: grant nothing until it has drained."""
        self._stalled = True

    def drained(self) -> None:
        """The sink has room again."""
        self._stalled = False
        self._grant()

    # from the other end

    def on_opened(self, limit: int) -> None:
        """The first limit."""
        self._limit = max(self._limit, limit)
        self._offer()

    def on_data(self, data: Bytes) -> None:
        """DATA. Raises FlowViolation."""
        size = len(data)
        if not size or self.eof_received or self._received + size > self._told:
            raise FlowViolation("data beyond the limit, after EOF, or none")
        self._received += size
        self._sink.deliver(data)
        if not self._stalled:
            self._grant()

    def on_eof(self, *, closes: bool = False) -> None:
        """EOF; a second one is a violation. An end that `closes` says CLOSE when both directions are over, and need not
        acknowledge besides. Raises FlowViolation.
        """
        if self.eof_received:
            raise FlowViolation("second EOF")
        self.eof_received = True
        self._received += 1
        if not (closes and self.over):
            self._tell(max(self._told, self._received))
        self._sink.ended()

    def on_window(self, received: int, limit: int) -> None:
        """WINDOW. Raises FlowViolation."""
        self._acknowledge(received)
        if limit > self._limit:
            self._limit = limit
            if self._drawn:
                # those before what was received are answered
                self._asked = tuple(at for at in self._asked if at >= received)
                self._keep_at_most(max(limit - received, self._start) << len(self._asked))
        if self._pending:
            self._offer()

    def on_blocked(self, limit: int) -> None:
        """BLOCKED: the window is smaller than what the path can hold, unless it is the sink that does not keep up.

        Believed once per limit, and only of a sender that has filled one of the last limits that it was told.
        """
        if self._stalled or self.eof_received or self._window >= WINDOW_MAX_BYTES:
            return
        if limit not in self._limits or self._received < limit or limit <= self._grown_at:
            return
        if self._budget.draw(self._window):
            self._grown_at = limit
            self._drawn += self._window
            self._window *= 2
            self._tell(self._received + self._window)

    # frames out

    def take(self, max_bytes: int = DATA_MAX_BYTES) -> tuple[bytes, Bytes] | None:
        """The next DATA or EOF frame that credit allows."""
        if not self._pending:
            if self._eof_wanted and not self._eof_sent:
                self._eof_sent = True
                self._sent += 1
                return header(MuxType.EOF, self.tunnel_id), b""
            return None
        credit = min(self._limit - self._sent, self._acked + self._keeps - self._sent, max_bytes)
        if credit <= 0:
            return self.take(max_bytes) if self._keep_more() else None
        chunk = self._pending.popleft()
        if len(chunk) > credit:
            view = memoryview(chunk)
            self._pending.appendleft(view[credit:])
            chunk = view[:credit]
        size = len(chunk)
        self._sent += size
        self._pending_bytes -= size
        if size < SMALL_BYTES:
            _add_small(self._unacked, chunk)
        else:
            self._unacked.append(chunk)
        self._hold_or_release()
        return header(_DATA, self.tunnel_id), chunk

    def _keep_more(self) -> bool:
        """Make room for what the other end lets in, or will when it is told BLOCKED. Without room it is not told: it would
        wait for half of a larger window before it acknowledges, and this end for an acknowledgement.
        """
        if self._sent == self._limit == self._blocked_at:
            return False
        more = min(self._keeps, WINDOW_MAX_BYTES - self._keeps)
        if not self._budget.draw(more):
            return False
        self._drawn += more
        self._keeps += more
        if self._sent < self._limit:
            return more > 0
        if self._outbox is not None:
            self._blocked_at = self._limit
            self._asked = (*self._asked[1 - LIMITS_KEPT :], self._limit)  # of older ones none is believed
            self._outbox.send(blocked_frame(self.tunnel_id, self._limit))
        return False

    def _keep_at_most(self, size: int) -> None:
        """The other end's window, doubled for each BLOCKED that it may believe yet, is all that is ever waited for."""
        if self._keeps > size:
            unused, self._keeps = self._keeps - size, size
            self._drawn -= unused
            self._budget.give_back(unused)

    def _offer(self) -> None:
        if self._outbox is not None and not self.queued:
            self._outbox.offer(self)

    def _hold_or_release(self) -> None:
        full = self._pending_bytes > PENDING_HIGH_BYTES
        if full is not self._held:
            self._held = full
            if full:
                self._sink.pause_source()
            else:
                self._sink.resume_source()

    def _acknowledge(self, received: int) -> None:
        if received > self._sent:
            raise FlowViolation("acknowledges what was not sent")
        if received <= self._acked:
            return
        gone = received - self._acked
        self._acked = received
        unacked = self._unacked
        while gone and unacked:
            size = len(unacked[0])
            if size <= gone:
                gone -= size
                unacked.popleft()
            else:
                unacked[0] = memoryview(unacked[0])[gone:]
                gone = 0

    def _grant(self) -> None:
        """Tell the other end of new room, when it is worth a frame."""
        if self.eof_received:
            return
        limit = self._received + self._window
        if limit - self._told >= self._window // 2:
            self._tell(limit)

    def _tell(self, limit: int) -> None:
        """Acknowledge and grant. What cannot be told now is told by `resume`."""
        if self._outbox is not None:
            if limit > self._told:
                self._told, self._limits = limit, (limit, *self._limits[: LIMITS_KEPT - 1])
            self._outbox.send(window_frame(self.tunnel_id, self._received, limit))


def _add_small(pieces: deque[Bytes], piece: Bytes) -> None:
    if len(pieces) < APART_MAX or len(pieces[-1]) >= JOINED_MAX_BYTES:
        pieces.append(piece)
    else:
        pieces[-1] = bytes(pieces[-1]) + piece
