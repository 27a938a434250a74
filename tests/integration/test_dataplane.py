"""Tunnels over real sockets: bytes whole both ways, half-close, resumption, drains, stalls, limits and refusals."""

import asyncio
import base64
import contextlib
from typing import cast

import pytest

from gateway_node.stream_exit import StreamExit
from relay_node.registry import MAX_TUNNELS_PER_DEVICE
from shared.access.secrets import SecretBox
from shared.kernel.codes import SpeedTier
from shared.kernel.ids import AccountId, PakId
from shared.wire.mux import MuxReason
from tests.support.dataplane import ACCOUNT, SECRET, Plane, echo, pattern, until

pytestmark = [pytest.mark.slow, pytest.mark.timeout(60)]
PROTOCOLS = ("binary-v1", "binary-v2")


@pytest.mark.parametrize("protocol", PROTOCOLS)
async def test_bytes_pass_whole_both_ways(plane: Plane, protocol: str) -> None:
    await plane.add_peer("p1", protocol=protocol)
    port = await plane.target(echo)
    reader, writer = await plane.tunnel(port)
    sent = pattern(3_000_000)
    writer.write(sent)
    assert await reader.readexactly(len(sent)) == sent
    writer.close()


@pytest.mark.parametrize("protocol", PROTOCOLS)
async def test_many_tunnels_of_one_device_do_not_mix(plane: Plane, protocol: str) -> None:
    await plane.add_peer("p1", protocol=protocol)
    port = await plane.target(echo)

    async def one(number: int) -> bool:
        link = await plane.redis.run(_presence("p1"))
        assert link is not None
        reader, writer = await plane.tunnel(port)
        data = pattern(200_000, number)
        writer.write(data)
        got = await reader.readexactly(len(data))
        writer.close()
        return got == data

    assert all(await asyncio.gather(*(one(n) for n in range(4))))


async def test_a_customers_half_close_reaches_the_target_and_its_answer_comes_back(plane: Plane) -> None:
    await plane.add_peer("p1")

    async def counts(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(str(len(await reader.read())).encode())
        writer.close()

    reader, writer = await plane.tunnel(await plane.target(counts))
    writer.write(pattern(500_000))
    writer.write_eof()
    assert await reader.read() == b"500000"
    writer.close()
    await until(lambda: not plane.meter.all_tunnels())


async def test_a_target_that_ends_first_still_hears_the_customer(plane: Plane) -> None:
    await plane.add_peer("p1")
    heard: asyncio.Future[bytes] = asyncio.get_running_loop().create_future()

    async def ends_first(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"that is all")
        writer.write_eof()
        heard.set_result(await reader.read())
        writer.close()

    reader, writer = await plane.tunnel(await plane.target(ends_first))
    assert await reader.read() == b"that is all"
    writer.write(b"and yet")
    writer.write_eof()
    assert await asyncio.wait_for(heard, 5) == b"and yet"
    writer.close()


async def test_a_lost_socket_costs_a_stream_no_byte(plane: Plane) -> None:
    await plane.add_peer("p1")
    port = await plane.target(echo)
    reader, writer = await plane.tunnel(port)
    sent = pattern(6_000_000)

    async def feed() -> None:
        for start in range(0, len(sent), 50_000):
            writer.write(sent[start : start + 50_000])
            await writer.drain()
            await asyncio.sleep(0.005)

    feeding = asyncio.create_task(feed())
    got = bytearray()
    for _ in range(3):
        got += await reader.readexactly(1_000_000)
        for socket in plane.sockets_of("p1"):
            assert socket._transport is not None
            socket._transport.abort()
    got += await reader.readexactly(len(sent) - len(got))
    await feeding
    assert bytes(got) == sent
    writer.close()


async def test_a_killed_relay_costs_a_stream_no_byte_when_the_peer_finds_another(plane: Plane) -> None:
    first = plane.relays[0]
    second = await plane.start_relay("relay-b")
    await plane.add_peer("p1", first, second)
    reader, writer = await plane.tunnel(await plane.target(echo))
    sent = pattern(2_000_000)
    writer.write(sent[:1_000_000])
    got = await reader.readexactly(600_000)
    await first.kill()
    writer.write(sent[1_000_000:])
    got += await reader.readexactly(len(sent) - len(got))
    assert got == sent
    await plane.present("p1", second)
    writer.close()


async def test_draining_both_relays_in_turn_costs_no_stream_and_no_request(plane: Plane) -> None:
    first = plane.relays[0]
    second = await plane.start_relay("relay-b")
    for name in ("p1", "p2", "p3"):
        await plane.add_peer(name)
    port = await plane.target(echo)
    stop = asyncio.Event()
    done = {"streams": 0, "requests": 0}

    async def stream() -> None:
        reader, writer = await plane.tunnel(port)
        number = 0
        while not stop.is_set():
            data = pattern(20_000, number)
            writer.write(data)
            assert await reader.readexactly(len(data)) == data
            number += 1
        done["streams"] += 1
        writer.close()

    async def requests() -> None:
        while not stop.is_set():
            reader, writer = await plane.tunnel(port)
            writer.write(b"hello")
            assert await reader.readexactly(5) == b"hello"
            writer.close()
            done["requests"] += 1
            await asyncio.sleep(0.01)

    running = [asyncio.create_task(stream()) for _ in range(4)] + [asyncio.create_task(requests())]
    await asyncio.sleep(0.3)
    for relay in (first, second):
        await relay.drain(3)
        await relay.start()
        await asyncio.sleep(0.5)
    stop.set()
    await asyncio.gather(*running)
    assert done["streams"] == 4
    assert done["requests"] > 20


async def test_a_stalled_customer_does_not_stall_others_of_the_same_socket(plane: Plane) -> None:
    await plane.add_peer("p1", sockets=1)

    async def pours(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(ConnectionError):
            for _ in range(400):
                writer.write(bytes(65536))
                await writer.drain()
        writer.close()

    port = await plane.target(pours)
    stalled, stalled_writer = await plane.tunnel(port)
    await asyncio.sleep(0.3)
    reader, writer = await plane.tunnel(port)
    total = 0
    while data := await reader.read(1 << 20):
        total += len(data)
    assert total == 400 * 65536
    assert plane.relays[0].registry.buffers.held_bytes == 0
    stalled_total = 0
    while data := await stalled.read(1 << 20):
        stalled_total += len(data)
    assert stalled_total == 400 * 65536
    writer.close()
    stalled_writer.close()


async def test_a_target_that_resets_is_seen_as_a_reset_and_not_as_an_end(plane: Plane) -> None:
    await plane.add_peer("p1")

    async def resets(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read(10)
        sock = writer.get_extra_info("socket")
        sock.setsockopt(1, 13, b"\x01\x00\x00\x00\x00\x00\x00\x00")
        writer.transport.abort()

    reader, writer = await plane.tunnel(await plane.target(resets))
    writer.write(b"boom")
    with pytest.raises(ConnectionResetError):
        assert await reader.read() == b"not an end"
    writer.close()


@pytest.mark.parametrize("protocol", PROTOCOLS)
async def test_a_refused_target_is_told_and_not_held_against_the_exit(plane: Plane, protocol: str) -> None:
    await plane.add_peer("p1", protocol=protocol)
    plane.allowed.add(("127.0.0.1", 1))
    _, writer, head = await plane.connect(1)
    assert head.startswith("HTTP/1.1 502 ")
    assert "E_TARGET_REFUSED" in head
    assert "connection_refused" in head
    writer.close()


async def test_windows_of_one_customer_grow_out_of_one_share_and_not_out_of_another_s(plane: Plane) -> None:
    await plane.mint(SecretBox(bytes(32), bytes(32)), PakId("pak2"), "pak_other", AccountId("psx_other"))
    await plane.add_peer("p1")
    port = await plane.target(echo)
    streams = [await plane.tunnel(port) for _ in range(2)]
    streams.append(await plane.tunnel(port, username="psx_other-peer-us", secret="pak_other"))
    drawn_on: dict[str, set[object]] = {}
    for tunnel in plane.meter.all_tunnels():
        assert isinstance(tunnel.exit, StreamExit)
        drawn_on.setdefault(tunnel.pak.account_id, set()).add(tunnel.exit._stream._budget)
    assert drawn_on == {
        owner: {plane.links.windows.share(owner)} for owner in (ACCOUNT, AccountId("psx_other"))
    }
    for _, writer in streams:
        writer.close()


async def test_a_device_carries_so_many_tunnels_and_no_more(plane: Plane) -> None:
    from gateway_node.stream_exit import LinkRefused
    from shared.kernel.ids import DeviceId

    await plane.add_peer("p1", sockets=4)
    port = await plane.target(echo)
    mesh = ("127.0.0.1", plane.relays[0].mesh_port)

    async def one() -> MuxReason | None:
        try:
            await plane.links.open(DeviceId("p1"), mesh, "127.0.0.1", port, "o")
        except LinkRefused as refused:
            return refused.reason
        return None

    results = await asyncio.gather(*(one() for _ in range(1000)))
    assert results.count(None) == MAX_TUNNELS_PER_DEVICE
    assert set(results) == {None, MuxReason.TOO_MANY_TUNNELS}
    loads = [s.load for s in plane.sockets_of("p1")]
    assert max(loads) - min(loads) <= 1


async def test_tunnels_leave_nothing_behind(plane: Plane) -> None:
    await plane.add_peer("p1")
    port = await plane.target(echo)
    for _ in range(20):
        reader, writer = await plane.tunnel(port)
        writer.write(b"x")
        await reader.readexactly(1)
        writer.close()
        await until(lambda: not plane.meter.all_tunnels())
    await until(lambda: all(s.load == 0 for s in plane.sockets_of("p1")))
    peer, _ = plane.peers[0]
    await until(lambda: len(peer._table) == 0)
    (link,) = [link for relay in plane.relays for link in relay.registry.links]
    assert not link._forwards


async def test_a_revoked_device_is_gone_at_once_and_stays_out_with_its_old_token(plane: Plane) -> None:
    from shared.kernel.ids import DeviceId
    from shared.pool.presence import revoke_device

    await plane.add_peer("p1")
    reader, writer = await plane.tunnel(await plane.target(echo))
    writer.write(b"x")
    assert await reader.readexactly(1) == b"x"
    for call in revoke_device(DeviceId("p1"), 1):
        await plane.redis.run(call)
    await until(lambda: not [s for s in plane.sockets_of("p1") if s.ready], 2)
    with contextlib.suppress(ConnectionResetError):  # its tunnels end too, and wait for nobody
        assert await asyncio.wait_for(reader.read(), 2) == b""
    writer.close()
    await asyncio.sleep(0.5)
    assert await plane.redis.run(_presence("p1")) is None
    plane.generation = 1
    await plane.present("p1")


async def test_an_account_whose_tokens_ended_loses_every_device_at_once_and_no_other_does(
    plane: Plane,
) -> None:
    from shared.kernel.ids import AccountId
    from shared.pool.presence import revoke_account

    await plane.add_peer("p1")
    (device,) = [r.registry.devices["p1"] for r in plane.relays if "p1" in r.registry.devices]
    for call in revoke_account(AccountId("psx_somebody"), 1):
        await plane.redis.run(call)
    await asyncio.sleep(0.3)
    assert [s for s in plane.sockets_of("p1") if s.ready]
    for call in revoke_account(AccountId(device.account_id), 1):
        await plane.redis.run(call)
    await until(lambda: not [s for s in plane.sockets_of("p1") if s.ready], 2)
    await asyncio.sleep(0.5)
    assert await plane.redis.run(_presence("p1")) is None


def _presence(name: str):  # type: ignore[no-untyped-def]
    from shared.kernel.ids import DeviceId
    from shared.pool.presence import read_presence

    return read_presence(DeviceId(name))


async def test_a_token_older_than_the_devices_newest_gets_no_socket(plane: Plane) -> None:
    plane.generation = 2
    await plane.add_peer("p1")
    newest = plane.sockets_of("p1")
    plane.generation = 1
    await plane.add_peer("p1")
    await asyncio.sleep(0.3)
    assert {s.generation for s in plane.sockets_of("p1") if s.ready} == {2}
    assert newest[0] in plane.sockets_of("p1")


async def test_a_peer_that_floods_with_tiny_frames_waits_for_its_own_and_others_go_on(plane: Plane) -> None:
    from shared.wire import mux
    from shared.wire.websocket import Opcode, encode_frame

    await plane.add_peer("p1")
    peer = await plane.add_peer("p2", sockets=1)
    port = await plane.target(echo)
    reader, writer = await plane.tunnel(port, username="psx_buyer-peer-us-pin-port-p1")
    (socket,) = peer._sockets
    assert socket._transport is not None
    ping = encode_frame(Opcode.BINARY, mux.header(mux.MuxType.PING, 0) + bytes(8), b"mask")
    socket._transport.write(ping * 40_000)
    writer.write(b"x" * 1000)
    assert await asyncio.wait_for(reader.readexactly(1000), 5) == b"x" * 1000
    writer.close()
    reader, writer = await plane.tunnel(port, username="psx_buyer-peer-us-pin-port-p2")
    assert socket in peer._sockets
    writer.close()


async def test_a_customer_cannot_leave_more_tunnels_on_a_device_than_it_has_places(plane: Plane) -> None:
    """Its target answers before it has read the request, and reads no more."""
    await plane.add_peer("p1", tier=SpeedTier.SLOW)
    answers, writers = list[str](), list[asyncio.StreamWriter]()

    async def answers_early(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writers.append(writer)
        await reader.readuntil(b"\r\n\r\n")
        cast(asyncio.Transport, writer.transport).pause_reading()
        await asyncio.sleep(0.3)  # what no buffer takes waits at the gateway by then
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok")

    port = await plane.target(answers_early)
    token = base64.b64encode(f"{ACCOUNT}-peer-us:{SECRET}".encode()).decode()
    head = f"POST http://127.0.0.1:{port}/ HTTP/1.1\r\nProxy-Authorization: Basic {token}\r\n"
    for _ in range(4):
        reader, writer = await asyncio.open_connection("127.0.0.1", plane.http_port)
        writer.write(head.encode() + b"Content-Length: 100000000\r\n\r\n" + bytes(20_000_000))
        with contextlib.suppress(ConnectionError):  # who is refused is hung up on
            answers.append((await reader.readuntil(b"\r\n\r\n"))[9:12].decode())
        writer.transport.abort()
        await until(lambda: sum(s.load for s in plane.sockets_of("p1")) <= 2)
    for writer in writers:
        writer.transport.abort()
    assert answers[0] == "200"


async def test_an_aborted_download_is_not_poured_out_uncounted(plane: Plane) -> None:
    sent = 0

    async def pours(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal sent
        with contextlib.suppress(ConnectionError):
            while True:
                writer.write(bytes(65536))
                await writer.drain()
                sent += 65536

    await plane.add_peer("p1")
    reader, writer = await plane.tunnel(await plane.target(pours))
    await reader.readexactly(1_000_000)
    (tunnel,) = plane.meter.all_tunnels()
    tunnel.finish()
    await until(lambda: all(s.load == 0 for s in plane.sockets_of("p1")), 5)
    before = sent
    await asyncio.sleep(0.3)
    assert sent == before
    writer.transport.abort()
