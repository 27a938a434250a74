"""Long transfers that go from socket to socket inside the kernel: every byte, counted, with every kind of end."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import os
import socket
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from typing import Final, cast

import pytest
import pytest_asyncio

from gateway_node import splice
from gateway_node.splice import Over, Splices
from shared.metering.model import OVERDRAFT_MAX_BYTES
from shared.runtime.transports import reset
from tests.support.dataplane import WAIT_S, Plane, echo, pattern, until

pytestmark = pytest.mark.slow

BLOCK: Final = pattern(65_521)
LONG: Final = BLOCK * 64
"""About 4 MB in which a lost or repeated piece shows."""
LONGER: Final = BLOCK * 512
"""More than all buffers between a target and a customer hold."""


@contextmanager
def connection() -> Iterator[tuple[socket.socket, socket.socket]]:
    """Both ends of one TCP connection."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        near = socket.create_connection(server.getsockname())
        far, _ = server.accept()
    with near, far:
        near.setblocking(False)
        far.setblocking(False)
        yield near, far


class Pair:
    """A source and a sink with a splice between them: what the test writes to `source` comes out at `sink`."""

    def __init__(
        self, source: tuple[socket.socket, socket.socket], sink: tuple[socket.socket, socket.socket]
    ) -> None:
        self.source, self.sink = source[0], sink[0]
        self.moved = 0
        self.over: list[Over] = []
        self.splices = Splices()
        self.splice = self.splices.begin(source[1].fileno(), sink[1].fileno(), self._moved, self.over.append)

    def _moved(self, size: int) -> None:
        self.moved += size


@pytest_asyncio.fixture
async def pair() -> AsyncIterator[Pair]:
    held = descriptors()
    with connection() as source, connection() as sink:
        made = Pair(source, sink)
        yield made
        made.splice.close()
        assert made.splices.open_count == 0
    assert descriptors() == held


def descriptors() -> int:
    """How many this process has open."""
    # what an earlier test left must not go amid this one
    gc.collect()
    return len(os.listdir("/proc/self/fd"))


async def take(side: socket.socket, size: int) -> bytes:
    """Exactly so many bytes."""
    taken = bytearray()
    while len(taken) < size:
        piece = await asyncio.get_running_loop().sock_recv(side, 65536)
        assert piece, f"ended after {len(taken)}"
        taken += piece
    return bytes(taken)


async def test_every_byte_passes_in_order_and_is_counted_when_it_left(pair: Pair) -> None:
    loop = asyncio.get_running_loop()
    sending = loop.create_task(loop.sock_sendall(pair.source, LONG))
    assert await take(pair.sink, len(LONG)) == LONG
    await sending
    assert (pair.moved, pair.over) == (len(LONG), [])


async def test_a_sink_that_does_not_read_holds_the_source_and_only_a_pipe_is_under_way(pair: Pair) -> None:
    loop = asyncio.get_running_loop()
    sending = loop.create_task(loop.sock_sendall(pair.source, LONGER))
    before = -1
    while before != pair.moved or not pair.moved:
        before = pair.moved
        await asyncio.sleep(0.05)
    assert not sending.done()
    assert pair.moved < len(LONGER)
    assert await take(pair.sink, len(LONGER)) == LONGER
    await sending


async def test_nothing_moves_while_it_is_paused(pair: Pair) -> None:
    loop = asyncio.get_running_loop()
    pair.splice.pause()
    await loop.sock_sendall(pair.source, b"later")
    for _ in range(5):
        await asyncio.sleep(0)
    assert pair.moved == 0
    pair.splice.resume()
    assert await take(pair.sink, 5) == b"later"


async def test_an_end_is_told_after_the_last_byte_and_both_connections_stay(pair: Pair) -> None:
    loop = asyncio.get_running_loop()
    await loop.sock_sendall(pair.source, b"last words")
    pair.source.shutdown(socket.SHUT_WR)
    assert await take(pair.sink, 10) == b"last words"
    await until(lambda: pair.over)
    assert (pair.moved, pair.over) == (10, [Over.SOURCE_ENDED])
    await loop.sock_sendall(pair.sink, b"both stay open")


@pytest.mark.parametrize(("side", "why"), [("source", Over.SOURCE_FAILED), ("sink", Over.SINK_FAILED)])
async def test_a_reset_is_never_taken_for_an_end(pair: Pair, side: str, why: Over) -> None:
    loop = asyncio.get_running_loop()
    await loop.sock_sendall(pair.source, b"x")
    await take(pair.sink, 1)
    broken: socket.socket = getattr(pair, side)
    broken.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\x01\0\0\0\0\0\0\0")
    broken.close()
    if side == "sink":
        while not pair.over:
            await loop.sock_sendall(pair.source, b"y" * 1000)
            await asyncio.sleep(0)
    await until(lambda: pair.over)
    assert pair.over == [why]


async def test_a_splice_that_cannot_begin_leaves_nothing_open(monkeypatch: pytest.MonkeyPatch) -> None:
    held = descriptors()
    with connection() as source, connection() as sink:
        inside = descriptors()
        with monkeypatch.context() as patched:
            patched.setattr(splice, "AT_ONCE_MAX", 0)
            with pytest.raises(OSError, match="too many"):
                Pair(source, sink)
        with monkeypatch.context() as patched:
            patched.setattr(splice, "PIPE_LEAST_BYTES", splice.PIPE_BYTES + 1)
            with pytest.raises(OSError, match="no pipes left"):
                Pair(source, sink)
        with pytest.raises(OSError, match="descriptor"):
            Splices().begin(source[1].fileno(), 1 << 30, lambda _: None, lambda _: None)
        assert descriptors() == inside
    assert descriptors() == held


def test_what_a_splice_moves_at_once_keeps_an_overdraft_within_its_bound() -> None:
    assert OVERDRAFT_MAX_BYTES + splice.PIPE_BYTES <= 1 << 20  # decision 0009


# In a gateway


async def long_answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """A target that sends a lot when it is asked, and ends."""
    await reader.readexactly(1)
    writer.write(LONGER)
    await writer.drain()
    writer.close()


async def test_a_long_answer_is_spliced_whole_and_counted_whole(plane: Plane) -> None:
    port = await plane.target(long_answer)
    await plane.add_peer("d1", protocol="binary-v1")
    reader, writer = await plane.tunnel(port)
    (tunnel,) = plane.meter.all_tunnels()
    writer.write(b"?")
    begun = await reader.readexactly(len(LONGER) // 4)
    await until(lambda: plane.dialer.splices.open_count == 1)
    assert begun + await reader.read(-1) == LONGER
    writer.close()
    await until(lambda: not plane.meter.all_tunnels())
    assert (tunnel.up_bytes, tunnel.down_bytes, plane.dialer.splices.open_count) == (1, len(LONGER), 0)


async def test_both_directions_go_on_beside_each_other(plane: Plane) -> None:
    port = await plane.target(echo)
    await plane.add_peer("d1", protocol="binary-v1")
    reader, writer = await plane.tunnel(port)

    async def send() -> None:
        for _ in range(64):
            writer.write(BLOCK)
            await writer.drain()

    sending = asyncio.get_running_loop().create_task(send())
    assert await reader.readexactly(len(LONG)) == LONG
    await sending
    (tunnel,) = plane.meter.all_tunnels()
    assert (tunnel.up_bytes, tunnel.down_bytes, plane.dialer.splices.open_count) == (len(LONG), len(LONG), 1)
    writer.close()


@pytest.mark.parametrize("who", ["exit", "customer", "meter"])
async def test_whoever_breaks_a_spliced_tunnel_breaks_it_visibly_for_the_others(
    plane: Plane, who: str
) -> None:
    ended = asyncio.Event()

    async def endless(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError):
            while not writer.is_closing():
                writer.write(bytes(65536))
                await writer.drain()
        writer.close()
        ended.set()

    port = await plane.target(endless)
    await plane.add_peer("d1", protocol="binary-v1")
    reader, writer = await plane.tunnel(port)
    await reader.readexactly(len(LONG))
    await until(lambda: plane.dialer.splices.open_count == 1)
    (tunnel,) = plane.meter.all_tunnels()
    if who == "exit":
        for carrying in plane.sockets_of("d1"):
            reset(carrying._transport)
    elif who == "customer":
        reset(cast(asyncio.Transport, writer.transport))
    else:
        tunnel.cut()
    if who != "customer":
        with pytest.raises(ConnectionError):
            await reader.read(-1)
    await until(lambda: plane.dialer.splices.open_count == 0 and not plane.meter.all_tunnels())
    async with asyncio.timeout(WAIT_S):
        await ended.wait()
    writer.close()


async def test_a_tunnel_that_must_wait_for_its_lease_is_not_spliced_past_it(plane: Plane) -> None:
    port = await plane.target(long_answer)
    await plane.add_peer("d1", protocol="binary-v1")
    reader, writer = await plane.tunnel(port)
    writer.write(b"?")
    taken = await reader.readexactly(len(LONGER) // 4)
    await until(lambda: plane.dialer.splices.open_count == 1)
    (tunnel,) = plane.meter.all_tunnels()
    tunnel.wait()
    carried = tunnel.down_bytes
    taken += await reader.readexactly(carried - len(taken))
    assert tunnel.down_bytes == carried < len(LONGER)
    tunnel.go_on()
    assert taken + await reader.read(-1) == LONGER
    writer.close()
