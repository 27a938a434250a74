"""What a gateway is told of a tunnel whose socket ended, what a peer cannot tell it, and what a relay holds for both."""

import asyncio
import itertools
import sys
from collections.abc import Callable
from typing import Any, cast

import pytest

from relay_node import peers
from relay_node import registry as registry_module
from relay_node.figures import Reason
from relay_node.forward import (
    CONTROL_WHILE_FULL_MAX,
    FRAME_COST_BYTES,
    SOCKET_BUFFER_MAX_BYTES,
    TUNNEL_BUFFER_MAX_BYTES,
    Buffers,
    _Lane,
)
from relay_node.links import LinkConnection
from relay_node.peers import PeerSocket
from relay_node.registry import Device, Registry
from shared.wire import mux
from shared.wire.mux import Frame, LinkReader, MuxReason, MuxType
from shared.wire.outbox import Outbox
from shared.wire.stream import WINDOW_MAX_BYTES
from shared.wire.websocket import CloseCode, Opcode, encode_close, encode_frame
from tests.support.relay import Wire, peer, registry

LINK_ID = 7


class Path:
    """A device with one socket of v2, and a gateway's link with one tunnel through it."""

    def __init__(
        self,
        here: Registry | None = None,
        device_id: str = "d",
        reasons_max: int = max(MuxReason),
        account: str = "a",
        address: str = "192.0.2.1",
    ) -> None:
        self.registry = here or registry()
        self.socket, self.wire = peer(self.registry, address)
        self.socket._head, self.socket.ready, self.socket.v2 = None, True, True
        self.device = Device(device_id, account, cast(Any, None), "", 0, sockets=[self.socket])
        self.socket.device = self.device
        self.registry.devices[device_id] = self.device
        self.link_wire = Wire()
        self.link = LinkConnection(self.registry, cast(Any, self.link_wire), reasons_max)
        self.asks(mux.for_device(mux.open_frame(LINK_ID, bytes(16), 1, "a.example", 80), device_id))
        (self.peer_id,) = self.socket.ends

    def says(self, frame: bytes) -> None:
        """A frame of the peer."""
        self.socket.data_received(encode_frame(Opcode.BINARY, frame, b"mask"))

    def asks(self, frame: bytes) -> None:
        """A frame of the gateway."""
        self.link.data_received(mux.link_header(len(frame)) + frame)

    async def told(self, link_id: int = LINK_ID) -> Frame:
        """What the gateway hears of its tunnel."""
        await asyncio.sleep(0)
        (frame,) = LinkReader().receive(self.link_wire.written)
        assert frame.tunnel == link_id
        return frame

    async def ends_overloaded(self, told: MuxReason = MuxReason.OVERLOADED) -> None:
        """The tunnel is given up, alone, and nothing is held for it any more."""
        frame = await self.told()
        assert (frame.type, mux.read_reason(frame.body)) == (MuxType.RESET, told)
        assert not self.socket.ends
        assert not self.wire.closing
        assert (self.socket.buffers.held_bytes, self.registry.buffers.held_bytes) == (0, 0)


def closes(code: int) -> Callable[[PeerSocket], None]:
    return lambda socket: socket.data_received(encode_close(code, "", b"mask"))


def closes_bare(socket: PeerSocket) -> None:
    socket.data_received(encode_frame(Opcode.CLOSE, b"", b"mask"))


def falls_silent(socket: PeerSocket) -> None:
    socket.sweep(asyncio.get_running_loop().time() + peers.DEAD_WITH_TUNNELS_AFTER_S + 1)


def is_sent_away(socket: PeerSocket) -> None:
    socket.go_away(0, 1000)


def is_revoked(socket: PeerSocket) -> None:
    socket.close(CloseCode.IDENTITY_INVALID, "", Reason.REVOKED)


@pytest.mark.parametrize(
    ("before", "told"),
    [
        (lambda socket: None, MuxReason.PEER_GONE),
        (closes(1000), MuxReason.STOPPED),
        (closes(1001), MuxReason.PATH_LOST),
        (closes(4100), MuxReason.PATH_LOST),
        (closes_bare, MuxReason.PATH_LOST),
        (falls_silent, MuxReason.PATH_LOST),
        (is_sent_away, MuxReason.PATH_LOST),
        (is_revoked, MuxReason.STOPPED),
    ],
    ids=["hangs up", "stops", "leaves", "follows", "says nothing of it", "is silent", "is sent away", "is revoked"],
)  # fmt: skip
async def test_a_gateway_is_told_what_a_lost_socket_lets_it_hope_for(
    before: Callable[[PeerSocket], None], told: MuxReason
) -> None:
    path = Path()
    before(path.socket)
    path.socket.connection_lost(ConnectionResetError())
    frame = await path.told()
    assert (frame.type, mux.read_reason(frame.body)) == (MuxType.RESET, told)


async def test_a_gateway_that_knows_fewer_reasons_is_told_one_that_it_knows() -> None:
    path = Path(reasons_max=mux.FIRST_REASONS_MAX)
    path.socket.connection_lost(None)
    assert mux.read_reason((await path.told()).body) is MuxReason.PATH_LOST


@pytest.mark.parametrize("reason", list(MuxReason))
@pytest.mark.parametrize("kind", [MuxType.RESET, MuxType.REFUSED])
async def test_a_peer_cannot_speak_of_paths_and_devices_as_if_it_were_the_relay(
    kind: MuxType, reason: MuxReason
) -> None:
    path = Path()
    path.says(mux.header(kind, path.peer_id) + bytes((reason,)))
    frame = await path.told()
    own = {MuxReason.PATH_LOST, MuxReason.PEER_GONE, MuxReason.UNKNOWN_DEVICE, MuxReason.DRAINING}
    own |= {MuxReason.OVERLOADED, MuxReason.TOO_MANY_TUNNELS}
    assert frame.type is kind
    assert mux.read_reason(frame.body) is (MuxReason.UNKNOWN if reason in own else reason)


@pytest.mark.parametrize("kind", [MuxType.OPENED, MuxType.DATA, MuxType.WINDOW, MuxType.EOF, MuxType.RESET])
async def test_a_peer_reaches_no_tunnel_of_another_device(kind: MuxType) -> None:
    theirs = Path()
    ours = Path(theirs.registry, "other")
    theirs.socket.ends[99] = theirs.socket.ends[theirs.peer_id]
    body = {MuxType.DATA: b"x", MuxType.WINDOW: bytes(16), MuxType.OPENED: bytes(8), MuxType.RESET: b"\0"}
    ours.says(mux.header(kind, 99) + body.get(kind, b""))
    await asyncio.sleep(0)
    assert theirs.link_wire.written == ours.link_wire.written == b""
    assert not ours.wire.closing, "an unknown id is ignored: it may have ended a moment ago"


@pytest.mark.parametrize(
    ("kind", "size"), [(MuxType.OPEN, 40), (MuxType.RESUME, 32), (MuxType.CLOSE, 0), (MuxType.GOAWAY, 8)]
)
async def test_a_peer_that_speaks_as_a_gateway_is_left(kind: MuxType, size: int) -> None:
    path = Path()
    path.says(mux.header(kind, path.peer_id) + bytes(size))
    assert path.wire.closing
    await asyncio.sleep(0)
    assert path.link_wire.written == b""


DATA = mux.header(MuxType.DATA, LINK_ID) + bytes(mux.DATA_MAX_BYTES)
HELD = mux.DATA_MAX_BYTES + FRAME_COST_BYTES
MB = 1 << 20


async def test_a_tunnel_is_held_one_window_for_and_then_given_up_alone() -> None:
    path = Path()
    path.socket.pause_writing()
    for _ in range(TUNNEL_BUFFER_MAX_BYTES // HELD):
        path.asks(DATA)
    assert path.socket.ends, "so much is one window's"
    path.asks(DATA)
    await path.ends_overloaded()


def held(sizes: tuple[int, ...]) -> tuple[_Lane, Buffers]:
    """A lane that holds a window in frames of these sizes, in turn, and what that counts."""
    outbox, buffers = Outbox(lambda head, payload=b"": None), Buffers()
    outbox.pause()
    lane = _Lane(outbox, 1, buffers)
    pushed_bytes, turns = 0, itertools.cycle(sizes)
    while pushed_bytes + (size := next(turns)) <= WINDOW_MAX_BYTES:
        assert lane.push(MuxType.DATA, bytes(size)), f"given up after {pushed_bytes} bytes"
        pushed_bytes += size
    return lane, buffers


@pytest.mark.parametrize("sizes", [(2,), (100,), (1, 1024), (1, 1023, 4096), (700,), (65536,)], ids=str)
def test_a_window_of_frames_of_any_size_is_held_and_takes_no_more_memory_than_it_counts(
    sizes: tuple[int, ...],
) -> None:
    lane, buffers = held(sizes)
    deque_entry_bytes = 8
    taken = sum(sys.getsizeof(f) + sys.getsizeof(f[1]) + deque_entry_bytes for f in lane._frames)
    assert taken <= buffers.held_bytes
    sent = 0
    while (frame := lane.take(mux.DATA_MAX_BYTES)) is not None:
        assert len(frame[1]) <= mux.DATA_MAX_BYTES
        sent += len(frame[1])
    assert WINDOW_MAX_BYTES - max(sizes) < sent <= WINDOW_MAX_BYTES
    assert buffers.held_bytes == 0


def test_frames_that_are_joined_are_of_data_and_keep_their_order() -> None:
    outbox = Outbox(lambda head, payload=b"": None)
    outbox.pause()
    lane = _Lane(outbox, 1, Buffers())
    pushed = (
        (MuxType.DATA, b"ab"),
        (MuxType.DATA, b"c"),
        (MuxType.BLOCKED, bytes(8)),
        (MuxType.DATA, b"d"),
        (MuxType.EOF, b""),
    )
    for kind, body in pushed:
        lane.push(kind, body)
    sent = [lane.take(100) for _ in range(5)]
    kinds = MuxType.DATA, MuxType.BLOCKED, MuxType.DATA, MuxType.EOF
    bodies = b"abc", bytes(8), b"d", b""
    assert sent == [*((mux.header(kind, 1), body) for kind, body in zip(kinds, bodies, strict=True)), None]


async def test_what_all_tunnels_hold_together_is_bounded() -> None:
    path = Path()
    path.registry.buffers.max_bytes = HELD
    path.socket.pause_writing()
    path.asks(DATA)
    path.asks(DATA)
    await path.ends_overloaded(MuxReason.PATH_LOST)  # it is others who hold too much: it may resume


def resume(tunnel: int) -> bytes:
    return mux.for_device(mux.resume_frame(tunnel, bytes(16), 0, 1), "d")


def full_socket() -> Path:
    """A device whose socket takes nothing, and would not hold a window besides what it holds."""
    path = Path()
    path.socket.buffers.max_bytes = TUNNEL_BUFFER_MAX_BYTES + HELD - 1
    path.socket.pause_writing()
    path.asks(DATA)
    return path


async def test_no_tunnel_is_resumed_where_what_it_sends_again_has_no_room() -> None:
    """Or it would lose its path again, and resume again, with all that it sends, until somebody gives up."""
    path = full_socket()
    path.asks(resume(LINK_ID + 1))
    frame = await path.told(LINK_ID + 1)
    assert (frame.type, mux.read_reason(frame.body)) == (MuxType.REFUSED, MuxReason.OVERLOADED)
    assert len(path.socket.ends) == 1
    path.asks(mux.for_device(mux.open_frame(LINK_ID + 2, bytes(16), 1, "a.example", 80), "d"))
    assert len(path.socket.ends) == 2, "one that begins holds little"


async def test_no_tunnel_is_resumed_on_a_link_that_has_no_room_for_it() -> None:
    path = Path()
    path.link.buffers.max_bytes = TUNNEL_BUFFER_MAX_BYTES - 1
    path.asks(resume(LINK_ID + 1))
    frame = await path.told(LINK_ID + 1)
    assert (frame.type, mux.read_reason(frame.body)) == (MuxType.REFUSED, MuxReason.OVERLOADED)


@pytest.mark.parametrize(
    "frame",
    [resume(9), mux.for_device(mux.open_frame(9, bytes(16), 1, "a.example", 80), "d")],
    ids=["RESUME", "OPEN"],
)
async def test_a_tunnel_goes_over_a_socket_that_has_room_though_it_carries_more(frame: bytes) -> None:
    path = full_socket()
    other, _ = peer(path.registry)
    other._head, other.ready, other.v2, other.device = None, True, True, path.device
    other.ends = dict.fromkeys(range(1, 4), cast(Any, None))
    path.device.sockets.append(other)
    path.asks(frame)
    assert (len(path.socket.ends), len(other.ends)) == (1, 4)


async def test_a_newcomer_is_let_in_and_who_hoards_gives_way(monkeypatch: pytest.MonkeyPatch) -> None:
    hoards = Path()
    here = hoards.registry
    modest, new = Path(here, "modest"), Path(here, "new")
    monkeypatch.setattr(registry_module, "GIVES_WAY_MIN_BYTES", 2 * HELD)
    here.buffers.max_bytes = 8 * HELD
    for path, frames in ((hoards, 4), (modest, 1)):
        path.socket.pause_writing()
        for _ in range(frames):
            path.asks(DATA)
    new.link_wire.written = b""
    new.asks(mux.for_device(mux.open_frame(LINK_ID + 1, bytes(16), 1, "a.example", 80), "new"))
    await asyncio.sleep(0)
    assert new.link_wire.written == b"", "nobody refuses it"
    assert len(new.socket.ends) == 2
    assert [path.wire.closing for path in (hoards, modest, new)] == [True, False, False]
    assert here.buffers.held_bytes == modest.socket.buffers.held_bytes
    assert mux.read_reason((await hoards.told()).body) is MuxReason.PATH_LOST, "it may resume"


class Holder:
    """A connection for which something is held, and how much of it goes and comes from one look to the next."""

    def __init__(self, whole: Buffers, held_bytes: int, moves_bytes: int) -> None:
        self.buffers = Buffers(SOCKET_BUFFER_MAX_BYTES, whole)
        self.buffers.hold(held_bytes)
        self.moves_bytes = moves_bytes

    def sweep(self, now_s: float) -> None:
        self.buffers.let_go(self.moves_bytes)
        self.buffers.hold(self.moves_bytes)

    def give_way(self) -> None:
        self.buffers.let_go(self.buffers.held_bytes)


def test_whoever_would_wait_longest_gives_way_whatever_accounts_and_addresses_there_are() -> None:
    here = registry()
    here.buffers.max_bytes = 64 * MB
    honest = [Holder(here.buffers, 3 * MB, 10 * MB), Holder(here.buffers, 20_000, 1000)]
    hoards = [Holder(here.buffers, MB - 1, 65_000) for _ in range(40)]
    here.sockets.update(cast(Any, [*honest, *hoards]))
    here.buffers.max_bytes *= 2
    for now_s in (5.0, 10.0):
        here.sweep(now_s)
    here.buffers.max_bytes //= 2
    for quarter in range(40):
        here.make_room(11.0 + quarter / 4)
    assert here.buffers.roomy()
    assert all(holder.buffers.held_bytes for holder in honest)
    left = [holder for holder in hoards if holder.buffers.held_bytes]
    assert len(left) > 15, "no more than it takes"


@pytest.mark.parametrize(
    "begins",
    [
        mux.open_frame(LINK_ID + 1, bytes(16), 1, "a.example", 80),
        mux.resume_frame(LINK_ID + 1, bytes(16), 0, 1),
    ],
)
async def test_nobody_is_refused_for_what_many_others_hold_a_little_each(
    begins: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(registry_module, "GIVES_WAY_MIN_BYTES", 2 * HELD)
    here = registry()
    new, *paths = [Path(here, f"d{n}", account=f"a{n}", address=f"192.0.2.{n}") for n in range(6)]
    here.buffers.max_bytes = 8 * HELD
    for path in paths:
        path.socket.pause_writing()
        path.asks(DATA)
    new.asks(mux.for_device(begins, "d0"))
    await asyncio.sleep(0)
    assert new.link_wire.written == b"", "it holds nothing yet"
    assert len(new.socket.ends) == 2
    assert not any(path.wire.closing for path in paths)


async def test_when_nearly_all_is_held_the_fullest_gives_way_however_little_it_holds(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Or many who each hold a little less than a hoarder would leave no room for anybody else."""
    monkeypatch.setattr(registry_module, "GIVES_WAY_MIN_BYTES", 3 * HELD)
    here = registry()
    fullest, *paths = [Path(here, f"d{n}", account=f"a{n}", address=f"192.0.2.{n}") for n in range(7)]
    here.buffers.max_bytes = 8 * HELD
    for path in (*paths, fullest, fullest):
        path.socket.pause_writing()
        path.asks(DATA)
    here.make_room(0.0)
    assert [path.wire.closing for path in (fullest, *paths)] == [True, *[False] * 6]


async def test_a_gateway_whose_peer_gave_way_holds_nothing_and_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    """All its other tunnels are on that link."""
    monkeypatch.setattr(registry_module, "GIVES_WAY_MIN_BYTES", 2 * HELD)
    hoards = Path()
    here = hoards.registry
    modest = [Path(here, f"d{n}", account=f"a{n}", address=f"198.51.100.{n}") for n in range(7)]
    here.buffers.max_bytes = 16 * HELD
    hoards.link.pause_writing()
    for path, frames in ((hoards, 4), *((path, 1) for path in modest)):
        path.socket.pause_writing()
        for _ in range(frames):
            path.asks(DATA)
    for _ in range(3):
        hoards.says(mux.header(MuxType.DATA, hoards.peer_id) + bytes(mux.DATA_MAX_BYTES))
    assert hoards.socket.buffers.held_bytes > hoards.link.buffers.held_bytes == 3 * HELD
    here.make_room(0.0)
    assert not here.buffers.crowded()
    assert (hoards.wire.closing, hoards.link_wire.closing) == (True, False)
    assert not any(path.wire.closing for path in modest)


async def test_a_gateway_that_does_not_read_gives_way_and_no_device_that_holds_little() -> None:
    frozen = Path()
    here = frozen.registry
    slow = Path(here, "slow")
    here.buffers.max_bytes = 8 * HELD
    frozen.link.pause_writing()
    slow.socket.pause_writing()
    slow.asks(DATA)
    data = mux.header(MuxType.DATA, frozen.peer_id) + bytes(mux.DATA_MAX_BYTES)
    for _ in range(4):
        frozen.says(data)
    here.make_room(0.0)
    assert not here.buffers.crowded()
    assert [frozen.link_wire.closing, slow.link_wire.closing, slow.wire.closing] == [True, False, False]
    assert here.buffers.held_bytes == slow.socket.buffers.held_bytes > 0


async def test_a_device_that_would_have_to_give_way_to_itself_gets_no_more(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(registry_module, "GIVES_WAY_MIN_BYTES", 1)
    path = Path()
    path.registry.buffers.max_bytes = HELD
    path.socket.pause_writing()
    path.asks(DATA)
    path.asks(mux.for_device(mux.open_frame(LINK_ID + 1, bytes(16), 1, "a.example", 80), "d"))
    await asyncio.sleep(0)
    *_, refused = LinkReader().receive(path.link_wire.written)
    assert (refused.type, mux.read_reason(refused.body)) == (MuxType.REFUSED, MuxReason.OVERLOADED)


async def test_a_peer_that_takes_nothing_is_left_after_the_bound_though_it_speaks() -> None:
    path = Path()
    path.socket.pause_writing()
    began_s = asyncio.get_running_loop().time()
    for after_s in (1.0, peers.FULL_MAX_S - 1, peers.FULL_MAX_S + 2):
        assert not path.wire.closing
        path.socket._heard_s = began_s + after_s
        path.socket.sweep(began_s + after_s)
    assert path.wire.closing
    assert path.socket.lost_reason is Reason.STALLED


async def test_a_peer_that_takes_now_and_then_is_kept() -> None:
    path = Path()
    began_s = asyncio.get_running_loop().time()
    path.socket.pause_writing()
    path.socket.resume_writing()
    path.socket._heard_s = began_s + peers.FULL_MAX_S + 2
    path.socket.sweep(began_s + peers.FULL_MAX_S + 2)
    assert not path.wire.closing


def test_a_connection_holds_within_what_all_may_hold() -> None:
    whole = Buffers(100)
    one, other = Buffers(80, whole), Buffers(80, whole)
    assert one.hold(80)
    assert not one.hold(1), "its own bound"
    assert not other.hold(30), "that of all"
    assert (one.held_bytes, other.held_bytes, whole.held_bytes) == (80, 0, 80)
    one.let_go(80)
    assert other.hold(30)


async def test_control_frames_to_a_link_that_takes_nothing_are_bounded() -> None:
    path = Path()
    path.link.pause_writing()
    window = mux.window_frame(path.peer_id, 0, 1)
    for _ in range(CONTROL_WHILE_FULL_MAX):
        path.says(window)
    assert path.socket.ends
    path.link_wire.written = b""
    path.says(window)
    await asyncio.sleep(0)
    assert not path.socket.ends
