"""Dialling targets as the egress policy lets, and tunnels of binary-v1; those of v2 are in `streams.py`."""

from __future__ import annotations

import asyncio
import ipaddress
import logging
import socket
import time
from collections.abc import Awaitable, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache
from threading import BoundedSemaphore
from typing import TYPE_CHECKING, Final

from psx_peer.wire import egress, peer

if TYPE_CHECKING:
    from psx_peer.relay import RelaySocket

DIAL_TIMEOUT_S: Final = 8.0
ADDRESSES_TRIED: Final = 4
LOOKUPS_MAX: Final = 256
LOOKUP_THREADS: Final = 32
"""A thread waits for silent name servers for up to half a minute; a gateway asks for four names at once, and for no other
in their places before `DIAL_TIMEOUT_S` (decision 0096).
"""
LITERALS_KEPT: Final = 256
BLOCKED_MAX_S: Final = 30.0
"""A target of v1 that reads nothing for so long is given up: it holds up its whole socket."""
TARGET_BUFFER_MAX_BYTES: Final = 8 * 1024 * 1024
READ_CHUNK_BYTES: Final = peer.DATA_PAYLOAD_BYTES

log = logging.getLogger("psx_peer")


class DialRefused(Exception):
    """The target may not, or could not, be dialled."""

    def __init__(self, reason: peer.OpenFailure, detail: str, *, policy: bool = False) -> None:
        super().__init__(detail)
        self.reason = reason
        self.detail = detail
        self.policy = policy


Dialer = Callable[[asyncio.Protocol, str, int], Awaitable[asyncio.Transport]]
"""Connects a protocol to (host, port); the protocol is not used before the answer. Raises DialRefused."""


class DirectDialer:
    """Dials from this device. The address that is checked is the address that is dialled. `own` tells its own networks."""

    def __init__(
        self,
        policy: egress.EgressPolicy,
        bind: str | None = None,
        hosts: tuple[tuple[str, str], ...] = (),
        timeout_s: float = DIAL_TIMEOUT_S,
        own: Callable[[], Sequence[egress.Network]] = tuple,
    ) -> None:
        self._policy = policy
        self._own = own
        self._bind = bind
        self._hosts = dict(hosts)
        self._timeout_s = timeout_s

    async def __call__(self, side: asyncio.Protocol, host: str, port: int) -> asyncio.Transport:
        """A connected transport to the target. Raises DialRefused."""
        failed = DialRefused(peer.OpenFailure.DNS_FAILED, "name not found")
        try:
            async with asyncio.timeout(self._timeout_s):
                for address in (await self._resolve(host, port))[:ADDRESSES_TRIED]:
                    try:
                        return await self._connect(side, address, port)
                    except ConnectionRefusedError:
                        failed = DialRefused(peer.OpenFailure.CONNECTION_REFUSED, "refused")
                    except OSError as error:
                        failed = DialRefused(peer.OpenFailure.UNKNOWN, f"errno {error.errno}")
        except TimeoutError:
            raise DialRefused(peer.OpenFailure.TIMEOUT, "dial timed out") from None
        raise failed

    async def _connect(self, side: asyncio.Protocol, address: str, port: int) -> asyncio.Transport:
        local = (self._bind, 0) if self._bind else None
        loop = asyncio.get_running_loop()
        transport, _ = await loop.create_connection(lambda: side, address, port, local_addr=local)
        return transport

    async def _resolve(self, host: str, port: int) -> list[str]:
        """Addresses that may all be dialled: one that may not refuses the name."""
        loop = asyncio.get_running_loop()
        known = self._hosts.get(host.lower())
        if not 0 < port <= egress.MAX_PORT:
            raise DialRefused(peer.OpenFailure.CONNECTION_REFUSED, "egress policy: blocked_port", policy=True)
        try:
            found = [known] if known else await _lookup(loop, host, port)
        except (OSError, UnicodeError):
            raise DialRefused(peer.OpenFailure.DNS_FAILED, "name not found") from None
        own = self._own()
        for address in found:
            verdict = egress.check_address(address, port, self._policy, own)
            if verdict is not egress.EgressVerdict.ALLOWED:
                detail = f"egress policy: {verdict.value}"
                raise DialRefused(peer.OpenFailure.CONNECTION_REFUSED, detail, policy=True)
        return list(dict.fromkeys(found))


_lookups = ThreadPoolExecutor(LOOKUP_THREADS, "psx-lookup")
_looking_up = BoundedSemaphore(LOOKUPS_MAX)


async def _lookup(loop: asyncio.AbstractEventLoop, host: str, port: int) -> list[str]:
    """Addresses of a name; a literal is one already, and asking a resolver's thread for it would cost a dial.

    A lookup goes on when its tunnel is gone, so a flood of names must not pile up. Raises OSError.
    """
    literal = _literal(host)
    if literal is not None:
        return [literal]
    if not _looking_up.acquire(blocking=False):
        raise OSError("too many names at once")
    work = _lookups.submit(socket.getaddrinfo, host, port, type=socket.SOCK_STREAM)
    work.add_done_callback(lambda _: _looking_up.release())
    found = await asyncio.shield(asyncio.wrap_future(work, loop=loop))
    return [str(i[4][0]) for i in found]


@lru_cache(maxsize=LITERALS_KEPT)
def _literal(host: str) -> str | None:
    """The usual form of an address; None for a name."""
    try:
        return str(ipaddress.ip_address(host))
    except ValueError:
        return None


class TargetSide(asyncio.Protocol):
    """One tunnel: a session of the relay on one side, a target on the other."""

    def __init__(self, relay: RelaySocket, session_id: str) -> None:
        self._relay = relay
        self.session_id = session_id
        self._prefix = peer.binary_prefix(peer.FrameType.DATA, session_id)
        self._transport: asyncio.Transport | None = None
        self._early = bytearray()
        self.moved_s = asyncio.get_running_loop().time()
        self._blocked_timer: asyncio.TimerHandle | None = None
        self._holds = 0
        self._closed = False
        self._task: asyncio.Task[None] | None = None

    def start(self, dialer: Dialer, host: str, port: int) -> None:
        """Dial in the background."""
        self._task = asyncio.get_running_loop().create_task(self._dial(dialer, host, port))

    async def _dial(self, dialer: Dialer, host: str, port: int) -> None:
        began = time.monotonic()
        try:
            transport = await dialer(self, host, port)
        except DialRefused as refusal:
            took_ms = int((time.monotonic() - began) * 1000)
            log.debug("tunnel refused: %s", refusal.detail)
            self._relay.open_failed(self.session_id, refusal.reason, refusal.detail, took_ms)
            return
        if self._closed:
            transport.abort()
            return
        self._transport = transport
        if self._holds:
            transport.pause_reading()
        log.debug("[TCP_OPEN_OK] %s", self.session_id)
        self._relay.opened(self.session_id)
        if self._early:
            transport.write(bytes(self._early))
            self._early.clear()

    # from the relay

    def to_target(self, data: bytes) -> None:
        """Customer's bytes. A target that reads too slowly stops the relay socket until it has caught up."""
        self.moved_s = asyncio.get_running_loop().time()
        self._relay.pause_for(self._relay.spend(len(data)))
        if self._transport is None:
            self._early += data
            if len(self._early) > TARGET_BUFFER_MAX_BYTES:
                self.close()
            return
        if not self._transport.is_closing():
            self._transport.write(data)

    def close(self) -> None:
        """The relay ended the session: what was written still leaves."""
        self._closed = True
        if self._transport is not None:
            self._transport.close()
        elif self._task is not None:
            self._task.cancel()

    def abort(self) -> None:
        """The relay socket is gone, or the owner stopped."""
        self._closed = True
        if self._transport is not None:
            self._transport.abort()
        elif self._task is not None:
            self._task.cancel()

    def pause_reading(self) -> None:
        """The relay socket is full, or the owner's allowance is spent. Holds add up."""
        self._holds += 1
        if self._holds == 1 and self._transport is not None and not self._transport.is_closing():
            self._transport.pause_reading()

    def resume_reading(self) -> None:
        """One hold less."""
        self._holds = max(0, self._holds - 1)
        if not self._holds and self._transport is not None and not self._transport.is_closing():
            self._transport.resume_reading()

    # from the target

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """The dialer hands the transport over when it is done."""

    def data_received(self, data: bytes) -> None:
        loop = asyncio.get_running_loop()
        self.moved_s = loop.time()
        for start in range(0, len(data), READ_CHUNK_BYTES):
            self._relay.send_data(self._prefix, data[start : start + READ_CHUNK_BYTES])
        wait_s = self._relay.spend(len(data))
        if wait_s:
            self.pause_reading()
            loop.call_later(wait_s, self.resume_reading)

    def pause_writing(self) -> None:
        self._relay.block(self)
        self._blocked_timer = asyncio.get_running_loop().call_later(BLOCKED_MAX_S, self._give_up)

    def resume_writing(self) -> None:
        self._unblock()

    def connection_lost(self, exc: Exception | None) -> None:
        self._unblock()
        self._relay.target_closed(self, tell=not self._closed)

    def _unblock(self) -> None:
        if self._blocked_timer is not None:
            self._blocked_timer.cancel()
            self._blocked_timer = None
        self._relay.unblock(self)

    def _give_up(self) -> None:
        if self._transport is not None:
            self._transport.abort()
