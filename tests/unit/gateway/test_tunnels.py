"""A connection on an exit is given back once, when nothing of its tunnel waits there, in whatever order it ends."""

import asyncio
from collections.abc import Callable
from functools import partial
from types import SimpleNamespace
from typing import Any, Final, cast

import pytest

from gateway_node import stream_exit
from gateway_node.exits import ConnectExit
from gateway_node.splice import Splices
from gateway_node.stream_exit import LIGHT_BYTES, StreamExit
from gateway_node.tunnel import Budget, ExitPath, Tunnel
from gateway_node.tunnels import Tunnels
from shared.pool.model import Acquired, Selected
from shared.wire import mux
from shared.wire.mux import Frame, MuxReason, MuxType
from shared.wire.stream import WindowBudget
from tests.unit.gateway.test_front import ENDPOINT, PAK, Exit, Full, Wire, opened_stream

GRANTED: Final = 1000  # by `opened_stream`


class Held:
    """One connection on an exit, of one customer; `given` counts how often both were given back."""

    def __init__(self, exit_: ExitPath) -> None:
        self.given: list[str] = []
        self.exit = exit_
        fared = SimpleNamespace(note=lambda *_: None)
        leases = SimpleNamespace(
            give_back=lambda *_: self.given.append("exit"), fared=fared, report=lambda *_, **__: None
        )
        meter = SimpleNamespace(
            budget=lambda _: Budget(lambda: None), opened=lambda _: None, closed=lambda _: None
        )
        places = SimpleNamespace(give=lambda _: self.given.append("customer"))
        self._tunnels = Tunnels(cast(Any, leases), cast(Any, meter), cast(Any, places))
        self.tunnel: Tunnel | None = None

    def begin(self) -> None:
        buyer = SimpleNamespace(pak=PAK, pak_id=PAK.pak_id, owner="o", route=None)
        acquired = Acquired(ENDPOINT, "", 0, "", "", Selected.FRESH)
        target = SimpleNamespace(host="a.example", name="a.example")
        self.tunnel = self._tunnels.begin(cast(Any, buyer), PAK, acquired, self.exit, cast(Any, target), 0)
        self.exit.attach(self.tunnel)

    def pours(self) -> None:
        """More than the exit takes."""
        self.exit.send(bytes(2 * GRANTED))

    def finish(self) -> None:
        assert self.tunnel is not None
        self.tunnel.finish()

    def cut(self) -> None:
        assert self.tunnel is not None
        self.tunnel.cut()

    def left(self) -> None:
        """The customer left before there was a tunnel."""
        self.exit.cut()


class OnStream(Held):
    exit: StreamExit

    def window(self, received: int, limit: int) -> None:
        frame = mux.window_frame(1, received, limit)
        self.exit.receive(Frame(MuxType.WINDOW, 1, frame[mux.HEADER_BYTES :]))

    def takes(self) -> None:
        """All of it, and the end."""
        self.window(GRANTED, 1 << 20)
        self.window(2 * GRANTED + 1, 1 << 20)

    def resets(self) -> None:
        self.exit.receive(Frame(MuxType.RESET, 1, bytes((MuxReason.TARGET_RESET,))))

    def refuses(self) -> None:
        self.exit.receive(Frame(MuxType.REFUSED, 1, bytes((MuxReason.UNKNOWN,))))

    def forges(self) -> None:
        self.window(1 << 40, 0)

    def ends(self) -> None:
        self.exit.receive(Frame(MuxType.EOF, 1, b""))


class OnConnect(Held):
    exit: ConnectExit

    def lost(self) -> None:
        self.exit.connection_lost(None)

    def broken(self) -> None:
        self.exit.connection_lost(ConnectionResetError())


STREAM_ORDERS: Final = [
    ("begin", 0),
    ("begin finish", 1),
    ("begin cut", 1),
    ("begin cut finish cut", 1),
    ("begin resets", 1),
    ("begin refuses finish", 1),
    ("begin forges", 1),
    ("begin ends", 1),
    ("begin ends finish", 1),
    ("resets begin", 1),
    ("begin pours finish", 0),
    ("begin pours finish ends", 0),
    ("begin pours finish takes", 1),
    ("begin pours finish takes resets", 1),
    ("begin pours finish resets", 1),
    ("begin pours finish refuses resets", 1),
    ("begin pours finish forges", 1),
    ("begin pours cut", 1),
    ("left", 0),
    ("left begin", 1),
]
CONNECT_ORDERS: Final = [
    ("begin", 0),
    ("begin cut lost", 1),
    ("begin lost", 1),
    ("begin broken", 1),
    ("lost begin", 1),
    ("broken begin", 1),
    ("left lost", 0),
    ("left lost begin", 1),
]


@pytest.mark.parametrize(("order", "times"), STREAM_ORDERS)
async def test_a_place_on_a_peer_is_given_back_once_and_not_while_bytes_wait(order: str, times: int) -> None:
    held = OnStream((await opened_stream())[0])
    for event in order.split():
        cast(Callable[[], None], getattr(held, event))()
    assert sorted(held.given) == ["customer", "exit"] * times
    held.exit.cut()
    if held.tunnel is not None:
        held.tunnel.cut()
    assert sorted(held.given) == (["customer", "exit"] if held.tunnel else [])


class Reads:
    """A customer; `heard` is all that happens to it."""

    unsent_bytes = 0
    bare_socket = None

    def __init__(self) -> None:
        self.heard: list[str] = []

    def send(self, data: bytes) -> None:
        self.heard.append(bytes(data).decode())

    def __getattr__(self, name: str) -> Callable[[], None]:
        return lambda: self.heard.append(name)


@pytest.mark.parametrize(
    ("said", "heard"),
    [
        ("says ends resets", ["220 hello, and bye", "send_eof"]),
        ("says resets", ["220 hello, and bye", "cut"]),
        ("resets", ["cut"]),
    ],
)
async def test_what_an_exit_said_counts_as_much_before_its_tunnel_stands_as_after(
    said: str, heard: list[str]
) -> None:
    frames = {
        "says": Frame(MuxType.DATA, 1, b"220 hello, and bye"),
        "ends": Frame(MuxType.EOF, 1, b""),
        "resets": Frame(MuxType.RESET, 1, bytes((MuxReason.TARGET_RESET,))),
    }
    for early in range(len(said.split()) + 1):
        exit_ = (await opened_stream())[0]
        acquired = Acquired(ENDPOINT, "", 0, "", "", Selected.FRESH)
        tunnel = Tunnel(PAK, acquired, exit_, Budget(lambda: None), lambda *_: None)
        customer = Reads()
        tunnel.customer = cast(Any, customer)
        steps = [partial(exit_.receive, frames[name]) for name in said.split()]
        steps.insert(early, partial(exit_.attach, tunnel))
        for step in steps:
            step()
        assert (early, customer.heard) == (early, heard)


def connect_exit(wire: Any) -> ConnectExit:
    exit_ = ConnectExit(b"", Splices(), carries_eof=True)
    exit_.connection_made(wire)
    exit_.data_received(b"HTTP/1.1 200 OK\r\n\r\n")
    return exit_


@pytest.mark.parametrize(
    ("order", "full", "times"),
    [
        *((order, False, times) for order, times in CONNECT_ORDERS),
        ("begin finish", False, 1),
        ("begin finish lost", False, 1),
        ("begin finish", True, 0),
        ("begin finish lost", True, 1),
        ("begin finish broken", True, 1),
    ],
)
async def test_a_place_behind_a_connect_is_given_back_once_and_not_while_bytes_wait(
    order: str, full: bool, times: int
) -> None:
    held = OnConnect(connect_exit(Full(0) if full else Wire()))
    for event in order.split():
        cast(Callable[[], None], getattr(held, event))()
    assert sorted(held.given) == ["customer", "exit"][: 2 * times]
    held.exit.connection_lost(None)
    assert sorted(held.given) == (["customer", "exit"] if held.tunnel else [])


async def test_a_tunnel_whose_path_stays_lost_gives_its_place_back(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stream_exit, "RESUME_TRY_S", 0.01)
    held = OnStream((await opened_stream())[0])
    for event in (held.begin, held.pours, held.finish, held.exit.path_lost):
        event()
    assert held.given == []
    async with asyncio.timeout(5):
        while not held.given:
            await asyncio.sleep(0.01)
    assert sorted(held.given) == ["customer", "exit"]


@pytest.mark.parametrize(
    ("reason", "is_the_exits"), [(MuxReason.OVERLOADED, False), (MuxReason.UNKNOWN_DEVICE, True)]
)
async def test_an_exit_is_not_blamed_for_a_tunnel_that_its_relay_had_no_room_for(
    monkeypatch: pytest.MonkeyPatch, reason: MuxReason, is_the_exits: bool
) -> None:
    monkeypatch.setattr(stream_exit, "RESUME_TRY_S", 0.2)
    exit_, _ = await opened_stream()
    loop = asyncio.get_running_loop()
    refused = Frame(MuxType.REFUSED, 2, bytes((reason,)))
    outbox = SimpleNamespace(send=lambda frame: loop.call_soon(exit_.receive, refused))
    link = SimpleNamespace(add=lambda _: 2, forget=lambda _: None, outbox=outbox)
    blamed = loop.create_future()

    async def found(*_: object) -> Any:
        return SimpleNamespace(protocol=mux.PROTOCOL, mesh_host="relay", mesh_port=1)

    async def linked(*_: object) -> Any:
        return link

    monkeypatch.setattr(exit_._links, "locate", found)
    monkeypatch.setattr(exit_._links, "link", linked)
    told = SimpleNamespace(exit_reset=lambda *, by_target: blamed.set_result(not by_target))
    exit_._tunnel = cast(Any, told)
    exit_.path_lost()
    assert await asyncio.wait_for(blamed, 5) is is_the_exits


@pytest.mark.parametrize(("size", "free"), [(LIGHT_BYTES - 1, True), (LIGHT_BYTES, False)])
async def test_a_place_waits_for_the_peers_word_of_more_than_a_little(size: int, free: bool) -> None:
    held = OnStream((await opened_stream())[0])
    held.begin()
    held.window(0, 1 << 20)
    held.exit.send(bytes(size))
    held.finish()
    assert ("exit" in held.given) is free
    held.window(size + 1, 1 << 20)
    assert sorted(held.given) == ["customer", "exit"]


async def test_what_a_customer_has_not_read_counts_as_its_and_as_its_windows_after_the_tunnel_ended() -> None:
    exit_, _ = await opened_stream()
    held = OnStream(exit_)
    held.begin()
    assert held.tunnel is not None
    held.tunnel.customer = cast(Any, Exit())
    budget = cast(WindowBudget, exit_._stream._budget)
    budget.draw(budget.left_bytes)
    exit_._stream._drawn = 1  # as a window that grew has
    held.tunnel.cut()
    assert held.given == ["exit"]
    assert not budget.draw(1)
    held.tunnel.place.leave()
    held.tunnel.place.leave()
    assert held.given == ["exit", "customer"]
    assert budget.draw(1)


@pytest.mark.parametrize(("takes", "waits"), [(0, False), (1, True)])
async def test_a_peer_whose_target_takes_nothing_of_the_last_bytes_is_not_waited_for(
    takes: int, waits: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stream_exit, "FINISH_LOOK_S", 0.0)
    held = OnStream((await opened_stream())[0])
    for event in (held.begin, held.pours, held.finish):
        event()
    for received in range(1, 20):
        if not held.given:
            held.window(received * takes, GRANTED)
        await asyncio.sleep(0)
    assert (not held.given) is waits
    held.exit.cut()
