"""What strangers and peers cannot use up in a relay."""

import asyncio
from collections.abc import AsyncIterator
from dataclasses import replace
from types import SimpleNamespace
from typing import Any, Final, cast

import pytest

from relay_node import peers, websocket
from relay_node import registry as registry_module
from relay_node.figures import Reason
from relay_node.pace import OF_WHAT_IS_LEFT, RELAY_FRAMES_PER_S
from relay_node.peers import PeerSocket
from relay_node.presence import follow_orders
from relay_node.registry import (
    HANDSHAKES_PER_S_MAX,
    HANDSHAKES_PER_S_PER_ADDRESS_MAX,
    Device,
    Registry,
    Unfinished,
)
from relay_node.websocket import UNFINISHED_FREE_BYTES
from shared.kernel.ids import AccountId, DeviceId
from shared.pool.presence import MOVE_PEERS
from shared.supply.tokens import Claims
from shared.wire import mux
from shared.wire.handshake import upgrade_request
from shared.wire.peer import Type, encode_text, legacy_data
from shared.wire.websocket import MAX_MESSAGE_BYTES, Opcode, encode_frame, frame_header
from tests.support.relay import Wire, peer, registry


async def test_the_addresses_of_one_ipv6_network_count_as_one() -> None:
    here = registry()
    first, _ = peer(here, "2001:db8::1")
    second, _ = peer(here, "2001:db8::2:9")
    other, _ = peer(here, "2001:db8:0:1::1")
    assert sorted(here.per_address.values()) == [1, 2]
    for socket in (first, second, other):
        socket.connection_lost(None)
    assert not here.per_address


def speaks(here: Registry, protocol: str | None, *, follows: bool = False) -> tuple[PeerSocket, Wire]:
    """A peer that has said what it speaks, or has not yet."""
    socket, wire = peer(here)
    socket._head = None
    socket.device = Device("d", "a", cast(Any, None), "", 0, sockets=[socket])
    if protocol is not None:
        info = encode_text(Type.DEVICE_INFO, protocol=protocol, supportsRelayRedirect=follows)
        socket.data_received(encode_frame(Opcode.TEXT, info, b"mask"))
    return socket, wire


LONG: Final = encode_frame(Opcode.BINARY, b"\x01\x01s" + bytes(100_000), b"mask")
BEGINS, ENDS = LONG[: UNFINISHED_FREE_BYTES + 1], LONG[UNFINISHED_FREE_BYTES + 1 :]


async def test_sockets_read_into_one_buffer_and_take_nothing_of_each_other() -> None:
    here = registry()
    sockets = [speaks(here, mux.PROTOCOL) for _ in range(3)]
    got: list[list[bytes]] = [[] for _ in sockets]
    sent = [bytes((65 + n,)) * 30_000 for n in range(3)]
    for (socket, _), taken in zip(sockets, got, strict=True):
        end = SimpleNamespace(from_peer=lambda frame, taken=taken: taken.append(bytes(frame.body)))
        socket.carry(1, cast(Any, end))
    frames = [mux.header(mux.MuxType.DATA, 1) + body for body in sent]
    whole = [encode_frame(Opcode.BINARY, frame, b"mask") * 2 for frame in frames]
    for start in range(0, len(whole[0]), 11_003):
        for (socket, _), data in zip(sockets, whole, strict=True):
            read = data[start : start + 11_003]
            socket.get_buffer(-1)[: len(read)] = read
            socket.buffer_updated(len(read))
    assert got == [[body] * 2 for body in sent]


async def test_of_messages_that_do_not_end_the_oldest_gives_way() -> None:
    here = registry()
    here.unfinished = Unfinished(3 * len(BEGINS))
    honest, hoards, drips, *others = (speaks(here, "binary-v1") for _ in range(5))
    for socket, _ in (honest, hoards, drips):
        socket.data_received(BEGINS)
    honest[0].data_received(ENDS + BEGINS)  # it ends what it began, and has begun something since
    for socket, _ in others:
        socket.data_received(BEGINS)
    assert [wire.closing for _, wire in (honest, hoards, drips, *others)] == [False, True, True, False, False]
    for socket, _ in (honest, hoards, drips, *others):
        socket.connection_lost(None)
    assert here.unfinished.held_bytes == 0


@pytest.mark.parametrize("protocol", [None, "binary-v2", "binary-v1"])
async def test_only_a_peer_of_v1_may_send_long_messages(protocol: str | None) -> None:
    here = registry()
    socket, wire = speaks(here, protocol)
    socket.data_received(frame_header(Opcode.BINARY, websocket.MESSAGE_MAX_BYTES, b"mask"))
    assert not wire.closing
    socket, wire = speaks(here, protocol)
    socket.data_received(frame_header(Opcode.BINARY, websocket.MESSAGE_MAX_BYTES + 1, b"mask"))
    assert wire.closing is (protocol != "binary-v1")


async def test_a_handshake_that_comes_byte_by_byte_has_so_long_and_no_longer() -> None:
    here = registry()
    socket, wire = peer(here)
    now_s = asyncio.get_running_loop().time()
    for _ in range(100):
        socket.data_received(b"G")
    closed = []
    for beyond_s in (-1, 1):
        here.sweep(now_s + websocket.HANDSHAKE_TIMEOUT_S + beyond_s)
        closed.append(wire.closing)
    assert closed == [False, True]
    assert socket.lost_reason is Reason.HANDSHAKE_TIMEOUT


async def test_peers_that_follow_are_sent_where_an_operator_says() -> None:
    here = registry()
    follows, stays = (speaks(here, "binary-v2", follows=follows)[1] for follows in (True, False))

    class Orders:
        async def messages(self, *channels: str) -> AsyncIterator[tuple[str, str]]:
            yield MOVE_PEERS, "r2 wss://not.for.us/"
            yield MOVE_PEERS, "r1 wss://b.example/"
            raise asyncio.CancelledError

    with pytest.raises(asyncio.CancelledError):
        await follow_orders(cast(Any, Orders()), here, cast(Any, None), "r1")
    await asyncio.sleep(0)
    assert b"not.for.us" not in follows.written
    assert b'"relay":"wss://b.example/","reason":"operator"' in follows.written
    assert b"relay_redirect" not in stays.written


async def test_an_address_that_hammers_uses_up_its_own_handshakes_and_nobody_elses() -> None:
    here = registry()
    passed = sum(here.may_shake_hands("192.0.2.66", 100.0) for _ in range(2 * HANDSHAKES_PER_S_MAX))
    assert passed == HANDSHAKES_PER_S_PER_ADDRESS_MAX
    others = sum(here.may_shake_hands(f"network {number}", 100.9) for number in range(HANDSHAKES_PER_S_MAX))
    assert passed + others == HANDSHAKES_PER_S_MAX
    assert here.may_shake_hands("192.0.2.66", 101.0), "the next second is another one"


async def test_an_address_has_so_many_sockets_and_no_more(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(websocket, "MAX_SOCKETS_PER_ADDRESS", 3)
    here = registry()
    kept = [peer(here) for _ in range(3)]
    late, wire = peer(here)
    assert wire.written.startswith(b"HTTP/1.1 429 ")
    assert not any(wire.closing for _, wire in kept)
    late.connection_lost(None)
    kept[0][0].connection_lost(None)
    assert not peer(here)[1].closing


async def test_ten_thousand_idle_peers_are_answered_and_kept_until_they_fall_silent(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(registry_module, "HANDSHAKES_PER_S_MAX", 20_000)
    here = registry()
    heartbeat = encode_frame(Opcode.TEXT, encode_text(Type.HEARTBEAT), b"mask")
    idle = [peer(here, f"2001:db8:0:{number:x}::1") for number in range(10_000)]
    for socket, _ in idle:
        socket._head, socket.ready = None, True
        socket.data_received(heartbeat)
    await asyncio.sleep(0)
    assert all(b"heartbeat_ack" in wire.written for _, wire in idle)
    now_s = asyncio.get_running_loop().time()
    here.sweep(now_s + peers.IDLE_TIMEOUT_S - 5)
    assert not any(wire.closing for _, wire in idle)
    here.sweep(now_s + peers.IDLE_TIMEOUT_S + 5)
    assert all(wire.closing for _, wire in idle)
    for socket, _ in idle:
        socket.connection_lost(None)
    assert (here.sockets, here.per_address) == (set(), {})


@pytest.mark.parametrize(
    "ask",
    [
        encode_frame(Opcode.PING, b"p" * 125, b"mask"),
        encode_frame(Opcode.TEXT, encode_text(Type.HEARTBEAT), b"mask"),
    ],
)
async def test_a_peer_that_asks_and_does_not_read_is_owed_one_answer(ask: bytes) -> None:
    socket, wire = speaks(registry(), "binary-v1")
    await asyncio.sleep(0)
    before = len(wire.written)
    socket.pause_writing()
    socket.data_received(ask * websocket.FRAMES_AT_ONCE_MAX)
    await asyncio.sleep(0)
    assert len(wire.written) == before
    socket.resume_writing()
    await asyncio.sleep(0)
    one = len(wire.written) - before
    assert 0 < one <= 2 + 125, "the last one is answered when it reads again"
    socket.data_received(ask)
    await asyncio.sleep(0)
    assert len(wire.written) == before + 2 * one


class Seconds:
    """A loop's clock and timers by hand."""

    def __init__(self) -> None:
        self.now_s = 100.0
        self.timers: list[tuple[float, Any]] = []

    def time(self) -> float:
        return self.now_s

    def call_later(self, after_s: float, call: Any) -> None:
        self.timers.append((self.now_s + after_s, call))

    def turns(self) -> None:
        """All that is due now, and what it asks for."""
        while due := [timer for timer in self.timers if timer[0] <= self.now_s]:
            self.timers.remove(due[0])
            due[0][1]()


def dials(
    here: Registry, clock: Seconds, early: bytes = b"", number: int | None = None
) -> tuple[PeerSocket, Wire]:
    """Another socket of device `d`, of its owner; or of a device with an account and an address of its own."""
    device, account, address = ("d", "a", 1) if number is None else (f"d{number}", f"a{number}", number)
    here.hooks = replace(here.hooks, verify=lambda token: Claims(DeviceId(device), AccountId(account), 0))
    socket, wire = peer(here, f"192.0.2.{address}")
    socket.loop = cast(Any, clock)
    socket.data_received(upgrade_request("relay", "/", bytes(16), "token") + early)
    return socket, wire


PINGS: Final = [encode_frame(Opcode.PING, number.to_bytes(4, "big"), b"mask") for number in range(20_000)]
PONGS: Final = [encode_frame(Opcode.PONG, number.to_bytes(4, "big")) for number in range(20_000)]


def answered(wire: Wire) -> int:
    """How many pings, of whom all were answered in their order."""
    pongs = wire.written[wire.written.find(PONGS[0]) :] if PONGS[0] in wire.written else b""
    assert b"".join(PONGS).startswith(pongs)
    return len(pongs) // len(PONGS[0])


async def test_a_flood_waits_for_its_turn_and_for_its_devices_share_and_nothing_of_it_is_lost() -> None:
    here, clock = registry(), Seconds()
    floods = [dials(here, clock, b"".join(PINGS)) for _ in range(2)]
    wire = floods[0][1]
    clock.timers.pop(0)[1]()
    await asyncio.sleep(0)
    assert answered(wire) == websocket.FRAMES_AT_ONCE_MAX, "then it is others' turn"
    assert wire.paused
    for second in range(1, 100):
        clock.turns()
        await asyncio.sleep(0)
        most = second * RELAY_FRAMES_PER_S // (1 + OF_WHAT_IS_LEFT) // (1 + websocket.UNCOMMON_FRAME_COST)
        share = sum(answered(wire) for _, wire in floods)
        assert share <= most + second * len(floods) * websocket.FRAMES_AT_ONCE_MAX
        if share == len(floods) * len(PINGS):
            break
        clock.now_s += 1
    clock.now_s += 1
    clock.turns()
    assert [answered(wire) for _, wire in floods] == [len(PINGS)] * 2
    assert not any(wire.paused or wire.closing for _, wire in floods)


async def test_sixteen_devices_that_flood_together_keep_no_relay_busy_and_nobody_from_an_answer() -> None:
    here, clock = registry(), Seconds()
    floods = [dials(here, clock, b"".join(PINGS[:4000]), number) for number in range(16)]
    clock.turns()
    await asyncio.sleep(0)
    cost = 1 + websocket.UNCOMMON_FRAME_COST
    most = RELAY_FRAMES_PER_S // cost + len(floods) * websocket.FRAMES_AT_ONCE_MAX
    assert sum(answered(wire) for _, wire in floods) <= most
    assert all(wire.paused for _, wire in floods)
    _, wire = dials(here, clock, b"".join(PINGS[:40]), 100)
    clock.turns()
    await asyncio.sleep(0)
    assert (answered(wire), wire.paused) == (40, False)


async def test_who_has_used_up_a_second_and_dials_again_is_read_in_the_next_one() -> None:
    here, clock = registry(), Seconds()
    socket, _ = dials(here, clock, b"".join(PINGS))
    clock.turns()
    socket.connection_lost(None)
    assert not here.devices
    _, wire = dials(here, clock, PINGS[0])
    clock.turns()
    await asyncio.sleep(0)
    assert (answered(wire), wire.paused, wire.closing) == (0, True, False)
    clock.now_s += 1
    clock.turns()
    await asyncio.sleep(0)
    assert (answered(wire), wire.paused) == (1, False)


def legacy(size: int) -> bytes:
    """Data as peers that did not announce binary-v1 send it, of a session that nobody has."""
    return encode_frame(Opcode.TEXT, legacy_data("s", bytes(size)), b"mask")


LEGACY: Final = legacy(256 * 1024)


async def test_a_device_has_so_much_text_in_a_second_as_it_has_frames() -> None:
    here, clock = registry(), Seconds()
    (socket, wire), (other, other_wire) = (dials(here, clock) for _ in range(2))
    socket._frames.max_message_bytes = other._frames.max_message_bytes = MAX_MESSAGE_BYTES
    read = 0
    for _ in range(1_000):
        socket.data_received(LEGACY)
        clock.turns()
        if wire.paused:
            break
        read += len(LEGACY)
    most = RELAY_FRAMES_PER_S // (1 + OF_WHAT_IS_LEFT) * websocket.TEXT_BYTES_PER_FRAME
    assert 0.95 * most - len(LEGACY) < read < most
    assert not wire.closing
    taken = list[str]()
    other.tunnels["s"] = cast(
        Any, SimpleNamespace(from_peer=lambda data: taken.append("data"), socket_lost=print)
    )
    other.data_received(LEGACY)
    assert (taken, other_wire.paused) == ([], True), "its other sockets have the same second"
    clock.now_s += 1
    clock.turns()
    assert (taken, wire.paused, other_wire.paused) == (["data"], False, False)


@pytest.mark.parametrize(
    ("size", "turn_ends"), [(1_000, False), (20_000, False), (30_000, True), (256 * 1024, True)]
)
async def test_who_sends_much_text_at_once_is_read_again_after_everybody_elses_turn(
    size: int, turn_ends: bool
) -> None:
    here, clock = registry(), Seconds()
    socket, wire = dials(here, clock)
    socket._frames.max_message_bytes = MAX_MESSAGE_BYTES
    socket.data_received(legacy(size))
    assert wire.paused is turn_ends
    clock.turns()
    assert not wire.paused


async def test_of_many_texts_in_one_read_a_turn_takes_a_few() -> None:
    here, clock = registry(), Seconds()
    socket, _ = dials(here, clock)
    taken = list[bytes]()
    socket.tunnels["s"] = cast(Any, SimpleNamespace(from_peer=taken.append))
    socket.data_received(legacy(3_000) * 60)
    turns = [len(taken)]
    while clock.timers and sum(turns) < 60:
        clock.timers.pop(0)[1]()
        turns.append(len(taken) - sum(turns))
    assert turns == [9, 9, 9, 9, 9, 9, 6], "36 KB of JSON each"
    assert taken == [bytes(3_000)] * 60


async def test_what_waits_for_its_devices_next_second_is_counted_as_held() -> None:
    here, clock = registry(), Seconds()
    (socket, _), (other, _) = (dials(here, clock) for _ in range(2))
    assert socket.device is not None
    socket.device.read_again_s = clock.now_s + 1
    other.data_received(LEGACY[:50_000])
    assert here.unfinished.held_bytes == 50_000
    other.connection_lost(None)
    assert here.unfinished.held_bytes == 0
