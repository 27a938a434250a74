"""RFC 6455 as tables, in the families of the Autobahn suite: lengths, control frames, reserved bits, opcodes, fragments,
UTF-8, close codes. Each case is fed whole, in halves and byte by byte; what is refused is refused alike in all of them.
"""

import pytest

from shared.wire.websocket import CloseCode, FrameReader, Message, Opcode, WebSocketFault, encode_frame

MASK = b"\x37\xfa\x21\x3d"
PROTOCOL, DATA = CloseCode.PROTOCOL_ERROR, CloseCode.INVALID_DATA
TEXT, BINARY, PING, PONG, CLOSE = Opcode.TEXT, Opcode.BINARY, Opcode.PING, Opcode.PONG, Opcode.CLOSE


def frame(first: int, payload: bytes = b"") -> bytes:
    """A masked frame with any first byte."""
    return bytes((first,)) + encode_frame(BINARY, payload, MASK)[1:]


def text(payload: bytes, *, final: bool = True) -> bytes:
    return frame(0x81 if final else 0x01, payload)


def more(payload: bytes, *, final: bool = True) -> bytes:
    return frame(0x80 if final else 0x00, payload)


def outcomes(raw: bytes) -> list[list[Message] | CloseCode]:
    """What comes of the same bytes in three ways of arriving."""
    results: list[list[Message] | CloseCode] = []
    for step in (len(raw), max(len(raw) // 2, 1), 1):
        reader, got = FrameReader(masked=True), []
        try:
            for start in range(0, len(raw), step):
                got += reader.receive(raw[start : start + step])
            results.append(got)
        except WebSocketFault as fault:
            results.append(fault.code)
    return results


LENGTHS = [0, 1, 125, 126, 127, 128, 255, 256, 65535, 65536, 65537]


@pytest.mark.parametrize("size", LENGTHS)
@pytest.mark.parametrize("opcode", [TEXT, BINARY])
def test_family_1_every_length_form_is_read(opcode: Opcode, size: int) -> None:
    payload = b"*" * size
    assert outcomes(frame(0x80 | opcode, payload)) == [[Message(opcode, payload)]] * 3


@pytest.mark.parametrize("opcode", [PING, PONG])
@pytest.mark.parametrize(
    ("payload", "accepted"),
    [(b"", True), (b"hello", True), (b"\x00\xff\xfe", True), (b"x" * 125, True), (b"x" * 126, False)],
)
def test_family_2_control_frames_are_short(opcode: Opcode, payload: bytes, accepted: bool) -> None:
    expected = [Message(opcode, payload)] if accepted else PROTOCOL
    assert outcomes(frame(0x80 | opcode, payload)) == [expected] * 3


def test_family_2_many_pings_in_a_row_are_all_read() -> None:
    pings = [b"%d" % n for n in range(10)]
    assert outcomes(b"".join(frame(0x89, p) for p in pings)) == [[Message(PING, p) for p in pings]] * 3


@pytest.mark.parametrize("bits", range(0x10, 0x80, 0x10))
@pytest.mark.parametrize("opcode", [TEXT, BINARY, PING, CLOSE])
def test_family_3_reserved_bits_are_refused(opcode: Opcode, bits: int) -> None:
    assert outcomes(frame(0x80 | bits | opcode, b"x")) == [PROTOCOL] * 3


@pytest.mark.parametrize("opcode", [3, 4, 5, 6, 7, 11, 12, 13, 14, 15])
@pytest.mark.parametrize("payload", [b"", b"reserved"])
def test_family_4_reserved_opcodes_are_refused(opcode: int, payload: bytes) -> None:
    assert outcomes(frame(0x80 | opcode, payload)) == [PROTOCOL] * 3


FRAGMENTS = {
    "two": (text(b"ab", final=False) + more(b"cd"), [Message(TEXT, b"abcd")]),
    "empty ones": (text(b"", final=False) + more(b"", final=False) + more(b""), [Message(TEXT, b"")]),
    "a ping between": (
        text(b"a", final=False) + frame(0x89, b"p") + more(b"b"),
        [Message(PING, b"p"), Message(TEXT, b"ab")],
    ),
    "many with pings": (
        text(b"0", final=False)
        + b"".join(more(b"%d" % n, final=False) + frame(0x89) for n in range(1, 5))
        + more(b"5"),
        [Message(PING, b"")] * 4 + [Message(TEXT, b"012345")],
    ),
    "binary": (frame(0x02, b"\xff") + more(b"\xfe"), [Message(BINARY, b"\xff\xfe")]),
    "a message after it": (
        text(b"a", final=False) + more(b"b") + text(b"c"),
        [Message(TEXT, b"ab"), Message(TEXT, b"c")],
    ),
    "nothing to continue": (more(b"x"), PROTOCOL),
    "nothing to continue, more to come": (more(b"x", final=False) + text(b"y"), PROTOCOL),
    "nothing to continue after a whole message": (text(b"a") + more(b"b"), PROTOCOL),
    "a new message inside one": (text(b"a", final=False) + text(b"b"), PROTOCOL),
    "a new binary message inside one": (text(b"a", final=False) + frame(0x82, b"b"), PROTOCOL),
    "a fragmented ping": (frame(0x09, b"a") + more(b"b"), PROTOCOL),
    "a fragmented pong": (frame(0x0A, b"a") + more(b"b"), PROTOCOL),
    "a fragmented close": (frame(0x08, b"\x03\xe8") + more(b""), PROTOCOL),
}


@pytest.mark.parametrize("name", FRAGMENTS)
def test_family_5_fragments(name: str) -> None:
    raw, expected = FRAGMENTS[name]
    assert outcomes(raw) == [expected] * 3


VALID_UTF8 = [
    "Hello-µ@ßöäüàá-UTF-8!!".encode(),
    b"\xce\xba\xe1\xbd\xb9\xcf\x83\xce\xbc\xce\xb5",
    b"\x00",
    b"\xc2\x80",
    b"\xe0\xa0\x80",
    b"\xf0\x90\x80\x80",
    b"\x7f",
    b"\xdf\xbf",
    b"\xef\xbf\xbf",
    b"\xf4\x8f\xbf\xbf",
    b"\xed\x9f\xbf",
    b"\xee\x80\x80",
    b"\xef\xbf\xbd",
]
INVALID_UTF8 = [
    b"\x80",
    b"\xbf",
    b"\x80\xbf",
    b"\xc0 ",
    b"\xe0 ",
    b"\xf0 ",
    b"\xf8\x88\x80\x80\x80",
    b"\xfc\x84\x80\x80\x80\x80",
    b"\xc0\xaf",
    b"\xe0\x80\xaf",
    b"\xf0\x80\x80\xaf",
    b"\xc1\xbf",
    b"\xe0\x9f\xbf",
    b"\xf0\x8f\xbf\xbf",
    b"\xed\xa0\x80",
    b"\xed\xbf\xbf",
    b"\xed\xa0\x80\xed\xb0\x80",
    b"\xf4\x90\x80\x80",
    b"\xfe",
    b"\xff",
    b"\xce\xba\xe1\xbd\xb9\xcf\x83\xce",
]


@pytest.mark.parametrize("payload", VALID_UTF8)
@pytest.mark.parametrize("cut", [0, 1, 2])
def test_family_6_valid_text_passes_even_when_cut_inside_a_letter(payload: bytes, cut: int) -> None:
    raw = text(payload[:cut], final=False) + more(payload[cut:])
    assert outcomes(raw) == [[Message(TEXT, payload)]] * 3


@pytest.mark.parametrize("payload", INVALID_UTF8)
@pytest.mark.parametrize("cut", [0, 1, 2])
def test_family_6_invalid_text_is_refused_and_the_same_bytes_pass_as_binary(payload: bytes, cut: int) -> None:
    assert outcomes(text(b"ok" + payload[:cut], final=False) + more(payload[cut:])) == [DATA] * 3
    assert outcomes(frame(0x82, payload)) == [[Message(BINARY, payload)]] * 3


def close(code: int, reason: bytes = b"") -> bytes:
    return frame(0x88, code.to_bytes(2, "big") + reason)


@pytest.mark.parametrize(
    "code", [1000, 1001, 1002, 1003, 1007, 1008, 1009, 1010, 1011, 3000, 3999, 4000, 4999]
)
def test_family_7_codes_that_may_be_sent_are_read(code: int) -> None:
    (message,) = FrameReader(masked=True).receive(close(code, b"bye"))
    assert message.close_code() == code


@pytest.mark.parametrize("code", [0, 999, 1004, 1005, 1006, 1015, 1016, 1100, 2000, 2999, 5000, 65535])
def test_family_7_codes_that_may_not_be_sent_are_refused(code: int) -> None:
    assert outcomes(close(code)) == [PROTOCOL] * 3


def test_family_7_close_payloads() -> None:
    assert outcomes(frame(0x88)) == [[Message(CLOSE, b"")]] * 3
    assert outcomes(frame(0x88, b"\x03")) == [PROTOCOL] * 3
    assert outcomes(close(1000, b"x" * 123)) == [[Message(CLOSE, b"\x03\xe8" + b"x" * 123)]] * 3
    assert outcomes(close(1000, b"x" * 124)) == [PROTOCOL] * 3
    assert outcomes(close(1000, b"\xce")) == [DATA] * 3


def test_masks_are_required_of_clients_and_forbidden_to_servers() -> None:
    assert outcomes(encode_frame(TEXT, b"x")) == [PROTOCOL] * 3
    with pytest.raises(WebSocketFault):
        FrameReader(masked=False).receive(encode_frame(TEXT, b"x", MASK))


@pytest.mark.parametrize(
    "head", [b"\x82\xfe\x00\x7d", b"\x82\xff" + (65535).to_bytes(8, "big"), b"\x82\xff" + b"\xff" * 8]
)
def test_lengths_that_are_not_the_shortest_or_impossible_are_refused(head: bytes) -> None:
    assert set(outcomes(head + MASK)) <= {PROTOCOL, CloseCode.TOO_BIG}
