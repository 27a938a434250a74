"""A customer's connection reads only while its tunnel and its listener both want it to; its last answer is not reset."""

import asyncio
import base64
import gc
import weakref
from types import SimpleNamespace
from typing import Any

import pytest

from gateway_node import exits, http_front, socks_front
from gateway_node.customer import EARLY_MAX_BYTES
from gateway_node.exits import ConnectExit
from gateway_node.http_front import HttpFront
from gateway_node.links import RelayLinks
from gateway_node.lobby import Lobby
from gateway_node.pipeline import Outcome, Pipeline
from gateway_node.refusals import RefusedRequest
from gateway_node.socks_front import SocksFront
from gateway_node.splice import Splices
from gateway_node.stream_exit import StreamExit
from gateway_node.tunnel import Budget, Tunnel
from shared.access.model import Pak, Quality
from shared.kernel.codes import IpType, Pool, Refusal, SpeedTier
from shared.kernel.ids import AccountId, Country, DeviceId, EndpointId, PakId
from shared.pool.model import Acquired, Endpoint, Selected
from shared.runtime.deadlines import Deadlines
from shared.wire import mux
from shared.wire.mux import Bytes, Frame, MuxReason, MuxType
from shared.wire.outbox import Outbox
from shared.wire.stream import WindowBudget

CREDENTIALS = "Proxy-Authorization: Basic " + base64.b64encode(b"psx_a-peer-us:s").decode()
PAK = Pak(PakId("k"), AccountId("a"), "", "h", "", None, 0, True, None, None, Quality.STANDARD, True, 0, 0)
ENDPOINT = Endpoint(
    EndpointId("e"), Pool.PEER, AccountId("o"), Country("us"), "", 1, "", IpType.MOBILE, SpeedTier.FAST
)


class Wire:
    """A transport by hand."""

    def __init__(self) -> None:
        self.paused = self.closing = self.ended = False
        self.written = b""
        self.unsent = 0

    def get_extra_info(self, name: str) -> Any:
        return ("192.0.2.1", 4000) if name == "peername" else None

    def set_write_buffer_limits(self, high: int) -> None: ...

    def get_write_buffer_size(self) -> int:
        return self.unsent

    def pause_reading(self) -> None:
        self.paused = True

    def resume_reading(self) -> None:
        self.paused = False

    def write(self, data: bytes) -> None:
        self.written += data

    def can_write_eof(self) -> bool:
        return True

    def write_eof(self) -> None:
        self.ended = True

    def is_closing(self) -> bool:
        return self.closing

    def close(self) -> None:
        self.closing = True

    abort = close


class Exit:
    """An exit that takes nothing more once it has been sent something."""

    carries_eof = True

    def __init__(self) -> None:
        self.tunnel: Any = None
        self.sent = b""

    def attach(self, tunnel: Tunnel) -> None:
        self.tunnel = tunnel

    def send(self, data: Bytes) -> None:
        self.sent += bytes(data)
        self.tunnel.exit_full()

    def nothing(self) -> None: ...

    send_eof = hold = release = finish = cut = try_again = forget = nothing


class Opens:
    """A pipeline that has one exit for everybody."""

    def __init__(self) -> None:
        self.exit, self.deadlines = Exit(), Deadlines()
        self.lobby, self.resting = Lobby(), Lobby()
        self.cuts: list[bool] = []
        self.kept: set[Any] = set()
        self.draining = False
        self.corrections: tuple[str, ...] = ()
        self.asked: list[Any] = []

    def tunnel(self, exit_: Any) -> Tunnel:
        acquired = Acquired(ENDPOINT, "", 0, "", "", Selected.FRESH)
        return Tunnel(PAK, acquired, exit_, Budget(lambda: None), lambda _, broke: self.cuts.append(broke))

    async def open(self, request: Any) -> Outcome:
        self.asked.append(request)
        self.exit.tunnel = self.tunnel(self.exit)
        return Outcome(self.exit.tunnel, self.corrections)


async def connected(pipeline: Any) -> tuple[HttpFront, Any]:
    front, wire = HttpFront(pipeline), Wire()
    front.connection_made(wire)  # type: ignore[arg-type]
    return front, wire


async def turns() -> None:
    for _ in range(5):
        await asyncio.sleep(0)


def post(length: int, body: bytes = b"") -> bytes:
    head = (
        f"POST http://example.com/ HTTP/1.1\r\nHost: x\r\n{CREDENTIALS}\r\nContent-Length: {length}\r\n\r\n"
    )
    return head.encode() + body


@pytest.mark.parametrize("request_", [post(10**9, b"x" * 1000), b""])
async def test_a_request_whose_exit_is_full_is_read_no_further(request_: bytes) -> None:
    pipeline = Opens()
    front, wire = await connected(pipeline)
    connect = f"CONNECT example.com:443 HTTP/1.1\r\n{CREDENTIALS}\r\n\r\nearly".encode()
    front.data_received(request_ or connect)
    await turns()
    assert pipeline.exit.sent
    assert wire.paused
    pipeline.exit.tunnel.exit_drained()
    assert not wire.paused


async def test_an_answer_does_not_set_a_customer_free_whose_exit_is_full() -> None:
    pipeline = Opens()
    front, wire = await connected(pipeline)
    front.data_received(post(4, b"body"))
    await turns()
    pipeline.exit.tunnel.to_customer(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n")
    assert b"200 OK" in wire.written
    assert wire.paused


async def test_a_tunnel_that_was_left_moves_its_old_customer_no_more() -> None:
    pipeline = Opens()
    front, wire = await connected(pipeline)
    front.data_received(post(4, b"body"))
    await turns()
    old = pipeline.exit.tunnel
    old.to_customer(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\nConnection: close\r\n\r\n")
    assert not wire.paused
    old.exit_full()
    assert not wire.paused


async def test_a_customer_that_sends_far_ahead_waits_until_its_request_is_open() -> None:
    pipeline = Opens()
    front, wire = await connected(pipeline)
    front.data_received(post(10**9, b"x" * (EARLY_MAX_BYTES + 1)))
    assert wire.paused
    await turns()
    assert len(front._buffer) == 0


async def test_what_a_customer_still_sends_after_the_last_answer_is_dropped_and_not_answered_by_a_reset(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(http_front, "LINGER_S", 0.01)
    front, wire = await connected(Opens())
    front.data_received(b"POST http://example.com/ HTTP/1.1\r\nHost: x\r\nContent-Length: 9\r\n\r\nbody")
    assert wire.written.startswith(b"HTTP/1.1 407 ")
    assert wire.ended
    assert not wire.closing
    front.data_received(b"GET http://example.com/ HTTP/1.1\r\n\r\n")
    assert wire.written.count(b"HTTP/1.1 ") == 1
    async with asyncio.timeout(2):
        while not wire.closing:
            await asyncio.sleep(0.01)


async def opened_stream() -> tuple[StreamExit, Any]:
    async def nowhere(device_id: DeviceId) -> None:
        return None

    links = RelayLinks("t", nowhere, lambda device_id: None)
    exit_ = StreamExit(links, DeviceId("d"), WindowBudget(0))
    link: Any = SimpleNamespace(
        add=lambda _: 1, forget=lambda _: None, outbox=Outbox(lambda head, payload=b"": None)
    )
    opening = asyncio.create_task(exit_.open(link, "example.com", 80))
    await turns()
    exit_.receive(Frame(MuxType.OPENED, 1, mux.opened_frame(1, 1000)[mux.HEADER_BYTES :]))
    await opening
    return exit_, link


async def test_an_exit_that_was_left_is_freed_without_the_collector() -> None:
    exit_, _ = await opened_stream()
    tunnel = Opens().tunnel(exit_)
    exit_.attach(tunnel)
    gc.disable()
    try:
        tunnel.cut()
        exit_.forget()  # the customer is gone
        await turns()
        freed = weakref.ref(exit_)
        del exit_, tunnel
        assert freed() is None
    finally:
        gc.enable()


async def test_a_peer_that_refuses_what_it_opened_is_no_black_hole() -> None:
    exit_, _ = await opened_stream()
    pipeline = Opens()
    exit_.attach(pipeline.tunnel(exit_))
    exit_.receive(Frame(MuxType.REFUSED, 1, bytes((MuxReason.UNKNOWN,))))
    assert pipeline.cuts == [True]


async def test_an_exit_that_was_full_before_its_tunnel_stood_says_so() -> None:
    exit_, _ = await opened_stream()
    pipeline = Opens()
    tunnel = pipeline.tunnel(exit_)
    front, wire = await connected(pipeline)
    tunnel.customer = front
    exit_.send(bytes(200_000))
    exit_.attach(tunnel)
    assert wire.paused


async def test_an_exit_that_was_lost_before_its_tunnel_stood_cuts_it() -> None:
    pipeline = Opens()
    exit_ = ConnectExit(b"", Splices(), carries_eof=True)
    wire: Any = Wire()
    exit_.connection_made(wire)
    exit_.data_received(b"HTTP/1.1 200 OK\r\n\r\n")
    exit_.connection_lost(ConnectionResetError())
    exit_.attach(pipeline.tunnel(exit_))
    assert pipeline.cuts == [True]


class Full(Wire):
    """A connection whose other end takes so much from one look to the next."""

    def __init__(self, takes: int) -> None:
        super().__init__()
        self.unsent, self.takes, self.aborted = 1000, takes, False

    def get_write_buffer_size(self) -> int:
        self.unsent -= self.takes
        return self.unsent

    def abort(self) -> None:
        self.aborted = True


@pytest.mark.parametrize(("takes", "aborted"), [(0, True), (1, False)])
async def test_an_exit_that_takes_nothing_of_the_last_bytes_is_not_waited_for(
    takes: int, aborted: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(exits, "LAST_BYTES_LOOK_S", 0.0)
    exit_ = ConnectExit(b"", Splices(), carries_eof=True)
    wire: Any = Full(takes)
    exit_.connection_made(wire)
    exit_.finish()
    assert wire.closing
    for _ in range(20):
        await asyncio.sleep(0)
    assert wire.aborted is aborted
    exit_.connection_lost(None)


async def test_a_protocol_that_nobody_asked_for_is_no_answer() -> None:
    pipeline = Opens()
    front, wire = await connected(pipeline)
    front.data_received(post(4, b"body"))
    await turns()
    pipeline.exit.tunnel.to_customer(
        b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: x\r\n\r\nHTTP/1.1 200 OK\r\n\r\n"
    )
    assert b" 101 " not in wire.written
    assert wire.closing or wire.ended


def get(url: str = "http://example.com/", method: str = "GET") -> bytes:
    return f"{method} {url} HTTP/1.1\r\nHost: x\r\n{CREDENTIALS}\r\n\r\n".encode()


def answers(wire: Any) -> list[dict[str, str]]:
    """Headers of every answer that a customer got."""
    heads = wire.written.decode().split("HTTP/1.1 ")[1:]
    fields = (head.partition("\r\n\r\n")[0].split("\r\n")[1:] for head in heads)
    return [dict(field.split(": ", 1) for field in lines) for lines in fields]


async def test_every_plain_answer_has_a_request_id_of_its_own_and_tells_of_corrections() -> None:
    pipeline = Opens()
    pipeline.corrections = ("ttl=60",)
    front, wire = await connected(pipeline)
    for _ in range(2):
        front.data_received(get())
        await turns()
        pipeline.exit.tunnel.to_customer(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n")
    first, second = answers(wire)
    assert first["X-Request-ID"] != second["X-Request-ID"]
    assert {head["X-PSX-Corrections"] for head in (first, second)} == {"ttl=60"}
    assert {head["X-PSX-Country"] for head in (first, second)} == {"US"}


async def test_a_targets_own_request_id_stays_and_it_cannot_speak_as_the_gateway() -> None:
    pipeline = Opens()
    front, wire = await connected(pipeline)
    front.data_received(get())
    await turns()
    pipeline.exit.tunnel.to_customer(
        b"HTTP/1.1 200 OK\r\nX-Request-Id: theirs\r\nX-PSX-Country: ZZ\r\nContent-Length: 0\r\n\r\n"
    )
    (head,) = answers(wire)
    assert head["X-Request-Id"] == "theirs"
    assert len(head["X-PSX-Request-ID"]) == 36
    assert head["X-PSX-Country"] == "US"


@pytest.mark.parametrize(
    ("method", "url", "line"),
    [
        ("GET", "http://example.com", "GET / "),
        ("GET", "http://example.com/?", "GET /? "),
        ("GET", "http://example.com?a=1#b", "GET /?a=1 "),
        ("GET", "http://example.com/a;b//c?d=/../e", "GET /a;b//c?d=/../e "),
        ("OPTIONS", "http://example.com", "OPTIONS * "),
        ("OPTIONS", "http://example.com/", "OPTIONS / "),
    ],
)
async def test_a_target_is_asked_for_what_the_customer_wrote(method: str, url: str, line: str) -> None:
    pipeline = Opens()
    front, _ = await connected(pipeline)
    front.data_received(get(url, method))
    await turns()
    assert pipeline.exit.sent.decode().startswith(line + "HTTP/1.1\r\nHost: example.com\r\n")


@pytest.mark.parametrize(
    "head",
    [
        "CONNECT example.com:80 HTTP/1.1\r\nContent-Length: 5",
        "CONNECT example.com:80 HTTP/1.1\r\nTransfer-Encoding: chunked",
        "POST http://example.com/ HTTP/1.1\r\nContent-Length: 5\r\nTransfer-Encoding: chunked",
        "POST http://example.com/ HTTP/1.1\r\nContent-Length: 5\r\nContent-Length: 6",
        "POST http://example.com/ HTTP/1.1\r\nTransfer-Encoding: chunked\r\nTransfer-Encoding: identity",
        "POST http://example.com/ HTTP/1.1\r\nTransfer-Encoding : chunked",
        "GET http://example.com/ HTTP/1.1\r\nX: a\r\n folded",
        "GET http://example.com/ HTTP/1.1\r\nX: a\n\nGET http://b.example/ HTTP/1.1",
        "GET http://example.com@b.example/ HTTP/1.1",
        "GET http://example.com\\@b.example/ HTTP/1.1",
        "GET http://b.example:80:80/ HTTP/1.1",
        "GET //example.com/ HTTP/1.1",
    ],
)
async def test_a_request_that_two_programs_could_read_differently_goes_nowhere(head: str) -> None:
    pipeline = Opens()
    front, wire = await connected(pipeline)
    front.data_received(f"{head}\r\n{CREDENTIALS}\r\n\r\nhello".encode() + get("http://b.example/"))
    await turns()
    assert wire.written.startswith(b"HTTP/1.1 400 ")
    assert wire.written.count(b"HTTP/1.1 ") == 1
    assert wire.ended
    assert pipeline.asked == []


async def test_what_follows_a_407_as_a_body_is_never_read_as_a_request() -> None:
    pipeline = Opens()
    front, wire = await connected(pipeline)
    hidden = get("http://b.example/")
    head = f"POST http://example.com/ HTTP/1.1\r\nHost: example.com\r\nContent-Length: {len(hidden)}\r\n\r\n"
    front.data_received(head.encode() + hidden)
    await turns()
    assert wire.written.startswith(b"HTTP/1.1 407 ")
    assert wire.written.count(b"HTTP/1.1 ") == 1
    assert pipeline.asked == []


async def test_the_target_is_whom_the_url_names_whatever_host_says() -> None:
    pipeline = Opens()
    front, _ = await connected(pipeline)
    others = "Host: b.example\r\nhost: c.example\r\nConnection: Host"
    front.data_received(f"GET http://example.com/ HTTP/1.1\r\n{others}\r\n{CREDENTIALS}\r\n\r\n".encode())
    await turns()
    assert (pipeline.asked[0].host, pipeline.asked[0].port) == ("example.com", 80)
    lines = pipeline.exit.sent.decode().lower().split("\r\n")
    assert [line for line in lines if line.startswith("host:")] == ["host: example.com"]


async def test_a_kept_tunnel_serves_no_request_of_somebody_else() -> None:
    pipeline = Opens()
    front, _ = await connected(pipeline)
    other = "Proxy-Authorization: Basic " + base64.b64encode(b"psx_b-peer-us:s").decode()
    for credentials in (CREDENTIALS, CREDENTIALS, other):
        front.data_received(f"GET http://example.com/ HTTP/1.1\r\nHost: x\r\n{credentials}\r\n\r\n".encode())
        await turns()
        pipeline.exit.tunnel.to_customer(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n")
    assert [request.username for request in pipeline.asked] == ["psx_a-peer-us", "psx_b-peer-us"]


@pytest.mark.parametrize("front", [HttpFront, SocksFront])
async def test_a_head_that_comes_byte_by_byte_has_so_long_and_no_longer(
    front: type[HttpFront] | type[SocksFront], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(http_front, "HEAD_TIMEOUT_S", 0.05)
    monkeypatch.setattr(socks_front, "HANDSHAKE_TIMEOUT_S", 0.05)
    slow, wire = front(Opens()), Wire()  # type: ignore[arg-type]
    slow.connection_made(wire)  # type: ignore[arg-type]
    async with asyncio.timeout(10):
        for byte in bytes((5, 255)) + b"C" * 100_000:
            slow.data_received(bytes((byte,)) if front is SocksFront else b"C")
            await asyncio.sleep(0.002)
            if wire.closing:
                return


def drain(pipeline: Any) -> None:
    Pipeline.drain(pipeline)


async def test_a_gateway_that_drains_waits_for_the_request_under_way_and_for_no_idle_connection() -> None:
    pipeline = Opens()
    idle, idle_wire = await connected(pipeline)
    idle.data_received(get())
    await turns()
    idle_tunnel = pipeline.exit.tunnel
    idle_tunnel.to_customer(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n")
    busy, busy_wire = await connected(pipeline)
    busy.data_received(get())
    await turns()
    opening, opening_wire = await connected(pipeline)
    opening.data_received(get())  # its exit is being opened

    drain(pipeline)
    assert idle_wire.closing
    assert not idle_tunnel.open
    assert not busy_wire.closing
    busy._tunnel.to_customer(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nhi")  # type: ignore[union-attr]
    await turns()
    opening._tunnel.to_customer(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nhi")  # type: ignore[union-attr]
    for wire in (busy_wire, opening_wire):
        assert b"Connection: close\r\n" in wire.written
        assert wire.written.endswith(b"hi")
        assert wire.closing
    for front in (idle, busy, opening):
        front.connection_lost(None)
    assert not pipeline.kept


async def test_a_drain_leaves_what_became_a_tunnel_alone() -> None:
    pipeline = Opens()
    front, wire = await connected(pipeline)
    front.data_received(get().replace(b"Host: x", b"Connection: Upgrade\r\nUpgrade: websocket"))
    await turns()
    pipeline.exit.tunnel.to_customer(b"HTTP/1.1 101 S\r\nUpgrade: websocket\r\n\r\n")
    drain(pipeline)
    assert pipeline.exit.tunnel.open
    assert not wire.closing


async def test_an_exit_that_pours_before_its_tunnel_stands_is_read_no_further() -> None:
    pipeline = Opens()
    exit_ = ConnectExit(b"", Splices(), carries_eof=True)
    wire: Any = Wire()
    exit_.connection_made(wire)
    exit_.data_received(b"HTTP/1.1 200 OK\r\n\r\n" + bytes(1000))
    assert not wire.paused
    exit_.data_received(bytes(EARLY_MAX_BYTES))
    assert wire.paused
    exit_.attach(pipeline.tunnel(exit_))
    assert not wire.paused


async def test_a_refused_head_request_gets_no_body() -> None:
    class Refuses(Opens):
        async def open(self, request: Any) -> Outcome:
            return Outcome(RefusedRequest(Refusal.AUTH_INVALID, "no"))

    front, wire = await connected(Refuses())
    front.data_received(get(method="HEAD"))
    await turns()
    assert wire.written.startswith(b"HTTP/1.1 407 ")
    assert wire.written.endswith(b"\r\n\r\n")
    assert not wire.closing
