"""Heads are parsed whole, byte by byte and with trailing bytes; what no well-meaning client sends is refused."""

import contextlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shared.wire.http1 import (
    MAX_HEAD_BYTES,
    HeadError,
    HeadFault,
    basic_credentials,
    basic_header,
    build_head,
    connect_head,
    join_authority,
    split_authority,
    take_request_head,
    take_response_head,
)

CONNECT = b"CONNECT a.example:443 HTTP/1.0\r\nProxy-Authorization: Basic eDp5\r\nX: 1\r\nx: 2\r\n\r\n"


@pytest.mark.parametrize("step", [1, 2, 7, len(CONNECT)])
def test_a_head_is_the_same_however_it_arrives(step: int) -> None:
    buffer, heads = bytearray(), []
    for start in range(0, len(CONNECT), step):
        buffer += CONNECT[start : start + step]
        head = take_request_head(buffer)
        if head is not None:
            heads.append(head)
    (head,) = heads
    assert (head.method, head.target, head.minor) == ("CONNECT", "a.example:443", 0)
    assert head.header("x") == "1"
    assert head.header("proxy-authorization") == "Basic eDp5"
    assert head.header("host") is None
    assert not buffer


def test_what_follows_a_head_stays_in_the_buffer() -> None:
    buffer = bytearray(b"\r\n" + CONNECT + b"\x16\x03\x01")
    assert take_request_head(buffer) is not None
    assert buffer == b"\x16\x03\x01"


@pytest.mark.parametrize(
    ("raw", "fault"),
    [
        (b"GET /\r\n\r\n", HeadFault.BAD_LINE),
        (b"GET / HTTP/2.0\r\n\r\n", HeadFault.BAD_LINE),
        (b"G@T / HTTP/1.1\r\n\r\n", HeadFault.BAD_LINE),
        (b"GET  HTTP/1.1\r\n\r\n", HeadFault.BAD_LINE),
        (b"GET /\x00 HTTP/1.1\r\n\r\n", HeadFault.BAD_LINE),
        (b"GET /\xff HTTP/1.1\r\n\r\n", HeadFault.BAD_LINE),
        (b"GET / HTTP/1.1\r\nno colon\r\n\r\n", HeadFault.BAD_HEADER),
        (b"GET / HTTP/1.1\r\nA : b\r\n\r\n", HeadFault.BAD_HEADER),
        (b"GET / HTTP/1.1\r\n folded: b\r\n\r\n", HeadFault.BAD_HEADER),
        (b"GET / HTTP/1.1\r\nA: b\nC: d\r\n\r\n", HeadFault.BAD_HEADER),
        (b"GET / HTTP/1.1\r\n" + b"a: b\r\n" * 101 + b"\r\n", HeadFault.TOO_MANY_HEADERS),
        (b"x" * MAX_HEAD_BYTES, HeadFault.TOO_LARGE),
    ],
)
def test_malformed_requests_are_refused_with_their_fault(raw: bytes, fault: HeadFault) -> None:
    with pytest.raises(HeadError) as refusal:
        take_request_head(bytearray(raw))
    assert refusal.value.fault is fault


def test_an_incomplete_head_is_waited_for() -> None:
    assert take_request_head(bytearray(CONNECT[:-1])) is None
    assert take_response_head(bytearray(b"HTTP/1.1 200 OK\r\n")) is None


@pytest.mark.parametrize("raw", [b"HTTP/1.1 200 Connection established\r\n\r\n", b"HTTP/1.0 200\r\n\r\n"])
def test_responses_have_a_status_with_or_without_a_phrase(raw: bytes) -> None:
    head = take_response_head(bytearray(raw))
    assert head is not None
    assert head.status == 200


@pytest.mark.parametrize("raw", [b"HTTP/3 200 OK\r\n\r\n", b"HTTP/1.1 2x0 OK\r\n\r\n", b"SSH-2.0-x\r\n\r\n"])
def test_what_is_no_http_answer_is_refused(raw: bytes) -> None:
    with pytest.raises(HeadError):
        take_response_head(bytearray(raw))


@pytest.mark.parametrize(
    ("text", "pair"),
    [
        ("a.example:443", ("a.example", 443)),
        ("[2001:db8::1]:8443", ("2001:db8::1", 8443)),
        ("127.0.0.1:1", ("127.0.0.1", 1)),
    ],
)
def test_authorities_split_and_join(text: str, pair: tuple[str, int]) -> None:
    assert split_authority(text) == pair
    assert join_authority(*pair) == text


def test_a_default_port_serves_bare_hosts() -> None:
    assert split_authority("a.example", 80) == ("a.example", 80)
    assert split_authority("[::1]", 80) == ("::1", 80)


@pytest.mark.parametrize(
    "text",
    [
        "a.example",
        "a:0",
        "a:65536",
        "a:-1",
        "a:１",
        "a:8 0",
        ":80",
        "a b:80",
        "[::1:80",
        "u@h:80",
        "a:123456",
        "",
    ],
)
def test_malformed_authorities_are_refused(text: str) -> None:
    with pytest.raises(HeadError):
        split_authority(text)


def test_a_password_may_hold_colons() -> None:
    assert basic_credentials(basic_header("psx_a", "x:y:z")) == ("psx_a", "x:y:z")


@pytest.mark.parametrize("value", [None, "", "Basic", "Bearer eDp5", "Basic !!!", "Basic eA==", "Basic /w=="])
def test_what_is_no_basic_header_gives_no_credentials(value: str | None) -> None:
    assert basic_credentials(value) is None


@given(
    st.text(alphabet=st.characters(exclude_characters=":", exclude_categories=["Cs"])),
    st.text(st.characters(exclude_categories=["Cs"])),
)
def test_credentials_survive_the_header(username: str, password: str) -> None:
    assert basic_credentials(basic_header(username, password)) == (username, password)


@pytest.mark.parametrize("value", ["a\r\nEvil: 1", "a\nb"])
def test_no_value_smuggles_a_header(value: str) -> None:
    with pytest.raises(ValueError, match="line break"):
        build_head("HTTP/1.1 200 OK", [("X", value)])


def test_a_built_connect_parses_as_itself() -> None:
    head = take_request_head(bytearray(connect_head("2001:db8::1", 443, [("X-A", "b")])))
    assert head is not None
    assert (head.method, head.target, head.header("host"), head.header("x-a")) == (
        "CONNECT",
        "[2001:db8::1]:443",
        "[2001:db8::1]:443",
        "b",
    )


@given(st.binary(max_size=300))
def test_no_bytes_break_the_parsers(raw: bytes) -> None:
    for take in (take_request_head, take_response_head):
        with contextlib.suppress(HeadError):
            take(bytearray(raw), 256)
