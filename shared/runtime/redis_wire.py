"""Connections to Redis for the nodes: pipelining, one per server, and the slot map of a Cluster.

Calls of one loop turn leave in one write, answers come back in order; there is no pool to wait for, and a call costs a
future. A lost connection fails what was under way (its outcome is unknown) and is made again by the next call.
Source: the Redis serialization protocol (RESP2) by hiredis; the Cluster specification, "Key distribution model".
"""

from __future__ import annotations

import asyncio
import binascii
import contextlib
import ssl
from collections import deque
from collections.abc import Awaitable, Callable
from typing import Any, Final, cast
from urllib.parse import unquote, urlsplit

import hiredis

CONNECT_TIMEOUT_S: Final = 2.0
ANSWER_TIMEOUT_S: Final = 5.0
PING_EVERY_S: Final = 2.0
"""A subscription that is silent twice as long is dead: what it would have told is swept instead."""
MESSAGES_MAX: Final = 100_000
"""Messages that wait for a slow reader."""
SLOTS: Final = 16_384
MOVED_RETRIES_MAX: Final = 3
CLUSTER_SCHEMES: Final = frozenset({"redis+cluster", "rediss+cluster"})

Argument = str | int | bytes
Unheard = Callable[[Any], None]
"""Called with an answer that came after whoever asked had been cancelled."""
_NOTHING: Final = object()
_NO_PRIMARY: Final = ("READONLY ", "MASTERDOWN ", "LOADING ")
"""How a server answers that was the primary, or is not yet."""


def pack(*arguments: Argument) -> bytes:
    """A command as it goes over the wire."""
    return cast(bytes, hiredis.pack_command(cast(Any, arguments)))


class ConnectionGone(OSError):
    """The connection was lost, or did not answer, before the answer came."""


class Address:
    """What a Redis URL says: `redis[s][+cluster]://[user:password@]host[:port][/db]`; a login of its own goes before."""

    def __init__(self, url: str, login: tuple[str, str] | None = None) -> None:
        parts = urlsplit(url)
        self.host = parts.hostname or "127.0.0.1"
        self.port = parts.port or 6379
        self.tls = parts.scheme.startswith("rediss")
        self.cluster = parts.scheme in CLUSTER_SCHEMES
        user, password = login or (unquote(parts.username or ""), unquote(parts.password or ""))
        self.greeting: list[tuple[Argument, ...]] = []
        if password:
            self.greeting.append(("AUTH", user, password) if user else ("AUTH", password))
        database = parts.path.strip("/")
        if database not in {"", "0"} and not self.cluster:
            self.greeting.append(("SELECT", database))


class Connection(asyncio.Protocol):
    """One pipelined connection."""

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._reader = hiredis.Reader(notEnoughData=_NOTHING)
        self._transport: asyncio.Transport | None = None
        self._waiting: deque[tuple[asyncio.Future[Any], float, Unheard | None]] = deque()
        self._out: list[bytes] = []
        self._watch: asyncio.TimerHandle | None = None
        self.lost = False

    def send(self, packed: bytes, unheard: Unheard | None = None) -> asyncio.Future[Any]:
        """A command's answer to come: bytes, int, None, lists; an error as a `hiredis.ReplyError`. Cancelling forgets it,
        unless it is to be told when it comes, to `unheard`."""
        future = self._loop.create_future()
        if self.lost:
            future.set_exception(ConnectionGone("connection lost"))
            return future
        if not self._out:
            self._loop.call_soon(self._flush)
        self._out.append(packed)
        self._waiting.append((future, self._loop.time(), unheard))
        if self._watch is None:
            self._watch = self._loop.call_later(ANSWER_TIMEOUT_S, self._check)
        return future

    def close(self) -> None:
        """Hang up."""
        if self._transport is not None:
            self._transport.abort()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = transport  # type: ignore[assignment]  # uvloop's own are no subclass of it

    def data_received(self, data: bytes) -> None:
        self._reader.feed(data)
        try:
            while (answer := self._reader.gets()) is not _NOTHING:
                future, _, unheard = self._waiting.popleft()
                if not future.done():
                    future.set_result(answer)
                elif unheard is not None:
                    unheard(answer)
                if isinstance(answer, hiredis.ReplyError) and str(answer).startswith(_NO_PRIMARY):
                    self.close()  # the name may lead to another server by now
        except (hiredis.ProtocolError, IndexError):
            self.close()

    def connection_lost(self, exc: Exception | None) -> None:
        self.lost = True
        if self._watch is not None:
            self._watch.cancel()
        waiting, self._waiting = self._waiting, deque()
        for future, _, _ in waiting:
            if not future.done():
                future.set_exception(ConnectionGone("connection lost"))

    def _flush(self) -> None:
        out, self._out = self._out, []
        if self._transport is not None and not self._transport.is_closing():
            self._transport.write(b"".join(out))

    def _check(self) -> None:
        self._watch = None
        if not self._waiting:
            return
        age_s = self._loop.time() - self._waiting[0][1]
        if age_s >= ANSWER_TIMEOUT_S:
            self.close()
        else:
            self._watch = self._loop.call_later(ANSWER_TIMEOUT_S - age_s, self._check)


class Subscription(asyncio.Protocol):
    """A connection of its own that hears channels. A quiet one is pinged, so that a dead one is found."""

    def __init__(self, channels: tuple[str, ...]) -> None:
        self._loop = asyncio.get_running_loop()
        self._reader = hiredis.Reader(notEnoughData=_NOTHING)
        self._transport: asyncio.Transport | None = None
        self._silent = set(channels)
        self._messages: deque[tuple[str, str]] = deque()
        self._waiter: asyncio.Future[None] = self._loop.create_future()
        self._asked = False
        self._lost = False

    async def stands(self) -> None:
        """Wait until every channel is heard. Raises ConnectionGone."""
        while self._silent:
            await self._something()

    async def next(self) -> tuple[str, str]:
        """The next (channel, text). Raises ConnectionGone, or TimeoutError when the server does not answer."""
        while not self._messages:
            try:
                async with asyncio.timeout(PING_EVERY_S):
                    await self._something()
            except TimeoutError:
                if self._asked:
                    raise
                self._asked = True
                self.send("PING")
        return self._messages.popleft()

    async def _something(self) -> None:
        if self._lost:
            raise ConnectionGone("connection lost")
        self._waiter = self._loop.create_future()
        await self._waiter

    def send(self, *arguments: Argument) -> None:
        """Send a command; what comes back is heard in `next`."""
        if self._transport is not None and not self._transport.is_closing():
            self._transport.write(pack(*arguments))

    def close(self) -> None:
        """Hang up."""
        if self._transport is not None:
            self._transport.abort()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = transport  # type: ignore[assignment]  # uvloop's own are no subclass of it

    def data_received(self, data: bytes) -> None:
        self._asked = False
        self._reader.feed(data)
        try:
            while (answer := self._reader.gets()) is not _NOTHING:
                self._heard(answer)
        except hiredis.ProtocolError:
            self.close()
        self._wake()

    def _heard(self, answer: Any) -> None:
        if isinstance(answer, hiredis.ReplyError) or len(self._messages) >= MESSAGES_MAX:
            self.close()  # refused, or nobody reads: who subscribes again sweeps what was missed
        elif isinstance(answer, list) and answer[0] == b"subscribe":
            self._silent.discard(answer[1].decode())
        elif isinstance(answer, list) and answer[0] == b"message":
            self._messages.append((answer[1].decode(), answer[2].decode()))

    def connection_lost(self, exc: Exception | None) -> None:
        self._lost = True
        self._wake()

    def _wake(self) -> None:
        if not self._waiter.done():
            self._waiter.set_result(None)


class Server:
    """One Redis server: its connection, made when first needed and again after a loss."""

    def __init__(self, address: Address, host: str, port: int) -> None:
        self._address = address
        self._host = host
        self._port = port
        self._connection: Connection | None = None
        self._connecting: asyncio.Task[Connection] | None = None

    def send(self, packed: bytes, unheard: Unheard | None = None) -> Awaitable[Any]:
        """The server's answer to a command. Raises OSError or TimeoutError when it is not known."""
        connection = self._connection
        if connection is None or connection.lost:
            return self._send_when_connected(packed, unheard)
        asked = connection.send(packed, unheard)
        return asked if unheard is None else _told(asked, unheard)

    async def _send_when_connected(self, packed: bytes, unheard: Unheard | None) -> Any:
        connection = await self._connected()
        asked = connection.send(packed, unheard)
        return await (asked if unheard is None else _told(asked, unheard))

    async def _connected(self) -> Connection:
        if self._connecting is None or self._connecting.done():
            self._connecting = asyncio.get_running_loop().create_task(self._connect())
        return await asyncio.shield(self._connecting)

    async def _connect(self) -> Connection:
        loop = asyncio.get_running_loop()
        tls = ssl.create_default_context() if self._address.tls else None
        async with asyncio.timeout(CONNECT_TIMEOUT_S):
            _, connection = await loop.create_connection(Connection, self._host, self._port, ssl=tls)
            try:
                for greeting in self._address.greeting:
                    if isinstance(await connection.send(pack(*greeting)), hiredis.ReplyError):
                        raise ConnectionGone("refused by the server")
            except BaseException:
                connection.close()
                raise
        self._connection = connection
        return connection

    async def subscribe(self, channels: tuple[str, ...]) -> Subscription:
        """Raises OSError or TimeoutError."""
        loop = asyncio.get_running_loop()
        tls = ssl.create_default_context() if self._address.tls else None
        async with asyncio.timeout(CONNECT_TIMEOUT_S):
            _, subscription = await loop.create_connection(
                lambda: Subscription(channels), self._host, self._port, ssl=tls
            )
            try:
                for command in (*self._address.greeting, ("SUBSCRIBE", *channels)):
                    subscription.send(*command)
                await subscription.stands()
            except BaseException:
                subscription.close()
                raise
        return subscription

    async def close(self) -> None:
        """Hang up."""
        if self._connecting is not None and not self._connecting.done():
            self._connecting.cancel()
        if self._connection is not None:
            self._connection.close()
            await asyncio.sleep(0)


async def _told(asked: asyncio.Future[Any], unheard: Unheard) -> Any:
    """The answer; one that had come when its asker was cancelled, but before it ran again, is unheard too."""
    try:
        return await asked
    except asyncio.CancelledError:
        if asked.done() and not asked.cancelled() and asked.exception() is None:
            unheard(asked.result())
        raise


class Servers:
    """Where a key is: always the same server, or by the slot map of a Cluster."""

    def __init__(self, url: str, login: tuple[str, str] | None = None) -> None:
        self._address = Address(url, login)
        self._seed = Server(self._address, self._address.host, self._address.port)
        self._by_address: dict[tuple[str, int], Server] = {
            (self._address.host, self._address.port): self._seed
        }
        self._slots: list[tuple[int, int, Server]] = []

    def send(self, key: str | None, packed: bytes, unheard: Unheard | None = None) -> Awaitable[Any]:
        """The answer of the server that has the key to a command. Raises OSError or TimeoutError."""
        if not self._address.cluster:
            return self._seed.send(packed, unheard)
        return self._send_by_slot(key, packed, unheard)

    async def _send_by_slot(self, key: str | None, packed: bytes, unheard: Unheard | None) -> Any:
        answer: Any = None
        for _ in range(MOVED_RETRIES_MAX):
            if not self._slots:
                await self._read_slots()
            try:
                answer = await self._server(key).send(packed, unheard)
            except OSError:
                self._slots = []  # its part may be another server's by now
                raise
            if not (isinstance(answer, hiredis.ReplyError) and str(answer).startswith("MOVED ")):
                return answer
            self._slots = []
        return answer

    async def subscribe(self, *channels: str) -> Subscription:
        """Hear channels; what is published on one server of a Cluster is heard on all. Raises OSError or TimeoutError."""
        for server in [*self._by_address.values()][:-1]:
            with contextlib.suppress(OSError, TimeoutError):
                return await server.subscribe(channels)
        return await [*self._by_address.values()][-1].subscribe(channels)

    def _server(self, key: str | None) -> Server:
        slot = key_slot(key) if key is not None else 0
        return next((server for first, last, server in self._slots if first <= slot <= last), self._seed)

    async def _read_slots(self) -> None:
        for server in list(self._by_address.values()):
            try:
                rows = await server.send(pack("CLUSTER", "SLOTS"))
            except (OSError, TimeoutError):
                continue
            if not isinstance(rows, hiredis.ReplyError):
                self._slots = [(int(row[0]), int(row[1]), self._known(row[2])) for row in rows]
                return
        raise ConnectionGone("no server of the cluster answers")

    def _known(self, node: Any) -> Server:
        host, port = node[0].decode() or self._address.host, int(node[1])
        return self._by_address.setdefault((host, port), Server(self._address, host, port))

    async def close(self) -> None:
        """Hang up everywhere."""
        for server in self._by_address.values():
            await server.close()


def key_slot(key: str) -> int:
    """The Cluster slot of a key, by its hash tag when it has one."""
    start = key.find("{")
    end = key.find("}", start + 1) if start >= 0 else -1
    tag = key[start + 1 : end] if end > start + 1 else key
    return binascii.crc_hqx(tag.encode(), 0) % SLOTS
