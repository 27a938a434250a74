"""Leaving without hurting anyone: no new peers, devices sent elsewhere a few at a time, what runs finished up to a bound.

A peer of v2 gets GOAWAY; its tunnels are resumed where it goes. A socket of v1 is closed when its tunnels are done.
"""

import asyncio
import logging
import random
from typing import Final

from relay_node.figures import Reason
from relay_node.peers import PeerSocket
from relay_node.presence import PresenceWriter
from relay_node.registry import Device, Registry
from shared.wire.websocket import CloseCode

POLL_S: Final = 0.05
SPREAD_OF_BOUND: Final = 0.5
"""Devices are told to leave over this share of the bound: those that are not yet told go on serving, and other relays see a
slope and not a wall.
"""

log = logging.getLogger("psx.relay")


async def drain(registry: Registry, presence: PresenceWriter, max_s: float) -> None:
    """Returns when every socket is gone, or after `max_s`."""
    loop = asyncio.get_running_loop()
    began_s = loop.time()
    registry.draining = True
    staying = list(registry.devices.values())
    random.shuffle(staying)
    total = len(staying)
    while registry.sockets and (elapsed_s := loop.time() - began_s) < max_s:
        left = total * (1 - elapsed_s / (max_s * SPREAD_OF_BOUND))
        while staying and len(staying) > left:
            _send_away(staying.pop(), presence, max_s - elapsed_s)
        for socket in [s for s in registry.sockets if s.load == 0 and (s.device is None or s.device.leaving)]:
            if not socket.v2:
                _close(socket)
        await asyncio.sleep(POLL_S)
    late = [s for s in registry.sockets if s.load]
    if late:
        log.warning("drain bound reached", extra={"sockets": len(late), "tunnels": sum(s.load for s in late)})
    for socket in list(registry.sockets):
        _close(socket)
    await asyncio.sleep(POLL_S)


def _send_away(device: Device, presence: PresenceWriter, left_s: float) -> None:
    """One device: no new tunnels here; those of v2 are resumed elsewhere, those of v1 are waited for."""
    device.leaving = True
    presence.left(device)
    for socket in device.sockets:
        if socket.v2:
            socket.go_away(0, int(left_s * 1000))


def _close(socket: PeerSocket) -> None:
    socket.close(CloseCode.GOING_AWAY, "relay restarts", Reason.DRAIN)
