"""Faults on real sockets: paths that die without a word, exits that swallow, single bytes, slow senders, killed peers.

What a customer sees is whole, or visibly broken. Other faults have their tests where their subject is.
"""

import asyncio
import base64
import contextlib
import socket
from typing import Any

import pytest
from psx_peer.client import Peer

from gateway_node import dial, stream_exit
from relay_node import peers, presence
from tests.support.dataplane import ACCOUNT, SECRET, Plane, echo, pattern, until

pytestmark = [pytest.mark.slow, pytest.mark.timeout(60)]
PROTOCOLS = ("binary-v1", "binary-v2")
CREDENTIALS = base64.b64encode(f"{ACCOUNT}-peer-us:{SECRET}".encode()).decode()


def goes_deaf(socket_: Any) -> None:
    """A relay's end of a peer's socket that hears nothing any more and is not told why."""
    socket_._transport.pause_reading()


def dies(plane: Plane, peer: Peer) -> None:
    """The peer's process ends without a word: its sockets first, and in the same turn, so that it has no last one."""
    for relay_end in plane.sockets_of("p1"):
        assert relay_end._transport is not None
        relay_end._transport.abort()
    peer.stop()


async def is_cut(reader: asyncio.StreamReader) -> None:
    """A customer sees a reset; waited for longer than any machine needs, and not as long as `patient` gateways try."""
    with pytest.raises(ConnectionResetError):
        assert await asyncio.wait_for(reader.read(), 20) == b"not an end"


@pytest.fixture
def patient(monkeypatch: pytest.MonkeyPatch) -> None:
    """A gateway that would try to resume for longer than any test lasts."""
    monkeypatch.setattr(stream_exit, "GONE_TRY_S", 600.0)
    monkeypatch.setattr(stream_exit, "RESUME_TRY_S", 600.0)


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """A relay that looks after its sockets often, and gives those with tunnels up soon."""
    monkeypatch.setattr(presence, "SWEEP_S", 0.05)
    monkeypatch.setattr(peers, "PING_AFTER_S", 0.1)
    monkeypatch.setattr(peers, "DEAD_WITH_TUNNELS_AFTER_S", 0.6)


async def test_a_path_that_dies_without_a_word_is_given_up_and_its_streams_go_on(
    impatient: None, plane: Plane
) -> None:
    await plane.add_peer("p1")
    reader, writer = await plane.tunnel(await plane.target(echo))
    writer.write(b"before")
    assert await reader.readexactly(6) == b"before"
    (half_open,) = [s for s in plane.sockets_of("p1") if s.load]
    goes_deaf(half_open)
    sent = pattern(400_000)
    writer.write(sent)
    assert await reader.readexactly(len(sent)) == sent
    assert half_open not in plane.sockets_of("p1")
    writer.close()


@pytest.mark.parametrize("protocol", PROTOCOLS)
async def test_an_exit_that_swallows_requests_is_replaced_before_the_first_byte(
    plane: Plane, monkeypatch: pytest.MonkeyPatch, protocol: str
) -> None:
    monkeypatch.setattr(dial, "EXIT_ANSWER_TIMEOUT_S", 0.5)
    await plane.add_peer("hole", protocol=protocol)
    port = await plane.target(echo)
    plane.relays[0].registry.devices["hole"].confirms_open = True  # else silence counts as success
    for deaf in plane.sockets_of("hole"):
        goes_deaf(deaf)
    await plane.add_peer("good", protocol=protocol)
    writers = [(await plane.tunnel(port))[1] for _ in range(3)]
    assert [t.acquired.endpoint.endpoint_id for t in plane.meter.all_tunnels()] == ["good"] * 3
    for writer in writers:
        writer.close()


@pytest.mark.parametrize("protocol", PROTOCOLS)
async def test_single_bytes_arrive_whoever_reads_or_writes_them(plane: Plane, protocol: str) -> None:
    async def one_by_one(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.get_extra_info("socket").setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        with contextlib.suppress(ConnectionError):
            while byte := await reader.read(1):
                writer.write(byte)
                await writer.drain()
        writer.close()

    await plane.add_peer("p1", protocol=protocol)
    port = await plane.target(one_by_one)
    reader, writer = await asyncio.open_connection("127.0.0.1", plane.http_port)
    ask = f"CONNECT 127.0.0.1:{port} HTTP/1.1\r\nProxy-Authorization: Basic {CREDENTIALS}\r\n\r\n".encode()
    sent = pattern(64)
    for byte in ask + sent:
        writer.write(bytes((byte,)))
        await asyncio.sleep(0)
    assert (await reader.readuntil(b"\r\n\r\n")).startswith(b"HTTP/1.1 200 ")
    got = b""
    while len(got) < len(sent):
        got += await reader.read(1)
    assert got == sent
    writer.close()


async def test_how_customers_fare_with_an_exit_is_noted_whatever_the_exit_says_of_the_target(
    plane: Plane,
) -> None:
    async def hangs_up(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read(1)
        writer.close()

    await plane.add_peer("p1")
    for serve, answered in ((echo, b"x"), (hangs_up, b"")):
        reader, writer = await plane.tunnel(await plane.target(serve))
        writer.write(b"x")
        assert await reader.read(1) == answered
        writer.close()
    plane.allowed.add(("127.0.0.1", 1))
    _, writer, head = await plane.connect(1)
    assert head.startswith("HTTP/1.1 502 ")
    writer.close()
    told: list[tuple[int, int, int]] = []

    def all_told() -> bool:
        told.extend((one.served, one.failed, len(one.targets)) for one in plane.leases.fared.take(10))
        return [sum(column) for column in zip(*told, strict=True)] == [1, 2, 2]

    await until(all_told)


async def test_a_slow_sender_holds_up_nobody_and_loses_nothing(plane: Plane) -> None:
    heard = bytearray()

    async def listens(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while data := await reader.read(65536):
            heard.extend(data)
        writer.write(b"all")
        writer.close()

    await plane.add_peer("p1", sockets=1)
    slow_reader, slow = await plane.tunnel(await plane.target(listens))
    quick_reader, quick = await plane.tunnel(await plane.target(echo))
    sent = pattern(3_000)
    for start in range(0, len(sent), 100):
        slow.write(sent[start : start + 100])
        quick.write(b"x" * 10_000)
        assert await quick_reader.readexactly(10_000) == b"x" * 10_000
    slow.write_eof()
    assert await slow_reader.read() == b"all"
    assert bytes(heard) == sent
    slow.close()
    quick.close()


@pytest.mark.parametrize("protocol", PROTOCOLS)
async def test_a_killed_peer_breaks_its_streams_visibly_and_the_next_request_goes_elsewhere(
    plane: Plane, monkeypatch: pytest.MonkeyPatch, protocol: str
) -> None:
    monkeypatch.setattr(stream_exit, "GONE_TRY_S", 0.3)
    peer = await plane.add_peer("p1", protocol=protocol)
    port = await plane.target(echo)
    reader, writer = await plane.tunnel(port)
    writer.write(b"x")
    assert await reader.readexactly(1) == b"x"
    dies(plane, peer)
    await is_cut(reader)
    writer.close()
    await plane.add_peer("p2", protocol=protocol)
    _, writer = await plane.tunnel(port)
    writer.close()


async def talking(plane: Plane) -> tuple[Peer, asyncio.StreamReader, asyncio.StreamWriter]:
    """A peer with a stream that has carried something."""
    peer = await plane.add_peer("p1")
    reader, writer = await plane.tunnel(await plane.target(echo))
    writer.write(b"x")
    assert await reader.readexactly(1) == b"x"
    return peer, reader, writer


async def test_a_peer_that_stops_says_so_and_nobody_waits_for_it(patient: None, plane: Plane) -> None:
    peer, reader, writer = await talking(plane)
    peer.stop()
    await is_cut(reader)
    writer.close()


async def test_a_device_that_is_back_without_its_streams_is_waited_for_no_longer(
    patient: None, plane: Plane
) -> None:
    peer, reader, writer = await talking(plane)
    dies(plane, peer)
    await plane.add_peer("p1")
    await is_cut(reader)
    writer.close()


async def test_a_tunnel_that_its_peer_died_while_opening_goes_elsewhere_at_once(
    plane: Plane, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(dial, "EXIT_ANSWER_TIMEOUT_S", 600.0)
    peer = await plane.add_peer("p1")
    port = await plane.target(echo)
    for deaf in plane.sockets_of("p1"):
        goes_deaf(deaf)
    opening = asyncio.create_task(plane.tunnel(port))
    await until(lambda: any(s.load for s in plane.sockets_of("p1")))
    await plane.add_peer("p2")
    dies(plane, peer)
    _, writer = await opening
    assert [t.acquired.endpoint.endpoint_id for t in plane.meter.all_tunnels()] == ["p2"]
    writer.close()
