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

from gateway_node.customer import CustomerSide
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
) -> asyncio.Server | BehindBalancer:
    """A listening server; `shared_port` lets several workers accept on one port.

    With `balancers` nobody else is let in, and whom they name is believed.
    """
    loop = asyncio.get_running_loop()
    reuse = True if shared_port else None
    if balancers:
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        listening = socket.create_server((host, port), family=family, backlog=BACKLOG, reuse_port=shared_port)
        return BehindBalancer(listening, make, tls, balancers)
    timeout_s = TLS_HANDSHAKE_TIMEOUT_S if tls else None
    return await loop.create_server(
        make, host, port, ssl=tls, ssl_handshake_timeout=timeout_s, backlog=BACKLOG, reuse_port=reuse
    )


class BehindBalancer:
    """Accepts connections of a balancer, reads exactly its header, and hands them to customers' sides.

    Not a byte more is read: what follows may be the beginning of TLS, which must see all of it.
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
            if not self._trusts(str(peer[0])):
                NOT_PROXIED.labels("stranger").inc()
                connection.close()
                continue
            task = self._loop.create_task(self._hand_over(connection))
            self._running.add(task)
            task.add_done_callback(self._running.discard)

    def _trusts(self, address: str) -> bool:
        """Whether an address is a balancer's. IPv4 that comes by an IPv6 listener is IPv4."""
        found = ip_address(address.partition("%")[0])
        mapped = found.ipv4_mapped if found.version == 6 else None
        return any((mapped or found) in network for network in self._balancers)

    async def _hand_over(self, connection: socket.socket) -> None:
        connection.setblocking(False)
        timeout_s = TLS_HANDSHAKE_TIMEOUT_S if self._tls else None
        try:
            async with asyncio.timeout(HEADER_TIMEOUT_S):
                header = await self._header(connection)
            if header.address is not None:
                front = self._make()
                front.told_address = header.address
                await self._loop.connect_accepted_socket(
                    lambda: front, connection, ssl=self._tls, ssl_handshake_timeout=timeout_s
                )
                return
        except (NotProxied, OSError, TimeoutError):  # no header, or a customer that left at once
            NOT_PROXIED.labels("no_header").inc()
        except asyncio.CancelledError:
            connection.close()
            raise
        connection.close()

    async def _header(self, connection: socket.socket) -> Proxied:
        raw = b""
        while (header := read_header(raw)) is None:
            piece = await self._loop.sock_recv(connection, missing_bytes(raw))
            if not piece:
                raise NotProxied("closed")
            raw += piece
        return header
