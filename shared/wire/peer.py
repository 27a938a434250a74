"""binary-v1: what a peer device and a relay say to each other over one WebSocket.

Text frames are JSON `{"type", "payload"}`; types nobody knows are ignored by both sides. Binary frames carry tunnel bytes:

    offset  size    field
    0       1       type: 0x01 data, 0x03 close
    1       1       n, length of the session id
    2       n       session id, UTF-8
    2+n     rest    payload (data only)

Flow: device_info -> connected -> (heartbeat -> heartbeat_ack)*, tunnel_connect -> tunnel_connected | tunnel_open_failed |
tunnel_closed, data both ways, tunnel_close | tunnel_closed. Peers that did not announce binary-v1 use `tunnel_data` with
base64. There is no flow control in v1. At any time: rotate_ip_request -> rotation_complete, on whatever socket the
device has then, because it may lose all of them by it.

History: v1 is what peers in the field speak; v2 will be negotiated by another name in `protocol`.
"""

import base64
import json
from collections.abc import Mapping
from enum import IntEnum, StrEnum
from typing import Any, Final, NamedTuple

PROTOCOL: Final = "binary-v1"
MAX_TEXT_BYTES: Final = 1024 * 1024
MAX_BRACKETS: Final = 256
MAX_COMMAS: Final = 256
"""Many keys and numbers take twenty times as long to read as one string of their size. No known type has ten."""
DATA_PAYLOAD_BYTES: Final = 64 * 1024
MAX_SESSION_ID_BYTES: Final = 255
HEARTBEAT_S: Final = 30
MAX_SOCKETS_PER_DEVICE: Final = 8


class FrameType(IntEnum):
    """First byte of a binary frame."""

    DATA = 0x01
    CLOSE = 0x03


class Type(StrEnum):
    """`type` of a text frame."""

    DEVICE_INFO = "device_info"
    CONNECTED = "connected"
    HEARTBEAT = "heartbeat"
    HEARTBEAT_ACK = "heartbeat_ack"
    TUNNEL_CONNECT = "tunnel_connect"
    TUNNEL_CONNECTED = "tunnel_connected"
    TUNNEL_OPEN_FAILED = "tunnel_open_failed"
    TUNNEL_CLOSED = "tunnel_closed"
    TUNNEL_CLOSE = "tunnel_close"
    TUNNEL_DATA = "tunnel_data"
    RELAY_REDIRECT = "relay_redirect"
    ROTATE_IP_REQUEST = "rotate_ip_request"
    ROTATION_COMPLETE = "rotation_complete"
    ERROR = "error"


class OpenFailure(StrEnum):
    """`reason` of tunnel_open_failed."""

    CONNECTION_REFUSED = "connection_refused"
    DNS_FAILED = "dns_failed"
    TIMEOUT = "timeout"
    UNKNOWN = "unknown"


class Text(NamedTuple):
    """A text frame of a known type; `payload` is whatever object came with it, unchecked."""

    type: Type
    payload: Mapping[str, Any]

    def text(self, name: str) -> str:
        """A string field, or "" when it is missing or no string."""
        value = self.payload.get(name)
        return value if isinstance(value, str) else ""

    def integer(self, name: str) -> int:
        """An integer field, or 0."""
        value = self.payload.get(name)
        return value if isinstance(value, int) and not isinstance(value, bool) else 0


class Binary(NamedTuple):
    """A binary frame."""

    type: FrameType
    session_id: str
    payload: bytes


class MalformedFrame(ValueError):
    """A frame that is not of this protocol."""


_TYPES: Final = {t.value: t for t in Type}
_FRAME_TYPES: Final = {int(t): t for t in FrameType}


def parse_text(data: bytes) -> Text | None:
    """A text frame; None for a type nobody knows, as one of so many parts must be: it is not parsed. Raises MalformedFrame
    when it is not a JSON object with a type.
    """
    if len(data) > MAX_TEXT_BYTES:
        raise MalformedFrame("text frame too long")
    if data.count(b"[") + data.count(b"{") > MAX_BRACKETS:  # before parsing: nesting costs stack
        raise MalformedFrame("text frame too deep")
    if data.count(b",") > MAX_COMMAS:
        return None
    try:
        message = json.loads(data)
    except ValueError:
        raise MalformedFrame("not JSON") from None
    if not isinstance(message, dict) or not isinstance(message.get("type"), str):
        raise MalformedFrame("no type")
    kind = _TYPES.get(message["type"])
    payload = message.get("payload")
    return None if kind is None else Text(kind, payload if isinstance(payload, dict) else {})


def parse_binary(data: bytes) -> Binary:
    """A binary frame. Raises MalformedFrame."""
    if len(data) < 2 or len(data) < 2 + data[1]:
        raise MalformedFrame("binary frame too short")
    kind = _FRAME_TYPES.get(data[0])
    end = 2 + data[1]
    try:
        session_id = data[2:end].decode()
    except UnicodeDecodeError:
        raise MalformedFrame("session id is not UTF-8") from None
    if kind is None or not session_id:
        raise MalformedFrame("unknown binary type or empty session id")
    return Binary(kind, session_id, data[end:])


def encode_text(kind: Type, **payload: Any) -> bytes:
    """A text frame's payload, compact."""
    return json.dumps({"type": kind.value, "payload": payload}, separators=(",", ":")).encode()


def binary_prefix(kind: FrameType, session_id: str) -> bytes:
    """What stands before the payload of a binary frame; kept per tunnel, so data costs one join."""
    raw = session_id.encode()
    if not 0 < len(raw) <= MAX_SESSION_ID_BYTES:
        raise ValueError("session id must be 1 to 255 bytes")
    return bytes((kind, len(raw))) + raw


def legacy_data(session_id: str, data: bytes) -> bytes:
    """`tunnel_data` for peers that did not announce binary-v1."""
    return encode_text(Type.TUNNEL_DATA, sessionId=session_id, data=base64.b64encode(data).decode())


def legacy_payload(message: Text) -> bytes:
    """The bytes of a `tunnel_data` frame. Raises MalformedFrame."""
    try:
        return base64.b64decode(message.text("data"), validate=True)
    except ValueError:
        raise MalformedFrame("tunnel_data is not base64") from None
