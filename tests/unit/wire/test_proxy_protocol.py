"""PROXY protocol v2 headers, in pieces and malformed."""

import contextlib
import socket

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shared.wire.proxy_protocol import (
    HEADER_BYTES,
    SIGNATURE,
    NotProxied,
    Proxied,
    missing_bytes,
    read_header,
)


def header(address: str, command: int = 1, extra: bytes = b"") -> bytes:
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    packed = socket.inet_pton(family, address)
    body = packed + packed + b"\x30\x39\x01\xbb" + extra
    return (
        SIGNATURE
        + bytes((0x20 | command, 0x21 if ":" in address else 0x11))
        + len(body).to_bytes(2, "big")
        + body
    )


@pytest.mark.parametrize("address", ["192.0.2.7", "2001:db8::7"])
def test_the_clients_address_is_read_and_the_rest_left(address: str) -> None:
    raw = header(address, extra=b"\x03\x00\x04abcd")
    assert read_header(raw + b"CONNECT") == Proxied(address, len(raw))
    for cut in range(len(raw)):
        assert read_header(raw[:cut]) is None
        assert cut + missing_bytes(raw[:cut]) == (HEADER_BYTES if cut < HEADER_BYTES else len(raw))


def test_a_health_check_of_the_balancer_has_no_address() -> None:
    assert read_header(header("192.0.2.7", command=0)) == Proxied(None, 28)


@pytest.mark.parametrize(
    "raw",
    [
        b"CONNECT a:1 HTTP/1.1\r\n",
        SIGNATURE[:-1] + b"x",
        SIGNATURE + b"\x11\x11\x00\x0c" + bytes(12),
        SIGNATURE + b"\x22\x11\x00\x0c" + bytes(12),
        SIGNATURE + b"\x21\x11\xff\xff",
        SIGNATURE + b"\x21\x11\x00\x04" + bytes(4),
        SIGNATURE + b"\x21\x31\x00\x0c" + bytes(12),
    ],
)
def test_what_is_no_header_is_refused(raw: bytes) -> None:
    with pytest.raises(NotProxied):
        read_header(raw)


@given(st.binary(max_size=60))
def test_any_bytes_after_the_signature_are_read_or_refused(tail: bytes) -> None:
    with contextlib.suppress(NotProxied):
        read_header(SIGNATURE + tail)
