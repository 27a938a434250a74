"""A small request beside four downloads, on a peer whose uplink carries 40 Mbit/s: how long it takes, how full the link is.

The link is `benchmarks.link` between a peer with one socket and the relay. The requests follow one another on an open
tunnel; the unloaded figure is the same without the downloads, by turns.
"""

from __future__ import annotations

import asyncio
import statistics
import sys
from functools import partial
from typing import Final

from benchmarks.bed import Bed, interleave
from benchmarks.load import Way, run_load
from benchmarks.nodes import Nodes
from benchmarks.row import OURS, Goal, Reading, Row, compare
from local.supervisor import free_port
from shared.kernel.codes import Pool

LINK_BYTES_PER_S: Final = 40_000_000 // 8
DOWNLOADS: Final = 4
SECONDS: Final = 3.0
WARM_S: Final = 1.0
GOAL_MS: Final = 50.0
LINK_USE_MIN: Final = 0.9
UNLOADED: Final = "unloaded"


def measure() -> list[Row]:
    """Median milliseconds of the request, and the share of the link that all use together."""
    return asyncio.run(_rows())


async def _rows() -> list[Row]:
    use: list[float] = []
    async with Bed() as bed, Nodes(bed) as nodes:
        target = await bed.target()
        relay = await nodes.relay()
        gateway = await nodes.gateway(target)
        port = free_port()
        link = [
            sys.executable,
            "-m",
            "benchmarks.link",
            str(port),
            str(nodes.peer_port),
            str(LINK_BYTES_PER_S),
        ]
        await bed.listener("link", link, port)
        peer, device_id = await nodes.peer(target, sockets=1, relay_port=port)
        await nodes.list_peer(device_id)
        way = nodes.way(Pool.PEER, target, gateway, relay, peer)
        rounds = await interleave({OURS: partial(_loaded, way, use), UNLOADED: partial(_request, way)})
    speed = compare("loaded_uplink", "ms p50", rounds, [Goal("", GOAL_MS, at_most=True)], bed.missing)
    return [speed, _link_use(use)]


async def _request(way: Way) -> Reading:
    figures = await run_load("tunnels", way, conns=1, keep=1, seconds=SECONDS - WARM_S, warm=WARM_S)
    return Reading(figures.p50_us / 1000)


async def _loaded(way: Way, use: list[float]) -> Reading:
    """The downloads go on for longer than the requests, so that none is without company."""
    downloads = asyncio.ensure_future(
        run_load("bulk", way, conns=DOWNLOADS, seconds=SECONDS - WARM_S + 0.5, warm=WARM_S)
    )
    reading = await _request(way)
    use.append((await downloads).mb_per_s * 1e6 / LINK_BYTES_PER_S)
    return reading


def _link_use(use: list[float]) -> Row:
    median = statistics.median(use) if use else 0.0
    noise = f"{min(use):.2f}-{max(use):.2f}" if use else ""
    goal = f">= {LINK_USE_MIN:g}"
    return Row("uplink_use", "of link", round(median, 3), {}, None, goal, median >= LINK_USE_MIN, noise=noise)
