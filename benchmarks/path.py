"""The full path, gateway -> relay -> peer -> target, beside three stock haproxy in a row and a reverse tunnel of OpenSSH.

Three of our processes on loopback, without TLS: the peer is the reference SDK with four sockets, and the gateway does all
that it does for anyone. Beside new tunnels stand three processes in a row that do the least (`bare.py`).
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from functools import partial
from typing import Any, Final

from benchmarks import rivals
from benchmarks.bed import Bed, interleave, quiet
from benchmarks.gateway import measure_bulk, measure_tunnels
from benchmarks.load import Way, run_load
from benchmarks.nodes import Nodes
from benchmarks.row import BARE, OURS, Goal, Reading, Row, compare
from shared.kernel.codes import Pool

HAPROXIES: Final = "haproxy_x3"
OPENSSH: Final = "openssh"
SOCKETS: Final = 4
LATENCY_SECONDS: Final = 0.6

Measure = Callable[[Way], Coroutine[Any, Any, Reading]]


def bulk() -> Row:
    """MB/s of eight downloads."""
    return asyncio.run(_row("path_bulk", "MB/s", measure_bulk, [Goal(HAPROXIES, 0.85), Goal(OPENSSH, 1)]))


def tunnels() -> Row:
    """New tunnels per second, sixteen at a time."""
    return asyncio.run(
        _row("path_tunnels", "tunnels/s", measure_tunnels, [Goal(HAPROXIES, 0.5), Goal(OPENSSH, 5)])
    )


def p50() -> Row:
    """Median microseconds from a customer's dial to the last byte of a small answer, one tunnel at a time."""
    return asyncio.run(_row("path_p50", "us p50", _measure_p50, [Goal(HAPROXIES, 2.5, at_most=True)]))


async def our_way(bed: Bed, nodes: Nodes) -> Way:
    """The whole network with one peer on sale, and a customer's way through it."""
    target = await bed.target()
    relay = await nodes.relay()
    gateway = await nodes.gateway(target)
    peer, device_id = await nodes.peer(target, SOCKETS)
    await nodes.list_peer(device_id)
    return nodes.way(Pool.PEER, target, gateway, relay, peer)


async def _row(name: str, unit: str, measure: Measure, goals: list[Goal]) -> Row:
    async with Bed() as bed, Nodes(bed) as nodes:
        ways = {OURS: await our_way(bed, nodes)}
        ways |= await bed.rival(HAPROXIES, rivals.haproxy(bed, await bed.target(), hops=3))
        ways |= await bed.rival(OPENSSH, rivals.openssh(bed, await bed.target()))
        if measure is not measure_bulk:
            ways[BARE] = await nodes.bare(passed_on=2)
        rounds = await interleave({who: partial(measure, way) for who, way in ways.items()})
    return compare(name, unit, rounds, goals, bed.missing)


async def _measure_p50(way: Way) -> Reading:
    figures = await run_load("tunnels", way, conns=1, seconds=LATENCY_SECONDS)
    await quiet(way.parts)
    return Reading(figures.p50_us)
