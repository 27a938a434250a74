"""Frames: every rule of RFC 6455 section 5 that a relay meets, and the same answers as the `websockets` library gives."""

import tracemalloc

import pytest
from hypothesis import given
from hypothesis import strategies as st
from websockets.exceptions import PayloadTooBig, ProtocolError
from websockets.frames import Frame
from websockets.frames import Opcode as TheirOpcode
from websockets.streams import StreamReader

from shared.wire.websocket import (
    CloseCode,
    FrameReader,
    Message,
    Opcode,
    WebSocketFault,
    encode_close,
    encode_frame,
)

MASK = b"\x01\x02\x03\x04"
SIZES = [0, 1, 125, 126, 127, 65535, 65536, 70000]


def feed(data: bytes, step: int, *, masked: bool = True) -> list[Message]:
    reader, messages = FrameReader(masked=masked), []
    for start in range(0, len(data), step):
        messages += reader.receive(data[start : start + step])
    return messages


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("mask", [b"", MASK])
def test_a_frame_reads_back_as_written(size: int, mask: bytes) -> None:
    payload = bytes(i % 251 for i in range(size))
    assert feed(encode_frame(Opcode.BINARY, payload, mask), 4096, masked=bool(mask)) == [
        Message(Opcode.BINARY, payload)
    ]


def test_frames_arrive_whole_byte_by_byte_and_together() -> None:
    data = b"".join(
        (
            encode_frame(Opcode.TEXT, b"hello", MASK),
            encode_frame(Opcode.PING, b"p", MASK),
            encode_frame(Opcode.BINARY, b"x" * 200, MASK),
            encode_close(CloseCode.NORMAL, "bye", MASK),
        )
    )
    expected = feed(data, len(data))
    assert [m.opcode for m in expected] == [Opcode.TEXT, Opcode.PING, Opcode.BINARY, Opcode.CLOSE]
    assert expected[-1].close_code() == CloseCode.NORMAL
    for step in (1, 2, 3, 7):
        assert feed(data, step) == expected


@pytest.mark.parametrize("mask", [b"", MASK])
@pytest.mark.parametrize("step", [1, 1000, 70_000, 200_000])
def test_what_was_read_into_one_buffer_again_and_again_keeps_its_bytes(step: int, mask: bytes) -> None:
    payloads = [bytes((n,)) * size for n, size in enumerate([3, 2000, 70_000, 0, 1500, 65_536])]
    data = b"".join(encode_frame(Opcode.BINARY, payload, mask) for payload in payloads)
    reader, messages, buffer = FrameReader(masked=bool(mask)), [], bytearray(step)
    for start in range(0, len(data), step):
        read = data[start : start + step]
        buffer[: len(read)] = read
        messages += reader.receive(memoryview(buffer)[: len(read)])
        buffer[:] = b"\xff" * step
    assert messages == [Message(Opcode.BINARY, payload) for payload in payloads]


@pytest.mark.parametrize("step", [1, 7, 33, 10_000])
def test_a_reader_looks_at_so_many_frames_at_once_and_leaves_the_rest_for_the_next_time(step: int) -> None:
    data = b"".join(encode_frame(Opcode.BINARY, bytes([number]) * number, MASK) for number in range(100))
    reader, got = FrameReader(masked=True, at_once=3), list[Message]()
    for start in range(0, len(data), step):
        for read in (data[start : start + step], b""):
            messages = reader.receive(read)
            assert len(messages) <= 4  # one that began in an earlier read
            got += messages
    while reader.has_more:
        got += reader.receive(b"")
    assert got == feed(data, len(data))
    assert reader.partial_bytes == 0


def fragment(opcode: int, payload: bytes, *, final: bool) -> bytes:
    whole = encode_frame(Opcode.BINARY, payload, MASK)
    return bytes([(0x80 if final else 0) | opcode]) + whole[1:]


def test_fragments_join_with_control_frames_between_them() -> None:
    data = (
        fragment(1, "é".encode()[:1], final=False)
        + encode_frame(Opcode.PING, b"", MASK)
        + fragment(0, "é".encode()[1:], final=True)
    )
    assert feed(data, 1) == [Message(Opcode.PING, b""), Message(Opcode.TEXT, "é".encode())]


@pytest.mark.parametrize(
    ("data", "code"),
    [
        (bytes((0xC2, 0x80)) + MASK, CloseCode.PROTOCOL_ERROR),  # reserved bit
        (bytes((0x83, 0x80)) + MASK, CloseCode.PROTOCOL_ERROR),  # reserved opcode
        (bytes((0x09, 0x80)) + MASK, CloseCode.PROTOCOL_ERROR),  # fragmented control frame
        (bytes((0x89, 0xFE, 0, 126)) + MASK, CloseCode.PROTOCOL_ERROR),  # long control frame
        (bytes((0x82, 0x00)), CloseCode.PROTOCOL_ERROR),  # unmasked from a client
        (bytes((0x82, 0xFE, 0, 5)) + MASK, CloseCode.PROTOCOL_ERROR),  # length not the shortest
        (bytes((0x82, 0xFF)) + (1 << 63).to_bytes(8, "big") + MASK, CloseCode.PROTOCOL_ERROR),
        (bytes((0x82, 0xFF)) + (1 << 40).to_bytes(8, "big") + MASK, CloseCode.TOO_BIG),
        (fragment(0, b"x", final=True), CloseCode.PROTOCOL_ERROR),  # nothing to continue
        (fragment(2, b"x", final=False) + fragment(2, b"x", final=True), CloseCode.PROTOCOL_ERROR),
        (encode_frame(Opcode.TEXT, b"\xff", MASK), CloseCode.INVALID_DATA),
        (encode_frame(Opcode.CLOSE, b"\x03", MASK), CloseCode.PROTOCOL_ERROR),
        (encode_close(1005, "", MASK), CloseCode.PROTOCOL_ERROR),
        (encode_close(2999, "", MASK), CloseCode.PROTOCOL_ERROR),
        (encode_frame(Opcode.CLOSE, b"\x03\xe8\xff", MASK), CloseCode.INVALID_DATA),
    ],
)
def test_a_broken_frame_is_refused_with_its_close_code(data: bytes, code: CloseCode) -> None:
    with pytest.raises(WebSocketFault) as fault:
        feed(data, len(data))
    assert fault.value.code is code


def test_a_close_without_a_payload_has_no_status() -> None:
    (message,) = feed(encode_frame(Opcode.CLOSE, b"", MASK), 99)
    assert message.close_code() == CloseCode.NO_STATUS


def test_fragments_may_not_add_up_to_more_than_the_bound() -> None:
    reader = FrameReader(masked=True, max_message_bytes=10)
    with pytest.raises(WebSocketFault) as fault:
        reader.receive(fragment(2, b"x" * 6, final=False) + fragment(0, b"x" * 6, final=True))
    assert fault.value.code is CloseCode.TOO_BIG


def test_a_message_in_many_fragments_takes_no_more_than_is_counted_of_it() -> None:
    reader = FrameReader(masked=True)
    begins, goes_on = (fragment(opcode, b"four", final=False) for opcode in (2, 0))
    tracemalloc.start()
    try:
        reader.receive(begins)
        before_bytes, _ = tracemalloc.get_traced_memory()
        for _ in range(4):
            reader.receive(goes_on * 1_000)
        taken_bytes = tracemalloc.get_traced_memory()[0] - before_bytes
    finally:
        tracemalloc.stop()
    assert reader.partial_bytes == 4_001 * 4
    assert taken_bytes < 1.25 * reader.partial_bytes
    assert reader.receive(fragment(0, b"", final=True)) == [Message(Opcode.BINARY, b"four" * 4_001)]


def theirs(data: bytes) -> list[tuple[int, bytes]] | None:
    """Frames as `websockets` reads them; None when it refuses them. Only whole, unfragmented messages are compared."""
    stream, frames = StreamReader(), []
    stream.feed_data(data)
    stream.feed_eof()
    try:
        while not (yield_at_end(stream)):
            parser = Frame.parse(stream.read_exact, mask=True, max_size=4 * 1024 * 1024)
            try:
                next(parser)
                return None
            except StopIteration as done:
                frame = done.value
            if not frame.fin:
                return None
            frames.append((int(frame.opcode), bytes(frame.data)))
    except (ProtocolError, PayloadTooBig, EOFError):
        return None
    return frames


def yield_at_end(stream: StreamReader) -> bool:
    check = stream.at_eof()
    try:
        next(check)
    except StopIteration as done:
        return bool(done.value)
    return False


@given(
    st.lists(
        st.tuples(st.sampled_from([Opcode.BINARY, Opcode.PING, Opcode.PONG]), st.binary(max_size=125)),
        max_size=5,
    ),
    st.binary(min_size=4, max_size=4),
)
def test_what_we_write_they_read_and_the_other_way_round(
    frames: list[tuple[Opcode, bytes]], mask: bytes
) -> None:
    ours = b"".join(encode_frame(opcode, payload, mask) for opcode, payload in frames)
    assert theirs(ours) == [(int(o), p) for o, p in frames]
    written = b"".join(Frame(TheirOpcode(int(o)), p).serialize(mask=True) for o, p in frames)
    assert feed(written, 3) == [Message(o, p) for o, p in frames]


@given(st.binary(max_size=60))
def test_any_bytes_are_refused_by_both_or_read_alike(data: bytes) -> None:
    expected = theirs(data)
    try:
        got = feed(data, len(data) or 1)
    except WebSocketFault:
        return
    if expected is not None and all(opcode in {2, 9, 10} for opcode, _ in expected):
        assert [(int(m.opcode), m.payload) for m in got] == expected
