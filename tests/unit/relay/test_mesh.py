"""The side of gateways: who may ask, what they are answered, and how long one may hold others up."""

import asyncio
from types import SimpleNamespace
from typing import Any, cast

import pytest

from relay_node import mesh
from relay_node.mesh import MeshConnection
from relay_node.registry import (
    Device,
    Registry,
)
from relay_node.tunnel import OPEN_TIMEOUT_S, SHARED_STALL_MAX_S, STALL_MAX_S
from shared.wire import mux
from shared.wire.http1 import take_response_head
from shared.wire.peer import Type, encode_text
from shared.wire.websocket import Opcode, encode_frame
from tests.support.relay import Wire, peer, registry

TOKEN = "t" * 32
CONNECT = f"CONNECT a.example:80 HTTP/1.1\r\nX-PSX-Mesh-Token: {TOKEN}\r\nX-PSX-Device: d\r\n\r\n".encode()


async def test_an_open_that_nobody_answers_is_refused_when_its_time_is_over(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    here = registry()
    socket, peer_wire = peer(here)
    socket.ready = True
    here.devices["d"] = Device("d", "a", cast(Any, None), "", 0, confirms_open=True, sockets=[socket])
    timers: list[tuple[float, Any]] = []
    gateway, wire = MeshConnection(here, TOKEN, lambda: "s1"), Wire()

    def call_later(after_s: float, *call: Any) -> Any:
        timers.append((after_s, call))
        return SimpleNamespace(cancel=lambda: None)

    gateway._loop = cast(Any, SimpleNamespace(call_later=call_later))
    gateway.connection_made(cast(Any, wire))
    gateway.data_received(CONNECT)
    after_s, (give_up, *args) = timers[-1]
    assert after_s == OPEN_TIMEOUT_S
    give_up(*args)
    assert wire.written.startswith(b"HTTP/1.1 504 ")
    assert wire.closing
    await asyncio.sleep(0)
    assert b"tunnel_close" in peer_wire.written
    assert not socket.tunnels


@pytest.mark.parametrize(
    ("said", "passed_on"),
    [
        ("connection_refused", "connection_refused"),
        ("timeout", "timeout"),
        ("", "unknown"),
        ("peer_gone", "unknown"),
        ("made\nup", "unknown"),
        ("made\r\nX-Made: up", "unknown"),
        ("\0", "unknown"),
        ("x" * 900, "unknown"),
    ],
)
async def test_a_refused_open_is_always_answered_and_in_words_of_the_protocol(
    said: str, passed_on: str
) -> None:
    here = registry()
    socket, _ = peer(here)
    socket.ready = True
    here.devices["d"] = Device("d", "a", cast(Any, None), "", 0, confirms_open=True, sockets=[socket])
    gateway, wire = asks(here, "s1")
    socket._head = None
    failed = encode_text(Type.TUNNEL_OPEN_FAILED, sessionId="s1", reason=said)
    socket.data_received(encode_frame(Opcode.TEXT, failed, b"mask"))
    head = take_response_head(bytearray(wire.written))
    assert head is not None
    assert head.status == (504 if said == "timeout" else 502)
    assert head.header("x-psx-reason") == passed_on
    gateway.connection_lost(None)


async def test_a_tunnel_that_begins_while_its_peer_does_not_read_waits() -> None:
    here = registry()
    socket, _ = peer(here)
    socket.ready = True
    here.devices["d"] = Device("d", "a", cast(Any, None), "", 0, confirms_open=True, sockets=[socket])
    socket.pause_writing()
    mesh, wire = asks(here, "s1")
    assert wire.paused
    mesh.connection_lost(None)


@pytest.mark.parametrize("token", ["", "X-PSX-Mesh-Token: wrong\r\n", f"X-PSX-Mesh-Token: {TOKEN}x\r\n"])
@pytest.mark.parametrize(
    "request_", ["CONNECT a.example:80 HTTP/1.1\r\nX-PSX-Device: d", "GET / HTTP/1.1\r\nUpgrade: psx-mux-2"]
)
async def test_without_the_mesh_token_there_is_neither_a_tunnel_nor_a_link(request_: str, token: str) -> None:
    here = registry()
    mesh, wire = MeshConnection(here, TOKEN, lambda: "s1"), Wire()
    mesh.connection_made(cast(Any, wire))
    mesh.data_received(f"{request_}\r\n{token}\r\n".encode())
    assert wire.written.startswith(b"HTTP/1.1 403 ")
    assert wire.closing
    assert not here.links
    mesh.connection_lost(None)


@pytest.mark.parametrize(
    ("said", "reasons_max"),
    [
        ("", mux.FIRST_REASONS_MAX),
        ("X-PSX-Reasons: 25\r\n", 25),
        ("X-PSX-Reasons: \u00b9\r\n", mux.FIRST_REASONS_MAX),
    ],
)
async def test_a_link_knows_the_reasons_that_its_gateway_says(said: str, reasons_max: int) -> None:
    here = registry()
    gateway, wire = MeshConnection(here, TOKEN, lambda: "s1"), Wire()
    gateway.connection_made(cast(Any, wire))
    head = f"GET / HTTP/1.1\r\nUpgrade: {mux.LINK_UPGRADE}\r\nX-PSX-Mesh-Token: {TOKEN}\r\n{said}\r\n"
    gateway.data_received(head.encode("latin-1"))
    (link,) = here.links
    assert link.reasons_max == reasons_max


def reads(wire: Wire) -> bool:
    return not wire.paused


def tunnel(here: Registry, session: str) -> tuple[MeshConnection, Wire]:
    """A tunnel of v1 through device `d`, which says that it is connected."""
    gateway, wire = asks(here, session)
    here.devices["d"].sockets[0].tunnels[session].opened()
    return gateway, wire


def asks(here: Registry, session: str) -> tuple[MeshConnection, Wire]:
    """A gateway that asks for a tunnel through device `d`."""
    gateway, wire = MeshConnection(here, TOKEN, lambda: session), Wire()
    gateway.connection_made(cast(Any, wire))
    gateway.data_received(CONNECT)
    return gateway, wire


@pytest.mark.parametrize(
    ("others", "trickles", "ends"), [(0, False, True), (0, True, False), (1, True, True), (1, False, True)]
)
async def test_a_customer_that_does_not_read_holds_a_v1_socket_up_only_so_long(
    others: int, trickles: bool, ends: bool
) -> None:
    now = [100.0]
    looks: list[Any] = []
    here = registry()
    socket, peer_wire = peer(here)
    socket.ready = True
    here.devices["d"] = Device("d", "a", cast(Any, None), "", 0, confirms_open=True, sockets=[socket])
    stalled, wire = tunnel(here, "s1")
    for _ in range(others):
        tunnel(here, "s2")

    class Loop:
        def time(self) -> float:
            return now[0]

        def call_later(self, after_s: float, look: Any) -> Any:
            looks.append(look)
            return SimpleNamespace(cancel=looks.clear)

    stalled._loop = cast(Any, Loop())
    wire.unsent_bytes = 300_000
    stalled.pause_writing()
    assert not reads(peer_wire)
    while looks and now[0] < 100 + 2 * STALL_MAX_S:
        now[0] += mesh.STALL_LOOK_S
        wire.unsent_bytes -= 1000 if trickles else 0
        looks.pop()()
    waited_s = now[0] - 100
    assert wire.closing is ends
    assert reads(peer_wire) is ends
    if ends:
        assert waited_s == (SHARED_STALL_MAX_S if others else STALL_MAX_S)
    else:
        stalled.resume_writing()
        assert reads(peer_wire)
    stalled.connection_lost(None)


@pytest.mark.parametrize(("rate_bytes_per_s", "ends"), [(30_000, True), (100_000, False), (5_000_000, False)])
async def test_a_customer_that_keeps_reading_is_not_given_up_because_kernels_hold_much(
    rate_bytes_per_s: int, ends: bool
) -> None:
    behind_bytes = 400_000  # kernels take so much before this side is full, and give as much before it is not
    now, looks = [100.0], list[Any]()
    here = registry()
    socket, peer_wire = peer(here)
    socket.ready = True
    here.devices["d"] = Device("d", "a", cast(Any, None), "", 0, confirms_open=True, sockets=[socket])
    slow, wire = tunnel(here, "s1")
    tunnel(here, "s2")

    def later(after_s: float, look: Any) -> Any:
        looks.append(look)
        return SimpleNamespace(cancel=looks.clear)

    slow._loop = cast(Any, SimpleNamespace(time=lambda: now[0], call_later=later))
    for _ in range(10):
        for _ in range(20):
            slow.write(bytes(behind_bytes // 20))
        slow.pause_writing()
        full_until_s = now[0] + behind_bytes / rate_bytes_per_s
        while now[0] < full_until_s and not wire.closing:
            now[0] += mesh.STALL_LOOK_S
            wire.unsent_bytes = 300_000 - int(now[0])
            looks.pop()()
        if wire.closing:
            break
        slow.resume_writing()
        assert reads(peer_wire)
    assert wire.closing is ends
    slow.connection_lost(None)
