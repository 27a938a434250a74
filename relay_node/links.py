"""A gateway's link: one TCP connection on the mesh that carries the tunnels of binary-v2 peers.

Frames and their order are in `shared/wire/mux.py`; OPEN and RESUME name the device, and the relay chooses its socket.
"""

from __future__ import annotations

import asyncio
import logging
from typing import Final

from relay_node.figures import LINKS, Reason, count
from relay_node.forward import Buffers, Forward
from relay_node.registry import MAX_TUNNELS_PER_DEVICE, Registry
from shared.wire.cork import GATHER_BULK_BYTES, Cork
from shared.wire.mux import (
    FIRST_REASONS_MAX,
    Bytes,
    Frame,
    LinkReader,
    MalformedMux,
    MuxReason,
    MuxType,
    header,
    link_header,
    refused_frame,
    split_device,
)
from shared.wire.outbox import Outbox

LINK_HIGH_BYTES: Final = 1024 * 1024
LINK_IDLE_MAX_S: Final = 45.0
"""Gateways ping their links; one that is silent for longer is gone."""
LINK_HELD_MAX_BYTES: Final = 128 * 1024 * 1024
"""Of tunnels' bytes that wait for one gateway to read, beyond what its connection takes."""
LINK_BUFFER_MAX_BYTES: Final = 64 * 1024 * 1024

_RESUME: Final = MuxType.RESUME  # an enum's own attributes are slow to look up before Python 3.12
_BEGINNINGS: Final = frozenset({MuxType.OPEN, MuxType.RESUME})

log = logging.getLogger("psx.relay")


class LinkConnection(asyncio.Protocol):
    """Takes over a mesh connection after its upgrade."""

    def __init__(
        self, registry: Registry, transport: asyncio.Transport, reasons_max: int = FIRST_REASONS_MAX
    ) -> None:
        """`reasons_max` is the highest reason that the gateway knows."""
        self._registry = registry
        self.reasons_max = reasons_max
        self._transport = transport
        self._loop = asyncio.get_running_loop()
        self._reader = LinkReader()
        self._forwards: dict[int, Forward] = {}
        self._heard_s = self._loop.time()
        self._cork = Cork(self._loop.call_soon, GATHER_BULK_BYTES)
        self._cork.connection = transport
        self.outbox = Outbox(self._send)
        self.buffers = Buffers(LINK_HELD_MAX_BYTES, registry.buffers)
        transport.set_write_buffer_limits(high=LINK_HIGH_BYTES)
        registry.links.add(self)
        LINKS.value = len(registry.links)

    def data_received(self, data: bytes) -> None:
        self._heard_s = self._loop.time()
        try:
            for frame in self._reader.receive(data):
                self._frame(frame)
        except MalformedMux as fault:
            log.error("link closed", extra={"reason": str(fault)})
            count("link", Reason.PROTOCOL)
            self._transport.abort()

    def pause_writing(self) -> None:
        self.outbox.pause()

    def resume_writing(self) -> None:
        self.outbox.resume()

    def eof_received(self) -> bool:
        return False

    def connection_lost(self, exc: Exception | None) -> None:
        self._registry.links.discard(self)
        LINKS.value = len(self._registry.links)
        for forward in list(self._forwards.values()):
            forward.link_lost()

    def forget(self, tunnel_id: int) -> None:
        """A tunnel is over."""
        self._forwards.pop(tunnel_id, None)

    def sweep(self, now_s: float) -> None:
        """Close a link that nobody holds any more, or that does not read."""
        stuck = self._transport.get_write_buffer_size() > LINK_BUFFER_MAX_BYTES
        if now_s - self._heard_s > LINK_IDLE_MAX_S or stuck:
            count("link", Reason.STALLED if stuck else Reason.IDLE)
            self._transport.abort()

    def give_way(self) -> None:
        """Too much is held here and most of it for this gateway: it dials again, and its tunnels resume."""
        count("link", Reason.OVERLOADED)
        for forward in list(self._forwards.values()):
            forward.link_lost()
        self._transport.abort()

    def close(self) -> None:
        """The relay ends."""
        self._cork.flush()
        self._transport.close()

    def _frame(self, frame: Frame) -> None:
        forward = self._forwards.get(frame.tunnel)
        if frame.type in _BEGINNINGS:
            if forward is not None:
                raise MalformedMux("tunnel id is in use")
            self._begin(frame)
        elif forward is not None:
            forward.from_link(frame)
        elif frame.type is MuxType.PING:
            self._send(header(MuxType.PONG, 0), frame.body)

    def _begin(self, frame: Frame) -> None:
        registry = self._registry
        device_id, body = split_device(frame.body)
        device = registry.devices.get(device_id)
        socket = device.least_loaded(v2=True) if device else None
        registry.make_room(self._loop.time())
        if device is None or socket is None:
            self._refuse(frame.tunnel, MuxReason.UNKNOWN_DEVICE, Reason.UNKNOWN_DEVICE)
        elif device.leaving:
            self._refuse(frame.tunnel, MuxReason.DRAINING, Reason.DRAIN)
        elif device.tunnel_count() >= MAX_TUNNELS_PER_DEVICE:
            self._refuse(frame.tunnel, MuxReason.TOO_MANY_TUNNELS, Reason.TOO_MANY_TUNNELS)
        elif not socket.ready:  # it has given way
            self._refuse(frame.tunnel, MuxReason.OVERLOADED, Reason.OVERLOADED)
        elif frame.type is _RESUME and not (socket.buffers.has_room and self.buffers.has_room):
            # what it would send again finds none: it would lose its path, and resume, over and over
            self._refuse(frame.tunnel, MuxReason.OVERLOADED, Reason.OVERLOADED)
        else:
            peer_id = socket.next_tunnel_id()
            forward = Forward(socket, peer_id, self, frame.tunnel)
            self._forwards[frame.tunnel] = forward
            socket.carry(peer_id, forward)
            socket.outbox.send(header(frame.type, peer_id), body)

    def _refuse(self, tunnel_id: int, reason: MuxReason, counted: Reason) -> None:
        count("tunnel", counted)
        self._send(refused_frame(tunnel_id, reason))

    def _send(self, head: bytes, payload: Bytes = b"") -> None:
        self._cork.write(link_header(len(head) + len(payload)) + head, payload)
