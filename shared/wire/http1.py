"""HTTP/1.x heads of proxy requests and answers: parsed incrementally, bounded, strictly; built without surprises.

Leaves out bodies (`http1_body.py`). Tolerates CONNECT as HTTP/1.0 and without Host, as common clients send it. The names of
headers are kept as they were written, beside the lower-case ones: what is forwarded looks as its sender wrote it.
Source: RFC 9112 (sections 2-5), RFC 9110 section 9.3.6, RFC 7617.
"""

import base64
import binascii
import re
from collections.abc import Sequence
from enum import StrEnum
from functools import lru_cache
from typing import Final, NamedTuple

MAX_HEAD_BYTES: Final = 16 * 1024
MAX_HEADER_COUNT: Final = 100
MAX_PORT: Final = 65_535
HEADS_KEPT: Final = 1024
KEPT_HEAD_BYTES: Final = 1024
"""Of a CONNECT whose reading is remembered: together at most a few MB."""

_NAME: Final = r"[!#$%&'*+\-.^_`|~0-9A-Za-z]+"
_REQUEST_LINE: Final = re.compile(rf"({_NAME}) ([\x21-\x7e]+) HTTP/1\.([01])")
_STATUS_LINE: Final = re.compile(r"HTTP/1\.([01]) ([1-9][0-9]{2})(?: (.*))?", re.DOTALL)
_HEADER: Final = re.compile(rf"({_NAME}):([\t\x20-\x7e\x80-\xff]*)")
_HOST: Final = re.compile(r"[A-Za-z0-9._-]{1,253}")
_IPV6: Final = re.compile(r"\[([0-9A-Fa-f:.]{2,45})\]")

Headers = tuple[tuple[str, str], ...]


class HeadFault(StrEnum):
    """Why a head is refused."""

    TOO_LARGE = "head_too_large"
    TOO_MANY_HEADERS = "too_many_headers"
    BAD_LINE = "malformed_start_line"
    BAD_HEADER = "malformed_header"
    BAD_AUTHORITY = "malformed_authority"
    BAD_FRAMING = "ambiguous_body_framing"


class HeadError(ValueError):
    """A head that no well-meaning client sends."""

    def __init__(self, fault: HeadFault) -> None:
        super().__init__(fault.value)
        self.fault = fault


class RequestHead(NamedTuple):
    """Method, target and headers (names lower-case); `minor` is the x of HTTP/1.x; `names` are as written."""

    method: str
    target: str
    minor: int
    headers: Headers
    names: tuple[str, ...] = ()

    def header(self, name: str) -> str | None:
        """The first value of a header, by lower-case name."""
        return _first(self.headers, name)


class ResponseHead(NamedTuple):
    """Status and headers of an answer, as `RequestHead` has them."""

    status: int
    reason: str
    headers: Headers
    minor: int = 1
    names: tuple[str, ...] = ()

    def header(self, name: str) -> str | None:
        """The first value of a header, by lower-case name."""
        return _first(self.headers, name)


def _first(headers: Headers, name: str) -> str | None:
    for key, value in headers:
        if key == name:
            return value
    return None


def take_request_head(buffer: bytearray, max_bytes: int = MAX_HEAD_BYTES) -> RequestHead | None:
    """Cut a request head off the front of `buffer`; None while it is incomplete. Raises HeadError."""
    text = _take_text(buffer, max_bytes)
    if text is None:
        return None
    again = len(text) <= KEPT_HEAD_BYTES and text.startswith("CONNECT ")
    return _connect_again(text) if again else _request_head(text)


def _request_head(text: str) -> RequestHead:
    lines = _lines(text)
    start = _REQUEST_LINE.fullmatch(lines[0])
    if start is None:
        raise HeadError(HeadFault.BAD_LINE)
    method, target, minor = start.groups()
    return RequestHead(method, target, int(minor), *_headers(lines))


_connect_again: Final = lru_cache(maxsize=HEADS_KEPT)(_request_head)
"""A client's CONNECT to one target looks the same each time."""


def take_response_head(buffer: bytearray, max_bytes: int = MAX_HEAD_BYTES) -> ResponseHead | None:
    """Cut a response head off the front of `buffer`; None while it is incomplete. Raises HeadError."""
    text = _take_text(buffer, max_bytes)
    if text is None:
        return None
    lines = _lines(text)
    start = _STATUS_LINE.fullmatch(lines[0])
    if start is None:
        raise HeadError(HeadFault.BAD_LINE)
    minor, code, reason = start.groups("")
    headers, names = _headers(lines)
    return ResponseHead(int(code), reason, headers, int(minor), names)


def _take_text(buffer: bytearray, max_bytes: int) -> str | None:
    if buffer[:2] == b"\r\n":  # RFC 9112 2.2: an empty line before the start line is skipped
        del buffer[:2]
    end = buffer.find(b"\r\n\r\n", 0, max_bytes)
    if end < 0:
        if len(buffer) >= max_bytes:
            raise HeadError(HeadFault.TOO_LARGE)
        return None
    text = buffer[:end].decode("latin-1")
    del buffer[: end + 4]
    return text


def _lines(text: str) -> list[str]:
    lines = text.split("\r\n")
    if len(lines) - 1 > MAX_HEADER_COUNT:
        raise HeadError(HeadFault.TOO_MANY_HEADERS)
    return lines


def _headers(lines: Sequence[str]) -> tuple[Headers, tuple[str, ...]]:
    """The headers below a start line: lower-case names with values, and names as written."""
    headers, names = [], []
    for line in lines[1:]:
        header = _HEADER.fullmatch(line)
        if header is None:
            raise HeadError(HeadFault.BAD_HEADER)
        name, value = header.groups()
        names.append(name)
        headers.append((name.lower(), value.strip(" \t")))
    return tuple(headers), tuple(names)


def named_options(head: RequestHead | ResponseHead) -> frozenset[str]:
    """What `Connection` names, lower-case: options and hop-by-hop headers."""
    values = (value for name, value in head.headers if name == "connection")
    parts = (part.strip(" \t").lower() for value in values for part in value.split(","))
    return frozenset(part for part in parts if part)


def split_authority(text: str, default_port: int | None = None) -> tuple[str, int]:
    """`host:port`, `[v6]:port` or (with a default) a bare host as (host without brackets, port). Raises HeadError."""
    bracketed = _IPV6.match(text)
    if bracketed:
        host, rest = bracketed.group(1), text[bracketed.end() :]
    else:
        host, colon, digits = text.partition(":")
        rest = colon + digits
        if not _HOST.fullmatch(host):
            raise HeadError(HeadFault.BAD_AUTHORITY)
    if not rest and default_port is not None:
        return host, default_port
    digits = rest[1:]
    if rest[:1] != ":" or not digits.isdecimal() or not digits.isascii() or len(digits) > 5:
        raise HeadError(HeadFault.BAD_AUTHORITY)
    port = int(digits)
    if not 0 < port <= MAX_PORT:
        raise HeadError(HeadFault.BAD_AUTHORITY)
    return host, port


def join_authority(host: str, port: int) -> str:
    """The inverse of `split_authority`."""
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def basic_credentials(value: str | None) -> tuple[str, str] | None:
    """(username, password) of a Basic header, split at the first colon; None when it is no such thing."""
    scheme, _, encoded = (value or "").partition(" ")
    if scheme.lower() != "basic":
        return None
    try:
        text = base64.b64decode(encoded.strip(), validate=True).decode("utf-8")
    except (binascii.Error, ValueError):
        return None
    username, colon, password = text.partition(":")
    return (username, password) if colon else None


def basic_header(username: str, password: str) -> str:
    """The value of a Basic header."""
    return "Basic " + base64.b64encode(f"{username}:{password}".encode()).decode()


def build_head(start_line: str, headers: Sequence[tuple[str, str]]) -> bytes:
    """A head ready to send. Raises ValueError for a line break inside a value: nothing may smuggle a header."""
    lines = [start_line, *[f"{name}: {value}" for name, value in headers], "", ""]
    head = "\r\n".join(lines)
    if head.count("\r") != len(lines) - 1 or head.count("\n") != len(lines) - 1:
        raise ValueError("line break in a head")
    return head.encode("latin-1", "replace")


def connect_head(host: str, port: int, headers: Sequence[tuple[str, str]]) -> bytes:
    """A CONNECT request."""
    authority = join_authority(host, port)
    return build_head(f"CONNECT {authority} HTTP/1.1", [("Host", authority), *headers])
