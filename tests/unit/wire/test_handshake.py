"""The token travels as a subprotocol, and the relay must select it."""

import base64

import pytest

from shared.wire.handshake import accept_answer, accept_key, is_accepted, offered_token, upgrade_request
from shared.wire.http1 import RequestHead, take_request_head, take_response_head

KEY = bytes(range(16))


def request(raw: bytes) -> RequestHead:
    head = take_request_head(bytearray(raw))
    assert head is not None
    return head


def test_the_accept_key_is_that_of_the_rfc() -> None:
    assert accept_key("dGhlIHNhbXBsZSBub25jZQ==") == "s3pPLMBiTxaQ9kYGzzhZRbK+xOo="


def test_a_handshake_of_ours_completes() -> None:
    head = request(upgrade_request("relay.example", "", KEY, "a.b.c"))
    assert offered_token(head) == ("token.a.b.c", "a.b.c")
    answer = take_response_head(bytearray(accept_answer(head, "token.a.b.c")))
    assert answer is not None
    assert is_accepted(answer, KEY, "a.b.c")
    assert not is_accepted(answer, KEY, "other")
    assert not is_accepted(answer, bytes(16), "a.b.c")


def test_compression_that_is_offered_is_not_taken() -> None:
    offer = b"Sec-WebSocket-Extensions: permessage-deflate; client_max_window_bits\r\n\r\n"
    head = request(upgrade_request("r", "/", KEY, "x")[:-2] + offer)
    answer = take_response_head(bytearray(accept_answer(head, "token.x")))
    assert answer is not None
    assert is_accepted(answer, KEY, "x")
    assert answer.header("sec-websocket-extensions") is None


def test_the_token_is_found_among_several_protocols() -> None:
    raw = upgrade_request("r", "/", KEY, "x").replace(b"Protocol: token.x", b"Protocol: json, token.x")
    assert offered_token(request(raw)) == ("token.x", "x")


@pytest.mark.parametrize(
    ("old", "new"),
    [
        (b"GET", b"POST"),
        (b"HTTP/1.1", b"HTTP/1.0"),
        (b"Upgrade: websocket", b"Upgrade: h2c"),
        (b"Connection: Upgrade", b"Connection: close"),
        (b"Version: 13", b"Version: 8"),
        (base64.b64encode(KEY), b"c2hvcnQ="),
        (base64.b64encode(KEY), b"!!"),
        (b"Protocol: token.x", b"Protocol: json"),
    ],
)
def test_what_is_no_upgrade_with_a_token_is_none(old: bytes, new: bytes) -> None:
    assert offered_token(request(upgrade_request("r", "/", KEY, "x").replace(old, new))) is None
