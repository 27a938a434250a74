"""The SDKs side by side: one download through one tunnel of each language, beside a plain TCP copy; and what idling costs.

All go through the same relay, from its mesh listener, so what the relay takes is the same for all. The CPU is that of the
SDK's process alone. The first figure is the reference's (Python); there is no goal but that all of them are there.
"""

from __future__ import annotations

import asyncio
import sys
from functools import partial
from typing import Final

from benchmarks.bed import Bed, cpu_s, interleave, quiet, rss_bytes
from benchmarks.load import Way, run_load
from benchmarks.nodes import Nodes
from benchmarks.row import OURS, Reading, Row, compare
from local.sdks import NAMES, BuildFailed, ToolMissing, build
from local.supervisor import Part, free_port
from shared.kernel.ids import DeviceId

REFERENCE: Final = "python"
COPY: Final = "plain TCP copy"
SECONDS: Final = 2
SOCKETS: Final = 4
SETTLE_S: Final = 3.0
MB: Final = 1_000_000


def bulk() -> Row:
    """MB a second through one tunnel over one socket, and the SDK's CPU seconds per GB."""
    return asyncio.run(_bulk())


async def _bulk() -> Row:
    async with Bed() as bed, Nodes(bed) as nodes:
        await nodes.relay()
        measures = {}
        for who, name in _names():
            target = await bed.target()
            part = await _peer(bed, nodes, name, target, 1)
            if part is not None:
                measures[who] = partial(_measure, nodes.mesh_way(part[1], target, part[0]))
        measures[COPY] = partial(_measure, await _copy(bed))
        rounds = await interleave(measures)
    return compare("sdk_bulk", "MB/s", rounds, [], bed.missing)


def idle_memory() -> Row:
    """MB resident of a device with four sockets and no tunnel."""
    return asyncio.run(_idle_memory())


async def _idle_memory() -> Row:
    rounds: dict[str, list[Reading]] = {}
    async with Bed() as bed, Nodes(bed) as nodes:
        await nodes.relay()
        for who, name in _names():
            part = await _peer(bed, nodes, name, "127.0.0.1:9", SOCKETS)
            if part is not None:
                await asyncio.sleep(SETTLE_S)
                rounds[who] = [Reading(rss_bytes(part[0]) / MB)]
    return compare("sdk_idle_memory", "MB", rounds, [], bed.missing)


def _names() -> list[tuple[str, str]]:
    return [(OURS if name == REFERENCE else name, name) for name in NAMES]


async def _peer(bed: Bed, nodes: Nodes, name: str, target: str, sockets: int) -> tuple[Part, DeviceId] | None:
    """A connected device of a language, or an entry in what is missing."""
    try:
        sdk = await asyncio.to_thread(build, name)
    except (ToolMissing, BuildFailed) as fault:
        sys.stderr.write(f"  missing {name}: {fault}\n")
        bed.missing.append(name)
        return None
    return await nodes.peer(target, sockets, sdk=sdk)


async def _copy(bed: Bed) -> Way:
    """A process that copies between two TCP connections and does nothing else."""
    port, target = free_port(), await bed.target()
    command = [sys.executable, "-m", "benchmarks.tcp_copy", str(port), target]
    return Way(f"127.0.0.1:{port}", parts=(await bed.listener("copy", command, port),))


async def _measure(way: Way) -> Reading:
    before = cpu_s(way.parts)
    figures = await run_load("bulk", way, conns=1, seconds=SECONDS)
    await quiet(way.parts)
    return Reading(figures.mb_per_s, (cpu_s(way.parts) - before) / (figures.all_mb / 1000))
