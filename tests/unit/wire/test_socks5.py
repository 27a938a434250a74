"""SOCKS5 conversations, whole and byte by byte."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shared.wire.socks5 import (
    ConnectRequested,
    Credentials,
    Event,
    MethodsOffered,
    Refused,
    Reply,
    SocksConversation,
    auth_answer,
    method_answer,
    reply,
)

GREETING = b"\x05\x02\x00\x02"
AUTH = b"\x01\x03abc\x02xy"
NAME = b"\x05\x01\x00\x03\x09a.example\x01\xbb"
V4 = b"\x05\x01\x00\x01\x7f\x00\x00\x01\x00\x50"
V6 = b"\x05\x01\x00\x04" + bytes(15) + b"\x01\x00\x50"


def talk(data: bytes, step: int) -> tuple[list[Event], bytes]:
    conversation, events = SocksConversation(), []
    for start in range(0, len(data), step):
        conversation.receive(data[start : start + step])
        while (event := conversation.next_event()) is not None:
            events.append(event)
    return events, bytes(conversation.buffer)


@pytest.mark.parametrize("step", [1, 3, 1000])
@pytest.mark.parametrize(
    ("request_", "host", "port"), [(NAME, "a.example", 443), (V4, "127.0.0.1", 80), (V6, "::1", 80)]
)
def test_a_conversation_is_the_same_however_it_arrives(
    step: int, request_: bytes, host: str, port: int
) -> None:
    events, rest = talk(GREETING + AUTH + request_ + b"early", step)
    assert events == [MethodsOffered(True), Credentials("abc", "xy"), ConnectRequested(host, port)]
    assert rest == b"early"


def test_a_client_that_sends_no_password_is_told() -> None:
    assert talk(b"\x05\x01\x00", 1)[0] == [MethodsOffered(False)]


@pytest.mark.parametrize(
    ("data", "answer"),
    [
        (b"\x04\x01", b""),
        (GREETING + b"\x02", auth_answer(False)),
        (GREETING + AUTH + b"\x04", reply(Reply.GENERAL_FAILURE)),
        (GREETING + AUTH + b"\x05\x02\x00\x01\x7f", reply(Reply.COMMAND_NOT_SUPPORTED)),
        (GREETING + AUTH + b"\x05\x01\x00\x09\x7f", reply(Reply.ADDRESS_NOT_SUPPORTED)),
        (GREETING + AUTH + b"\x05\x01\x00\x03\x00", reply(Reply.ADDRESS_NOT_SUPPORTED)),
        (GREETING + AUTH + b"\x05\x01\x00\x03\x01\xff\x00\x50", reply(Reply.ADDRESS_NOT_SUPPORTED)),
    ],
)
def test_what_is_not_supported_is_refused_with_its_answer(data: bytes, answer: bytes) -> None:
    assert talk(data, 1)[0][-1] == Refused(answer)


def test_answers_have_their_wire_form() -> None:
    assert method_answer(True) == b"\x05\x02"
    assert method_answer(False) == b"\x05\xff"
    assert auth_answer(True) == b"\x01\x00"
    assert reply(Reply.SUCCEEDED) == b"\x05\x00\x00\x01\x00\x00\x00\x00\x00\x00"


@given(st.binary(max_size=200))
def test_no_bytes_break_a_conversation(data: bytes) -> None:
    talk(data, 1)


@pytest.mark.parametrize("name", [b"127.0.0.1\0.a.example", b"a b.example", b"a\r\nb.example", b"x" * 254])
def test_what_is_no_name_is_refused(name: bytes) -> None:
    request = b"\x05\x01\x00\x03" + bytes((len(name),)) + name + b"\x00\x50"
    events, _ = talk(GREETING + AUTH + request, 1000)
    assert events[-1] == Refused(reply(Reply.ADDRESS_NOT_SUPPORTED))
