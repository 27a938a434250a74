"""binary-v2 frames: the vectors, link framing in pieces, and what malformed bytes do."""

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shared.wire import mux
from shared.wire.mux import Frame, LinkReader, MalformedMux, MuxReason, MuxType

VECTORS: dict[str, Any] = json.loads(Path("docs/protocol/binary-v2.json").read_text())


def names(rows: list[dict[str, Any]]) -> list[Any]:
    return [pytest.param(row, id=row["name"]) for row in rows]


def encode(row: dict[str, Any]) -> bytes:
    tunnel, token = row["tunnel"], bytes.fromhex(row.get("token", ""))
    match row["type"]:
        case "OPEN":
            return mux.open_frame(tunnel, token, row["limit"], row["host"], row["port"])
        case "OPENED":
            return mux.opened_frame(tunnel, row["limit"])
        case "BLOCKED":
            return mux.blocked_frame(tunnel, row["limit"])
        case "REFUSED":
            return mux.refused_frame(tunnel, MuxReason(row["reason"]), row["detail"])
        case "RESET":
            return mux.reset_frame(tunnel, MuxReason(row["reason"]))
        case "WINDOW":
            return mux.window_frame(tunnel, row["received"], row["limit"])
        case "RESUMED":
            return mux.resumed_frame(tunnel, row["received"], row["limit"])
        case "RESUME":
            return mux.resume_frame(tunnel, token, row["received"], row["limit"])
        case "GOAWAY":
            return mux.goaway_frame(row["reconnectInMs"], row["tryForMs"])
        case _:
            return mux.header(MuxType[row["type"]], tunnel) + bytes.fromhex(row.get("payloadHex", ""))


def read(frame: Frame) -> dict[str, Any]:
    body = frame.body
    match frame.type:
        case MuxType.OPEN:
            opened = mux.read_open(body)
            return {**opened._asdict(), "token": opened.token.hex()}
        case MuxType.OPENED | MuxType.BLOCKED:
            return {"limit": mux.read_limit(body)}
        case MuxType.REFUSED:
            return {"reason": mux.read_reason(body), "detail": bytes(body[1:]).decode()}
        case MuxType.RESET:
            return {"reason": mux.read_reason(body)}
        case MuxType.WINDOW | MuxType.RESUMED:
            received, limit = mux.read_window(body)
            return {"received": received, "limit": limit}
        case MuxType.RESUME:
            resume = mux.read_resume(body)
            return {**resume._asdict(), "token": resume.token.hex()}
        case MuxType.GOAWAY:
            first, second = mux.read_goaway(body)
            return {"reconnectInMs": first, "tryForMs": second}
        case MuxType.EOF | MuxType.CLOSE:
            return {}
        case _:
            return {"payloadHex": bytes(body).hex()}


def read_raw(raw: bytes) -> dict[str, Any]:
    frame = mux.parse(raw)
    assert frame is not None
    return read(frame)


@pytest.mark.parametrize("row", names(VECTORS["frames"]))
def test_a_frame_reads_and_writes_as_its_vector_says(row: dict[str, Any]) -> None:
    raw = bytes.fromhex(row["hex"])
    assert encode(row) == raw
    frame = mux.parse(raw)
    assert frame is not None
    assert {"type": frame.type.name, "tunnel": frame.tunnel, **read(frame)} == {
        k: v for k, v in row.items() if k not in {"name", "hex"}
    }


@pytest.mark.parametrize("row", names(VECTORS["malformed"]))
def test_a_malformed_frame_is_told(row: dict[str, Any]) -> None:
    with pytest.raises(MalformedMux):
        read_raw(bytes.fromhex(row["hex"]))


@pytest.mark.parametrize("row", names(VECTORS["ignored"]))
def test_an_unknown_type_is_ignored(row: dict[str, Any]) -> None:
    assert mux.parse(bytes.fromhex(row["hex"])) is None


@pytest.mark.parametrize("row", names(VECTORS["link"]))
def test_a_link_names_the_device_before_the_body(row: dict[str, Any]) -> None:
    raw, inner = bytes.fromhex(row["hex"]), bytes.fromhex(row["peerHex"])
    sent = mux.for_device(inner, row["deviceId"])
    assert mux.link_header(len(sent)) + sent == raw
    (frame,) = LinkReader().receive(raw)
    device, body = mux.split_device(frame.body)
    assert (device, mux.header(frame.type, frame.tunnel) + bytes(body)) == (row["deviceId"], inner)


def test_every_type_has_a_vector() -> None:
    assert {row["type"] for row in VECTORS["frames"]} == {t.name for t in MuxType}


def test_a_reason_of_a_later_version_counts_as_unknown() -> None:
    assert mux.read_reason(b"\xfe") is MuxReason.UNKNOWN


def test_a_refusal_cuts_its_detail_between_letters() -> None:
    frame = mux.refused_frame(1, MuxReason.UNKNOWN, "ä" * 100)
    assert frame[6:].decode() == "ä" * 64


@given(st.lists(st.binary(max_size=300), max_size=8), st.lists(st.integers(1, 40), max_size=200))
def test_a_link_read_in_any_pieces_gives_the_same_frames(bodies: list[bytes], sizes: list[int]) -> None:
    raw = b""
    for number, body in enumerate(bodies):
        frame = mux.header(MuxType.DATA, number) + body
        raw += mux.link_header(len(frame)) + frame
    reader, got, start = LinkReader(), [], 0
    for size in [*sizes, len(raw) + 1]:
        got += [(f.tunnel, bytes(f.body)) for f in reader.receive(raw[start : start + size])]
        start += size
    assert got == list(enumerate(bodies))


@given(st.binary(max_size=200))
def test_any_bytes_on_a_link_are_frames_or_malformed(data: bytes) -> None:
    try:
        for frame in LinkReader().receive(data):
            read(frame)
    except MalformedMux:
        pass


@pytest.mark.parametrize("size", [0, 4, mux.LINK_FRAME_MAX_BYTES + 1, 0xFFFFFFFF])
def test_a_link_frame_of_an_impossible_length_is_refused_at_its_head(size: int) -> None:
    with pytest.raises(MalformedMux):
        list(LinkReader().receive(mux.link_header(size)))
