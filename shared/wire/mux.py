"""binary-v2: many tunnels over one connection, with credit windows, half-close and resumption. Frames only.

A frame is `type u8 | tunnel u32 | body`, big-endian. Between a peer and a relay it is one binary WebSocket message; on a
link between gateway and relay a `length u32` (of the frame, without itself) stands before it. Tunnel ids are chosen by
whoever sends OPEN or RESUME, are unique on that connection, and 0 is the connection itself.

    type  name     body                                              from
    0x10  OPEN     token 16 | limit u64 | port u16 | n u8 | host n   gateway; `host` is a name or a literal address
    0x11  OPENED   limit u64                                         peer: the target is connected
    0x12  REFUSED  reason u8 | detail, UTF-8                         peer or relay: OPEN or RESUME failed; the id is free
    0x13  DATA     bytes, 1 to 65,536                                both
    0x14  WINDOW   received u64 | limit u64                          both: taken so far; you may send up to `limit`
    0x15  EOF      -                                                 both: nothing follows in this direction
    0x16  RESET    reason u8                                         all: the tunnel is over, and not cleanly
    0x17  PING     8 bytes                                           both, tunnel 0
    0x18  PONG     the same 8 bytes                                  both, tunnel 0
    0x19  GOAWAY   reconnect_in_ms u32 | try_for_ms u32              relay, tunnel 0: dial anew in this, try for that
    0x1a  RESUME   token 16 | received u64 | limit u64               gateway: go on with the tunnel of this token here
    0x1b  RESUMED  received u64 | limit u64                          peer: yes; send again what came after `received`
    0x1c  BLOCKED  limit u64                                         both: I have more to send, and `limit` is reached
    0x1d  CLOSE    -                                                 gateway: both directions are done and taken; id is free

On a link, OPEN and RESUME have `n u8 | device id n` before their body: the relay takes it off and chooses the socket.
Offsets count the bytes of one direction from 0; EOF counts as one more, so it is acknowledged like a byte. `limit` is
absolute and never goes back, so a WINDOW may be lost or repeated. Whoever receives beyond its limit resets the tunnel.
What came is acknowledged when half of the window has come, or sooner; in a first window at 128 KB, however large it is:
whoever sends keeps what was not acknowledged, and may have no room for more than 256 KB of it. What is sent again after
RESUMED may come to eight times what was acknowledged and 16 MB; then the tunnel ends.
RESET(path_lost) says that a connection between the ends was lost, not the tunnel: the gateway may RESUME within
`RESUME_WITHIN_S`, on any socket of the device and through any relay. Unknown types are ignored; unknown ids are, too.

How a peer's socket ends tells a relay what its tunnels may hope for, and it tells the gateway (decision 0081):

    closed with 1000                the peer stopped: RESET(stopped), nothing is resumed
    closed with any other code      it comes back, here or elsewhere: RESET(path_lost)
    silent, or the relay ended it   it may not know yet: RESET(path_lost)
    ended without a close frame     its process or its path died: RESET(peer_gone), on links only; what lives dials again
                                    at once, so a gateway waits a few seconds for it and not the whole time

A device that is back and answers RESUME with REFUSED(unknown_tunnel) has lost its tunnels: they end at once.

History: v1 (`peer.py`) has neither windows nor half-close; v2 is chosen by `protocol: "binary-v2"` in device_info and
connected. The reason peer_gone came later: a gateway says in its request for a link which reasons it knows
(`REASONS_HEADER`), and one that does not is told path_lost. The rules of a tunnel's two ends are in `stream.py`; test
vectors are in docs/protocol/.
"""

import struct
from collections.abc import Iterator
from enum import IntEnum
from typing import Final, NamedTuple

PROTOCOL: Final = "binary-v2"
TOKEN_BYTES: Final = 16
HEADER_BYTES: Final = 5
DATA_MAX_BYTES: Final = 64 * 1024
DETAIL_MAX_BYTES: Final = 128
HOST_MAX_BYTES: Final = 253
FRAME_MAX_BYTES: Final = HEADER_BYTES + DATA_MAX_BYTES
LINK_FRAME_MAX_BYTES: Final = FRAME_MAX_BYTES + 256
"""On a link a device id comes on top."""
VIEWED_FROM_BYTES: Final = 1024
"""A smaller body is copied sooner than a view of it is made."""
LINK_UPGRADE: Final = "psx-mux-2"
REASONS_HEADER: Final = "X-PSX-Reasons"
"""The highest reason that a gateway knows; without it, those of the first version."""
RESUME_WITHIN_S: Final = 20.0
"""How long a peer keeps a tunnel whose path is lost; gateways try for somewhat less."""

_HEADER: Final = struct.Struct("!BI")
_LENGTH: Final = struct.Struct("!I")
_LIMIT: Final = struct.Struct("!Q")
_WINDOW: Final = struct.Struct("!QQ")
_OPEN: Final = struct.Struct(f"!{TOKEN_BYTES}sQHB")
_RESUME: Final = struct.Struct(f"!{TOKEN_BYTES}sQQ")
_GOAWAY: Final = struct.Struct("!II")

Bytes = bytes | memoryview


class MuxType(IntEnum):
    """First byte of a frame."""

    OPEN = 0x10
    OPENED = 0x11
    REFUSED = 0x12
    DATA = 0x13
    WINDOW = 0x14
    EOF = 0x15
    RESET = 0x16
    PING = 0x17
    PONG = 0x18
    GOAWAY = 0x19
    RESUME = 0x1A
    RESUMED = 0x1B
    BLOCKED = 0x1C
    CLOSE = 0x1D


class MuxReason(IntEnum):
    """Why a tunnel was refused or reset. The first ones are the target's doing, the rest the path's."""

    UNKNOWN = 0
    CONNECTION_REFUSED = 1
    DNS_FAILED = 2
    TIMEOUT = 3
    UNREACHABLE = 4
    EGRESS_POLICY = 5
    TARGET_RESET = 6
    CUSTOMER_RESET = 16
    PATH_LOST = 17
    FLOW_VIOLATION = 18
    TOO_MANY_TUNNELS = 19
    UNKNOWN_DEVICE = 20
    UNKNOWN_TUNNEL = 21
    DRAINING = 22
    OVERLOADED = 23
    STOPPED = 24
    PEER_GONE = 25


FIRST_REASONS_MAX: Final = MuxReason.STOPPED

_BODY_MAX_BYTES: Final = {
    MuxType.OPEN: _OPEN.size + HOST_MAX_BYTES + 256,
    MuxType.OPENED: _LIMIT.size,
    MuxType.REFUSED: 1 + DETAIL_MAX_BYTES,
    MuxType.DATA: DATA_MAX_BYTES,
    MuxType.WINDOW: _WINDOW.size,
    MuxType.EOF: 0,
    MuxType.RESET: 1,
    MuxType.PING: 8,
    MuxType.PONG: 8,
    MuxType.GOAWAY: _GOAWAY.size,
    MuxType.RESUME: _RESUME.size + 256,
    MuxType.RESUMED: _WINDOW.size,
    MuxType.BLOCKED: _LIMIT.size,
    MuxType.CLOSE: 0,
}
_BODY_MIN_BYTES: Final = _BODY_MAX_BYTES | {
    MuxType.OPEN: _OPEN.size,
    MuxType.REFUSED: 1,
    MuxType.DATA: 0,
    MuxType.RESUME: _RESUME.size,
}
_REASONS: Final = {int(r): r for r in MuxReason}
_TYPES: Final = {int(t): (t, _BODY_MIN_BYTES[t], _BODY_MAX_BYTES[t]) for t in MuxType}


class MalformedMux(ValueError):
    """A frame that is not of this protocol: the connection is closed."""


class Frame(NamedTuple):
    """A frame of a known type, its body not yet looked into."""

    type: MuxType
    tunnel: int
    body: Bytes


class Open(NamedTuple):
    """Body of OPEN."""

    token: bytes
    limit: int
    host: str
    port: int


class Resume(NamedTuple):
    """Body of RESUME."""

    token: bytes
    received: int
    limit: int


def parse(data: Bytes) -> Frame | None:
    """A frame; None for a type nobody knows. Raises MalformedMux when its length is out of bounds."""
    if not HEADER_BYTES <= len(data) <= LINK_FRAME_MAX_BYTES:
        raise MalformedMux("frame too short or too long")
    return _frame(data, 0, len(data))


def _frame(data: Bytes, start: int, end: int) -> Frame | None:
    code, tunnel = _HEADER.unpack_from(data, start)
    known = _TYPES.get(code)
    if known is None:
        return None
    start += HEADER_BYTES
    kind, least, most = known
    if not least <= end - start <= most:
        raise MalformedMux(f"{kind.name} has a wrong length")
    body = data[start:end] if end - start < VIEWED_FROM_BYTES else memoryview(data)[start:end]
    return tuple.__new__(Frame, (kind, tunnel, body))  # what `Frame(...)` does, on every tunnel's way


def header(kind: MuxType, tunnel: int) -> bytes:
    """What stands before a body."""
    return _HEADER.pack(kind, tunnel)


def open_frame(tunnel: int, token: bytes, limit: int, host: str, port: int) -> bytes:
    """OPEN. Raises ValueError for a host that no name or address is as long as."""
    raw = host.encode()
    if not 0 < len(raw) <= HOST_MAX_BYTES:
        raise ValueError("host must be 1 to 253 bytes")
    return header(MuxType.OPEN, tunnel) + _OPEN.pack(token, limit, port, len(raw)) + raw


def read_open(body: Bytes) -> Open:
    """Raises MalformedMux."""
    if len(body) < _OPEN.size:
        raise MalformedMux("OPEN too short")
    token, limit, port, size = _OPEN.unpack_from(body)
    raw = bytes(body[_OPEN.size :])
    if len(raw) != size or not 0 < size <= HOST_MAX_BYTES or port == 0:
        raise MalformedMux("OPEN names no target")
    return Open(token, limit, _text(raw), port)


def opened_frame(tunnel: int, limit: int) -> bytes:
    """OPENED."""
    return header(MuxType.OPENED, tunnel) + _LIMIT.pack(limit)


def blocked_frame(tunnel: int, limit: int) -> bytes:
    """BLOCKED."""
    return header(MuxType.BLOCKED, tunnel) + _LIMIT.pack(limit)


def read_limit(body: Bytes) -> int:
    """The limit of OPENED or BLOCKED. Raises MalformedMux."""
    if len(body) != _LIMIT.size:
        raise MalformedMux("a limit has a wrong length")
    return int(_LIMIT.unpack(body)[0])


def refused_frame(tunnel: int, reason: MuxReason, detail: str = "") -> bytes:
    """REFUSED; the detail is cut to what fits."""
    raw = detail.encode()[:DETAIL_MAX_BYTES].decode("utf-8", "ignore").encode()
    return header(MuxType.REFUSED, tunnel) + bytes((reason,)) + raw


def reset_frame(tunnel: int, reason: MuxReason) -> bytes:
    """RESET."""
    return header(MuxType.RESET, tunnel) + bytes((reason,))


def read_reason(body: Bytes) -> MuxReason:
    """The reason of REFUSED or RESET; UNKNOWN for one that came later than this code. Raises MalformedMux."""
    if not body:
        raise MalformedMux("no reason")
    return _REASONS.get(body[0], MuxReason.UNKNOWN)


def window_frame(tunnel: int, received: int, limit: int) -> bytes:
    """WINDOW."""
    return header(MuxType.WINDOW, tunnel) + _WINDOW.pack(received, limit)


def resumed_frame(tunnel: int, received: int, limit: int) -> bytes:
    """RESUMED."""
    return header(MuxType.RESUMED, tunnel) + _WINDOW.pack(received, limit)


def read_window(body: Bytes) -> tuple[int, int]:
    """(received, limit) of WINDOW or RESUMED. Raises MalformedMux."""
    if len(body) != _WINDOW.size:
        raise MalformedMux("WINDOW has a wrong length")
    received, limit = _WINDOW.unpack(body)
    return received, limit


def resume_frame(tunnel: int, token: bytes, received: int, limit: int) -> bytes:
    """RESUME."""
    return header(MuxType.RESUME, tunnel) + _RESUME.pack(token, received, limit)


def read_resume(body: Bytes) -> Resume:
    """Raises MalformedMux."""
    if len(body) != _RESUME.size:
        raise MalformedMux("RESUME has a wrong length")
    return Resume(*_RESUME.unpack(body))


def goaway_frame(reconnect_in_ms: int, try_for_ms: int) -> bytes:
    """GOAWAY."""
    return header(MuxType.GOAWAY, 0) + _GOAWAY.pack(reconnect_in_ms, try_for_ms)


def read_goaway(body: Bytes) -> tuple[int, int]:
    """(reconnect_in_ms, try_for_ms). Raises MalformedMux."""
    if len(body) != _GOAWAY.size:
        raise MalformedMux("GOAWAY has a wrong length")
    reconnect_in_ms, try_for_ms = _GOAWAY.unpack(body)
    return reconnect_in_ms, try_for_ms


def for_device(frame: bytes, device_id: str) -> bytes:
    """OPEN or RESUME as it travels on a link: the device named before the body. Raises ValueError."""
    raw = device_id.encode()
    if not 0 < len(raw) <= 255:
        raise ValueError("device id must be 1 to 255 bytes")
    return frame[:HEADER_BYTES] + bytes((len(raw),)) + raw + frame[HEADER_BYTES:]


def split_device(body: Bytes) -> tuple[str, Bytes]:
    """(device id, body for the peer) of OPEN or RESUME on a link. Raises MalformedMux."""
    size = body[0] if body else 0
    if size == 0 or len(body) < 1 + size:
        raise MalformedMux("no device named")
    return _text(bytes(body[1 : 1 + size])), body[1 + size :]


def _text(raw: bytes) -> str:
    try:
        return raw.decode()
    except UnicodeDecodeError:
        raise MalformedMux("not UTF-8") from None


def link_header(size: int) -> bytes:
    """What stands before a frame of `size` bytes on a link."""
    return _LENGTH.pack(size)


class LinkReader:
    """Cuts what a link received into frames; whole frames are not copied, only one that spans two reads is."""

    def __init__(self) -> None:
        self._part = bytearray()

    def receive(self, data: bytes) -> Iterator[Frame]:
        """The frames that `data` completes, lazily. Raises MalformedMux; then the link is closed."""
        part = self._part
        offset = 0
        if part:
            offset = self._complete(data)
            if offset < 0:
                return
            frame = parse(memoryview(bytes(part))[4:])
            part.clear()
            if frame is not None:
                yield frame
        end = len(data)
        while end - offset >= 4:
            beyond = offset + 4 + _size(data, offset)
            if beyond > end:
                break
            frame = _frame(data, offset + 4, beyond)
            offset = beyond
            if frame is not None:
                yield frame
        part += memoryview(data)[offset:]

    def _complete(self, data: bytes) -> int:
        """Add to the partial frame what it lacks; how much that was, or -1 when it is still partial."""
        part, taken = self._part, 0
        if len(part) < 4:
            taken = min(4 - len(part), len(data))
            part += data[:taken]
            if len(part) < 4:
                return -1
        lacking = 4 + _size(part, 0) - len(part)
        part += memoryview(data)[taken : taken + lacking]
        return taken + lacking if len(data) - taken >= lacking else -1


def _size(data: bytes | bytearray, offset: int) -> int:
    size: int = _LENGTH.unpack_from(data, offset)[0]
    if not HEADER_BYTES <= size <= LINK_FRAME_MAX_BYTES:
        raise MalformedMux("frame length out of bounds")
    return size
