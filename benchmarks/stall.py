"""One customer who stops reading, on the same device as others who go on: what they keep, and what the relay holds for it.

The peer has one socket, so that nobody escapes to another one. Rounds without and with the stalled customer by turns.
"""

from __future__ import annotations

import asyncio
import statistics
from functools import partial
from typing import Final

from benchmarks.bed import Bed, interleave, quiet, rss_bytes
from benchmarks.load import Way, run_load
from benchmarks.nodes import Nodes
from benchmarks.row import OURS, Goal, Reading, Row, compare
from local.supervisor import Part
from shared.kernel.codes import Pool
from shared.kernel.ids import EndpointId
from shared.pool import live

RUNNING: Final = 4
SECONDS: Final = 1.5
WARM_S: Final = 0.5
"""By then the stalled customer has filled every buffer on the way that is going to be filled."""
KEEP_SHARE: Final = 0.8
GROWTH_MAX_MB: Final = 50.0
RSS_POLL_S: Final = 0.02
ALONE: Final = "nobody_stalled"


def measure() -> list[Row]:
    """Share of their MB/s that the others keep, and growth of the relay's memory."""
    return asyncio.run(_rows())


async def _rows() -> list[Row]:
    peaks: dict[str, list[float]] = {ALONE: [], OURS: []}
    async with Bed() as bed, Nodes(bed) as nodes:
        target = await bed.target()
        relay = await nodes.relay()
        gateway = await nodes.gateway(target)
        _, device_id = await nodes.peer(target, sockets=1)
        await nodes.list_peer(device_id)
        way = nodes.way(Pool.PEER, target, gateway, relay)

        async def fresh(relay: Part, stalled: int, found: list[float]) -> Reading:
            # Streams that starved in the round before speak against the exit, and it is kept from sale for a while.
            nodes.redis.run(live.unpause(Pool.PEER, EndpointId(device_id)))
            return await _round(way, relay, stalled, found)

        rounds = await interleave(
            {
                ALONE: partial(fresh, relay, 0, peaks[ALONE]),
                OURS: partial(fresh, relay, 1, peaks[OURS]),
            }
        )
    speed = compare("stalled_customer", "MB/s", rounds, [Goal(ALONE, KEEP_SHARE)], bed.missing)
    return [speed, _memory(peaks)]


async def _round(way: Way, relay: Part, stalled: int, peaks: list[float]) -> Reading:
    """MB/s of the running ones; the peak of the relay's memory, in MB, goes to `peaks`."""
    options = {"conns": RUNNING, "stalled": stalled, "seconds": SECONDS, "warm": WARM_S}
    running = asyncio.ensure_future(run_load("bulk", way, starving=True, **options))
    peak = 0
    while not running.done():
        peak = max(peak, rss_bytes(relay))
        await asyncio.sleep(RSS_POLL_S)
    peaks.append(peak / 1e6)
    await quiet(way.parts)
    return Reading((await running).mb_per_s)


def _memory(peaks: dict[str, list[float]]) -> Row:
    """Peak against peak, because running downloads have buffers of their own."""
    alone, stalled = peaks[ALONE], peaks[OURS]
    growth = statistics.median(stalled) - statistics.median(alone)
    noise = f"{statistics.median(stalled):.1f} beside {statistics.median(alone):.1f} MB"
    goal, reached = f"< {GROWTH_MAX_MB:.0f} MB", growth < GROWTH_MAX_MB
    return Row("stalled_memory", "MB more", round(growth, 1), {}, None, goal, reached, noise=noise)
