"""Customers' HTTP listener: CONNECT, and plain `http://` requests in absolute form.

A 407 keeps the connection usable, because many clients send their credentials only after one. A plain request is forwarded
in origin form with `Connection: close`, so its connection carries one; nothing that names the customer goes along.
Source: RFC 9110 sections 7.6.1 and 9.3.6.
"""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import Callable
from typing import Final
from urllib.parse import urlsplit

from gateway_node.customer import EARLY_MAX_BYTES, CustomerSide
from gateway_node.pipeline import Outcome, Pipeline, Request
from gateway_node.refusals import RefusedRequest, http_answer, trace_headers
from shared.kernel.codes import Refusal
from shared.wire.http1 import (
    HeadError,
    RequestHead,
    basic_credentials,
    build_head,
    split_authority,
    take_request_head,
)

HEAD_TIMEOUT_S: Final = 30.0
_HOP_HEADERS: Final = frozenset(
    {
        "connection",
        "keep-alive",
        "te",
        "trailer",
        "upgrade",
        "via",
        "forwarded",
        "x-forwarded-for",
        "x-real-ip",
    }
)


class HttpFront(CustomerSide):
    """One connection of a customer."""

    def __init__(self, pipeline: Pipeline, new_id: Callable[[], str] = lambda: str(uuid.uuid4())) -> None:
        super().__init__(pipeline)
        self._new_id = new_id
        self._buffer = bytearray()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        super().connection_made(transport)
        self.abort_after(HEAD_TIMEOUT_S)

    def data_received(self, data: bytes) -> None:
        if self._tunnel is not None:
            self._tunnel.to_exit(data)
            return
        self._buffer += data
        if self._opening is None:
            self._next_request()
        elif len(self._buffer) > EARLY_MAX_BYTES and self._transport is not None:
            self._transport.pause_reading()

    def _next_request(self) -> None:
        try:
            head = take_request_head(self._buffer)
        except HeadError as error:
            self._answer(
                RefusedRequest(Refusal.BAD_REQUEST, error.fault.value), self._new_id(), (), keep=False
            )
            return
        if head is None:
            return
        if self._timer is not None:
            self._timer.cancel()
        self._request(head)

    def _request(self, head: RequestHead) -> None:
        request_id = self._new_id()
        try:
            host, port, forward = _target(head)
        except (HeadError, ValueError):
            message = "send CONNECT host:port, or an absolute http:// URL"
            self._answer(RefusedRequest(Refusal.BAD_REQUEST, message), request_id, (), keep=False)
            return
        credentials = basic_credentials(head.header("proxy-authorization"))
        if credentials is None:
            # A body of a refused plain request would be read as the next head: such a connection is closed.
            keep = head.method == "CONNECT" or (
                head.header("content-length") in {None, "0"} and head.header("transfer-encoding") is None
            )
            refused = RefusedRequest(Refusal.AUTH_REQUIRED, "send the key's username and password")
            self._answer(refused, request_id, (), keep=keep, body=head.method != "HEAD")
            return
        request = Request(*credentials, host, port, self._address, False, request_id)
        self._opening = self._loop.create_task(self._open(request, forward))

    async def _open(self, request: Request, forward: bytes | None) -> None:
        outcome = await self._pipeline.open(request)
        self._opening = None
        if isinstance(outcome.result, RefusedRequest):
            keep = outcome.result.code is Refusal.AUTH_INVALID and forward is None
            self._answer(outcome.result, request.request_id, outcome.corrections, keep=keep)
            return
        self._attach(outcome, request.request_id, forward)

    def _attach(self, outcome: Outcome, request_id: str, forward: bytes | None) -> None:
        assert not isinstance(outcome.result, RefusedRequest)  # noqa: S101 - the caller has looked
        tunnel, side = outcome.result
        transport = self._transport
        if transport is None or transport.is_closing():
            tunnel.cut()
            return
        tunnel.customer = transport
        self._tunnel = tunnel
        if forward is None:
            transport.write(
                build_head(
                    "HTTP/1.1 200 Connection established",
                    [
                        *trace_headers(request_id, outcome.corrections),
                        ("X-PSX-Country", tunnel.acquired.endpoint.country.upper()),
                    ],
                )
            )
        else:
            tunnel.to_exit(forward)
        early, self._buffer = bytes(self._buffer), bytearray()
        if early:
            tunnel.to_exit(early)
        transport.resume_reading()
        side.attach(tunnel)

    def _answer(
        self,
        refused: RefusedRequest,
        request_id: str,
        corrections: tuple[str, ...],
        *,
        keep: bool,
        body: bool = True,
    ) -> None:
        if self._transport is None or self._transport.is_closing():
            return
        self._transport.write(http_answer(refused, request_id, corrections, keep=keep, body=body))
        if not keep:
            self._transport.close()
            return
        self._transport.resume_reading()
        self.abort_after(HEAD_TIMEOUT_S)
        if self._buffer:
            self._next_request()


def _target(head: RequestHead) -> tuple[str, int, bytes | None]:
    """(host, port, what to send first: None for CONNECT). Raises HeadError or ValueError."""
    if head.method == "CONNECT":
        host, port = split_authority(head.target)
        return host, port, None
    url = urlsplit(head.target)
    if url.scheme != "http" or not url.netloc or "@" in url.netloc:
        raise ValueError("not an absolute http URL")
    host, port = split_authority(url.netloc, 80)
    path = (url.path or "/") + (f"?{url.query}" if url.query else "")
    named = {part.strip().lower() for part in (head.header("connection") or "").split(",")}
    kept = [
        (name, value)
        for name, value in head.headers
        if name not in _HOP_HEADERS and name not in named and not name.startswith("proxy-") and name != "host"
    ]
    first = build_head(
        f"{head.method} {path} HTTP/1.1", [("Host", url.netloc), *kept, ("Connection", "close")]
    )
    return host, port, first
