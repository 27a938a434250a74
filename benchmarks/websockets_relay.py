"""`python -m benchmarks.websockets_relay PEER_PORT MESH_PORT KEY_FILE`: a relay as one would write it with `websockets`.

The yardstick of the relay rows: binary-v1 as our peers speak it, `async for` over messages, asyncio streams on the mesh
side, uvloop, tokens verified by the same function. Left out: presence, revocation, redirects, figures, limits, JSON data.
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import json
import sys
from collections.abc import Sequence
from itertools import count
from pathlib import Path
from typing import Any, Final

import uvloop
from websockets.asyncio.server import ServerConnection, serve
from websockets.exceptions import ConnectionClosed
from websockets.typing import Subprotocol

from shared.supply.tokens import Claims, verify

READ_BYTES: Final = 64 * 1024
MESSAGE_MAX_BYTES: Final = 1024 * 1024
OPEN_TIMEOUT_S: Final = 10.0
TOKEN: Final = "token."
DATA, CLOSE = b"\x01", 3


class Session:
    """One tunnel: the gateway's writer, and whether the peer has opened it."""

    def __init__(self, writer: asyncio.StreamWriter) -> None:
        self.writer = writer
        self.opened: asyncio.Future[bool] = asyncio.get_running_loop().create_future()

    def answer(self, opened: bool) -> None:
        """The peer's word; an end of an open tunnel closes the gateway's side."""
        if not self.opened.done():
            self.opened.set_result(opened)
        elif not opened:
            self.writer.close()


class Relay:
    """Sockets by device, and sessions by id."""

    def __init__(self, public_key: str) -> None:
        self._public_key = public_key
        self._sockets: dict[str, list[ServerConnection]] = {}
        self._sessions: dict[str, Session] = {}
        self._ids = count(1)
        self._turns = count()

    def subprotocol(self, _: ServerConnection, offered: Sequence[Subprotocol]) -> Subprotocol | None:
        """Accept the token's subprotocol."""
        return next((o for o in offered if o.startswith(TOKEN)), None)

    async def peer(self, socket: ServerConnection) -> None:
        """One socket of a peer."""
        claims = verify((socket.subprotocol or "").removeprefix(TOKEN), self._public_key)
        if not isinstance(claims, Claims):
            await socket.close(4001, "identity")
            return
        mine = self._sockets.setdefault(claims.device_id, [])
        try:
            async for message in socket:
                if isinstance(message, str):
                    await self._text(socket, mine, claims.device_id, json.loads(message))
                else:
                    await self._binary(message)
        finally:
            with contextlib.suppress(ValueError):
                mine.remove(socket)

    async def _text(
        self, socket: ServerConnection, mine: list[ServerConnection], device_id: str, message: dict[str, Any]
    ) -> None:
        payload = message.get("payload") or {}
        session = self._sessions.get(str(payload.get("sessionId", "")))
        match message["type"]:
            case "device_info":
                mine.append(socket)
                await _say(socket, "connected", deviceId=device_id, ip="", protocol="binary-v1")
            case "heartbeat":
                await _say(socket, "heartbeat_ack")
            case "tunnel_connected" if session:
                session.answer(True)
            case "tunnel_open_failed" | "tunnel_closed" | "tunnel_close" if session:
                session.answer(False)

    async def _binary(self, message: bytes) -> None:
        end = 2 + message[1]
        session = self._sessions.get(message[2:end].decode())
        if session is None:
            return
        if message[0] == CLOSE:
            session.answer(False)
            return
        with contextlib.suppress(
            OSError, RuntimeError
        ):  # uvloop raises on a transport that closed in this very turn
            session.writer.write(message[end:])
            await session.writer.drain()

    async def mesh(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """One CONNECT of a gateway."""
        session_id, socket = f"{next(self._ids):016x}", None
        try:
            first, *lines = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").split("\r\n")
            host, _, port = first.split(" ")[1].rpartition(":")
            fields = dict(line.split(": ", 1) for line in lines if line)
            sockets = self._sockets[fields["X-PSX-Device"]]
            socket = sockets[next(self._turns) % len(sockets)]
            session = self._sessions[session_id] = Session(writer)
            await _say(socket, "tunnel_connect", sessionId=session_id, host=host, port=int(port))
            opened = await asyncio.wait_for(session.opened, OPEN_TIMEOUT_S)
            writer.write(b"HTTP/1.1 200 OK\r\n\r\n" if opened else b"HTTP/1.1 502 Refused\r\n\r\n")
            prefix = DATA + bytes([len(session_id)]) + session_id.encode()
            while opened and (data := await reader.read(READ_BYTES)):
                await socket.send(prefix + data)
        except (OSError, RuntimeError, EOFError, KeyError, ZeroDivisionError, TimeoutError, ConnectionClosed):
            pass  # whoever breaks off gets no answer
        finally:
            writer.close()
            if self._sessions.pop(session_id, None) and socket is not None:
                with contextlib.suppress(ConnectionClosed):
                    await _say(socket, "tunnel_close", sessionId=session_id)


async def _say(socket: ServerConnection, kind: str, **payload: Any) -> None:
    await socket.send(json.dumps({"type": kind, "payload": payload}, separators=(",", ":")))


async def main(peer_port: int, mesh_port: int, public_key: str) -> None:
    """Serve until killed."""
    relay = Relay(public_key)
    peers = await serve(
        relay.peer,
        "127.0.0.1",
        peer_port,
        select_subprotocol=relay.subprotocol,
        compression=None,
        ping_interval=None,
        max_size=MESSAGE_MAX_BYTES,
    )
    mesh = await asyncio.start_server(relay.mesh, "127.0.0.1", mesh_port)
    gc.freeze()
    async with peers, mesh:
        await asyncio.Event().wait()


if __name__ == "__main__":
    uvloop.run(main(int(sys.argv[1]), int(sys.argv[2]), Path(sys.argv[3]).read_text()))
