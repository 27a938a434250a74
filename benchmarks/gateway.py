"""The gateway alone, beside other proxies: bytes through it, and new tunnels per second.

Customers are `load.c`; the exit is the target in the same program, because only the proxy in between is measured. The
gateway does all that it does for anyone: it authenticates against DynamoDB, selects in Redis, counts and flushes.

Beside new tunnels stand the least that a gateway in Python could be (`bare.py`), and ours with a worker for each core, as
nodes run it.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Awaitable, Callable, Coroutine
from functools import partial
from typing import Any, Final

from benchmarks import rivals
from benchmarks.bed import Bed, cpu_s, interleave, quiet
from benchmarks.load import Way, run_load
from benchmarks.nodes import Nodes
from benchmarks.row import BARE, OURS, Goal, Reading, Row, compare
from shared.kernel.codes import Pool

BULK_CONNECTIONS: Final = 8
BULK_SECONDS: Final = 0.8
TUNNEL_CONNECTIONS: Final = 16
TUNNEL_SECONDS: Final = 0.8
WORKERS: Final = f"{OURS}_workers"
BUFFER_BYTES: Final = 256 * 1024

Measure = Callable[[Way], Coroutine[Any, Any, Reading]]


def bulk() -> Row:
    """MB/s of eight downloads."""
    goals = [Goal("proxy-chain", 2), Goal("squid", 1.2), Goal("haproxy_256k", 0.7)]
    return asyncio.run(_row("gateway_bulk", "MB/s", measure_bulk, goals))


def tunnels() -> Row:
    """New tunnels per second, a small request on each, sixteen at a time."""
    goals = [Goal("proxy-chain", 2), Goal("squid", 0.8)]
    return asyncio.run(_row("gateway_tunnels", "tunnels/s", measure_tunnels, goals, _beside))


async def _beside(bed: Bed) -> dict[str, Way]:
    """Ours otherwise than in one whole process; their stores stay until the bed is gone."""
    nodes = await bed.stack.enter_async_context(Nodes(bed))
    target = await bed.target()
    gateway = await nodes.gateway(target, workers=os.cpu_count() or 1)
    nodes.list_modems(target)
    return {WORKERS: nodes.way(Pool.MBL, target, gateway), BARE: await nodes.bare()}


async def _row(
    name: str,
    unit: str,
    measure: Measure,
    goals: list[Goal],
    beside: Callable[[Bed], Awaitable[dict[str, Way]]] | None = None,
) -> Row:
    async with Bed() as bed, Nodes(bed) as nodes:
        target = await bed.target()
        gateway = await nodes.gateway(target)
        nodes.list_modems(target)
        ways = {OURS: nodes.way(Pool.MBL, target, gateway)}
        if beside is not None:
            ways |= await beside(bed)
        for rival, starting in {
            "proxy-chain": rivals.proxy_chain(bed, await bed.target()),
            "squid": rivals.squid(bed, await bed.target()),
            "haproxy_256k": rivals.haproxy(bed, await bed.target(), buffer_bytes=BUFFER_BYTES),
            "tinyproxy": rivals.tinyproxy(bed, await bed.target()),
            "dante": rivals.dante(bed, await bed.target(reset=True)),
            "proxy.py": rivals.proxy_py(bed, await bed.target()),
            "pproxy": rivals.pproxy(bed, await bed.target()),
        }.items():
            ways |= await bed.rival(rival, starting)
        rounds = await interleave({who: partial(measure, way) for who, way in ways.items()})
    return compare(name, unit, rounds, goals, bed.missing)


async def measure_bulk(way: Way) -> Reading:
    """One round: MB/s, and CPU seconds per GB."""
    before = cpu_s(way.parts)
    figures = await run_load("bulk", way, conns=BULK_CONNECTIONS, seconds=BULK_SECONDS)
    await quiet(way.parts)
    return Reading(figures.mb_per_s, (cpu_s(way.parts) - before) / (figures.all_mb / 1000))


async def measure_tunnels(way: Way) -> Reading:
    """One round: tunnels per second, and CPU microseconds per tunnel."""
    before = cpu_s(way.parts)
    figures = await run_load("tunnels", way, conns=TUNNEL_CONNECTIONS, seconds=TUNNEL_SECONDS)
    await quiet(way.parts)
    return Reading(figures.per_s, (cpu_s(way.parts) - before) * 1e6 / figures.all_done)
