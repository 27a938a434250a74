"""`python -m benchmarks.bare PORT REDIS_PORT EXIT [TARGET]`: the least that a process of ours could be, as a yardstick.

With a target it is a gateway: for each CONNECT it asks Redis once, dials the exit, sends a CONNECT of its own, answers, and
tells Redis of the end; without one it passes connections on, as a relay and a peer do. Callbacks on uvloop, like ours. It
authenticates, selects, counts, checks, bounds and logs nothing: what it costs is what the interpreter, the loop and the
kernel take for the sockets, the wake-ups and the calls alone. Faster than this no gateway of that kind is in Python.
"""

from __future__ import annotations

import asyncio
import sys
from collections import deque
from collections.abc import Callable
from typing import Any, Final, cast

import hiredis
import uvloop

ASK: Final = hiredis.pack_command(cast(Any, ("HMGET", "bare", "host", "port", "country", "account", "tier")))
TELL: Final = hiredis.pack_command(cast(Any, ("INCR", "bare:ended")))
GATHER_S: Final = 0.005
HEAD_END: Final = b"\r\n\r\n"
ANSWER: Final = b"HTTP/1.1 200 Connection established\r\n\r\n"
_NOTHING: Final = object()


class Redis(asyncio.Protocol):
    """One pipelined connection; the calls of a turn leave in one write."""

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._reader = hiredis.Reader(notEnoughData=_NOTHING)
        self._waiting: deque[Callable[[], None] | None] = deque()
        self._out: list[bytes] = []
        self._ended = 0

    def connection_made(self, transport: Any) -> None:
        self._transport = transport

    def call(self, command: bytes, then: Callable[[], None] | None = None) -> None:
        """Send, and call back when the answer is here."""
        if not self._out:
            self._loop.call_soon(self._flush)
        self._out.append(command)
        self._waiting.append(then)

    def tell_of_end(self) -> None:
        """Several ends are one call."""
        if not self._ended:
            self._loop.call_later(GATHER_S, self._tell)
        self._ended += 1

    def _tell(self) -> None:
        self._ended = 0
        self.call(TELL)

    def _flush(self) -> None:
        out, self._out = self._out, []
        self._transport.write(b"".join(out))

    def data_received(self, data: bytes) -> None:
        self._reader.feed(data)
        while self._reader.gets() is not _NOTHING:
            then = self._waiting.popleft()
            if then is not None:
                then()


class Side(asyncio.Protocol):
    """One connection; what it reads goes to the other one."""

    def __init__(self) -> None:
        self.transport: Any = None
        self.other: Side | None = None

    def connection_made(self, transport: Any) -> None:
        self.transport = transport

    def data_received(self, data: bytes) -> None:
        if self.other is not None:
            self.other.transport.write(data)

    def connection_lost(self, exc: Exception | None) -> None:
        other, self.other = self.other, None
        if other is not None and other.transport is not None:
            other.transport.close()


class Bare:
    """Where everything goes."""

    def __init__(self, redis: Redis, exit_at: str, target: str) -> None:
        host, _, port = exit_at.rpartition(":")
        self._loop = asyncio.get_running_loop()
        self._exit = (host, int(port))
        self.redis = redis
        self.ask = f"CONNECT {target} HTTP/1.1\r\nHost: {target}\r\n\r\n".encode() if target else b""

    def dial(self, make: Callable[[], Side]) -> None:
        """Connect to the exit; a fault ends the process's figures, and is printed."""
        self._loop.create_task(self._loop.create_connection(make, *self._exit))


class Customer(Side):
    """A customer's connection."""

    def __init__(self, bare: Bare) -> None:
        super().__init__()
        self._bare = bare
        self._early = b""

    def connection_made(self, transport: Any) -> None:
        super().connection_made(transport)
        if not self._bare.ask:
            self._bare.dial(lambda: Exit(self, self._bare))

    def data_received(self, data: bytes) -> None:
        if self.other is not None:
            self.other.transport.write(data)
            return
        self._early += data
        if self._bare.ask and self._early.endswith(HEAD_END):
            self._early = b""
            self._bare.redis.call(ASK, self._asked)

    def _asked(self) -> None:
        self._bare.dial(lambda: Exit(self, self._bare))

    def stands(self, exit_: Exit, answer: bytes) -> None:
        """The exit is there: bytes flow from now on."""
        self.other = exit_
        if answer:
            self.transport.write(answer)
        if self._early:
            exit_.transport.write(self._early)


class Exit(Side):
    """The connection to the exit, or to the next process."""

    def __init__(self, customer: Customer, bare: Bare) -> None:
        super().__init__()
        self._customer = customer
        self._bare = bare

    def connection_made(self, transport: Any) -> None:
        super().connection_made(transport)
        if self._bare.ask:
            transport.write(self._bare.ask)
        else:
            self._stands(b"")

    def data_received(self, data: bytes) -> None:
        if self.other is not None:
            self.other.transport.write(data)
        else:  # the exit's answer, which comes whole
            self._stands(ANSWER + data.partition(HEAD_END)[2])

    def _stands(self, answer: bytes) -> None:
        self.other = self._customer
        self._customer.stands(self, answer)

    def connection_lost(self, exc: Exception | None) -> None:
        super().connection_lost(exc)
        if self._bare.ask:
            self._bare.redis.tell_of_end()


async def main(port: int, redis_port: int, exit_at: str, target: str = "") -> None:
    """Serve until killed."""
    loop = asyncio.get_running_loop()
    _, redis = await loop.create_connection(Redis, "127.0.0.1", redis_port)
    bare = Bare(redis, exit_at, target)
    server = await loop.create_server(lambda: Customer(bare), "127.0.0.1", port, backlog=1024)
    await server.serve_forever()


if __name__ == "__main__":
    uvloop.run(main(int(sys.argv[1]), int(sys.argv[2]), *sys.argv[3:]))
