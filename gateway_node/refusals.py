"""How a refusal looks on each transport: HTTP status, SOCKS5 reply, Proxy-Status error. Every table is total.

Source: RFC 9209 (Proxy-Status error types), RFC 1928 section 6.
"""

from dataclasses import dataclass
from typing import Final

from shared.kernel.codes import Refusal
from shared.wire.http1 import build_head
from shared.wire.socks5 import Reply

HTTP_STATUS: Final = {
    Refusal.AUTH_REQUIRED: 407,
    Refusal.AUTH_INVALID: 407,
    Refusal.CAP_EXCEEDED: 407,
    Refusal.USERNAME_PARSE: 400,
    Refusal.BAD_REQUEST: 400,
    Refusal.RATE_LIMITED_AUTH: 429,
    Refusal.RATE_LIMITED_CONN: 429,
    Refusal.SESSION_LIMIT: 429,
    Refusal.NO_STOCK: 502,
    Refusal.STOCK_DEGRADED: 502,
    Refusal.TARGET_REFUSED: 502,
    Refusal.TARGET_DNS: 502,
    Refusal.TARGET_TIMEOUT: 504,
    Refusal.SSRF_BLOCKED: 403,
    Refusal.PORT_BLOCKED: 403,
    Refusal.DOMAIN_BLOCKED: 403,
    Refusal.PROTOCOL_NOT_ALLOWED: 403,
    Refusal.INTERNAL: 503,
}
SOCKS_REPLY: Final = {
    Refusal.AUTH_REQUIRED: Reply.NOT_ALLOWED,
    Refusal.AUTH_INVALID: Reply.NOT_ALLOWED,
    Refusal.CAP_EXCEEDED: Reply.NOT_ALLOWED,
    Refusal.USERNAME_PARSE: Reply.GENERAL_FAILURE,
    Refusal.BAD_REQUEST: Reply.GENERAL_FAILURE,
    Refusal.RATE_LIMITED_AUTH: Reply.NOT_ALLOWED,
    Refusal.RATE_LIMITED_CONN: Reply.NOT_ALLOWED,
    Refusal.SESSION_LIMIT: Reply.NOT_ALLOWED,
    Refusal.NO_STOCK: Reply.NETWORK_UNREACHABLE,
    Refusal.STOCK_DEGRADED: Reply.NETWORK_UNREACHABLE,
    Refusal.TARGET_REFUSED: Reply.CONNECTION_REFUSED,
    Refusal.TARGET_DNS: Reply.HOST_UNREACHABLE,
    Refusal.TARGET_TIMEOUT: Reply.TTL_EXPIRED,
    Refusal.SSRF_BLOCKED: Reply.NOT_ALLOWED,
    Refusal.PORT_BLOCKED: Reply.NOT_ALLOWED,
    Refusal.DOMAIN_BLOCKED: Reply.NOT_ALLOWED,
    Refusal.PROTOCOL_NOT_ALLOWED: Reply.NOT_ALLOWED,
    Refusal.INTERNAL: Reply.GENERAL_FAILURE,
}
PROXY_STATUS: Final = {
    Refusal.AUTH_REQUIRED: "http_request_denied",
    Refusal.AUTH_INVALID: "http_request_denied",
    Refusal.CAP_EXCEEDED: "http_request_denied",
    Refusal.USERNAME_PARSE: "http_request_error",
    Refusal.BAD_REQUEST: "http_request_error",
    Refusal.RATE_LIMITED_AUTH: "http_request_denied",
    Refusal.RATE_LIMITED_CONN: "connection_limit_reached",
    Refusal.SESSION_LIMIT: "connection_limit_reached",
    Refusal.NO_STOCK: "destination_unavailable",
    Refusal.STOCK_DEGRADED: "connection_terminated",
    Refusal.TARGET_REFUSED: "connection_refused",
    Refusal.TARGET_DNS: "dns_error",
    Refusal.TARGET_TIMEOUT: "connection_timeout",
    Refusal.SSRF_BLOCKED: "destination_ip_prohibited",
    Refusal.PORT_BLOCKED: "destination_ip_prohibited",
    Refusal.DOMAIN_BLOCKED: "http_request_denied",
    Refusal.PROTOCOL_NOT_ALLOWED: "http_request_denied",
    Refusal.INTERNAL: "proxy_internal_error",
}
_PHRASE: Final = {
    400: "Bad Request",
    403: "Forbidden",
    407: "Proxy Authentication Required",
    429: "Too Many Requests",
    502: "Bad Gateway",
    503: "Service Unavailable",
    504: "Gateway Timeout",
}
RETRY_AFTER_S: Final = 30


@dataclass(frozen=True, slots=True)
class RefusedRequest:
    """A refusal with the message that its customer reads."""

    code: Refusal
    message: str


def http_answer(
    refused: RefusedRequest, request_id: str, corrections: tuple[str, ...], *, keep: bool, body: bool = True
) -> bytes:
    """The whole HTTP answer; `keep` leaves the connection open for the next try."""
    status = HTTP_STATUS[refused.code]
    text = f"{refused.code.value}: {refused.message} (req: {request_id})\n".encode()
    headers = [
        ("Content-Type", "text/plain; charset=utf-8"),
        ("Content-Length", str(len(text))),
        ("Proxy-Status", f'psx; error={PROXY_STATUS[refused.code]}; details="{refused.code.value}"'),
        *trace_headers(request_id, corrections),
    ]
    if status == 407:
        headers.append(("Proxy-Authenticate", 'Basic realm="psx", charset="UTF-8"'))
    if status == 429:
        headers.append(("Retry-After", str(RETRY_AFTER_S)))
    headers.append(("Connection", "keep-alive" if keep else "close"))
    return build_head(f"HTTP/1.1 {status} {_PHRASE[status]}", headers) + (text if body else b"")


def trace_headers(request_id: str, corrections: tuple[str, ...], country: str = "") -> list[tuple[str, str]]:
    """Headers of every answer: the request id, what was healed in the username, and where the exit is."""
    headers = [("X-Request-ID", request_id)]
    if corrections:
        headers.append(("X-PSX-Corrections", ", ".join(corrections)))
    if country:
        headers.append(("X-PSX-Country", country.upper()))
    return headers
