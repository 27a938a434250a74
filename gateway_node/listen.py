"""Customers' listeners: plain, behind TLS, or behind a load balancer that says who connects (PROXY protocol v2)."""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import Callable
from pathlib import Path
from typing import Final, cast

from gateway_node.customer import CustomerSide
from shared.wire.proxy_protocol import NotProxied, read_header

HEADER_TIMEOUT_S: Final = 5.0
TLS_HANDSHAKE_TIMEOUT_S: Final = 10.0
BACKLOG: Final = 1024


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
    proxied: bool = False,
    shared_port: bool = False,
) -> asyncio.Server:
    """A listening server; `shared_port` lets several workers accept on one port."""
    loop = asyncio.get_running_loop()
    reuse = True if shared_port else None
    if proxied:
        return await loop.create_server(
            lambda: BehindBalancer(make, tls), host, port, backlog=BACKLOG, reuse_port=reuse
        )
    timeout_s = TLS_HANDSHAKE_TIMEOUT_S if tls else None
    return await loop.create_server(
        make, host, port, ssl=tls, ssl_handshake_timeout=timeout_s, backlog=BACKLOG, reuse_port=reuse
    )


class BehindBalancer(asyncio.Protocol):
    """Reads the balancer's header, then hands the connection to a customer's side, through TLS if that is set."""

    def __init__(self, make: Callable[[], CustomerSide], tls: ssl.SSLContext | None) -> None:
        self._make = make
        self._tls = tls
        self._buffer = bytearray()
        self._transport: asyncio.Transport | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._starting: asyncio.Task[None] | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)  # uvloop's own are no subclass of it
        self._timer = asyncio.get_running_loop().call_later(HEADER_TIMEOUT_S, self._transport.abort)

    def data_received(self, data: bytes) -> None:
        transport = self._transport
        if transport is None or self._starting is not None:
            return
        self._buffer += data
        try:
            header = read_header(self._buffer)
        except NotProxied:
            transport.abort()
            return
        if header is None:
            return
        if self._timer is not None:
            self._timer.cancel()
        if header.address is None:
            transport.close()  # a health check: it connected, that was all it wanted
            return
        rest = bytes(self._buffer[header.size :])
        front = self._make()
        front.told_address = header.address
        if self._tls is None:
            transport.set_protocol(front)
            front.connection_made(transport)
            if rest:
                front.data_received(rest)
        elif rest:
            transport.abort()  # TLS cannot be begun on bytes that were already read; balancers send the header alone
        else:
            transport.pause_reading()
            self._starting = asyncio.get_running_loop().create_task(self._start_tls(transport, front))

    def connection_lost(self, exc: Exception | None) -> None:
        if self._timer is not None:
            self._timer.cancel()
        if self._starting is not None:
            self._starting.cancel()

    async def _start_tls(self, transport: asyncio.Transport, front: CustomerSide) -> None:
        assert self._tls is not None  # noqa: S101 - the caller has looked
        loop = asyncio.get_running_loop()
        try:
            secure = await loop.start_tls(
                transport,
                front,
                self._tls,
                server_side=True,
                ssl_handshake_timeout=TLS_HANDSHAKE_TIMEOUT_S,
            )
        except (OSError, ssl.SSLError):
            transport.abort()
            return
        if secure is not None:
            front.connection_made(secure)
