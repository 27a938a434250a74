"""Customers' HTTP listener: CONNECT, and plain `http://` requests in absolute form, each connection as often as it likes.

A 407 keeps the connection usable, because many clients send their credentials only after one. A tunnel to the last target
is kept for the next plain request to it; a request that finds it closed is sent again only when nothing can have happened.
Source: RFC 9110 sections 7.6.1 and 9.3.6, RFC 9112 section 9.3.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from functools import lru_cache, partial
from typing import Final, NamedTuple

from gateway_node.customer import FLUSH_MIN_BYTES, CustomerSide
from gateway_node.forward import Exchange, plain_target
from gateway_node.pipeline import Pipeline, Request, new_request_id
from gateway_node.refusals import RefusedRequest, http_answer, trace_headers
from gateway_node.tunnel import Place, Tunnel
from shared.kernel.codes import Refusal
from shared.runtime.deadlines import Deadline
from shared.wire.http1 import (
    HEADS_KEPT,
    HeadError,
    HeadFault,
    RequestHead,
    basic_credentials,
    build_head,
    split_authority,
    take_request_head,
)
from shared.wire.http1_body import Framing, request_framing
from shared.wire.mux import Bytes

HEAD_TIMEOUT_S: Final = 30.0
KEEP_ALIVE_IDLE_S: Final = 75.0
UNREAD_FREE_BYTES: Final = 16 * 1024
UNREAD_LOOK_S: Final = 1.0
"""A customer that rests, and for whom more than a little waits, keeps its last place; how often it is looked at then."""
LINGER_S: Final = 2.0
"""So long what is still on its way from a customer is read and dropped after a last answer."""
REFUSALS_MAX: Final = 20
"""So many refused requests are answered on one connection."""


class _Upstream(NamedTuple):
    """To whom, and as whom, a kept tunnel goes."""

    username: str
    password: str
    host: str
    port: int


class HttpFront(CustomerSide):
    """One connection of a customer."""

    def __init__(self, pipeline: Pipeline, new_id: Callable[[], str] = new_request_id) -> None:
        super().__init__(pipeline)
        self._new_id = new_id
        self._buffer = bytearray()
        self._upstream: _Upstream | None = None
        self._exchange: Exchange | None = None
        self._corrections: tuple[str, ...] = ()
        self._refusals = 0
        self._leaving = False
        self._may_rest = True
        self._unread: list[Place] = []
        self._unread_look: Deadline | None = None

    # transport callbacks

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        super().connection_made(transport)
        self.abort_after(HEAD_TIMEOUT_S)

    def data_received(self, data: bytes) -> None:
        if self._tunnel is not None and self._upstream is None:
            self._tunnel.to_exit(data)
            return
        if self._leaving:
            return
        self._buffer += data
        self._advance()

    def connection_lost(self, exc: Exception | None) -> None:
        self._pipeline.kept.discard(self)
        super().connection_lost(exc)
        self._forget_unread()

    def eof_received(self) -> bool:
        if self._upstream is None:
            return super().eof_received()
        self._ended = True
        return self._answers_who_left()

    def _answers_who_left(self) -> bool:
        """Whether an answer is still owed to a customer that sends no more: most that end so have left, and who has not
        said all of its request gets none.
        """
        tunnel, exchange = self._tunnel, self._exchange
        if tunnel is None or exchange is None or not exchange.request_done:
            self._exchange = self._tunnel = self._upstream = None
            if tunnel is not None:
                tunnel.cut()
                self._let_go(tunnel)
            self.finish()
            return False
        tunnel.customer_left()
        return True

    def _advance(self) -> None:
        if self._opening is None and self._exchange is not None:
            self._pass_request(self._exchange)
        elif self._opening is None:
            self._next_request()
        self.hold_if_stuffed(len(self._buffer))

    # requests

    def _next_request(self) -> None:
        try:
            head = take_request_head(self._buffer)
        except HeadError as error:
            self._refuse(RefusedRequest(Refusal.BAD_REQUEST, error.fault.value), keep=False)
            return
        if head is not None:
            self.stop_timer()
            self._request(head)

    def _request(self, head: RequestHead) -> None:
        try:
            plain = head.method != "CONNECT"
            (host, port), credentials = _plain(head) if plain else _connect(head)
            exchange = Exchange(head) if plain else None
        except (HeadError, ValueError):
            message = "send CONNECT host:port, or an absolute http:// URL"
            self._refuse(RefusedRequest(Refusal.BAD_REQUEST, message), keep=False)
            return
        if credentials is None:
            # A body of a refused plain request would be read as the next head: such a connection is closed.
            keep = exchange is None or (exchange.request_done and exchange.keep_customer)
            refused = RefusedRequest(Refusal.AUTH_REQUIRED, "send the key's username and password")
            self._refuse(refused, keep=keep, exchange=exchange)
            return
        upstream = _Upstream(*credentials, host, port)
        if (
            exchange is not None
            and upstream == self._upstream
            and self._tunnel is not None
            and self._tunnel.open
        ):
            self._exchange = exchange
            exchange.reused = True
            exchange.request_id = self._new_id()
            self._tunnel.requests += 1
            self._send_on(exchange, self._tunnel)
            return
        self._drop_upstream()
        self._open(upstream, exchange)

    def _open(self, upstream: _Upstream, exchange: Exchange | None) -> None:
        request = Request(*upstream, self._address, False, self._new_id())
        self.open_in_background(self._opened(request, upstream, exchange))

    async def _opened(self, request: Request, upstream: _Upstream, exchange: Exchange | None) -> None:
        outcome = await self._pipeline.open(request)
        self._opening = None
        if isinstance(outcome.result, RefusedRequest):
            # A client that tries its keys one after the other does so on one connection.
            asks_for_another = outcome.result.code in {Refusal.AUTH_INVALID, Refusal.CAP_EXCEEDED}
            keep = asks_for_another and (exchange is None or exchange.request_done)
            self._refuse(
                outcome.result, request.request_id, outcome.corrections, keep=keep, exchange=exchange
            )
            return
        tunnel = outcome.result
        if exchange is not None:
            exchange.request_id, self._corrections = request.request_id, outcome.corrections
            self._attach_plain(tunnel, upstream, exchange)
            return
        country = tunnel.acquired.endpoint.country
        trace = trace_headers(request.request_id, outcome.corrections, country)
        answer = build_head("HTTP/1.1 200 Connection established", trace)
        early, self._buffer = bytes(self._buffer), bytearray()
        self._pipeline.kept.discard(self)
        self.attach(tunnel, answer, early)

    # plain requests

    def _attach_plain(self, tunnel: Tunnel, upstream: _Upstream, exchange: Exchange) -> None:
        if self._transport is None or self._transport.is_closing():
            tunnel.cut()
            return
        self._tunnel, self._upstream, self._exchange = tunnel, upstream, exchange
        self._pipeline.kept.add(self)
        tunnel.customer = PlainPath(self, tunnel)
        self.leave_lobby()
        self._may_rest = True
        self._send_on(exchange, tunnel)
        tunnel.exit.attach(tunnel)
        if tunnel.open:
            self.tell_if_full(tunnel)
        if self._ended and self._exchange is not None:
            self._answers_who_left()

    def _send_on(self, exchange: Exchange, tunnel: Tunnel) -> None:
        exchange.corrections, exchange.country = self._corrections, tunnel.acquired.endpoint.country
        if self._pipeline.draining:
            exchange.keep_customer = False
        tunnel.to_exit(exchange.first_bytes)
        self._pass_request(exchange)
        self.hold_if_stuffed(len(self._buffer))

    def _pass_request(self, exchange: Exchange) -> None:
        if exchange.request_done or not self._buffer or self._tunnel is None:
            return
        try:
            taken = exchange.take_request(self._buffer)
        except HeadError:
            self.cut()
            return
        body = bytes(self._buffer[:taken])
        del self._buffer[:taken]
        self._tunnel.to_exit(body)

    def carries(self, tunnel: Tunnel) -> bool:
        """Whether plain requests go to this tunnel now."""
        return tunnel is self._tunnel

    def upstream_sent(self, tunnel: Tunnel, data: Bytes) -> None:
        """Bytes of the target."""
        exchange = self._exchange
        if tunnel is not self._tunnel:
            return
        if exchange is None:
            self._drop_upstream()  # it speaks unasked
            self._leave_if_crowded()
            return
        try:
            for piece in exchange.response(data):
                self.send(piece)
        except (HeadError, ValueError):
            self._upstream_failed(exchange, "the target's answer is no HTTP")
            return
        if exchange.upgraded:
            self._become_raw(tunnel)
        elif exchange.response_done:
            self._exchange_over(exchange)

    def leave_when_idle(self) -> None:
        """This gateway drains: hang up unless a request is under way; then after its answer."""
        if self._exchange is not None:
            self._exchange.keep_customer = False
        elif self._opening is None and not self._leaving:
            self._drop_upstream()
            self._leave(done=True)

    def _become_raw(self, tunnel: Tunnel) -> None:
        self._pipeline.kept.discard(self)
        self._upstream = self._exchange = None
        tunnel.customer = self
        early, self._buffer = bytes(self._buffer), bytearray()
        if early:
            tunnel.to_exit(early)
        self.hold_if_stuffed(0)

    def _exchange_over(self, exchange: Exchange) -> None:
        self._exchange = None
        if not (exchange.keep_upstream and exchange.request_done):
            self._drop_upstream()
        if not (exchange.keep_customer and exchange.request_done and self._may_rest) or self._ended:
            self._drop_upstream()
            self._leave(done=exchange.request_done)
            return
        self._end_when_idle()
        self._advance()

    def _end_when_idle(self) -> None:
        self.stop_timer()
        then = partial(self._end_unless_taken, self.unsent_bytes)
        self._deadline = self._pipeline.deadlines.call_after(KEEP_ALIVE_IDLE_S, then)

    def _end_unless_taken(self, unsent_before: int) -> None:
        """Hang up when no request came, but not on a customer that still reads the last answer. An end and no reset: who
        sends a request into it dials anew.
        """
        if unsent_before and self.unsent_bytes <= max(unsent_before - FLUSH_MIN_BYTES, 0):
            self._end_when_idle()
        else:
            self.finish()

    def upstream_gone(self, tunnel: Tunnel, *, clean: bool) -> None:
        """The tunnel of plain requests is over."""
        if tunnel is not self._tunnel:
            return
        upstream, exchange = self._upstream, self._exchange
        self._tunnel = self._upstream = self._exchange = None
        self._let_go(tunnel)
        self.release()
        if exchange is None or upstream is None or self._transport is None or self._transport.is_closing():
            self._leave_if_crowded()
            return
        if clean and exchange.upstream_ended():
            exchange.keep_upstream = False
            self._exchange_over(exchange)
        elif exchange.reused and exchange.replayable and not exchange.began:
            exchange.reused = False
            self._open(upstream, exchange)
        else:
            self._upstream_failed(exchange, "the connection to the target was lost before it answered")

    def _upstream_failed(self, exchange: Exchange, message: str) -> None:
        self._exchange = None
        self._drop_upstream()
        if exchange.began_to_customer:
            self.cut()
        else:
            refused = RefusedRequest(Refusal.STOCK_DEGRADED, message)
            self._refuse(refused, exchange.request_id, exchange.corrections, keep=False, exchange=exchange)

    def _drop_upstream(self) -> None:
        tunnel, self._tunnel, self._upstream = self._tunnel, None, None
        if tunnel is not None:
            tunnel.finish()
            self._let_go(tunnel)
            self.release()

    def _let_go(self, tunnel: Tunnel) -> None:
        """A tunnel is over, this connection may go on: it counts among those that rest, and as the tunnel's while more than
        a little waits for the customer.
        """
        if self._gone or self.unsent_bytes <= UNREAD_FREE_BYTES:
            tunnel.place.leave()
        else:
            self._unread.append(tunnel.place)
            if self._unread_look is None:
                self._look_again_at_unread()
        self._may_rest = self._gone or self.enter(self._pipeline.resting)

    def _leave_if_crowded(self) -> None:
        """Between requests; who waits for an answer, or reads one, is not left for those that rest."""
        if not self._may_rest:
            self.finish()

    def _look_at_unread(self) -> None:
        if self._gone or self.unsent_bytes <= UNREAD_FREE_BYTES:
            self._forget_unread()
        else:
            self._look_again_at_unread()

    def _look_again_at_unread(self) -> None:
        self._unread_look = self._pipeline.deadlines.call_after(UNREAD_LOOK_S, self._look_at_unread)

    def _forget_unread(self) -> None:
        unread, self._unread = self._unread, []
        if self._unread_look is not None:
            self._unread_look.cancel()
            self._unread_look = None
        for place in unread:
            place.leave()

    # answers

    def _refuse(
        self,
        refused: RefusedRequest,
        request_id: str | None = None,
        corrections: tuple[str, ...] = (),
        *,
        keep: bool,
        exchange: Exchange | None = None,
    ) -> None:
        if self._transport is None or self._transport.is_closing():
            return
        keep = keep and self._refusals < REFUSALS_MAX
        body = exchange is None or exchange.wants_body
        self.send(http_answer(refused, request_id or self._new_id(), corrections, keep=keep, body=body))
        self._refusals += 1
        if not keep or self._ended:
            self._leave(done=False)
            return
        self.abort_after(HEAD_TIMEOUT_S)
        self._advance()

    def _leave(self, *, done: bool) -> None:
        """Close after the last answer. Unless the customer is `done`, what it still sends is read first: a reset for it
        could overtake the answer (RFC 9112 section 9.6)."""
        transport = self._transport
        if (
            done
            or self._ended
            or transport is None
            or transport.is_closing()
            or not transport.can_write_eof()
        ):
            self.finish()
            return
        self._leaving = True
        self._buffer.clear()
        self.send_eof()
        self.hold_if_stuffed(0)
        self.stop_timer()
        self._deadline = self._pipeline.deadlines.call_after(LINGER_S, self.finish)


_Asked = tuple[tuple[str, int], tuple[str, str] | None]
"""(host, port) of a target, and (username, password) of whoever sends both."""


def _plain(head: RequestHead) -> _Asked:
    return plain_target(head), basic_credentials(head.header("proxy-authorization"))


@lru_cache(maxsize=HEADS_KEPT)
def _connect(head: RequestHead) -> _Asked:
    """Raises HeadError, also for a CONNECT that announces a body: what follows it is the tunnel's, and after a refusal it
    would be read as the next request (RFC 9110 section 9.3.6).
    """
    if request_framing(head)[0] is not Framing.NONE:
        raise HeadError(HeadFault.BAD_FRAMING)
    return split_authority(head.target), basic_credentials(head.header("proxy-authorization"))


class PlainPath:
    """The customer's side of a tunnel that carries plain requests: it outlives neither, and ends neither."""

    def __init__(self, front: HttpFront, tunnel: Tunnel) -> None:
        self._front = front
        self._tunnel = tunnel

    @property
    def unsent_bytes(self) -> int:
        return self._front.unsent_bytes

    @property
    def bare_socket(self) -> None:
        return None

    def send(self, data: Bytes) -> None:
        self._front.upstream_sent(self._tunnel, data)

    def passed(self, size: int) -> None: ...

    def send_eof(self) -> None:
        self._tunnel.finish()

    def hold(self) -> None:
        if self._front.carries(self._tunnel):
            self._front.hold()

    def release(self) -> None:
        if self._front.carries(self._tunnel):
            self._front.release()

    def finish(self) -> None:
        self._front.upstream_gone(self._tunnel, clean=True)

    def cut(self) -> None:
        self._front.upstream_gone(self._tunnel, clean=False)
