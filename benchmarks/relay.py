"""The relay alone, beside a relay of the same framing that is written with the `websockets` library.

The load goes straight to the mesh listeners, so that no gateway's CPU stands between; each relay has a peer process of its
own with four sockets.
"""

from __future__ import annotations

import asyncio
import sys
from dataclasses import dataclass
from functools import partial
from typing import Final

from benchmarks.bed import Bed, cpu_s, interleave, quiet
from benchmarks.gateway import BULK_CONNECTIONS, BULK_SECONDS
from benchmarks.load import Way, run_load
from benchmarks.nodes import Nodes
from benchmarks.path import SOCKETS
from benchmarks.row import OURS, Goal, Reading, Row, compare
from local.supervisor import Part, free_port

LIBRARY: Final = "websockets"


@dataclass(frozen=True, slots=True)
class Listening:
    """A relay: its process, and its two ports."""

    part: Part
    peer_port: int
    mesh_port: int


async def our_relay(nodes: Nodes) -> Listening:
    """psx's."""
    return Listening(await nodes.relay(), nodes.peer_port, nodes.mesh_port)


async def library_relay(bed: Bed, nodes: Nodes) -> Listening:
    """The yardstick."""
    peer_port, mesh_port = free_port(), free_port()
    key = bed.file("jwt_public.pem", nodes.secrets.jwt_public)
    command = [sys.executable, "-m", "benchmarks.websockets_relay", str(peer_port), str(mesh_port), key]
    return Listening(await bed.listener("websockets-relay", command, mesh_port), peer_port, mesh_port)


def cpu() -> Row:
    """CPU seconds of the relay per GB of eight downloads."""
    return asyncio.run(_cpu())


async def _cpu() -> Row:
    async with Bed() as bed, Nodes(bed) as nodes:
        measures = {}
        relays = {OURS: await our_relay(nodes), LIBRARY: await library_relay(bed, nodes)}
        for who, relay in relays.items():
            target = await bed.target()
            _, device_id = await nodes.peer(target, SOCKETS, relay.peer_port)
            way = nodes.mesh_way(device_id, target, relay.part, port=relay.mesh_port)
            measures[who] = partial(_measure_cpu, way)
        rounds = await interleave(measures)
    return compare("relay_cpu", "s/GB", rounds, [Goal(LIBRARY, 0.5, at_most=True)], bed.missing)


async def _measure_cpu(way: Way) -> Reading:
    before = cpu_s(way.parts)
    figures = await run_load("bulk", way, conns=BULK_CONNECTIONS, seconds=BULK_SECONDS)
    await quiet(way.parts)
    return Reading((cpu_s(way.parts) - before) / (figures.all_mb / 1000))
