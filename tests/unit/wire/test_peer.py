"""binary-v1 as peers in the field speak it."""

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shared.wire.peer import (
    MAX_COMMAS,
    Binary,
    FrameType,
    MalformedFrame,
    Text,
    Type,
    binary_prefix,
    encode_text,
    legacy_data,
    legacy_payload,
    parse_binary,
    parse_text,
)


def test_binary_frames_have_their_documented_layout() -> None:
    assert binary_prefix(FrameType.DATA, "s1") + b"xyz" == b"\x01\x02s1xyz"
    assert parse_binary(b"\x01\x02s1xyz") == Binary(FrameType.DATA, "s1", b"xyz")
    assert parse_binary(b"\x03\x02s1") == Binary(FrameType.CLOSE, "s1", b"")


@pytest.mark.parametrize("data", [b"", b"\x01", b"\x01\x05abc", b"\x02\x01a", b"\x01\x00x", b"\x01\x01\xff"])
def test_malformed_binary_frames_are_refused(data: bytes) -> None:
    with pytest.raises(MalformedFrame):
        parse_binary(data)


@pytest.mark.parametrize("session_id", ["", "x" * 256])
def test_session_ids_fit_their_length_byte(session_id: str) -> None:
    with pytest.raises(ValueError, match="1 to 255"):
        binary_prefix(FrameType.DATA, session_id)


def test_text_frames_read_back() -> None:
    text = parse_text(encode_text(Type.TUNNEL_CONNECT, sessionId="s", host="a.example", port=443))
    assert text is not None
    assert text.type is Type.TUNNEL_CONNECT
    assert (text.text("sessionId"), text.text("host"), text.integer("port")) == ("s", "a.example", 443)


def test_fields_of_the_wrong_type_are_as_good_as_absent() -> None:
    text = Text(Type.TUNNEL_CONNECT, {"host": 1, "port": "443", "flag": True})
    assert (text.text("host"), text.integer("port"), text.integer("flag"), text.text("nothing")) == (
        "",
        0,
        0,
        "",
    )


def test_unknown_types_are_ignored_and_a_missing_payload_is_empty() -> None:
    assert parse_text(b'{"type":"from_the_future"}') is None
    assert parse_text(b'{"type":"heartbeat"}') == Text(Type.HEARTBEAT, {})
    assert parse_text(b'{"type":"heartbeat","payload":[1]}') == Text(Type.HEARTBEAT, {})


@pytest.mark.parametrize(
    "data", [b"", b"[]", b"{}", b'{"type":1}', b"\xff", b"[" * 100_000, b" " * (1024 * 1024 + 1)]
)
def test_what_is_no_message_is_refused(data: bytes) -> None:
    with pytest.raises(MalformedFrame):
        parse_text(data)


@pytest.mark.parametrize("kind", ["heartbeat", "from_the_future"])
def test_a_text_of_more_parts_than_any_type_has_is_ignored_as_unknown_ones_are_and_not_parsed(
    kind: str,
) -> None:
    parts = b",".join(b'"%d":1' % number for number in range(MAX_COMMAS + 2))
    text = b'{"type":"%s","payload":{%s}' % (
        kind.encode(),
        parts,
    )  # one bracket is missing: a parser would say so
    assert parse_text(text) is None
    few = text.rpartition(b",")[0]
    with pytest.raises(MalformedFrame):
        parse_text(few.rpartition(b",")[0])


def test_legacy_data_may_be_long_and_escaped_as_old_clients_do() -> None:
    data = bytes([255]) * 256 * 1024  # all slashes in base64
    escaped = legacy_data("s", data).replace(b"/", b"\\/")
    text = parse_text(escaped)
    assert text is not None
    assert legacy_payload(text) == data


@given(st.binary(max_size=100))
def test_legacy_data_reads_back(data: bytes) -> None:
    text = parse_text(legacy_data("s", data))
    assert text is not None
    assert legacy_payload(text) == data


def test_legacy_data_that_is_no_base64_is_refused() -> None:
    with pytest.raises(MalformedFrame):
        legacy_payload(Text(Type.TUNNEL_DATA, {"data": "!"}))


@given(st.binary(max_size=200))
def test_no_bytes_break_the_parsers(data: bytes) -> None:
    for parse in (parse_text, parse_binary):
        try:
            parse(data)
        except MalformedFrame:
            continue


VECTORS: dict[str, Any] = json.loads(Path("docs/protocol/binary-v1.json").read_text())


@pytest.mark.parametrize("row", [pytest.param(r, id=r["name"]) for r in VECTORS["frames"]])
def test_a_frame_reads_and_writes_as_its_vector_says(row: dict[str, Any]) -> None:
    kind, payload = FrameType[row["type"].upper()], bytes.fromhex(row["payloadHex"])
    assert parse_binary(bytes.fromhex(row["hex"])) == Binary(kind, row["sessionId"], payload)
    assert (binary_prefix(kind, row["sessionId"]) + payload).hex() == row["hex"]


@pytest.mark.parametrize("row", [pytest.param(r, id=r["name"]) for r in VECTORS["malformed"]])
def test_a_malformed_vector_is_refused(row: dict[str, Any]) -> None:
    with pytest.raises(MalformedFrame):
        parse_binary(bytes.fromhex(row["hex"]))


@pytest.mark.parametrize("row", [pytest.param(r, id=r["name"]) for r in VECTORS["texts"]])
def test_a_text_reads_as_its_vector_says(row: dict[str, Any]) -> None:
    text = parse_text(row["json"].encode())
    assert (text and (text.type, text.payload)) == (row["type"] and (Type(row["type"]), row["payload"]))


@pytest.mark.parametrize("raw", VECTORS["malformedTexts"])
def test_a_malformed_text_is_refused(raw: str) -> None:
    with pytest.raises(MalformedFrame):
        parse_text(raw.encode())
