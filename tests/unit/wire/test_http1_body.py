"""Where bodies end, however they arrive; and what is refused because two readers could disagree."""

import contextlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shared.wire.http1 import HeadError, take_request_head, take_response_head
from shared.wire.http1_body import BodyScanner, Framing, request_framing, response_framing


def request(*headers: str) -> tuple[Framing, int]:
    text = "\r\n".join(["POST / HTTP/1.1", *headers, "", ""])
    head = take_request_head(bytearray(text.encode("latin-1")))
    assert head is not None
    return request_framing(head)


def response(status: int, *headers: str, method: str = "GET") -> tuple[Framing, int]:
    text = "\r\n".join([f"HTTP/1.1 {status} x", *headers, "", ""])
    head = take_response_head(bytearray(text.encode()))
    assert head is not None
    return response_framing(head, method)


def test_requests_are_framed_as_they_say() -> None:
    assert request() == (Framing.NONE, 0)
    assert request("Content-Length: 0") == (Framing.NONE, 0)
    assert request("Content-Length: 12") == (Framing.LENGTH, 12)
    assert request("Content-Length: 12", "Content-Length: 12") == (Framing.LENGTH, 12)
    assert request("Transfer-Encoding: Chunked") == (Framing.CHUNKED, 0)


@pytest.mark.parametrize(
    "headers",
    [
        ("Content-Length: 5", "Transfer-Encoding: chunked"),
        ("Content-Length: 5", "Content-Length: 6"),
        ("Content-Length: 5, 5",),
        ("Content-Length: +5",),
        ("Content-Length: 0x5",),
        ("Content-Length: -1",),
        ("Content-Length: 1_0",),
        ("Content-Length: ",),
        ("Content-Length: 9999999999999999999",),
        ("Transfer-Encoding: gzip, chunked",),
        ("Transfer-Encoding: chunked, identity",),
        ("Transfer-Encoding: chunked", "Transfer-Encoding: chunked"),
        ("Transfer-Encoding: xchunked",),
        ("Transfer-Encoding: chunked\xa0",),
        ("Content-Length: 5\x85",),
    ],
)
def test_ambiguous_framing_is_refused(headers: tuple[str, ...]) -> None:
    with pytest.raises(HeadError):
        request(*headers)


def test_http_1_0_knows_no_codings() -> None:
    head = take_request_head(bytearray(b"POST / HTTP/1.0\r\nTransfer-Encoding: chunked\r\n\r\n"))
    assert head is not None
    with pytest.raises(HeadError):
        request_framing(head)


def test_answers_without_bodies_have_none_whatever_they_say() -> None:
    assert response(200, "Content-Length: 9", method="HEAD") == (Framing.NONE, 0)
    assert response(304, "Content-Length: 9") == (Framing.NONE, 0)
    assert response(204) == (Framing.NONE, 0)
    assert response(100) == (Framing.NONE, 0)
    assert response(200) == (Framing.UNTIL_CLOSE, 0)
    assert response(200, "Content-Length: 9") == (Framing.LENGTH, 9)


def chunked(parts: list[bytes], trailer: bytes = b"") -> bytes:
    body = b"".join(b"%x;a=b\r\n%s\r\n" % (len(p), p) for p in parts if p)
    return body + b"0\r\n" + trailer + b"\r\n"


@given(st.lists(st.binary(max_size=40), max_size=6), st.binary(max_size=30), st.integers(1, 20))
def test_a_chunked_body_ends_where_it_ends_in_any_pieces(parts: list[bytes], after: bytes, step: int) -> None:
    body = chunked(parts, b"X-Sum: 1\r\n")
    raw, scanner, taken = body + after, BodyScanner(Framing.CHUNKED), 0
    for start in range(0, len(raw), step):
        piece = raw[start : start + step]
        got = scanner.take(piece)
        taken += got
        if got < len(piece):
            break
    assert taken == len(body)
    assert scanner.done


@given(st.integers(1, 300), st.binary(max_size=400), st.integers(1, 50))
def test_a_body_of_a_length_ends_there(length: int, raw: bytes, step: int) -> None:
    scanner = BodyScanner(Framing.LENGTH, length)
    taken = sum(scanner.take(raw[start : start + step]) for start in range(0, len(raw), step))
    assert taken == min(length, len(raw))
    assert scanner.done is (len(raw) >= length)


@pytest.mark.parametrize(
    "raw",
    [
        b"5\nhello\r\n",
        b"5\r\nhelloXY0\r\n\r\n",
        b"5\r\nhello\n0\r\n",
        b"5;a\rb\r\n",
        b"0\r\nA: b\rC: d\r\n",
        b"z\r\n",
        b"\r\n",
        b"-1\r\n",
        b"5 5\r\n",
        b"0x5\r\n",
        b"1" * 17 + b"\r\n",
        b"a" * 5000,
    ],
)
def test_chunks_that_are_none_are_refused(raw: bytes) -> None:
    with pytest.raises(HeadError):
        BodyScanner(Framing.CHUNKED).take(raw)


def test_endless_trailers_are_refused() -> None:
    scanner = BodyScanner(Framing.CHUNKED)
    scanner.take(b"0\r\n")
    with pytest.raises(HeadError):
        scanner.take(b"X-A: b\r\n" * 10_000)


@given(st.binary(max_size=100))
def test_any_bytes_are_a_body_or_refused(raw: bytes) -> None:
    scanner = BodyScanner(Framing.CHUNKED)
    with contextlib.suppress(HeadError):
        assert 0 <= scanner.take(raw) <= len(raw)
