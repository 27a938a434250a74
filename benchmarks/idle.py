"""Peers that only stay, by the thousand: what their handshakes cost, and what each one costs while it is idle.

The peers are sockets of `load.c`, each with a token of its own: handshake, device_info, and a heartbeat each 30 s. What a
relay does for them beyond that (presence in Redis, sweeps) is in its figures; the yardstick does neither.
"""

from __future__ import annotations

import asyncio
import itertools
import json
import statistics
import time
from dataclasses import replace
from functools import partial
from types import TracebackType
from typing import Final, Self

from benchmarks.bed import ROUNDS, Bed, cpu_s, interleave, quiet, rss_bytes
from benchmarks.load import LoadFailed, load_program
from benchmarks.nodes import Nodes
from benchmarks.relay import LIBRARY, Listening, library_relay, our_relay
from benchmarks.row import OURS, Goal, Reading, Row, compare
from shared.kernel.ids import DeviceId

HANDSHAKES_PER_ROUND: Final = 1500
IDLE_PER_BATCH: Final = 3800
"""Five batches stay below a limit of 20,000 files on either side."""
IDLE_SLICE_S: Final = 7.0
"""Five slices hold a heartbeat of everybody, and a renewal of all presence, in one burst: the figure is their mean."""
CONNECT_TIMEOUT_S: Final = 60.0
WRITTEN_MAX_S: Final = 30.0
END_TIMEOUT_S: Final = 10.0


class Crowd:
    """Peers that connect in batches and stay until the block is left. Each has a device id and a token of its own."""

    def __init__(self, relay: Listening, tokens_file: str, batch: int) -> None:
        self._command = [
            str(load_program()), "peers", f"at=127.0.0.1:{relay.peer_port}", f"tokens={tokens_file}", f"batch={batch}",
        ]  # fmt: skip
        self._process: asyncio.subprocess.Process

    async def __aenter__(self) -> Self:
        pipe = asyncio.subprocess.PIPE
        self._process = await asyncio.create_subprocess_exec(
            *self._command, stdin=pipe, stdout=pipe, stderr=pipe
        )
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._process.stdin is not None:
            self._process.stdin.close()
        try:
            await asyncio.wait_for(self._process.wait(), END_TIMEOUT_S)
        except TimeoutError:
            self._process.kill()
            await self._process.wait()

    async def grow(self) -> int:
        """Connect one more batch; answers how many are connected now. Raises LoadFailed."""
        process = self._process
        assert process.stdin and process.stdout and process.stderr  # noqa: PT018 - pipes were asked for
        process.stdin.write(b"\n")
        try:
            line = await asyncio.wait_for(process.stdout.readline(), CONNECT_TIMEOUT_S)
        except TimeoutError:
            raise LoadFailed("peers did not connect in time") from None
        if not line:
            raise LoadFailed((await process.stderr.read()).decode().strip())
        return int(json.loads(line)["connected"])


def _tokens(bed: Bed, nodes: Nodes, numbers: range) -> str:
    lines = (nodes.token(DeviceId(f"agent_idle{number}")) for number in numbers)
    return bed.file("tokens", "\n".join(lines) + "\n")


def handshakes() -> Row:
    """Peers that a relay takes in per second of its CPU, until it has told everybody who has to know.

    No token is shown twice: one that was believed before costs less.
    """
    return asyncio.run(_handshakes())


async def _handshakes() -> Row:
    async with Bed() as bed, Nodes(bed) as nodes:
        relays = {OURS: await our_relay(nodes), LIBRARY: await library_relay(bed, nodes)}
        unseen = (range(n, n + HANDSHAKES_PER_ROUND) for n in itertools.count(0, HANDSHAKES_PER_ROUND))

        async def take_in(relay: Listening) -> Reading:
            return await _take_in(relay, _tokens(bed, nodes, next(unseen)))

        rounds = await interleave({who: partial(take_in, relay) for who, relay in relays.items()})
    goal = Goal("", 3000)
    return compare("handshakes", "/s per core", rounds, [goal], bed.missing)


async def _take_in(relay: Listening, tokens: str) -> Reading:
    async with Crowd(relay, tokens, HANDSHAKES_PER_ROUND) as crowd:
        before = cpu_s((relay.part,))
        connected = await crowd.grow()
        await quiet((relay.part,), WRITTEN_MAX_S)
        spent = cpu_s((relay.part,)) - before
    await quiet((relay.part,), WRITTEN_MAX_S)
    return Reading(connected / spent, spent * 1e6 / connected)


def idle() -> list[Row]:
    """Memory per idle peer, and share of a core that ten thousand of them take."""
    return asyncio.run(_idle())


async def _idle() -> list[Row]:
    async with Bed() as bed, Nodes(bed) as nodes:
        relays = {OURS: await our_relay(nodes), LIBRARY: await library_relay(bed, nodes)}
        tokens = _tokens(bed, nodes, range(IDLE_PER_BATCH * ROUNDS))
        ours = Crowd(relays[OURS], tokens, IDLE_PER_BATCH)
        theirs = Crowd(relays[LIBRARY], tokens, IDLE_PER_BATCH)
        async with ours, theirs:
            rooms = {
                OURS: partial(_room, relays[OURS], ours),
                LIBRARY: partial(_room, relays[LIBRARY], theirs),
            }
            for relay in relays.values():
                await quiet((relay.part,), WRITTEN_MAX_S)
            empty = {who: rss_bytes(relay.part) for who, relay in relays.items()}
            memory = await interleave({who: partial(room, empty[who]) for who, room in rooms.items()})
            slices = [await _slice(relays) for _ in range(ROUNDS)]
    core = {who: [found[who] for found in slices] for who in relays if memory[who]}
    means = {who: [Reading(statistics.mean(found))] for who, found in core.items()}
    spread = {who: f"{min(found):.3g}-{max(found):.3g}" for who, found in core.items()}
    row = compare("idle_core", "% core per 10k", means, [Goal("", 1.5, at_most=True)], bed.missing)
    return [
        compare("idle_memory", "KB per peer", memory, [Goal("", 4, at_most=True)], bed.missing),
        replace(row, noise=spread.get(OURS, ""), ranges=spread),
    ]


async def _room(relay: Listening, crowd: Crowd, empty_bytes: int) -> Reading:
    """One more batch: resident kilobytes (1,024 bytes) per peer of all that are connected by now."""
    connected = await crowd.grow()
    await quiet((relay.part,), WRITTEN_MAX_S)
    return Reading((rss_bytes(relay.part) - empty_bytes) / connected / 1024)


async def _slice(relays: dict[str, Listening]) -> dict[str, float]:
    """Percent of a core per 10,000 peers, both relays in the same seconds."""
    before = {who: cpu_s((relay.part,)) for who, relay in relays.items()}
    began = time.monotonic()
    await asyncio.sleep(IDLE_SLICE_S)
    units = (time.monotonic() - began) * IDLE_PER_BATCH * ROUNDS / 10_000 / 100
    return {who: (cpu_s((relay.part,)) - before[who]) / units for who, relay in relays.items()}
