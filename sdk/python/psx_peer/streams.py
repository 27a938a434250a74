"""Tunnels of binary-v2: one target each, kept over the loss of a relay socket and resumed on another one."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable
from typing import Final, Protocol

from psx_peer.limits import Allowance
from psx_peer.tunnels import Dialer, DialRefused
from psx_peer.wire import Outbox, mux, peer, stream

TARGET_HIGH_BYTES: Final = 256 * 1024
FLUSH_MAX_S: Final = 30.0
"""A target that never reads what is left for it would keep its socket for ever."""
MAX_TUNNELS: Final = 256
WINDOWS_MAX_BYTES: Final = 64 * 1024 * 1024
"""What all windows of this device may grow by together."""

_DATA: Final = mux.MuxType.DATA  # an enum's own attributes are slow to look up before Python 3.12
_WINDOW: Final = mux.MuxType.WINDOW
_REASONS: Final = {
    peer.OpenFailure.CONNECTION_REFUSED: mux.MuxReason.CONNECTION_REFUSED,
    peer.OpenFailure.DNS_FAILED: mux.MuxReason.DNS_FAILED,
    peer.OpenFailure.TIMEOUT: mux.MuxReason.TIMEOUT,
    peer.OpenFailure.UNKNOWN: mux.MuxReason.UNREACHABLE,
}

log = logging.getLogger("psx_peer")


class Carrier(Protocol):
    """A relay socket, as its streams see it."""

    outbox: Outbox

    def forget(self, tunnel_id: int) -> None:
        """A stream left this socket."""


class StreamTable:
    """All streams of a device by token, whichever socket they are on."""

    def __init__(self, allowance: Allowance | None = None, resume_s: float = mux.RESUME_WITHIN_S) -> None:
        self.allowance = allowance or Allowance(None)
        self._resume_s = resume_s
        self._sessions = 0
        self.budget = stream.WindowBudget(WINDOWS_MAX_BYTES)
        self._by_token: dict[bytes, StreamTarget] = {}

    def __len__(self) -> int:
        return len(self._by_token)

    @property
    def full(self) -> bool:
        """No tunnel more, of either protocol."""
        return len(self._by_token) + self._sessions >= MAX_TUNNELS

    def enter(self) -> None:
        """A tunnel of v1 begins; it lives on its socket."""
        self._sessions += 1

    def leave(self, count: int = 1) -> None:
        """Tunnels of v1 are over."""
        self._sessions -= count

    def add(self, target: StreamTarget) -> None:
        """A stream begins."""
        self._by_token[target.stream.token] = target

    def find(self, token: bytes) -> StreamTarget | None:
        """The stream of a token, if it still stands."""
        return self._by_token.get(token)

    def drop(self, target: StreamTarget) -> None:
        """A stream is over."""
        self._by_token.pop(target.stream.token, None)

    def path_lost(self, targets: list[StreamTarget]) -> None:
        """A socket is gone: its streams wait for a resumption, for a while."""
        for target in targets:
            target.detach(self._resume_s)

    def stop(self) -> None:
        """The owner stopped: end everything at once."""
        for target in list(self._by_token.values()):
            target.abort()


class StreamTarget(asyncio.Protocol):
    """One stream on one side, a target's connection on the other."""

    def __init__(self, table: StreamTable, token: bytes, carrier: Carrier, tunnel_id: int) -> None:
        self.stream = stream.Stream(self, token, table.budget)
        self.tunnel_id = tunnel_id
        self._table = table
        self._carrier: Carrier | None = carrier
        self._transport: asyncio.Transport | None = None
        self._task: asyncio.Task[None] | None = None
        self._target_ended = self._target_gone = False
        self._expiry: asyncio.TimerHandle | None = None
        self._waiting: set[Callable[[str], None]] = set()
        self._holds: set[str] = set()
        self._stalls: set[str] = set()
        self.moved_s = asyncio.get_running_loop().time()
        self._ended = False
        table.add(self)

    # life

    def start(self, dialer: Dialer, given: mux.Open) -> None:
        """Dial in the background, and answer OPENED or REFUSED."""
        self._task = asyncio.get_running_loop().create_task(self._dial(dialer, given))

    async def _dial(self, dialer: Dialer, given: mux.Open) -> None:
        began = time.monotonic()
        try:
            transport = await dialer(self, given.host, given.port)
        except DialRefused as refusal:
            took_ms = int((time.monotonic() - began) * 1000)
            log.debug("tunnel refused after %d ms: %s", took_ms, refusal.detail)
            self._say(mux.refused_frame(self.tunnel_id, _reason(refusal), refusal.detail))
            self._leave()
            return
        if self._ended or self._carrier is None:
            transport.abort()
            return
        transport.set_write_buffer_limits(high=TARGET_HIGH_BYTES)
        self._transport = transport
        if self._holds:
            transport.pause_reading()
        log.debug("[TCP_OPEN_OK] %d", self.tunnel_id)
        self._say(mux.opened_frame(self.tunnel_id, self.stream.told_limit))
        self.stream.attach(
            self._carrier.outbox, self.tunnel_id
        )  # not before: what the target said first waits
        self.stream.on_opened(given.limit)

    def resume(self, carrier: Carrier, tunnel_id: int, received: int, limit: int) -> None:
        """Go on over another socket. Raises stream.FlowViolation."""
        if self._carrier is not None:
            self._carrier.forget(self.tunnel_id)
        self._carrier, self.tunnel_id = carrier, tunnel_id
        self._expect_nothing()
        self.stream.attach(carrier.outbox, tunnel_id)
        self._say(mux.resumed_frame(tunnel_id, self.stream.received, self.stream.told_limit))
        self.stream.resume(received, limit)
        self._finish_if_over()
        if self._target_gone:
            self._tell_target_is_gone()

    def detach(self, wait_s: float) -> None:
        """The path is gone: wait so long for another one. One timer, however often a relay takes paths away."""
        if self._carrier is not None:
            self._carrier.forget(self.tunnel_id)
            self._carrier = None
        self.stream.detach()
        self._expect_nothing()
        if self._transport is None:
            self.abort()
        else:
            self._expiry = asyncio.get_running_loop().call_later(wait_s, self.abort)

    def _expect_nothing(self) -> None:
        if self._expiry is not None:
            self._expiry.cancel()
            self._expiry = None

    def abort(self) -> None:
        """Over, and not cleanly."""
        transport, task = self._transport, self._task
        self._leave()
        if transport is not None:
            transport.abort()
        elif task is not None:
            task.cancel()

    def reaped(self) -> None:
        """Nothing moved for too long."""
        self._say(mux.reset_frame(self.tunnel_id, mux.MuxReason.TIMEOUT))
        self.abort()

    def _leave(self) -> None:
        self._ended = True
        self._expect_nothing()
        if self._carrier is not None:
            self._carrier.forget(self.tunnel_id)
            self._carrier = None
        self.stream.close()
        self._table.drop(self)

    def _finish_if_over(self) -> None:
        if self.stream.over and not self._ended:
            self._close()

    def _close(self) -> None:
        """Over, and cleanly: what the target has not read yet still leaves."""
        task = self._task
        self._leave()
        if self._transport is not None:
            if self._transport.get_write_buffer_size():
                asyncio.get_running_loop().call_later(FLUSH_MAX_S, self._transport.abort)
            self._transport.close()
        elif task is not None:
            task.cancel()

    def _say(self, frame: bytes) -> None:
        if self._carrier is not None:
            self._carrier.outbox.send(frame)

    # frames of the gateway; raise stream.FlowViolation and mux.MalformedMux

    def receive(self, frame: mux.Frame) -> None:
        """A frame for this stream."""
        kind = frame.type
        if kind is _DATA:
            self.stream.on_data(frame.body)
            return
        if kind is _WINDOW:
            self.stream.on_window(*mux.read_window(frame.body))
            self._finish_if_over()
            if self._target_gone:
                self._tell_target_is_gone()
            return
        match kind:
            case mux.MuxType.BLOCKED:
                self.stream.on_blocked(mux.read_limit(frame.body))
            case mux.MuxType.EOF:
                self.stream.on_eof()
                self._finish_if_over()
            case mux.MuxType.RESET if mux.read_reason(frame.body) is mux.MuxReason.PATH_LOST:
                self._table.path_lost([self])
            case mux.MuxType.RESET:
                self.abort()
            case mux.MuxType.CLOSE:
                self._close()

    def violated(self) -> None:
        """The gateway broke the rules of flow control: this stream ends, the socket goes on."""
        self._say(mux.reset_frame(self.tunnel_id, mux.MuxReason.FLOW_VIOLATION))
        self.abort()

    # sink

    def deliver(self, data: mux.Bytes) -> None:
        self._moved(len(data), self._stall, self._drained)
        if self._transport is not None and not self._transport.is_closing():
            self._transport.write(data)

    def _moved(self, size: int, hold: Callable[[str], None], release: Callable[[str], None]) -> None:
        """Bytes passed: the tunnel is not idle, and the owner's allowance is less."""
        loop = asyncio.get_running_loop()
        self.moved_s = loop.time()
        wait_s = self._table.allowance.spend(size, self.moved_s)
        if wait_s and release not in self._waiting:  # one timer each way, however small the pieces are
            self._waiting.add(release)
            hold("allowance")
            loop.call_later(wait_s, self._go_on, release)

    def _go_on(self, release: Callable[[str], None]) -> None:
        self._waiting.discard(release)
        release("allowance")

    def ended(self) -> None:
        if self._transport is None or self._transport.is_closing():
            return
        if self._target_ended:
            self._transport.close()  # uvloop must not be left with both directions half-closed
        elif self._transport.can_write_eof():
            self._transport.write_eof()

    def pause_source(self) -> None:
        self._hold("path")

    def resume_source(self) -> None:
        self._release("path")

    def _hold(self, why: str) -> None:
        self._holds.add(why)
        if self._transport is not None and not self._transport.is_closing():
            self._transport.pause_reading()

    def _release(self, why: str) -> None:
        self._holds.discard(why)
        if not self._holds and self._transport is not None and not self._transport.is_closing():
            self._transport.resume_reading()

    def _stall(self, why: str) -> None:
        self._stalls.add(why)
        self.stream.stall()

    def _drained(self, why: str) -> None:
        self._stalls.discard(why)
        if not self._stalls and not self._ended:
            self.stream.drained()

    # target

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """The dialer hands the transport over when it is done."""

    def data_received(self, data: bytes) -> None:
        self.stream.write(data)
        self._moved(len(data), self._hold, self._release)

    def eof_received(self) -> bool:
        self._target_ended = True
        self.stream.write_eof()
        return not self.stream.eof_received

    def pause_writing(self) -> None:
        self._stall("buffer")

    def resume_writing(self) -> None:
        self._drained("buffer")

    def connection_lost(self, exc: Exception | None) -> None:
        if self._ended or (self._target_ended and self.stream.eof_received):
            return
        self._target_gone = True
        self._stall("nobody reads")
        self._tell_target_is_gone()

    def _tell_target_is_gone(self) -> None:
        """What the target had said, and that it had ended, comes first; where the path is lost, another one."""
        told = self.stream.delivered or not self._target_ended
        if told and not self._ended and self._carrier is not None:
            self._say(mux.reset_frame(self.tunnel_id, mux.MuxReason.TARGET_RESET))
            self._leave()


def _reason(refusal: DialRefused) -> mux.MuxReason:
    if refusal.policy:
        return mux.MuxReason.EGRESS_POLICY
    return _REASONS[refusal.reason]
