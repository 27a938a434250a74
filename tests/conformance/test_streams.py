"""binary-v2 through every SDK's own command: windows, half-close, resumption, refusals, caps."""

import asyncio
import os

import pytest

from shared.wire import mux, peer
from shared.wire.mux import MuxReason, MuxType
from shared.wire.stream import APART_MAX, JOINED_MAX_BYTES, WINDOW_START_BYTES
from tests.conformance.device import Rig
from tests.conformance.relay import ScriptedRelay, Socket, Tunnel, token_of
from tests.conformance.targets import Connection, Target

pytestmark = pytest.mark.slow

BULK_BYTES = 3_000_000
MAX_TUNNELS = 256
PIECES, PIECE_BYTES = 400, 40
ANSWER_BYTES = 40_000
"""Less than peers read before they wait for credit."""


async def opened(rig: Rig, target: Target) -> tuple[Socket, Tunnel, Connection]:
    """A device with one socket and one tunnel, and what arrived at the target."""
    await rig.device()
    socket = await rig.relay.socket()
    tunnel = Tunnel(1)
    await tunnel.open(socket, "127.0.0.1", target.port)
    return socket, tunnel, await target.connection()


async def test_bytes_pass_both_ways_in_order_and_within_the_windows(rig: Rig, target: Target) -> None:
    _, tunnel, connection = await opened(rig, target)
    up, down = os.urandom(BULK_BYTES), os.urandom(BULK_BYTES)
    tunnel.stream.write(up)
    reading = asyncio.ensure_future(connection.read(BULK_BYTES))
    await asyncio.gather(connection.say(down), tunnel.received(BULK_BYTES))
    assert await reading == up
    assert bytes(tunnel.got) == down
    assert tunnel.violation is None
    assert tunnel.largest <= mux.DATA_MAX_BYTES


async def test_each_direction_ends_by_itself(rig: Rig, target: Target) -> None:
    socket, tunnel, connection = await opened(rig, target)
    tunnel.stream.write(b"question")
    tunnel.stream.write_eof()
    assert await connection.end() == b"question"
    await connection.say(b"answer after the end")
    connection.writer.close()
    assert await tunnel.received(20) == b"answer after the end"
    await asyncio.wait_for(tunnel.eof.wait(), 5)
    async with asyncio.timeout(5):
        while not tunnel.stream.over:
            await asyncio.sleep(0.01)
    socket.send(mux.header(MuxType.CLOSE, 1))
    await socket.alive()


async def test_a_target_that_ends_first_still_reads(rig: Rig, target: Target) -> None:
    _, tunnel, connection = await opened(rig, target)
    await connection.say(b"bye")
    connection.writer.write_eof()
    await tunnel.received(3)
    await asyncio.wait_for(tunnel.eof.wait(), 5)
    tunnel.stream.write(b"late words")
    tunnel.stream.write_eof()
    assert await connection.end() == b"late words"


async def test_nothing_is_sent_beyond_the_limit(rig: Rig, target: Target) -> None:
    await rig.device()
    socket = await rig.relay.socket()
    socket.send(socket.open_frame(1, "127.0.0.1", target.port, limit=10))
    await socket.frame(1, MuxType.OPENED)
    connection = await target.connection()
    await connection.say(b"0123456789abc")
    got = b""
    while len(got) < 10:
        got += bytes((await socket.frame(1, MuxType.DATA)).body)
    assert got == b"0123456789"
    assert mux.read_limit((await socket.frame(1, MuxType.BLOCKED)).body) == 10
    await asyncio.sleep(0.2)
    assert socket.frames[1].empty()
    socket.send(mux.window_frame(1, 10, 13))
    assert bytes((await socket.frame(1, MuxType.DATA)).body) == b"abc"


async def say_in_pieces(connection: Connection, said: bytes) -> None:
    """Small pieces, so far apart that a peer reads each by itself."""
    for start in range(0, len(said), PIECE_BYTES):
        await connection.say(said[start : start + PIECE_BYTES])
        await asyncio.sleep(0.002)


async def frames_of(socket: Socket, tunnel: int, size: int) -> list[bytes]:
    """DATA of a tunnel, until so many bytes came; what else comes is passed over."""
    found: list[bytes] = []
    while sum(map(len, found)) < size:
        frame = await asyncio.wait_for(socket.frames[tunnel].get(), 5)
        if frame.type is MuxType.DATA:
            found.append(bytes(frame.body))
    return found


async def test_small_pieces_that_wait_for_credit_leave_together(rig: Rig, target: Target) -> None:
    await rig.device()
    socket = await rig.relay.socket()
    socket.send(socket.open_frame(1, "127.0.0.1", target.port, limit=0))
    await socket.frame(1, MuxType.OPENED)
    said = os.urandom(PIECES * PIECE_BYTES)
    await say_in_pieces(await target.connection(), said)
    socket.send(mux.window_frame(1, 0, len(said)))
    frames = await frames_of(socket, 1, len(said))
    assert b"".join(frames) == said
    assert len(frames) <= APART_MAX + len(said) // JOINED_MAX_BYTES + 1


async def test_small_pieces_that_are_kept_for_a_resumption_are_kept_together(
    rig: Rig, target: Target
) -> None:
    await rig.device()
    socket = await rig.relay.socket()
    socket.send(socket.open_frame(1, "127.0.0.1", target.port))
    await socket.frame(1, MuxType.OPENED)
    said = os.urandom(PIECES * PIECE_BYTES)
    await say_in_pieces(await target.connection(), said)
    assert b"".join(await frames_of(socket, 1, len(said))) == said, "nothing waited for more"
    socket.send(mux.reset_frame(1, MuxReason.PATH_LOST))
    socket.send(mux.resume_frame(2, token_of(1), 0, WINDOW_START_BYTES))
    await socket.frame(2, MuxType.RESUMED)
    again = await frames_of(socket, 2, len(said))
    assert b"".join(again) == said
    assert len(again) <= APART_MAX + len(said) // JOINED_MAX_BYTES + 1


async def test_a_target_that_does_not_read_holds_nobody_else_up(rig: Rig, target: Target) -> None:
    rig.times["heartbeat"] = 1
    await rig.device()
    socket = await rig.relay.socket()
    stuck, other = Tunnel(1), Tunnel(2)
    await stuck.open(socket, "127.0.0.1", target.port)
    await target.connection()
    stuck.stream.write(bytes(40_000_000))
    await asyncio.sleep(0.5)
    await other.open(socket, "127.0.0.1", target.port)
    connection = await target.connection()
    other.stream.write(b"ping")
    assert await connection.read(4) == b"ping"
    await connection.say(b"pong")
    assert await other.received(4) == b"pong"
    before = socket.heartbeats
    async with asyncio.timeout(5):
        while socket.heartbeats < before + 2:
            await asyncio.sleep(0.02)
    assert stuck.stream._acked < 24_000_000, "the peer took more than windows and kernel buffers hold"


async def test_data_beyond_the_window_ends_that_tunnel_alone(rig: Rig, target: Target) -> None:
    await rig.device()
    socket = await rig.relay.socket()
    socket.send(socket.open_frame(1, "127.0.0.1", target.port))
    limit = mux.read_limit((await socket.frame(1, MuxType.OPENED)).body)
    assert limit == WINDOW_START_BYTES
    connection = await target.connection()
    flood = mux.header(MuxType.DATA, 1) + bytes(mux.DATA_MAX_BYTES)
    # the target reads nothing, and grants that come are for what was sent within the limit
    for _ in range(400):
        socket.send(flood)
    while (frame := await asyncio.wait_for(socket.frames[1].get(), 5)).type is not MuxType.RESET:
        assert frame.type is MuxType.WINDOW
    assert mux.read_reason(frame.body) is MuxReason.FLOW_VIOLATION
    await connection.end()
    await socket.alive()


@pytest.mark.parametrize("resend", ["same socket's successor", "a socket that stands already"])
async def test_a_tunnel_goes_on_over_another_socket(rig: Rig, target: Target, resend: str) -> None:
    await rig.device(WS_CONNECTIONS="2" if resend.startswith("a socket") else "1")
    socket = await rig.relay.socket()
    other = await rig.relay.socket() if resend.startswith("a socket") else None
    tunnel = Tunnel(1)
    await tunnel.open(socket, "127.0.0.1", target.port)
    connection = await target.connection()
    tunnel.stream.write(b"before ")
    assert await connection.read(7) == b"before "
    down = os.urandom(2_000_000)
    sending = asyncio.ensure_future(connection.say(down))
    await tunnel.received(100_000)
    socket.ws.transport.abort()
    tunnel.lose(socket)
    tunnel.stream.write(b"meanwhile ")
    await socket.gone()
    await tunnel.resume(other or await rig.relay.socket(), 9)
    tunnel.stream.write(b"after")
    assert await connection.read(15) == b"meanwhile after"
    assert await tunnel.received(len(down)) == down
    await sending


async def test_a_tunnel_whose_path_the_relay_calls_lost_can_be_resumed(rig: Rig, target: Target) -> None:
    socket, tunnel, connection = await opened(rig, target)
    socket.send(mux.reset_frame(1, MuxReason.PATH_LOST))
    tunnel.lose(socket)
    await connection.say(b"kept")
    await tunnel.resume(socket, 5)
    assert await tunnel.received(4) == b"kept"


async def test_a_tunnel_that_nobody_resumes_ends(rig: Rig, target: Target) -> None:
    rig.times["resume"] = 1
    socket, _, connection = await opened(rig, target)
    socket.ws.transport.abort()
    await connection.end()
    other = await rig.relay.socket()
    other.send(mux.resume_frame(3, token_of(1), 0, WINDOW_START_BYTES))
    assert mux.read_reason((await other.frame(3, MuxType.REFUSED)).body) is MuxReason.UNKNOWN_TUNNEL


async def test_a_reset_ends_the_target_connection(rig: Rig, target: Target) -> None:
    socket, _, connection = await opened(rig, target)
    socket.send(mux.reset_frame(1, MuxReason.CUSTOMER_RESET))
    await connection.end()
    socket.send(mux.resume_frame(3, token_of(1), 0, WINDOW_START_BYTES))
    assert mux.read_reason((await socket.frame(3, MuxType.REFUSED)).body) is MuxReason.UNKNOWN_TUNNEL


async def test_a_target_that_resets_is_told(rig: Rig, target: Target) -> None:
    await rig.device()
    socket = await rig.relay.socket()
    tunnel = Tunnel(1)
    await tunnel.open(socket, "127.0.0.1", target.port)
    (await target.connection()).reset()
    await asyncio.wait_for(tunnel.over.wait(), 5)
    assert tunnel.end is not None
    assert mux.read_reason(tunnel.end.body) is MuxReason.TARGET_RESET


async def test_a_target_that_resets_while_the_path_is_lost_is_told_of_when_there_is_another(
    rig: Rig, target: Target
) -> None:
    """Or it would seem to be the device that has forgotten the tunnel."""
    socket, tunnel, connection = await opened(rig, target)
    socket.send(mux.reset_frame(1, MuxReason.PATH_LOST))
    tunnel.lose(socket)
    await socket.alive()
    connection.reset()
    await asyncio.sleep(0.3)
    await tunnel.resume(socket, 5)
    await asyncio.wait_for(tunnel.over.wait(), 5)
    assert tunnel.end is not None
    assert (tunnel.end.type, mux.read_reason(tunnel.end.body)) == (MuxType.RESET, MuxReason.TARGET_RESET)


async def test_who_sends_on_to_a_target_that_has_answered_and_left_is_told(rig: Rig, target: Target) -> None:
    """Or its upload would go into nothing, and be counted."""
    _, tunnel, connection = await opened(rig, target)
    await connection.say(b"413")
    connection.writer.close()
    assert await tunnel.received(3) == b"413"
    await asyncio.wait_for(tunnel.eof.wait(), 5)
    async with asyncio.timeout(5):
        while not tunnel.over.is_set():  # one piece more may still fit into what nobody reads
            tunnel.stream.write(bytes(1024))
            await asyncio.sleep(0.02)
    assert tunnel.end is not None
    assert mux.read_reason(tunnel.end.body) is MuxReason.TARGET_RESET


async def test_what_a_target_said_before_it_left_and_reset_arrives_first(rig: Rig, target: Target) -> None:
    """In the middle of an upload, say; its answer still waits for credit when the reset comes."""
    await rig.device()
    socket = await rig.relay.socket()
    tunnel = Tunnel(1, window_bytes=1000)
    tunnel.stream.stall()
    await tunnel.open(socket, "127.0.0.1", target.port)
    connection = await target.connection()
    said = os.urandom(ANSWER_BYTES)
    await connection.say(said)
    connection.writer.close()
    await asyncio.sleep(0.3)
    for _ in range(5):  # the first one is answered with a reset, the others meet it
        tunnel.stream.write(bytes(1024))
        await asyncio.sleep(0.1)
    tunnel.stream.write(bytes(BULK_BYTES))
    await asyncio.sleep(0.3)
    assert not tunnel.over.is_set(), "it is told before what the target said"
    assert tunnel.stream.unacked_bytes == WINDOW_START_BYTES, "the upload is let into nothing"
    tunnel.stream.drained()
    assert await tunnel.received(len(said)) == said
    await asyncio.wait_for(tunnel.eof.wait(), 5)
    await asyncio.wait_for(tunnel.over.wait(), 5)
    assert tunnel.end is not None
    assert (tunnel.end.type, mux.read_reason(tunnel.end.body)) == (MuxType.RESET, MuxReason.TARGET_RESET)


async def test_a_resumption_that_acknowledges_the_last_word_of_a_target_is_told_that_it_is_gone(
    rig: Rig, target: Target
) -> None:
    await rig.device()
    socket = await rig.relay.socket()
    socket.send(socket.open_frame(1, "127.0.0.1", target.port))
    await socket.frame(1, MuxType.OPENED)
    connection = await target.connection()
    said = os.urandom(ANSWER_BYTES)
    await connection.say(said)
    connection.writer.close()
    assert b"".join(await frames_of(socket, 1, len(said))) == said
    await socket.frame(1, MuxType.EOF)
    for _ in range(5):
        socket.send(mux.header(MuxType.DATA, 1) + bytes(1024))
        await asyncio.sleep(0.1)
    assert socket.frames[1].empty(), "nothing of it was acknowledged"
    socket.send(mux.reset_frame(1, MuxReason.PATH_LOST))
    socket.send(mux.resume_frame(2, token_of(1), len(said) + 1, WINDOW_START_BYTES))
    await socket.frame(2, MuxType.RESUMED)
    await socket.frame(2, MuxType.WINDOW)
    frame = await socket.frame(2, MuxType.RESET)
    assert mux.read_reason(frame.body) is MuxReason.TARGET_RESET


async def test_a_closed_port_is_refused_as_such(rig: Rig, target: Target) -> None:
    await target.stop()
    await rig.device()
    socket = await rig.relay.socket()
    socket.send(socket.open_frame(1, "127.0.0.1", target.port))
    frame = await socket.frame(1, MuxType.REFUSED)
    assert mux.read_reason(frame.body) is MuxReason.CONNECTION_REFUSED


async def test_a_device_holds_256_tunnels_over_all_its_sockets(rig: Rig, target: Target) -> None:
    await rig.device(WS_CONNECTIONS="2")
    sockets = [await rig.relay.socket(), await rig.relay.socket()]
    for number in range(1, MAX_TUNNELS + 1):
        sockets[number % 2].send(sockets[number % 2].open_frame(number, "127.0.0.1", target.port))
    for number in range(1, MAX_TUNNELS + 1):
        await sockets[number % 2].frame(number, MuxType.OPENED, 20)
    sockets[0].send(sockets[0].open_frame(999, "127.0.0.1", target.port))
    frame = await sockets[0].frame(999, MuxType.REFUSED)
    assert mux.read_reason(frame.body) is MuxReason.TOO_MANY_TUNNELS
    sockets[1].send(mux.reset_frame(1, MuxReason.CUSTOMER_RESET))
    await asyncio.sleep(0.2)
    sockets[0].send(sockets[0].open_frame(1000, "127.0.0.1", target.port))
    await sockets[0].frame(1000, MuxType.OPENED)


async def test_an_idle_tunnel_is_reaped(rig: Rig, target: Target) -> None:
    rig.times |= {"idle": 0.9, "tick": 0.2}
    await rig.device()
    socket = await rig.relay.socket()
    busy, idle = Tunnel(1), Tunnel(2)
    await busy.open(socket, "127.0.0.1", target.port)
    connection = await target.connection()
    await idle.open(socket, "127.0.0.1", target.port)
    idle_connection = await target.connection()
    ending = asyncio.ensure_future(idle_connection.end())
    async with asyncio.timeout(8):
        while not ending.done():
            busy.stream.write(b".")
            await connection.read(1)
            await asyncio.sleep(0.1)
    await asyncio.wait_for(idle.over.wait(), 5)
    busy.stream.write(b"!")
    assert await connection.read(1) == b"!"


async def test_a_relay_that_goes_away_is_left_for_the_next_one(rig: Rig, target: Target) -> None:
    second = await rig.add_relay(ScriptedRelay())
    await rig.device(WS_CONNECTIONS="2")
    socket, other = await rig.relay.socket(), await rig.relay.socket()
    tunnel = Tunnel(1)
    await tunnel.open(socket, "127.0.0.1", target.port)
    connection = await target.connection()
    for one in (other, socket):
        one.send(mux.goaway_frame(50, 5000))
        assert await one.gone() == 4100
    tunnel.lose(socket)
    await connection.say(b"still here")
    await tunnel.resume(await second.socket(), 1)
    assert await tunnel.received(10) == b"still here"
    await second.socket()
    assert rig.relay.arrived.empty(), "a second socket that leaves sends nobody back"


async def test_a_peer_that_asks_for_v1_is_given_v1(rig: Rig, target: Target) -> None:
    await rig.device(PSX_PROTOCOL="binary-v1")
    socket = await rig.relay.socket()
    assert socket.device_info["protocol"] == "binary-v1"
    socket.say(peer.Type.TUNNEL_CONNECT, sessionId="s", host="127.0.0.1", port=target.port)
    await socket.text(peer.Type.TUNNEL_CONNECTED)
