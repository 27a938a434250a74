"""Where the body of an HTTP/1.1 message ends, found while its bytes pass through unchanged.

Two framings in one message, or lengths that differ, are refused: that is how requests are smuggled.
Source: RFC 9112 sections 6 and 7.
"""

from enum import Enum
from typing import Final

from shared.wire.http1 import HeadError, HeadFault, RequestHead, ResponseHead

MAX_CHUNK_LINE_BYTES: Final = 4096
MAX_TRAILER_BYTES: Final = 16 * 1024
MAX_LENGTH_DIGITS: Final = 18
_HEX: Final = frozenset(b"0123456789abcdefABCDEF")


class Framing(Enum):
    """How a body is delimited."""

    NONE = 1
    LENGTH = 2
    CHUNKED = 3
    UNTIL_CLOSE = 4


def request_framing(head: RequestHead) -> tuple[Framing, int]:
    """(framing, length) of a request's body. Raises HeadError when it is ambiguous."""
    return _framing(head) or (Framing.NONE, 0)


def response_framing(head: ResponseHead, method: str) -> tuple[Framing, int]:
    """(framing, length) of an answer's body; `method` is the request's. Raises HeadError when it is ambiguous."""
    if method == "HEAD" or head.status // 100 == 1 or head.status in {204, 304}:
        return Framing.NONE, 0
    return _framing(head) or (Framing.UNTIL_CLOSE, 0)


def _framing(head: RequestHead | ResponseHead) -> tuple[Framing, int] | None:
    codings = [value.lower() for name, value in head.headers if name == "transfer-encoding"]
    lengths = {value for name, value in head.headers if name == "content-length"}
    if codings:
        if lengths or codings != ["chunked"] or head.minor == 0:  # HTTP/1.0 knows no codings
            raise HeadError(HeadFault.BAD_FRAMING)
        return Framing.CHUNKED, 0
    if not lengths:
        return None
    (digits, *others) = lengths
    if others or not (digits.isascii() and digits.isdecimal()) or len(digits) > MAX_LENGTH_DIGITS:
        raise HeadError(HeadFault.BAD_FRAMING)
    return (Framing.LENGTH, int(digits)) if int(digits) else (Framing.NONE, 0)


class BodyScanner:
    """Feed it bytes; it says how many belong to the body. `done` when the body is complete."""

    def __init__(self, framing: Framing, length: int = 0) -> None:
        self._framing = framing
        self._left = length
        self._line = bytearray()
        self._in_data = False
        self._ends_chunk = False
        self._trailers = False
        self._trailer_bytes = 0
        self.done = framing is Framing.NONE

    def take(self, data: bytes | bytearray | memoryview) -> int:
        """How many of `data`, from its front, are the body's. Raises HeadError for chunks that are none."""
        if self.done:
            return 0
        if self._framing is Framing.UNTIL_CLOSE:
            return len(data)
        if self._framing is Framing.LENGTH:
            taken = min(self._left, len(data))
            self._left -= taken
            self.done = self._left == 0
            return taken
        return self._chunks(data)

    def close_ends_it(self) -> bool:
        """Whether a closed connection is the body's proper end."""
        return self.done or self._framing is Framing.UNTIL_CLOSE

    def _chunks(self, data: bytes | bytearray | memoryview) -> int:
        offset, end = 0, len(data)
        if self._in_data and end < self._left:  # a large chunk is not copied
            self._left -= end
            return end
        data = bytes(data)
        while offset < end and not self.done:
            if self._in_data:
                taken = min(self._left, end - offset)
                offset += taken
                self._left -= taken
                self._in_data = self._left > 0
                self._ends_chunk = not self._in_data
            else:
                offset = self._read_line(data, offset)
        return offset

    def _read_line(self, data: bytes, offset: int) -> int:
        found = data.find(b"\n", offset, offset + MAX_CHUNK_LINE_BYTES)
        stop = len(data) if found < 0 else found + 1
        self._line += data[offset:stop]
        if len(self._line) > MAX_CHUNK_LINE_BYTES:
            raise HeadError(HeadFault.BAD_FRAMING)
        if found >= 0:
            line, self._line = bytes(self._line), bytearray()
            self._finish_line(line)
        return stop

    def _finish_line(self, line: bytes) -> None:
        if line.count(b"\r") != 1 or not line.endswith(b"\r\n"):  # some readers end a line at a bare CR
            raise HeadError(HeadFault.BAD_FRAMING)
        if self._ends_chunk:
            if line != b"\r\n":
                raise HeadError(HeadFault.BAD_FRAMING)
            self._ends_chunk = False
            return
        if self._trailers:
            self._trailer_bytes += len(line)
            if self._trailer_bytes > MAX_TRAILER_BYTES:
                raise HeadError(HeadFault.TOO_LARGE)
            self.done = line == b"\r\n"
            return
        digits = line[:-2].partition(b";")[0].strip(b" \t")
        if not digits or len(digits) > 16 or not _HEX.issuperset(digits):
            raise HeadError(HeadFault.BAD_FRAMING)
        size = int(digits, 16)
        if size == 0:
            self._trailers = True
        else:
            self._left = size
            self._in_data = True
