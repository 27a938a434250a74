"""Customers' listeners: plain, behind TLS, or behind a load balancer that says who connects (PROXY protocol v2)."""

from __future__ import annotations

import asyncio
import socket
import ssl
from collections.abc import Callable, Sequence
from ipaddress import ip_address
from pathlib import Path
from typing import Final

from prometheus_client import Counter

from gateway_node.customer import CROWDED, CustomerSide
from gateway_node.lobby import Lobby
from gateway_node.settings import Network
from shared.wire.proxy_protocol import NotProxied, Proxied, missing_bytes, read_header

HEADER_TIMEOUT_S: Final = 5.0
TLS_HANDSHAKE_TIMEOUT_S: Final = 10.0
BACKLOG: Final = 1024
ACCEPT_RETRY_S: Final = 0.05

NOT_PROXIED: Final = Counter(
    "psx_gateway_not_proxied", "Connections cut: not from a balancer, or without its header", ["reason"]
)


def tls_context(cert: Path | None, key: Path | None) -> ssl.SSLContext | None:
    """TLS of the listeners, if a certificate is set."""
    if cert is None or key is None:
        return None
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.load_cert_chain(cert, key)
    return context


async def listen(
    make: Callable[[], CustomerSide],
    host: str,
    port: int,
    *,
    tls: ssl.SSLContext | None = None,
    balancers: Sequence[Network] = (),
    shared_port: bool = False,
) -> asyncio.Server | Doorway:
    """A listening server; `shared_port` lets several workers accept on one port.

    With `balancers` nobody else is let in, and whom they name is believed.
    """
    if tls is None and not balancers:
        loop = asyncio.get_running_loop()
        return await loop.create_server(make, host, port, backlog=BACKLOG, reuse_port=shared_port or None)
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listening = socket.create_server((host, port), family=family, backlog=BACKLOG, reuse_port=shared_port)
    return Doorway(listening, make, tls, balancers)


class Doorway:
    """Accepts connections, reads exactly a balancer's header where there is one, and hands them to customers' sides.

    Not a byte more is read: what follows may be the beginning of TLS, which must see all of it. Handshakes of TLS are
    counted by where they come from, like all that wait: strangers cannot fill the gateway with them.
    """

    def __init__(
        self,
        listening: socket.socket,
        make: Callable[[], CustomerSide],
        tls: ssl.SSLContext | None,
        balancers: Sequence[Network],
    ) -> None:
        listening.setblocking(False)
        self.sockets = (listening,)
        self._make = make
        self._tls = tls
        self._balancers = tuple(balancers)
        self._shaking_hands = Lobby()
        self._loop = asyncio.get_running_loop()
        self._running: set[asyncio.Task[None]] = set()
        self._accepting = self._loop.create_task(self._accept())

    def close(self) -> None:
        """Accept no more; connections that were handed over go on."""
        self._accepting.cancel()
        for task in self._running:
            task.cancel()
        self.sockets[0].close()

    async def _accept(self) -> None:
        while True:
            try:
                connection, peer = await self._loop.sock_accept(self.sockets[0])
            except OSError:  # it was gone before it was accepted, or there are no descriptors left
                await asyncio.sleep(ACCEPT_RETRY_S)
                continue
            address = str(peer[0])
            if self._balancers and not self._trusts(address):
                NOT_PROXIED.labels("stranger").inc()
                connection.close()
                continue
            task = self._loop.create_task(self._let_in(connection, address))
            self._running.add(task)
            task.add_done_callback(self._running.discard)

    def _trusts(self, address: str) -> bool:
        """Whether an address is a balancer's. IPv4 that comes by an IPv6 listener is IPv4."""
        found = ip_address(address.partition("%")[0])
        mapped = found.ipv4_mapped if found.version == 6 else None
        return any((mapped or found) in network for network in self._balancers)

    async def _let_in(self, connection: socket.socket, address: str | None) -> None:
        connection.setblocking(False)
        handed_over = False
        try:
            if self._balancers:
                async with asyncio.timeout(HEADER_TIMEOUT_S):
                    address = (await self._header(connection)).address
            if address is not None:  # a balancer's own look at the port names nobody
                handed_over = await self._hand_over(connection, address)
        except NotProxied:
            NOT_PROXIED.labels("no_header").inc()
        except (OSError, TimeoutError):  # a customer that left at once, or never began
            pass
        finally:
            if not handed_over:
                connection.close()

    async def _hand_over(self, connection: socket.socket, address: str) -> bool:
        """False when too many of that address are at it already. Raises OSError when the handshake fails."""
        if not self._shaking_hands.enter(address):
            CROWDED.inc()
            return False
        front = self._make()
        front.told_address = address
        timeout_s = TLS_HANDSHAKE_TIMEOUT_S if self._tls else None
        try:
            await self._loop.connect_accepted_socket(
                lambda: front, connection, ssl=self._tls, ssl_handshake_timeout=timeout_s
            )
        finally:
            self._shaking_hands.leave(address)
        return True

    async def _header(self, connection: socket.socket) -> Proxied:
        raw = b""
        while (header := read_header(raw)) is None:
            piece = await self._loop.sock_recv(connection, missing_bytes(raw))
            if not piece:
                raise NotProxied("closed")
            raw += piece
        return header
