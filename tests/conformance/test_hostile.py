"""A relay that means harm: every SDK stays up, stays small, and is there for the next relay."""

import asyncio
import json
import os
from pathlib import Path
from typing import Any

import pytest

from shared.wire import mux
from shared.wire.mux import MuxReason, MuxType
from shared.wire.stream import WINDOW_START_BYTES
from tests.conformance.device import Device, Rig
from tests.conformance.relay import Tunnel, token_of, within
from tests.conformance.targets import Target

pytestmark = pytest.mark.slow

VECTORS: dict[str, Any] = json.loads(Path("docs/protocol/binary-v2.json").read_text())
GROWTH_MAX_BYTES = 96 * 1024 * 1024
QUICK = {"redial_min": 0.02, "redial_max": 0.05}
BROKEN_FRAMES = (
    "83",
    "c20101",
    "f0",
    "8001",
    "898200",
    "82817f7f7f7f01",
    "0900",
    "8801ff",
    "88020001",
    "8180ff",
)


def resident_bytes(device: Device) -> int:
    """What the process holds."""
    pages = int(Path(f"/proc/{device.process.pid}/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")


async def test_every_malformed_frame_ends_its_socket_and_no_more(rig: Rig, target: Target) -> None:
    rig.times |= QUICK
    await rig.device()
    for number, row in enumerate(VECTORS["malformed"]):
        socket, raw = await rig.relay.socket(), bytes.fromhex(row["hex"])
        if row["name"].startswith(("window", "opened", "reset")):
            assert raw[4] == 7
            socket.send(
                mux.open_frame(7, token_of(100 + number), WINDOW_START_BYTES, "127.0.0.1", target.port)
            )
            await socket.frame(7, MuxType.OPENED)
        socket.send(raw)
        assert await socket.gone() == 1002, row["name"]
    await rig.relay.socket()


async def test_what_nobody_knows_is_ignored(rig: Rig) -> None:
    await rig.device()
    socket = await rig.relay.socket()
    for row in VECTORS["ignored"]:
        socket.send(bytes.fromhex(row["hex"]))
    for kind, body in (
        (MuxType.DATA, b"x"),
        (MuxType.WINDOW, bytes(16)),
        (MuxType.EOF, b""),
        (MuxType.RESET, b"\0"),
        (MuxType.CLOSE, b""),
        (MuxType.BLOCKED, bytes(8)),
    ):
        socket.send(mux.header(kind, 77) + body)
    await socket.alive()


async def test_an_id_that_is_in_use_ends_the_socket(rig: Rig, target: Target) -> None:
    await rig.device()
    socket = await rig.relay.socket()
    await Tunnel(1).open(socket, "127.0.0.1", target.port)
    socket.send(socket.open_frame(1, "127.0.0.1", target.port))
    assert await socket.gone() == 1002


async def test_a_token_that_is_in_use_is_refused(rig: Rig, target: Target) -> None:
    await rig.device()
    socket = await rig.relay.socket()
    await Tunnel(1).open(socket, "127.0.0.1", target.port)
    socket.send(mux.open_frame(2, token_of(1), WINDOW_START_BYTES, "127.0.0.1", target.port))
    frame = await socket.frame(2, MuxType.REFUSED)
    assert mux.read_reason(frame.body) is MuxReason.TOO_MANY_TUNNELS


async def test_an_acknowledgement_of_what_was_never_sent_ends_the_tunnel(rig: Rig, target: Target) -> None:
    await rig.device()
    socket = await rig.relay.socket()
    socket.send(socket.open_frame(1, "127.0.0.1", target.port))
    await socket.frame(1, MuxType.OPENED)
    socket.send(mux.window_frame(1, 1, 1 << 40))
    frame = await socket.frame(1, MuxType.RESET)
    assert mux.read_reason(frame.body) is MuxReason.FLOW_VIOLATION
    await socket.alive()


async def test_a_limit_beyond_all_bounds_does_not_make_a_device_keep_more(rig: Rig, target: Target) -> None:
    device = await rig.device()
    socket = await rig.relay.socket()
    before = resident_bytes(device)
    socket.send(socket.open_frame(1, "127.0.0.1", target.port, limit=(1 << 63) - 1))
    await socket.frame(1, MuxType.OPENED)
    connection = await target.connection()
    connection.writer.write(bytes(100_000_000))
    got = 0
    while got < 4 * 1024 * 1024:
        got += len((await socket.frame(1, MuxType.DATA)).body)
    await asyncio.sleep(0.5)
    frames = [socket.frames[1].get_nowait() for _ in range(socket.frames[1].qsize())]
    rest = sum(len(f.body) for f in frames if f.type is MuxType.DATA)
    assert got + rest <= 4 * 1024 * 1024, "more left than may stay unacknowledged"
    assert resident_bytes(device) - before < GROWTH_MAX_BYTES


async def test_a_limit_of_all_bits_is_a_large_limit(rig: Rig, target: Target) -> None:
    await rig.device()
    socket = await rig.relay.socket()
    for tunnel, limit in enumerate(((1 << 64) - 1, 1 << 63), 1):
        socket.send(socket.open_frame(tunnel, "127.0.0.1", target.port, limit=limit))
        await socket.frame(tunnel, MuxType.OPENED)
        await (await target.connection()).say(b"hello")
        assert bytes((await socket.frame(tunnel, MuxType.DATA)).body) == b"hello"


async def test_offsets_of_a_resumption_that_lie_end_the_tunnel(rig: Rig, target: Target) -> None:
    await rig.device()
    socket = await rig.relay.socket()
    socket.send(socket.open_frame(1, "127.0.0.1", target.port))
    await socket.frame(1, MuxType.OPENED)
    connection = await target.connection()
    socket.send(mux.resume_frame(2, token_of(1), (1 << 64) - 1, 1 << 20))
    while (frame := await asyncio.wait_for(socket.frames.setdefault(2, asyncio.Queue()).get(), 5)).type in {
        MuxType.RESUMED,
        MuxType.WINDOW,
    }:
        pass
    assert frame.type is MuxType.RESET
    await connection.end()
    await socket.alive()


async def test_data_after_eof_ends_the_tunnel(rig: Rig, target: Target) -> None:
    await rig.device()
    socket = await rig.relay.socket()
    socket.send(socket.open_frame(1, "127.0.0.1", target.port))
    await socket.frame(1, MuxType.OPENED)
    socket.send(mux.header(MuxType.EOF, 1))
    await socket.frame(1, MuxType.WINDOW)
    socket.send(mux.header(MuxType.DATA, 1) + b"x")
    frame = await socket.frame(1, MuxType.RESET)
    assert mux.read_reason(frame.body) is MuxReason.FLOW_VIOLATION


@pytest.mark.parametrize("frame", ["one", "fragments"])
async def test_a_giant_frame_is_not_read_into_memory(rig: Rig, frame: str) -> None:
    device = await rig.device()
    socket = await rig.relay.socket()
    before = resident_bytes(device)
    piece = bytes(1024 * 1024)
    if frame == "one":
        socket.raw(b"\x82\x7f" + (1 << 40).to_bytes(8, "big"))
    for number in range(300):
        if socket.closed.is_set() or socket.ws.transport.is_closing():
            break
        if frame == "fragments":
            first = b"\x02" if number == 0 else b"\x00"
            socket.raw(first + b"\x7f" + len(piece).to_bytes(8, "big"))
        socket.raw(piece)
        for _ in range(200):
            if socket.ws.transport.get_write_buffer_size() < 4 * len(piece) or socket.closed.is_set():
                break
            await asyncio.sleep(0.01)
        assert resident_bytes(device) - before < GROWTH_MAX_BYTES
    await socket.gone()
    await rig.relay.socket()


async def test_every_broken_websocket_frame_ends_its_socket_and_no_more(rig: Rig) -> None:
    """Unknown opcodes, reserved bits, a lone continuation, a masked server frame, a fragmented ping, bad closes."""
    rig.times |= QUICK
    await rig.device()
    for raw in BROKEN_FRAMES:
        socket = await rig.relay.socket()
        socket.raw(bytes.fromhex(raw) + bytes(64))
        await within(socket.closed.wait(), f"the end of the socket after {raw}")
    await rig.relay.socket()


async def test_text_that_nests_or_never_ends_does_no_harm(rig: Rig) -> None:
    rig.times |= QUICK
    await rig.device()
    for text in ("{" * 100_000, "[" * 1_000_000, '{"type":"' + "x" * 3_000_000 + '"}', "\x00", "nul"):
        socket = await rig.relay.socket()
        socket.send(text)
        assert await socket.gone() in {1002, 1009}, text[:20]
    await rig.relay.socket()


async def test_a_relay_that_asks_and_never_reads_fills_no_memory(rig: Rig) -> None:
    device = await rig.device()
    socket = await rig.relay.socket()
    await asyncio.sleep(0.5)
    before = resident_bytes(device)
    socket.ws.transport.pause_reading()
    ping = mux.header(MuxType.PING, 0) + bytes(8)
    frame = b"\x82" + bytes((len(ping),)) + ping
    block = frame * 20_000
    for _ in range(250):
        if socket.ws.transport.is_closing():
            break
        socket.raw(block)
        for _ in range(100):
            if socket.ws.transport.get_write_buffer_size() < 4 * len(block):
                break
            await asyncio.sleep(0.01)
        assert resident_bytes(device) - before < 2 * GROWTH_MAX_BYTES
    socket.ws.transport.abort()
    await rig.relay.socket(20)


async def test_log_lines_cannot_be_forged(rig: Rig, target: Target) -> None:
    device = await rig.device()
    socket = await rig.relay.socket()
    socket.send(
        json.dumps({"type": "error", "payload": {"message": "x\n[REGISTERED] forged\x1b[2J" + "y" * 9000}})
    )
    socket.send(socket.open_frame(1, "a\n[CONNECTED] forged.example", 443))
    await socket.frame(1, MuxType.REFUSED)
    await socket.alive()
    assert not [
        line for line in device.lines if line.startswith(("[REGISTERED] forged", "[CONNECTED] forged"))
    ]
    assert "\x1b" not in device.log
    assert max(len(line) for line in device.lines) < 1000


async def test_many_opens_at_once_stay_within_the_cap(rig: Rig, target: Target) -> None:
    await rig.device()
    socket = await rig.relay.socket()
    for number in range(1, 2001):
        socket.send(socket.open_frame(number, "127.0.0.1", target.port))
    await socket.alive()
    await asyncio.sleep(0.5)
    assert target.count <= 256
