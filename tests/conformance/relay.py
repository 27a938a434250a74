"""A scripted relay and a scripted API on loopback: they do what a test tells them, and remember what a peer did.

The relay's WebSocket is the `websockets` library's, so that peers are not tested against framing of our own; tunnel frames
are those of `shared.wire`.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import ssl
from collections.abc import Callable
from typing import Any, Final

from websockets.asyncio.server import Server, ServerConnection, serve
from websockets.exceptions import ConnectionClosed
from websockets.typing import Subprotocol

from shared.wire import mux, peer
from shared.wire.mux import Frame, MuxType
from shared.wire.outbox import Outbox
from shared.wire.stream import WINDOW_START_BYTES, FlowViolation, Stream, WindowBudget

WAIT_S: Final = 10.0
DEVICE: Final = "agent_c0ffee"


async def within(waiting: Any, what: str, wait_s: float = WAIT_S) -> Any:
    """Await something for a while; a failure says what never came."""
    try:
        return await asyncio.wait_for(waiting, wait_s)
    except TimeoutError:
        raise AssertionError(f"never came: {what}") from None


class ScriptedApi:
    """Registers and refreshes one device; answers as told."""

    def __init__(self) -> None:
        self.calls: list[tuple[str, dict[str, Any]]] = []
        self.owners_keys: list[tuple[str, str]] = []
        self.attempts: list[str] = []
        self.withdrawn: list[tuple[str, str]] = []
        self.relays: list[str] = []
        self.statuses: dict[str, list[int | tuple[int, str]]] = {"register": [], "refresh": []}
        self.issued = 0
        self._server: asyncio.Server | None = None
        self.url = ""

    async def start(self) -> None:
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        self.url = f"http://127.0.0.1:{self._server.sockets[0].getsockname()[1]}"

    async def stop(self) -> None:
        if self._server is not None:
            self._server.close()

    def named(self, kind: str) -> list[dict[str, Any]]:
        """Bodies of the calls of a kind."""
        return [body for path, body in self.calls if path.endswith(kind)]

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(asyncio.IncompleteReadError, ConnectionError):
            while True:
                head = (await reader.readuntil(b"\r\n\r\n")).decode()
                lines = head.split("\r\n")
                headers = {n.lower(): v.strip() for n, _, v in (line.partition(":") for line in lines[1:])}
                body = json.loads(await reader.readexactly(int(headers.get("content-length", "0"))) or b"{}")
                method, path = lines[0].split()[:2]
                if method == "DELETE":
                    self.withdrawn.append((path, headers.get("authorization", "")))
                if path.endswith("/register"):
                    self.attempts.append(headers.get("idempotency-key", ""))
                if "x-api-key" in headers:
                    self.owners_keys.append((path, headers["x-api-key"]))
                status, answer = self._answer(method, path, body)
                raw = json.dumps(answer).encode()
                writer.write(
                    f"HTTP/1.1 {status} Scripted\r\nContent-Type: application/json\r\n"
                    f"Content-Length: {len(raw)}\r\n\r\n".encode()
                    + raw
                )
                await writer.drain()
        writer.close()

    def _answer(self, method: str, path: str, body: dict[str, Any]) -> tuple[int, dict[str, Any]]:
        kind = "withdrawal" if method == "DELETE" else path.rsplit("/", 1)[-1]
        self.calls.append((path, body))
        told = self.statuses.get(kind)
        if told:
            script = told.pop(0)
            status, code = (script, "SCRIPTED") if isinstance(script, int) else script
            if status != 200:
                return status, {"code": code, "message": "as the test wants"}
        if kind in {"consent", "withdrawal"}:
            return 200, {"deviceId": DEVICE, "consentRecorded": True}
        self.issued += 1
        return 200, {
            "deviceId": DEVICE,
            "jwt": f"jwt-{self.issued}",
            "token": f"jwt-{self.issued}",
            "refreshToken": f"refresh-{self.issued}",
            "relay": self.relays[0],
            "relays": self.relays,
            "earningsPerGB": 0.5,
        }


class ScriptedRelay:
    """One relay. `protocol` is what it chooses; `select` answers the offered subprotocol."""

    def __init__(self, protocol: str = mux.PROTOCOL, tls: ssl.SSLContext | None = None) -> None:
        self.protocol = protocol
        self.tls = tls
        self.select: Callable[[str], str | None] = lambda offered: offered
        self.answers_heartbeats = True
        self.silent = False
        self.seen_at = "192.0.2.7"
        self.arrived: asyncio.Queue[Socket] = asyncio.Queue()
        self.upgrades: list[tuple[str, str]] = []
        self.open: list[Socket] = []
        self._server: Server | None = None
        self.port = 0

    async def start(self) -> None:
        self._server = await serve(
            self._serve,
            "127.0.0.1",
            self.port,
            ssl=self.tls,
            select_subprotocol=self._select,
            compression=None,
            max_size=8 * 1024 * 1024,
            ping_interval=None,
            close_timeout=1,
        )
        self.port = next(iter(self._server.sockets)).getsockname()[1]

    async def stop(self) -> None:
        if self._server is not None:
            self._server.close()
            for socket in list(self.open):
                socket.ws.transport.abort()
            await self._server.wait_closed()

    @property
    def url(self) -> str:
        return f"{'wss' if self.tls else 'ws'}://127.0.0.1:{self.port}/"

    async def socket(self, wait_s: float = WAIT_S) -> Socket:
        """The next socket that sent device_info and was answered."""
        found = await within(self.arrived.get(), "another socket with device_info", wait_s)
        assert isinstance(found, Socket)
        return found

    async def no_socket(self, wait_s: float) -> None:
        """Nobody comes for a while."""
        await asyncio.sleep(wait_s)
        assert self.arrived.empty(), "a socket came that should not"

    def _select(self, ws: ServerConnection, offered: Any) -> Subprotocol | None:
        first = offered[0] if offered else ""
        assert ws.request is not None
        self.upgrades.append((ws.request.path, first))
        answer = self.select(first)
        return None if answer is None else Subprotocol(answer)

    async def _serve(self, ws: ServerConnection) -> None:
        socket = Socket(self, ws)
        self.open.append(socket)
        try:
            await socket.run()
        finally:
            self.open.remove(socket)
            socket.closed.set()


class Socket:
    """A peer's socket, from the relay's side. Frames that a test asks for arrive in order; the rest is counted."""

    def __init__(self, relay: ScriptedRelay, ws: ServerConnection) -> None:
        self.relay = relay
        self.ws = ws
        self.device_info: dict[str, Any] = {}
        self.token = (ws.subprotocol or "").removeprefix("token.")
        self.v2 = False
        self.heartbeats = 0
        self.pings = 0
        self.texts: asyncio.Queue[peer.Text] = asyncio.Queue()
        self.binaries: asyncio.Queue[peer.Binary] = asyncio.Queue()
        self.frames: dict[int, asyncio.Queue[Frame]] = {}
        self.tunnels: dict[int, Tunnel] = {}
        self.pongs = 0
        self.closed = asyncio.Event()
        self.arrival_s = asyncio.get_running_loop().time()
        self._out: asyncio.Queue[bytes | str] = asyncio.Queue()
        self.outbox = Outbox(lambda head, payload=b"": self._out.put_nowait(head + bytes(payload)))

    @property
    def close_code(self) -> int | None:
        """What the peer closed with, once it did."""
        return self.ws.close_code

    async def run(self) -> None:
        writer = asyncio.ensure_future(self._write())
        with contextlib.suppress(ConnectionClosed):
            async for message in self.ws:
                if isinstance(message, str):
                    self._text(message)
                else:
                    self._binary(message)
        writer.cancel()
        with contextlib.suppress(asyncio.CancelledError, ConnectionClosed):
            await writer

    async def _write(self) -> None:
        while True:
            await self.ws.send(await self._out.get())

    def send(self, data: bytes | str) -> None:
        """A message, as it is."""
        self._out.put_nowait(data)

    def say(self, kind: peer.Type, **payload: Any) -> None:
        """A text frame."""
        self.send(peer.encode_text(kind, **payload).decode())

    def raw(self, data: bytes) -> None:
        """Bytes past all framing, while the socket stands."""
        with contextlib.suppress(RuntimeError):  # the peer has closed in this very turn
            self.ws.transport.write(data)

    def _text(self, message: str) -> None:
        text = peer.parse_text(message.encode())
        assert text is not None, message
        match text.type:
            case peer.Type.DEVICE_INFO:
                self.device_info = dict(text.payload)
                self.v2 = self.relay.protocol == mux.PROTOCOL == text.text("protocol")
                self.say(
                    peer.Type.CONNECTED,
                    deviceId=DEVICE,
                    ip=self.relay.seen_at,
                    protocol=mux.PROTOCOL if self.v2 else peer.PROTOCOL,
                )
                self.relay.arrived.put_nowait(self)
            case peer.Type.HEARTBEAT:
                self.heartbeats += 1
                if self.relay.answers_heartbeats and not self.relay.silent:
                    self.say(peer.Type.HEARTBEAT_ACK)
            case _:
                self.texts.put_nowait(text)

    def _binary(self, message: bytes) -> None:
        if not self.v2:
            self.binaries.put_nowait(peer.parse_binary(message))
            return
        frame = mux.parse(message)
        assert frame is not None
        if frame.type is MuxType.PING:
            self.pings += 1
            if not self.relay.silent:
                self.send(mux.header(MuxType.PONG, 0) + bytes(frame.body))
        elif frame.type is MuxType.PONG:
            self.pongs += 1
        elif frame.tunnel in self.tunnels:
            self.tunnels[frame.tunnel].receive(frame)
        else:
            self.frames.setdefault(frame.tunnel, asyncio.Queue()).put_nowait(frame)

    async def frame(self, tunnel: int, kind: MuxType, wait_s: float = WAIT_S) -> Frame:
        """The next frame of a tunnel, which must be of this type."""
        queue = self.frames.setdefault(tunnel, asyncio.Queue())
        found: Frame = await within(queue.get(), f"{kind.name} of tunnel {tunnel}", wait_s)
        assert found.type is kind, (found.type, bytes(found.body)[:80])
        return found

    async def text(self, kind: peer.Type, wait_s: float = WAIT_S) -> peer.Text:
        """The next text frame, which must be of this type."""
        found: peer.Text = await within(self.texts.get(), kind.value, wait_s)
        assert found.type is kind, found
        return found

    async def binary(self, wait_s: float = WAIT_S) -> peer.Binary:
        """The next binary frame of v1."""
        found: peer.Binary = await within(self.binaries.get(), "a binary frame", wait_s)
        return found

    async def gone(self, wait_s: float = WAIT_S) -> int | None:
        """Wait until the socket ended; its close code."""
        await within(self.closed.wait(), "the end of the socket", wait_s)
        return self.close_code

    def open_frame(self, tunnel: int, host: str, port: int, limit: int = WINDOW_START_BYTES) -> bytes:
        """OPEN with a token made of the tunnel's id."""
        return mux.open_frame(tunnel, token_of(tunnel), limit, host, port)

    async def alive(self) -> None:
        """The peer still answers here."""
        before = self.pongs
        self.send(mux.header(MuxType.PING, 0) + b"psx-ping")
        async with asyncio.timeout(WAIT_S):
            while self.pongs == before:
                await asyncio.sleep(0.005)


def token_of(tunnel: int) -> bytes:
    """A token for a test's tunnel."""
    return tunnel.to_bytes(mux.TOKEN_BYTES, "big")


class Tunnel:
    """The gateway's end of a v2 tunnel, by the gateway's own rules; it fails a peer that oversteps a limit."""

    def __init__(self, tunnel: int, window_bytes: int = WINDOW_START_BYTES) -> None:
        self.id = tunnel
        self.stream = Stream(self, token_of(tunnel), WindowBudget(1 << 26), window_bytes)
        self.got = bytearray()
        self.eof = asyncio.Event()
        self.opened = asyncio.Event()
        self.end: Frame | None = None
        self.over = asyncio.Event()
        self.violation: FlowViolation | None = None
        self.largest = 0

    async def open(self, socket: Socket, host: str, port: int) -> None:
        """OPEN, and wait for OPENED."""
        socket.tunnels[self.id] = self
        self.stream.attach(socket.outbox, self.id)
        socket.send(mux.open_frame(self.id, self.stream.token, self.stream.told_limit, host, port))
        await within(self.opened.wait(), "OPENED")
        assert self.end is None, self.end

    def lose(self, socket: Socket) -> None:
        """The path is gone: what still comes under the old id is nobody's."""
        socket.tunnels.pop(self.id, None)
        self.stream.detach()

    async def resume(self, socket: Socket, tunnel: int) -> None:
        """RESUME under another id on another socket."""
        self.opened.clear()
        self.id = tunnel
        socket.tunnels[tunnel] = self
        self.stream.attach(socket.outbox, tunnel)
        socket.send(mux.resume_frame(tunnel, self.stream.token, self.stream.received, self.stream.told_limit))
        await within(self.opened.wait(), "RESUMED")

    def receive(self, frame: Frame) -> None:
        """A frame of the peer."""
        try:
            match frame.type:
                case MuxType.OPENED:
                    self.stream.on_opened(mux.read_limit(frame.body))
                    self.opened.set()
                case MuxType.RESUMED:
                    self.stream.resume(*mux.read_window(frame.body))
                    self.opened.set()
                case MuxType.DATA:
                    self.largest = max(self.largest, len(frame.body))
                    self.stream.on_data(bytes(frame.body))
                case MuxType.WINDOW:
                    self.stream.on_window(*mux.read_window(frame.body))
                case MuxType.BLOCKED:
                    self.stream.on_blocked(mux.read_limit(frame.body))
                case MuxType.EOF:
                    self.stream.on_eof()
                case _:
                    self.end = frame
                    self.opened.set()
                    self.over.set()
        except FlowViolation as fault:
            self.violation = fault
            self.over.set()

    async def received(self, size: int, wait_s: float = WAIT_S) -> bytes:
        """Wait until so many bytes came."""
        async with asyncio.timeout(wait_s):
            while len(self.got) < size and self.violation is None and self.end is None:
                await asyncio.sleep(0.005)
        assert self.violation is None, self.violation
        return bytes(self.got)

    def deliver(self, data: mux.Bytes) -> None:
        self.got += data

    def ended(self) -> None:
        self.eof.set()

    def pause_source(self) -> None:
        """The test writes what it wants."""

    def resume_source(self) -> None:
        """The same."""
