"""The opening handshake of a peer's socket: the JWT travels as the subprotocol `token.<jwt>`, never in the URL.

Leaves out extensions: permessage-deflate may be offered and is declined by not answering it. Source: RFC 6455 section 4.
"""

import base64
import hashlib
from typing import Final

from shared.wire.http1 import RequestHead, ResponseHead, build_head

TOKEN_PREFIX: Final = "token."  # noqa: S105 - a prefix on the wire, not a secret
_GUID: Final = "258EAFA5-E914-47DA-95CA-C5AB0DC85B11"
_KEY_BYTES: Final = 16


def accept_key(key: str) -> str:
    """The Sec-WebSocket-Accept value for a Sec-WebSocket-Key."""
    return base64.b64encode(hashlib.sha1((key + _GUID).encode(), usedforsecurity=False).digest()).decode()


def offered_token(head: RequestHead) -> tuple[str, str] | None:
    """(subprotocol to select, JWT) of a valid upgrade request; None when it is not one or carries no token."""
    if head.method != "GET" or head.minor < 1 or (head.header("upgrade") or "").lower() != "websocket":
        return None
    connection = {part.strip().lower() for part in (head.header("connection") or "").split(",")}
    if "upgrade" not in connection or head.header("sec-websocket-version") != "13" or not _valid_key(head):
        return None
    offers = [
        part.strip()
        for name, value in head.headers
        if name == "sec-websocket-protocol"
        for part in value.split(",")
    ]
    selected = next((offer for offer in offers if offer.startswith(TOKEN_PREFIX)), None)
    return (selected, selected[len(TOKEN_PREFIX) :]) if selected else None


def _valid_key(head: RequestHead) -> bool:
    try:
        return len(base64.b64decode(head.header("sec-websocket-key") or "", validate=True)) == _KEY_BYTES
    except ValueError:
        return False


def accept_answer(head: RequestHead, subprotocol: str) -> bytes:
    """The 101 answer that selects the token's subprotocol; clients abort without it."""
    return build_head(
        "HTTP/1.1 101 Switching Protocols",
        [
            ("Upgrade", "websocket"),
            ("Connection", "Upgrade"),
            ("Sec-WebSocket-Accept", accept_key(head.header("sec-websocket-key") or "")),
            ("Sec-WebSocket-Protocol", subprotocol),
        ],
    )


def upgrade_request(authority: str, path: str, key: bytes, token: str) -> bytes:
    """A peer's upgrade request; `key` is 16 random bytes."""
    return build_head(
        f"GET {path or '/'} HTTP/1.1",
        [
            ("Host", authority),
            ("Upgrade", "websocket"),
            ("Connection", "Upgrade"),
            ("Sec-WebSocket-Key", base64.b64encode(key).decode()),
            ("Sec-WebSocket-Version", "13"),
            ("Sec-WebSocket-Protocol", TOKEN_PREFIX + token),
        ],
    )


def is_accepted(answer: ResponseHead, key: bytes, token: str) -> bool:
    """Whether the relay's answer completes the handshake that `upgrade_request` began."""
    return (
        answer.status == 101
        and (answer.header("upgrade") or "").lower() == "websocket"
        and answer.header("sec-websocket-accept") == accept_key(base64.b64encode(key).decode())
        and answer.header("sec-websocket-protocol") == TOKEN_PREFIX + token
    )
