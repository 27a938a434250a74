"""WebSocket frames, sans-I/O, for the relay's byte path and the peers: no extension, bounded, one copy per frame.

`FrameReader.receive` takes whatever a read gave and returns whole messages: fragments are joined, control frames may stand
between them, masks are undone, UTF-8 of text is checked. A fault raises `WebSocketFault` with the close code to send.
Leaves out the opening handshake (`handshake.py`) and timers. Source: RFC 6455 sections 5, 7 and 8.
"""

import sys
from enum import IntEnum
from typing import Final, NamedTuple

try:
    from websockets.speedups import apply_mask
except ImportError:  # a peer without the C extension masks with big integers: slower, the same bytes

    def apply_mask(data: bytes | bytearray | memoryview, mask: bytes | bytearray) -> bytes:
        size = len(data)
        pattern = (bytes(mask) * (size // 4 + 1))[:size]
        return (int.from_bytes(data, "big") ^ int.from_bytes(pattern, "big")).to_bytes(size, "big")


MAX_MESSAGE_BYTES: Final = 4 * 1024 * 1024 + 512
MAX_CONTROL_BYTES: Final = 125
VIEWED_FROM_BYTES: Final = 1024
"""A smaller piece is copied sooner than a view of it is made."""
_WHOLE_BINARY: Final = 0x82
_LENGTH_16: Final = 126
_LENGTH_64: Final = 127


class Opcode(IntEnum):
    """Frame types of RFC 6455 section 5.2."""

    CONTINUATION = 0x0
    TEXT = 0x1
    BINARY = 0x2
    CLOSE = 0x8
    PING = 0x9
    PONG = 0xA


_BINARY: Final = Opcode.BINARY  # an enum's own attributes are slow to look up before Python 3.12


class CloseCode(IntEnum):
    """Close codes that psx sends or understands; 4xxx are the peer protocol's own."""

    NORMAL = 1000
    GOING_AWAY = 1001
    PROTOCOL_ERROR = 1002
    NO_STATUS = 1005
    INVALID_DATA = 1007
    POLICY = 1008
    TOO_BIG = 1009
    TRY_AGAIN_LATER = 1013
    IDENTITY_INVALID = 4001
    IDENTITY_REVOKED = 4002
    REDIRECTED = 4100


class WebSocketFault(Exception):
    """The other side broke the protocol; close with `code`."""

    def __init__(self, code: CloseCode, reason: str) -> None:
        super().__init__(reason)
        self.code = code
        self.reason = reason


class Message(NamedTuple):
    """A whole message: TEXT or BINARY, or a control frame."""

    opcode: Opcode
    payload: bytes

    def close_code(self) -> int:
        """The code of a CLOSE message; 1005 when it carries none."""
        return int.from_bytes(self.payload[:2], "big") if len(self.payload) >= 2 else CloseCode.NO_STATUS


_VALID_OPCODES: Final = {int(o): o for o in Opcode}
_WIRE_CLOSE_CODES: Final = frozenset({1000, 1001, 1002, 1003, 1007, 1008, 1009, 1010, 1011, 1012, 1013, 1014})


class FrameReader:
    """Turns received bytes into messages. `masked` says whether the other side must mask (it must, if a client).

    `max_message_bytes` may be changed at any time; it is asked when a frame's length is read. `at_once` bounds the frames
    that one `receive` looks at, `text_at_once_bytes` the text with which it stops; `uncommon` says how many frames were no
    whole binary messages, `text_bytes` how much text they completed.
    """

    def __init__(
        self,
        *,
        masked: bool,
        max_message_bytes: int = MAX_MESSAGE_BYTES,
        at_once: int = sys.maxsize,
        text_at_once_bytes: int = sys.maxsize,
    ) -> None:
        self._masked = masked
        self._at_once = at_once
        self._text_at_once_bytes = text_at_once_bytes
        self._rest = b""
        self.uncommon = 0
        self.text_bytes = 0
        self.max_message_bytes = max_message_bytes
        self._buffer = bytearray()
        self._need = 2
        self._opcode: Opcode | None = None
        self._joined = bytearray()

    @property
    def partial_bytes(self) -> int:
        """What is held of a message that is not complete."""
        return len(self._buffer) + len(self._rest) + len(self._joined)

    @property
    def has_more(self) -> bool:
        """Whether frames were received that `receive(b"")` has still to look at."""
        return bool(self._rest)

    def keep(self, data: bytes | memoryview) -> None:
        """What came and is looked at by the next `receive`."""
        self._rest += data

    def receive(self, data: bytes | memoryview) -> list[Message]:
        """All messages that `data` completes, in order; none of them is a view of it.

        Raises WebSocketFault; what came before it is lost with it.
        """
        messages: list[Message] = []
        self.uncommon = self.text_bytes = 0
        if self._rest:
            data, self._rest = self._rest + data, b""
        offset = self._complete(data, messages) if self._buffer else 0
        if offset >= 0:
            left, end = self._at_once, len(data)
            while left and offset < end and (taken := self._frame(data, offset, messages)):
                offset += taken
                left = left - 1 if self.text_bytes < self._text_at_once_bytes else 0
            if not left:
                self._rest = bytes(memoryview(data)[offset:])
            elif offset < end:
                self._buffer += memoryview(data)[offset:]
        return messages

    def _complete(self, data: bytes | memoryview, messages: list[Message]) -> int:
        """Give the frame that began in an earlier read what it lacks; how much that was, or -1 when it lacks more."""
        buffer, offset = self._buffer, 0
        while True:
            lacking = self._need - len(buffer)
            buffer += memoryview(data)[offset : offset + lacking]
            if len(buffer) < self._need:
                return -1
            offset += lacking
            if self._frame(buffer, 0, messages):
                self._buffer = bytearray()
                return offset

    def _frame(self, buffer: bytes | bytearray | memoryview, start: int, messages: list[Message]) -> int:
        """Length of the frame at `start`, now in `messages`; 0 when it is incomplete: `_need` says how much it needs."""
        have = len(buffer) - start
        self._need = 2
        if have < 2:
            return 0
        first, second = buffer[start], buffer[start + 1]
        alone = first == _WHOLE_BINARY and self._opcode is None  # as nearly all are
        opcode = _BINARY if alone else self._check_first(first)
        if (second >= 0x80) is not self._masked:
            raise WebSocketFault(CloseCode.PROTOCOL_ERROR, "mask bit is wrong for this side")
        size, header = second & 0x7F, 2
        if size >= _LENGTH_16:
            if opcode > _BINARY:
                raise WebSocketFault(CloseCode.PROTOCOL_ERROR, "control frame too long")
            self._need = header = 4 if size == _LENGTH_16 else 10
            if have < header:
                return 0
            long = int.from_bytes(buffer[start + 2 : start + header], "big")
            if long < (_LENGTH_16 if size == _LENGTH_16 else 1 << 16) or long >> 63:
                raise WebSocketFault(CloseCode.PROTOCOL_ERROR, "length is not the shortest")
            size = long
        if size + len(self._joined) > self.max_message_bytes:
            raise WebSocketFault(CloseCode.TOO_BIG, "message too big")
        body = header + (4 if self._masked else 0)
        if have < body + size:
            self._need = body + size
            return 0
        from_, to = start + body, start + body + size
        payload = memoryview(buffer)[from_:to] if size > VIEWED_FROM_BYTES else buffer[from_:to]
        whole = apply_mask(payload, bytes(buffer[start + header : from_])) if self._masked else bytes(payload)
        if alone:
            messages.append(Message(opcode, whole))
        else:
            self._deliver(opcode, bool(first & 0x80), whole, messages)
        return body + size

    def _check_first(self, first: int) -> Opcode:
        opcode = _VALID_OPCODES.get(first & 0x0F)
        if first & 0x70 or opcode is None:
            raise WebSocketFault(CloseCode.PROTOCOL_ERROR, "reserved bit or opcode")
        if opcode >= Opcode.CLOSE and not first & 0x80:
            raise WebSocketFault(CloseCode.PROTOCOL_ERROR, "fragmented control frame")
        return opcode

    def _deliver(self, opcode: Opcode, final: bool, payload: bytes, messages: list[Message]) -> None:
        self.uncommon += 1
        if opcode >= Opcode.CLOSE:
            if opcode is Opcode.CLOSE:
                _check_close(payload)
            messages.append(Message(opcode, payload))
            return
        if (opcode is Opcode.CONTINUATION) is (self._opcode is None):
            raise WebSocketFault(CloseCode.PROTOCOL_ERROR, "continuation out of place")
        kind = self._opcode or opcode
        if not final or self._opcode is not None:
            self._joined += payload
            self._opcode = kind
            if not final:
                return
            payload, self._joined, self._opcode = bytes(self._joined), bytearray(), None
        if kind is Opcode.TEXT:
            self.text_bytes += len(payload)
            _check_utf8(payload)
        messages.append(Message(kind, payload))


def _check_utf8(payload: bytes) -> None:
    try:
        payload.decode("utf-8")
    except UnicodeDecodeError:
        raise WebSocketFault(CloseCode.INVALID_DATA, "text is not UTF-8") from None


def _check_close(payload: bytes) -> None:
    if not payload:
        return
    code = int.from_bytes(payload[:2], "big")
    if len(payload) == 1 or not (code in _WIRE_CLOSE_CODES or 3000 <= code <= 4999):
        raise WebSocketFault(CloseCode.PROTOCOL_ERROR, "close code not allowed")
    _check_utf8(payload[2:])


def frame_header(opcode: Opcode, size: int, mask: bytes = b"") -> bytes:
    """The header of a final frame of `size` payload bytes; `mask` is empty (server) or four bytes (client)."""
    flag = 0x80 if mask else 0
    if size < _LENGTH_16:
        return bytes((0x80 | opcode, flag | size)) + mask
    if size < 1 << 16:
        return bytes((0x80 | opcode, flag | _LENGTH_16)) + size.to_bytes(2, "big") + mask
    return bytes((0x80 | opcode, flag | _LENGTH_64)) + size.to_bytes(8, "big") + mask


def encode_frame(opcode: Opcode, payload: bytes, mask: bytes = b"") -> bytes:
    """A final frame, masked when `mask` is given."""
    return frame_header(opcode, len(payload), mask) + (apply_mask(payload, mask) if mask else payload)


def encode_close(code: int, reason: str = "", mask: bytes = b"") -> bytes:
    """A CLOSE frame; the reason is cut to what fits."""
    payload = code.to_bytes(2, "big") + reason.encode()[: MAX_CONTROL_BYTES - 2]
    return encode_frame(Opcode.CLOSE, payload, mask)
