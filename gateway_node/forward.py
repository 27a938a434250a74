"""Plain `http://` requests in absolute form: what is sent on, what comes back, and when the connections can be used again.

The request goes on in origin form with its headers as written, but for those of this hop and those that name customer or
proxy. Bodies pass unchanged. Source: RFC 9110 section 7.6, RFC 9112 sections 3.2.2 and 9.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final
from urllib.parse import urlsplit

from gateway_node.refusals import trace_headers
from shared.wire.http1 import (
    HeadError,
    HeadFault,
    RequestHead,
    ResponseHead,
    build_head,
    named_options,
    split_authority,
    take_response_head,
)
from shared.wire.http1_body import BodyScanner, Framing, request_framing, response_framing
from shared.wire.mux import Bytes

REPLAYABLE: Final = frozenset({"GET", "HEAD", "OPTIONS"})
_NEVER_DROPPED: Final = frozenset({"content-length", "transfer-encoding", "host"})
"""What frames or addresses a message is no hop's own, whatever `Connection` says."""
INTERIM_MAX: Final = 10
_THIS_HOP: Final = frozenset({"connection", "proxy-connection", "keep-alive", "te", "upgrade"})
_NAMES_SOMEBODY: Final = frozenset(
    {"via", "forwarded", "x-forwarded", "x-real-ip", "client-ip", "x-client-ip", "true-client-ip"}
)
_ALL_NAME_SOMEBODY: Final = ("proxy-", "x-forwarded-", "x-psx-")
_OURS: Final = "x-psx-"
"""Headers that only the gateway says, to customers alone: a target's own of that kind would be a lie."""


def plain_target(head: RequestHead) -> tuple[str, int]:
    """(host, port) of an absolute `http://` (or, as some clients write it, `ws://`) request. Raises HeadError."""
    try:
        url = urlsplit(head.target)
    except ValueError:
        raise HeadError(HeadFault.BAD_AUTHORITY) from None
    if url.scheme not in {"http", "ws"} or not url.netloc or "@" in url.netloc:
        raise HeadError(HeadFault.BAD_AUTHORITY)
    return split_authority(url.netloc, 80)


class Exchange:
    """One request and its answer. `take_request` and `response` see the bytes pass; the rest says what follows."""

    def __init__(self, head: RequestHead) -> None:
        """Raises HeadError for a body whose end is ambiguous, ValueError for a head that cannot be sent on."""
        self._method = head.method
        self.request_id = ""
        self.corrections: tuple[str, ...] = ()
        self.country = ""
        self.reused = False
        self._interim = 0
        self._request = BodyScanner(*request_framing(head))
        self._wants_upgrade = "upgrade" in named_options(head) and head.header("upgrade") is not None
        self._answer: BodyScanner | None = None
        self._head = bytearray()
        self.first_bytes = _origin_form(head, upgrade=self._wants_upgrade)
        self.replayable = head.method in REPLAYABLE and self._request.done
        self.keep_customer = _persistent(head.minor, named_options(head) | _proxy_options(head))
        self.keep_upstream = True
        self.began = False
        self.began_to_customer = False
        self.upgraded = False

    @property
    def wants_body(self) -> bool:
        """Whether an answer of ours may have a body too."""
        return self._method != "HEAD"

    @property
    def request_done(self) -> bool:
        """The whole request has passed."""
        return self._request.done

    @property
    def response_done(self) -> bool:
        """The whole answer has passed."""
        return self._answer is not None and self._answer.done

    def take_request(self, data: bytearray) -> int:
        """How many of `data` are this request's body. Raises HeadError."""
        return self._request.take(data)

    def response(self, data: Bytes) -> Iterator[Bytes]:
        """What the customer gets for the target's bytes. Raises HeadError for an answer that is none."""
        self.began = True
        while len(data):
            if self.upgraded:
                yield data
                return
            if self._answer is not None:
                taken = self._answer.take(data)
                if taken:
                    yield data[:taken]
                if taken < len(data):
                    self.keep_upstream = False  # more than the answer: whatever it is, nobody asked for it
                return
            self._head += data
            head = take_response_head(self._head)
            if head is None:
                return
            data, self._head = bytes(self._head), bytearray()
            self.began_to_customer = True
            yield self._begin(head)

    def _begin(self, head: ResponseHead) -> bytes:
        if head.status == 101 and self._wants_upgrade:
            self.upgraded = True
            return _passed_on(head, self._trace(head), upgrade=True)
        if head.status // 100 == 1:
            self._interim += 1
            if self._interim > INTERIM_MAX or head.status == 101:  # nobody asked for another protocol
                raise HeadError(HeadFault.TOO_MANY_HEADERS)
            return _passed_on(head, [])
        framing, length = response_framing(head, self._method)
        self._answer = BodyScanner(framing, length)
        self.keep_upstream = framing is not Framing.UNTIL_CLOSE and _persistent(
            head.minor, named_options(head)
        )
        self.keep_customer = self.keep_customer and framing is not Framing.UNTIL_CLOSE
        own = ("Connection", "keep-alive" if self.keep_customer else "close")
        return _passed_on(head, [own, *self._trace(head)])

    def _trace(self, head: ResponseHead) -> list[tuple[str, str]]:
        """What the gateway adds. A request id that the target gave stays; ours then has a name of our own."""
        given = head.header("x-request-id") is not None
        return [
            ("X-PSX-Request-ID" if given and name == "X-Request-ID" else name, value)
            for name, value in trace_headers(self.request_id, self.corrections, self.country)
        ]

    def upstream_ended(self) -> bool:
        """The target closed. True when that ends the answer as it should."""
        return self._answer is not None and self._answer.close_ends_it()


def _persistent(minor: int, options: frozenset[str]) -> bool:
    return "close" not in options and (minor >= 1 or "keep-alive" in options)


def _proxy_options(head: RequestHead) -> frozenset[str]:
    values = (value for name, value in head.headers if name == "proxy-connection")
    return frozenset(part.strip(" \t").lower() for value in values for part in value.split(","))


def _origin_form(head: RequestHead, *, upgrade: bool) -> bytes:
    url = urlsplit(head.target)
    path = head.target.partition("://")[2][len(url.netloc) :].partition("#")[0]
    if not path.startswith("/"):  # RFC 9112 sections 3.2.1 and 3.2.4
        path = "*" if head.method == "OPTIONS" and not path else f"/{path}"
    dropped = _NAMES_SOMEBODY | (named_options(head) - _NEVER_DROPPED - ({"upgrade"} if upgrade else set()))
    kept: list[tuple[str, str]] = []
    hosted = connected = False
    for written, (name, value) in zip(head.names, head.headers, strict=True):
        if name == "host":
            if not hosted:
                kept.append((written, url.netloc))
            hosted = True
        elif name in {"connection", "proxy-connection"}:
            if not connected:
                kept.append(("Connection", "Upgrade" if upgrade else "keep-alive"))
            connected = True
        elif name == "upgrade":
            kept += [(written, value)] if upgrade else []
        elif name not in _THIS_HOP and name not in dropped and not name.startswith(_ALL_NAME_SOMEBODY):
            kept.append((written, value))
    if not hosted:
        kept.insert(0, ("Host", url.netloc))
    return build_head(f"{head.method} {path} HTTP/1.{head.minor}", kept)


def _passed_on(head: ResponseHead, own: list[tuple[str, str]], *, upgrade: bool = False) -> bytes:
    dropped = (named_options(head) - _NEVER_DROPPED) | {"proxy-authenticate", "proxy-authentication-info"}
    kept = [
        (written, value)
        for written, (name, value) in zip(head.names, head.headers, strict=True)
        if (upgrade or (name not in _THIS_HOP and name not in dropped)) and not name.startswith(_OURS)
    ]
    return build_head(f"HTTP/1.1 {head.status} {head.reason}", [*kept, *own])
