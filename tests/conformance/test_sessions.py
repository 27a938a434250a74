"""binary-v1 through every SDK's own command, as relays of the field speak it.

Sessions of v1 end with their socket, so that one device serves all tests of this file, each with a socket of its own.
"""

import asyncio
import base64
import json
import os
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio

from local.sdks import Sdk
from local.supervisor import free_port
from shared.wire import peer
from shared.wire.peer import FrameType, Type
from tests.conformance.device import Rig
from tests.conformance.relay import Socket
from tests.conformance.targets import Connection, Target

pytestmark = [pytest.mark.slow, pytest.mark.asyncio(loop_scope="module")]

SENT_MAX_BYTES = 256 * 1024
MAX_TUNNELS = 256
VECTORS: dict[str, Any] = json.loads(Path("docs/protocol/binary-v1.json").read_text())


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def rig(sdk: Sdk, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Rig]:
    """A device whose relay knows v1 only, and which may dial one port of loopback."""
    found = Rig(sdk, tmp_path_factory.mktemp("sessions"))
    await found.start()
    found.relay.protocol = peer.PROTOCOL
    found.times |= {"redial_min": 0.02, "redial_max": 0.05}
    found.allowed.append(f"127.0.0.1:{free_port()}")
    await found.device()
    yield found
    await found.stop()


@pytest_asyncio.fixture(loop_scope="module")
async def target(rig: Rig) -> AsyncIterator[Target]:
    """What listens on that port."""
    found = Target(port=int(rig.allowed[0].rpartition(":")[2]))
    await found.start()
    yield found
    await found.stop()


@pytest_asyncio.fixture(loop_scope="module")
async def socket(rig: Rig, target: Target) -> AsyncIterator[Socket]:
    """A socket that nobody used."""
    yield await rig.relay.socket()
    for one in list(rig.relay.open):
        one.ws.transport.abort()
    for _ in range(rig.relay.arrived.qsize()):
        await (await rig.relay.socket()).gone()


async def session(socket: Socket, target: Target, name: str = "s1") -> Connection:
    """An open session."""
    socket.say(Type.TUNNEL_CONNECT, sessionId=name, host="127.0.0.1", port=target.port)
    assert (await socket.text(Type.TUNNEL_CONNECTED)).text("sessionId") == name
    return await target.connection()


async def test_a_device_that_cannot_change_its_address_says_so(socket: Socket) -> None:
    socket.say(Type.ROTATE_IP_REQUEST, requestId="r-1")
    said = (await socket.text(Type.ROTATION_COMPLETE)).payload
    assert said == {"requestId": "r-1", "success": False, "error": "not_supported"}


def data(name: str, payload: bytes) -> bytes:
    return peer.binary_prefix(FrameType.DATA, name) + payload


async def received(socket: Socket, name: str, size: int) -> bytes:
    got = b""
    while len(got) < size:
        frame = await socket.binary()
        assert (frame.type, frame.session_id) == (FrameType.DATA, name)
        assert len(frame.payload) <= SENT_MAX_BYTES
        got += frame.payload
    return got


async def test_bytes_pass_both_ways_in_order(socket: Socket, target: Target) -> None:
    connection = await session(socket, target)
    up, down = os.urandom(2_000_000), os.urandom(2_000_000)
    for start in range(0, len(up), 50_000):
        socket.send(data("s1", up[start : start + 50_000]))
    reading = asyncio.ensure_future(connection.read(len(up)))
    sending = asyncio.ensure_future(connection.say(down))
    assert await received(socket, "s1", len(down)) == down
    assert await reading == up
    await sending


async def test_a_session_is_logged_as_users_know_it(rig: Rig, socket: Socket, target: Target) -> None:
    await session(socket, target)
    (device,) = rig.devices
    assert f"127.0.0.1:{target.port}" in await device.logged("[TUNNEL_CONNECT]")
    await device.logged("[TCP_OPEN_OK]")


async def test_bytes_that_come_before_the_dial_is_done_are_kept_in_order(
    socket: Socket, target: Target
) -> None:
    socket.say(Type.TUNNEL_CONNECT, sessionId="s1", host="127.0.0.1", port=target.port)
    for number in range(50):
        socket.send(data("s1", b"%02d" % number))
    connection = await target.connection()
    assert await connection.read(100) == b"".join(b"%02d" % n for n in range(50))


async def test_a_frame_of_four_megabytes_is_legal(socket: Socket, target: Target) -> None:
    connection = await session(socket, target)
    big = os.urandom(4 * 1024 * 1024)
    reading = asyncio.ensure_future(connection.read(len(big)))
    socket.send(data("s1", big))
    assert await reading == big


async def test_legacy_base64_data_is_understood(socket: Socket, target: Target) -> None:
    connection = await session(socket, target)
    socket.say(Type.TUNNEL_DATA, sessionId="s1", data=base64.b64encode(b"\x00old\xff").decode())
    assert await connection.read(5) == b"\x00old\xff"


async def test_the_relay_ends_a_session_by_text_or_frame(socket: Socket, target: Target) -> None:
    for how in ("text", "binary"):
        connection = await session(socket, target)
        socket.send(data("s1", b"last words"))
        if how == "text":
            socket.say(Type.TUNNEL_CLOSE, sessionId="s1")
        else:
            socket.send(peer.binary_prefix(FrameType.CLOSE, "s1"))
        assert await connection.end() == b"last words", how


async def test_a_target_that_ends_is_told_after_its_last_bytes(socket: Socket, target: Target) -> None:
    connection = await session(socket, target)
    await connection.say(b"last words")
    connection.writer.close()
    assert await received(socket, "s1", 10) == b"last words"
    assert (await socket.text(Type.TUNNEL_CLOSED)).text("sessionId") == "s1"


async def test_a_failed_open_is_told_with_its_reason(rig: Rig, target: Target, socket: Socket) -> None:
    await target.stop()
    socket.say(Type.TUNNEL_CONNECT, sessionId="s1", host="127.0.0.1", port=target.port)
    told = await socket.text(Type.TUNNEL_OPEN_FAILED)
    assert told.text("reason") == "connection_refused"
    assert told.text("sessionId") == "s1"
    assert isinstance(told.payload["durationMs"], int)
    assert isinstance(told.payload["detail"], str)


async def test_what_nobody_knows_is_ignored(socket: Socket, target: Target) -> None:
    socket.send('{"type":"tomorrow","payload":{"x":[1,2]}}')
    socket.send('{"type":"tunnel_close","payload":7}')
    socket.send(data("nobody", b"x"))
    socket.send('{"type":"proxy_request","payload":{"requestId":"r","url":"http://127.0.0.1/"}}')
    await session(socket, target)


async def test_one_session_of_a_name_at_a_time(socket: Socket, target: Target) -> None:
    connection = await session(socket, target)
    socket.say(Type.TUNNEL_CONNECT, sessionId="s1", host="127.0.0.1", port=target.port)
    socket.send(data("s1", b"to the first"))
    assert await connection.read(12) == b"to the first"
    await asyncio.sleep(0.2)
    assert target.count == 1


async def test_sessions_end_with_their_socket(rig: Rig, socket: Socket, target: Target) -> None:
    connection = await session(socket, target)
    socket.ws.transport.abort()
    assert await connection.end() == b""


async def test_a_257th_session_is_refused(socket: Socket, target: Target) -> None:
    for number in range(MAX_TUNNELS + 1):
        socket.say(Type.TUNNEL_CONNECT, sessionId=f"s{number}", host="127.0.0.1", port=target.port)
    told = [await asyncio.wait_for(socket.texts.get(), 20) for _ in range(MAX_TUNNELS + 1)]
    assert sum(t.type is Type.TUNNEL_CONNECTED for t in told) == MAX_TUNNELS
    assert [t.text("sessionId") for t in told if t.type is Type.TUNNEL_OPEN_FAILED] == [f"s{MAX_TUNNELS}"]


async def test_every_malformed_frame_and_text_ends_its_socket_and_no_more(rig: Rig, socket: Socket) -> None:
    frames: list[bytes | str] = [bytes.fromhex(row["hex"]) for row in VECTORS["malformed"]]
    for malformed in [*frames, *VECTORS["malformedTexts"]]:
        socket.send(malformed)
        assert await socket.gone() == 1002, malformed
        socket = await rig.relay.socket()
