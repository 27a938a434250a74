"""Customers' SOCKS5 listener: username and password, CONNECT to addresses and names (resolved here)."""

from __future__ import annotations

import asyncio
from typing import Final

from gateway_node.customer import CustomerSide
from gateway_node.pipeline import Pipeline, Request, new_request_id
from gateway_node.refusals import SOCKS_REPLY, RefusedRequest
from shared.wire import socks5

HANDSHAKE_TIMEOUT_S: Final = 30.0


class SocksFront(CustomerSide):
    """One connection of a customer. Credentials are checked with the request, where the answer has a code."""

    def __init__(self, pipeline: Pipeline) -> None:
        super().__init__(pipeline)
        self._talk = socks5.SocksConversation()
        self._credentials = socks5.Credentials("", "")

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        super().connection_made(transport)
        self.abort_after(HANDSHAKE_TIMEOUT_S)

    def data_received(self, data: bytes) -> None:
        if self._tunnel is not None:
            self._tunnel.to_exit(data)
            return
        self._talk.receive(data)
        if self._opening is None:
            while (event := self._talk.next_event()) is not None:
                self._event(event)
        else:
            self.hold_if_stuffed(len(self._talk.buffer))

    def _event(self, event: socks5.Event) -> None:
        match event:
            case socks5.MethodsOffered(password_offered=True):
                self.send(socks5.method_answer(True))
            case socks5.MethodsOffered():
                self._last_word(socks5.method_answer(False))
            case socks5.Credentials():
                self._credentials = event
                self.send(socks5.auth_answer(True))
            case socks5.Refused(answer=answer):
                self._last_word(answer)
            case socks5.ConnectRequested(host=host, port=port):
                given = self._credentials
                request = Request(
                    given.username, given.password, host, port, self._address, True, new_request_id()
                )
                self.open_in_background(self._open(request))

    async def _open(self, request: Request) -> None:
        outcome = await self._pipeline.open(request)
        self._opening = None
        self.stop_timer()
        if isinstance(outcome.result, RefusedRequest):
            self._last_word(socks5.reply(SOCKS_REPLY[outcome.result.code]))
            return
        early = bytes(self._talk.buffer)
        self._talk.buffer.clear()
        self.attach(outcome.result, socks5.reply(socks5.Reply.SUCCEEDED), early)

    def _last_word(self, data: bytes) -> None:
        self.send(data)
        if self._transport is not None:
            self._transport.close()
