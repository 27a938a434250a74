"""Customers' SOCKS5 listener: username and password, CONNECT to addresses and names (resolved here)."""

from __future__ import annotations

import asyncio
import uuid
from typing import Final, cast

from gateway_node.pipeline import Pipeline, Request
from gateway_node.refusals import SOCKS_REPLY, RefusedRequest
from gateway_node.tunnel import WRITE_HIGH_BYTES, Tunnel, pause_exit, resume_exit
from shared.wire import socks5

HANDSHAKE_TIMEOUT_S: Final = 30.0
EARLY_MAX_BYTES: Final = 64 * 1024


class SocksFront(asyncio.Protocol):
    """One connection of a customer. Credentials are checked with the request, where the answer has a code."""

    def __init__(self, pipeline: Pipeline) -> None:
        self._pipeline = pipeline
        self._loop = asyncio.get_running_loop()
        self._transport: asyncio.Transport | None = None
        self._talk = socks5.SocksConversation()
        self._credentials = socks5.Credentials("", "")
        self._tunnel: Tunnel | None = None
        self._opening: asyncio.Task[None] | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._address = ""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        transport = cast(asyncio.Transport, transport)  # uvloop's own are no subclass of it
        self._transport = transport
        transport.set_write_buffer_limits(high=WRITE_HIGH_BYTES)
        self._address = str((transport.get_extra_info("peername") or ("",))[0])
        self._timer = self._loop.call_later(HANDSHAKE_TIMEOUT_S, transport.abort)

    def data_received(self, data: bytes) -> None:
        if self._tunnel is not None:
            self._tunnel.to_exit(data)
            return
        self._talk.receive(data)
        if self._opening is None:
            while (event := self._talk.next_event()) is not None:
                self._event(event)
        elif len(self._talk.buffer) > EARLY_MAX_BYTES and self._transport is not None:
            self._transport.pause_reading()

    def pause_writing(self) -> None:
        pause_exit(self._tunnel)

    def resume_writing(self) -> None:
        resume_exit(self._tunnel)

    def eof_received(self) -> bool:
        return False

    def connection_lost(self, exc: Exception | None) -> None:
        if self._timer is not None:
            self._timer.cancel()
        if self._opening is not None:
            self._opening.cancel()
        if self._tunnel is not None:
            self._tunnel.finish()

    def _event(self, event: socks5.Event) -> None:
        match event:
            case socks5.MethodsOffered(password_offered=True):
                self._write(socks5.method_answer(True))
            case socks5.MethodsOffered():
                self._last_word(socks5.method_answer(False))
            case socks5.Credentials():
                self._credentials = event
                self._write(socks5.auth_answer(True))
            case socks5.Refused(answer=answer):
                self._last_word(answer)
            case socks5.ConnectRequested(host=host, port=port):
                given = self._credentials
                request = Request(
                    given.username, given.password, host, port, self._address, True, str(uuid.uuid4())
                )
                self._opening = self._loop.create_task(self._open(request))

    async def _open(self, request: Request) -> None:
        outcome = await self._pipeline.open(request)
        self._opening = None
        if self._timer is not None:
            self._timer.cancel()
        if isinstance(outcome.result, RefusedRequest):
            self._last_word(socks5.reply(SOCKS_REPLY[outcome.result.code]))
            return
        tunnel, side = outcome.result
        transport = self._transport
        if transport is None or transport.is_closing():
            tunnel.cut()
            return
        tunnel.customer = transport
        self._tunnel = tunnel
        transport.write(socks5.reply(socks5.Reply.SUCCEEDED))
        early = bytes(self._talk.buffer)
        self._talk.buffer.clear()
        if early:
            tunnel.to_exit(early)
        transport.resume_reading()
        side.attach(tunnel)

    def _write(self, data: bytes) -> None:
        if self._transport is not None and not self._transport.is_closing():
            self._transport.write(data)

    def _last_word(self, data: bytes) -> None:
        self._write(data)
        if self._transport is not None:
            self._transport.close()
