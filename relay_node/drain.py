"""Leaving without hurting anyone: nothing new, peers sent elsewhere a few at a time, what runs is finished up to a bound.

A peer of v2 gets GOAWAY; its tunnels are resumed where it goes. A socket of v1 is sent away when its tunnels are done.
"""

import asyncio
import logging
import random
from typing import Final

from relay_node.figures import Reason
from relay_node.peers import PeerSocket
from relay_node.presence import PresenceWriter
from relay_node.registry import Registry
from shared.wire.websocket import CloseCode

POLL_S: Final = 0.05
SPREAD_OF_BOUND: Final = 0.5
"""Peers of v2 are told to leave over this share of the bound, so that other relays see a slope and not a wall."""

log = logging.getLogger("psx.relay")


async def drain(registry: Registry, presence: PresenceWriter, max_s: float) -> None:
    """Returns when every socket is gone, or after `max_s`."""
    loop = asyncio.get_running_loop()
    began_s = loop.time()
    registry.draining = True
    presence.leave_all(registry)
    for link in registry.links:
        link.go_away()
    for socket in registry.sockets:
        if socket.v2:
            spread_ms = int(max_s * SPREAD_OF_BOUND * 1000)
            socket.go_away(random.randint(0, spread_ms), int(max_s * 1000))  # noqa: S311 - jitter, not a secret
    while registry.sockets and loop.time() - began_s < max_s:
        for socket in [s for s in registry.sockets if not s.v2 and s.load == 0]:
            _send_away(socket)
        await asyncio.sleep(POLL_S)
    late = [s for s in registry.sockets if s.load]
    if late:
        log.warning("drain bound reached", extra={"sockets": len(late), "tunnels": sum(s.load for s in late)})
    for socket in list(registry.sockets):
        _send_away(socket)
    await asyncio.sleep(POLL_S)


def _send_away(socket: PeerSocket) -> None:
    socket.close(CloseCode.GOING_AWAY, "relay restarts", Reason.DRAIN)
