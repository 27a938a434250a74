"""`python -m benchmarks.link PORT NEXT_PORT BYTES_PER_S`: a slow uplink, as one forwarder on loopback.

What a peer sends passes at the given rate, in the order in which it was read; the other direction passes freely. The queue
of the link is the receive buffer of its sockets and one chunk, as small as a good router's. Left out: delay and loss.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
import sys
import time
from typing import Final

QUEUE_BYTES: Final = 64 * 1024
CHUNK_BYTES: Final = 16 * 1024
FREE_READ_BYTES: Final = 256 * 1024


class Rate:
    """One rate for all connections: bytes take their turns on it."""

    def __init__(self, bytes_per_s: float) -> None:
        self._bytes_per_s = bytes_per_s
        self._free_s = 0.0
        self._turn = asyncio.Lock()

    async def passes(self, size: int) -> None:
        """Return when this many bytes have left the link."""
        async with self._turn:
            now = time.monotonic()
            self._free_s = max(self._free_s, now - 0.002) + size / self._bytes_per_s
            await asyncio.sleep(self._free_s - now)


async def forward(source: socket.socket, sink: socket.socket, rate: Rate | None) -> None:
    """One direction, until its end."""
    loop = asyncio.get_running_loop()
    with contextlib.suppress(OSError):
        while data := await loop.sock_recv(source, CHUNK_BYTES if rate else FREE_READ_BYTES):
            if rate is not None:
                await rate.passes(len(data))
            await loop.sock_sendall(sink, data)
    for end in (source, sink):
        with contextlib.suppress(OSError):
            end.shutdown(socket.SHUT_RDWR)


async def connection(peer: socket.socket, next_port: int, rate: Rate) -> None:
    """One connection of a peer."""
    loop = asyncio.get_running_loop()
    with peer, socket.socket() as relay:
        for end in (peer, relay):
            end.setblocking(False)
            end.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        await loop.sock_connect(relay, ("127.0.0.1", next_port))
        await asyncio.gather(forward(peer, relay, rate), forward(relay, peer, None))


async def main(port: int, next_port: int, bytes_per_s: float) -> None:
    """Serve until killed."""
    loop, rate = asyncio.get_running_loop(), Rate(bytes_per_s)
    running: set[asyncio.Task[None]] = set()
    with socket.socket() as listener:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, QUEUE_BYTES)
        listener.bind(("127.0.0.1", port))
        listener.listen(64)
        listener.setblocking(False)
        while True:
            peer, _ = await loop.sock_accept(listener)
            task = loop.create_task(connection(peer, next_port, rate))
            running.add(task)
            task.add_done_callback(running.discard)


if __name__ == "__main__":
    asyncio.run(main(int(sys.argv[1]), int(sys.argv[2]), float(sys.argv[3])))
