"""A relay or a peer that dies in mid-transfer: what is metered is what was at the target, or as much of it as came through.

Gateways and stores stand in `test_gateway_kill.py` and `test_kill_stores.py`.
"""

import asyncio
import contextlib

import pytest

from shared.kernel.ids import PakId
from shared.metering.live import read_used
from tests.support.dataplane import Plane, pattern, until

pytestmark = [pytest.mark.slow, pytest.mark.timeout(60)]
BYTES = 2_000_000


class CountingEcho:
    """A target that says what it hears, and knows how much that was."""

    def __init__(self) -> None:
        self.heard = self.said = 0

    async def __call__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """One connection."""
        with contextlib.suppress(ConnectionError):
            while data := await reader.read(65536):
                self.heard += len(data)
                self.said += len(data)
                writer.write(data)
                await writer.drain()
        writer.close()


async def metered(plane: Plane) -> int:
    """Bytes of the key once its tunnels are over."""
    await until(lambda: not list(plane.meter.all_tunnels()))
    await plane.meter.flush()
    return await plane.redis.run(read_used(PakId("pak1"))) or 0


async def test_a_killed_relay_neither_loses_nor_doubles_a_metered_byte(plane: Plane) -> None:
    first, second = plane.relays[0], await plane.start_relay("relay-b")
    target = CountingEcho()
    await plane.add_peer("p1", first, second)
    reader, writer = await plane.tunnel(await plane.target(target))
    sent = pattern(BYTES)
    writer.write(sent[: BYTES // 2])
    got = await reader.readexactly(BYTES // 4)
    await first.kill()
    writer.write(sent[BYTES // 2 :])
    got += await reader.readexactly(BYTES - len(got))
    writer.close()
    assert got == sent
    assert await metered(plane) == target.heard + target.said == 2 * BYTES


async def test_a_killed_peer_costs_its_customer_what_came_through_and_no_more(plane: Plane) -> None:
    target = CountingEcho()
    await plane.add_peer("p1", protocol="binary-v1")
    reader, writer = await plane.tunnel(await plane.target(target))
    sent = pattern(BYTES)
    writer.write(sent)
    got = await reader.readexactly(BYTES // 4)
    for peer, task in plane.peers:
        peer.stop()
        task.cancel()
    for socket in plane.sockets_of("p1"):
        assert socket._transport is not None
        socket._transport.abort()
    with contextlib.suppress(ConnectionError):
        while data := await reader.read(65536):
            got += data
    writer.close()
    assert got == sent[: len(got)]
    billed = await metered(plane)
    assert len(got) <= target.said <= target.heard <= BYTES
    assert 2 * len(got) <= billed <= BYTES + target.said, "what came back at least, at most what was sent"
