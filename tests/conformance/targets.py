"""A target whose every connection is in the test's hands."""

from __future__ import annotations

import asyncio
import socket
import struct
from dataclasses import dataclass

from tests.conformance.relay import WAIT_S, within


@dataclass
class Connection:
    """One connection that a peer dialled."""

    reader: asyncio.StreamReader
    writer: asyncio.StreamWriter

    async def read(self, size: int) -> bytes:
        """Exactly so many bytes."""
        found: bytes = await within(self.reader.readexactly(size), f"{size} bytes at the target")
        return found

    async def end(self) -> bytes:
        """What comes until the peer ends its direction; a reset counts as an end."""
        try:
            found: bytes = await within(self.reader.read(-1), "the end at the target")
        except ConnectionError:
            return b""
        return found

    async def say(self, data: bytes) -> None:
        """Send, as far as the peer takes it."""
        self.writer.write(data)
        await asyncio.wait_for(self.writer.drain(), WAIT_S)

    def reset(self) -> None:
        """End it with a reset."""
        raw = self.writer.get_extra_info("socket")
        raw.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.writer.transport.abort()


class Target:
    """Listens on loopback; `arrived` holds connections in their order."""

    def __init__(self, host: str = "127.0.0.1", port: int = 0) -> None:
        self.host = host
        self.port = port
        self.count = 0
        self.arrived: asyncio.Queue[Connection] = asyncio.Queue()
        self._all: list[Connection] = []
        self._server: asyncio.Server | None = None

    async def start(self) -> None:
        self._server = await asyncio.start_server(self._serve, self.host, self.port, backlog=512)
        self.port = self._server.sockets[0].getsockname()[1]

    async def stop(self) -> None:
        for connection in self._all:
            connection.writer.transport.abort()
        if self._server is not None:
            self._server.close()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.count += 1
        connection = Connection(reader, writer)
        self._all.append(connection)
        self.arrived.put_nowait(connection)

    async def connection(self) -> Connection:
        """The next one."""
        found: Connection = await within(self.arrived.get(), "a connection at the target")
        return found
