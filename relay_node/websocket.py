"""A peer's WebSocket: its opening handshake, its messages at a pace that leaves others their turn, and its close.

Callbacks on the transport, no task and no timer per socket. What the messages say is in `peers.py`, their bytes are in
`shared/wire/websocket.py`.
"""

from __future__ import annotations

import asyncio
from abc import abstractmethod
from collections.abc import Sequence
from typing import TYPE_CHECKING, Final, cast

from relay_node.figures import Reason
from relay_node.registry import MAX_SOCKETS_PER_ADDRESS, Device, Registry
from shared.access.rules import network_of
from shared.wire import handshake, mux
from shared.wire.cork import Cork
from shared.wire.http1 import HeadError, build_head, take_request_head
from shared.wire.mux import Bytes
from shared.wire.peer import MalformedFrame
from shared.wire.websocket import (
    VIEWED_FROM_BYTES,
    CloseCode,
    FrameReader,
    Message,
    Opcode,
    WebSocketFault,
    encode_close,
)

if TYPE_CHECKING:
    from relay_node.tunnel import Tunnel

HANDSHAKE_TIMEOUT_S: Final = 10.0
WRITE_HIGH_BYTES: Final = 256 * 1024
MAX_HANDSHAKE_BYTES: Final = 8 * 1024
MESSAGE_MAX_BYTES: Final = mux.FRAME_MAX_BYTES
"""Of a peer that speaks v2, or has not yet said what it speaks; one of v1 may have 4 MB."""
UNFINISHED_FREE_BYTES: Final = 16 * 1024
"""Of a message that has not ended, so much is not counted (`registry.Unfinished`)."""
FRAMES_AT_ONCE_MAX: Final = 512
"""Of one socket, before everybody else's turn."""
UNCOMMON_FRAME_COST: Final = 5
"""A ping, a fragment or JSON counts for so many frames more. Honest peers send few, but old ones, whose data is JSON."""
TEXT_BYTES_PER_FRAME: Final = 1024
"""JSON is read, and data in it decoded: as much of it as this counts for a frame more."""
TEXT_AT_ONCE_BYTES: Final = 32 * 1024
"""Of one socket; with the message that makes it so much its turn ends."""

_BINARY: Final = Opcode.BINARY  # an enum's own attributes are slow to look up before Python 3.12
_REFUSALS: Final = {Reason.TOKEN_REFUSED: "401 Unauthorized", Reason.NOT_OWNED: "403 Forbidden"}


class PeerConnection(asyncio.BufferedProtocol):
    """One WebSocket of one peer, whatever it says. `device` is whose it is, once it was let in."""

    __slots__ = (
        "_blocked", "_born_s", "_closing", "_cork", "_frames", "_head", "_heard_s", "_rests", "_transport",
        "address", "device", "loop", "lost_reason", "network", "ready", "registry",
    )  # fmt: skip

    def __init__(self, registry: Registry) -> None:
        self.registry = registry
        self.loop = asyncio.get_running_loop()
        self.device: Device | None = None
        self.ready = False
        self.address = ""
        self.lost_reason = Reason.PEER_GONE
        self.network = ""
        self._cork = Cork(self.loop.call_soon)
        self._transport: asyncio.Transport | None = None
        self._head: bytearray | None = bytearray()
        self._frames = FrameReader(
            masked=True,
            max_message_bytes=MESSAGE_MAX_BYTES,
            at_once=FRAMES_AT_ONCE_MAX,
            text_at_once_bytes=TEXT_AT_ONCE_BYTES,
        )
        self._heard_s = self._born_s = self.loop.time()
        self._blocked: set[Tunnel] = set()
        self._rests = False
        self._closing = False

    @abstractmethod
    def _let_in(self, token: str) -> Reason | None:
        """Find whose it is, or say why it may not come in."""

    @abstractmethod
    def _take(self, messages: Sequence[Message]) -> None:
        """What they say. Raises MalformedFrame or MalformedMux where it must not be said."""

    # transport callbacks

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        transport = cast(asyncio.Transport, transport)  # uvloop's own are no subclass of it
        self._transport = self._cork.connection = transport
        self.address = str((transport.get_extra_info("peername") or ("",))[0])
        transport.set_write_buffer_limits(high=WRITE_HIGH_BYTES)
        registry, self.network = self.registry, network_of(self.address)
        held = registry.per_address.get(self.network, 0)
        registry.per_address[self.network] = held + 1
        if registry.draining:
            self._refuse("503 Service Unavailable", Reason.DRAIN)
        elif held >= MAX_SOCKETS_PER_ADDRESS:
            self._refuse("429 Too Many Requests", Reason.TOO_MANY_SOCKETS)
        elif not registry.may_shake_hands(self.network, self._heard_s):
            self._refuse("429 Too Many Requests", Reason.TOO_MANY_HANDSHAKES)

    def get_buffer(self, sizehint: int) -> memoryview:
        return self.registry.read_buffer

    def buffer_updated(self, nbytes: int) -> None:
        read = self.registry.read_buffer[:nbytes]
        self.data_received(read if nbytes > VIEWED_FROM_BYTES else bytes(read))

    def data_received(self, data: Bytes) -> None:
        """What came; not used after the answer."""
        if self._closing:
            return
        self._heard_s = self.loop.time()
        if self._head is not None:
            self._head += data
            self._handshake(self._head)
            return
        self._frames_received(data)

    def eof_received(self) -> bool:
        return False

    def connection_lost(self, exc: Exception | None) -> None:
        registry = self.registry
        left = registry.per_address.get(self.network, 1) - 1
        if left > 0:
            registry.per_address[self.network] = left
        else:
            registry.per_address.pop(self.network, None)
        self.ready = False
        registry.unfinished.hold(self, 0)

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
        refused = self._let_in(token)
        if refused is not None:
            self._refuse(_REFUSALS.get(refused, "429 Too Many Requests"), refused)
            return
        self._frames.keep(bytes(head))
        self._head = None
        self._write(handshake.accept_answer(request, subprotocol))
        self._keep_pace(0)

    def _refuse(self, status: str, reason: Reason) -> None:
        self.lost_reason = reason
        self._closing = True
        self._write(build_head(f"HTTP/1.1 {status}", [("Content-Length", "0"), ("Connection", "close")]))
        self._cork.flush()
        if self._transport:
            self._transport.close()

    # messages in

    def _frames_received(self, data: Bytes) -> None:
        device = self.device
        if device is not None and self._heard_s < device.read_again_s:  # spent by its other sockets
            self._frames.keep(data)
            self._count_unfinished(())
            self._rest(device.read_again_s - self._heard_s)
            return
        try:
            messages = self._frames.receive(data)
            self._count_unfinished(messages)
            self._keep_pace(len(messages))
            self._take(messages)
        except WebSocketFault as fault:
            self.close(fault.code, fault.reason, Reason.PROTOCOL)
        except (MalformedFrame, mux.MalformedMux) as fault:
            self.close(CloseCode.PROTOCOL_ERROR, str(fault), Reason.PROTOCOL)

    def _count_unfinished(self, messages: Sequence[Message]) -> None:
        """Messages that never end must not use up this process."""
        unfinished, size = self.registry.unfinished, self._frames.partial_bytes
        if size > UNFINISHED_FREE_BYTES or unfinished.holds(self):
            if messages and (messages[-1].opcode is _BINARY or any(m.opcode <= _BINARY for m in messages)):
                unfinished.hold(self, 0)  # what is unfinished now has just begun
            unfinished.hold(self, size if size > UNFINISHED_FREE_BYTES else 0)

    def _keep_pace(self, messages: int) -> None:
        """A peer may not keep this process busy with tiny frames or JSON: what many make of one read takes turns with
        everybody else's, and what its device sends beyond its share of a second is not read before the next one.
        """
        device, frames = self.device, self._frames
        cost = messages + frames.uncommon * UNCOMMON_FRAME_COST + frames.text_bytes // TEXT_BYTES_PER_FRAME
        wait_s = 0.0
        if device is not None:
            pace = self.registry.pace
            wait_s = pace.spend(device.device_id, device.account_id, self.network, cost, self._heard_s)
            if wait_s:
                device.read_again_s = self._heard_s + wait_s
        if wait_s or frames.has_more or frames.text_bytes >= TEXT_AT_ONCE_BYTES:
            self._rest(wait_s)

    def _rest(self, for_s: float) -> None:
        if not self._rests:
            self._rests = True
            self._read_or_rest()
            self.loop.call_later(for_s, self._go_on)

    def _go_on(self) -> None:
        self._rests = False
        if self._closing or self._transport is None or self._transport.is_closing():
            return
        self._heard_s = self.loop.time()
        if self._frames.has_more:
            self._frames_received(b"")
        self._read_or_rest()

    def block(self, tunnel: Tunnel) -> None:
        """A gateway does not read: stop reading this socket until it does (v1 has no other way)."""
        self._blocked.add(tunnel)
        self._read_or_rest()

    def unblock(self, tunnel: Tunnel) -> None:
        """The gateway reads again, or its tunnel ended."""
        if tunnel in self._blocked:
            self._blocked.discard(tunnel)
            self._heard_s = self.loop.time()
            self._read_or_rest()

    def _read_or_rest(self) -> None:
        """Read unless gateways (of v1), or the frames that were read, want this side to wait."""
        transport = self._transport
        if transport is None or transport.is_closing():
            return
        if self._blocked or self._rests:
            transport.pause_reading()
        else:
            transport.resume_reading()

    # frames out, and the end

    def _write(self, data: bytes) -> None:
        self._cork.write(data)

    def close(self, code: int, text: str, reason: Reason) -> None:
        """Say why and hang up; tunnels learn of it when the transport is gone."""
        if self._closing or self._transport is None:
            return
        self._closing = True
        self.ready = False
        self.lost_reason = reason
        self._write(encode_close(code, text))
        self._cork.flush()
        self._transport.close()

    def _abort_if(self, late: bool, reason: Reason) -> None:
        if late and self._transport is not None:
            self.lost_reason = reason
            self._transport.abort()
