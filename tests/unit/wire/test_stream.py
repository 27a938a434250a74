"""Ends of a v2 tunnel: the scripts, two ends back to back over a path that breaks, and the sharing of one connection."""

import gc
import json
import weakref
from collections import deque
from pathlib import Path
from typing import Any

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from shared.wire import mux
from shared.wire.mux import Bytes, Frame, MuxType
from shared.wire.outbox import Outbox
from shared.wire.stream import (
    APART_MAX,
    PENDING_HIGH_BYTES,
    RESENT_MAX_BYTES,
    WINDOW_MAX_BYTES,
    WINDOW_START_BYTES,
    FlowViolation,
    SentTooOften,
    Stream,
    WindowBudget,
)

SCRIPTS: list[dict[str, Any]] = json.loads(Path("docs/protocol/binary-v2-stream.json").read_text())["scripts"]


class Recorder:
    """A sink that remembers."""

    def __init__(self) -> None:
        self.got = bytearray()
        self.eof = False
        self.held = False

    def deliver(self, data: Bytes) -> None:
        assert not self.eof
        self.got += data

    def ended(self) -> None:
        self.eof = True

    def pause_source(self) -> None:
        assert not self.held
        self.held = True

    def resume_source(self) -> None:
        assert self.held
        self.held = False


def feed(stream: Stream, frame: Frame) -> None:
    match frame.type:
        case MuxType.OPENED:
            stream.on_opened(mux.read_limit(frame.body))
        case MuxType.DATA:
            stream.on_data(frame.body)
        case MuxType.EOF:
            stream.on_eof()
        case MuxType.WINDOW:
            stream.on_window(*mux.read_window(frame.body))
        case MuxType.BLOCKED:
            stream.on_blocked(mux.read_limit(frame.body))
        case _:
            raise AssertionError(frame)


def step(stream: Stream, outbox: Outbox, given: dict[str, Any]) -> None:
    match given["do"]:
        case "attach":
            stream.attach(outbox, given["tunnel"])
        case "detach":
            stream.detach()
        case "write":
            stream.write(bytes.fromhex(given["hex"]))
        case "eof":
            stream.write_eof()
        case "opened":
            stream.on_opened(given["limit"])
        case "data":
            stream.on_data(bytes.fromhex(given["hex"]))
        case "peer_eof":
            stream.on_eof()
        case "window":
            stream.on_window(given["received"], given["limit"])
        case "blocked":
            stream.on_blocked(given["limit"])
        case "resume":
            stream.resume(given["received"], given["limit"])
        case "stall":
            stream.stall()
        case "drained":
            stream.drained()


@pytest.mark.parametrize("script", [pytest.param(s, id=s["name"]) for s in SCRIPTS])
def test_an_end_does_what_its_script_says(script: dict[str, Any]) -> None:
    sent: list[str] = []
    outbox = Outbox(lambda head, payload=b"": sent.append((head + bytes(payload)).hex()))
    sink = Recorder()
    stream = Stream(sink, bytes(16), WindowBudget(1 << 20), script["window"])
    for given in script["steps"]:
        sent.clear()
        sink.got.clear()
        if given.get("violates"):
            with pytest.raises(FlowViolation):
                step(stream, outbox, given)
            return
        step(stream, outbox, given)
        assert sent == given["sends"], given
        assert sink.got.hex() == given.get("delivers", ""), given
        assert stream.over is given.get("over", False)


class End:
    """One end, its connection as a queue of frames, and what it wrote."""

    def __init__(self) -> None:
        self.sink = Recorder()
        self.out: deque[bytes] = deque()
        self.budget = WindowBudget(256)
        self.others_drew = 0
        self.stream = Stream(self.sink, bytes(16), self.budget, 16)
        self.outbox = Outbox(lambda head, payload=b"": self.out.append(head + bytes(payload)))
        self.wrote = bytearray()
        self.eof = False
        self.stalled = False


class TwoEnds(RuleBasedStateMachine):
    """A gateway's end and a peer's end: whatever happens to the path, and to the budgets, no byte is lost, repeated or
    reordered, and none waits for ever.
    """

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = End(), End()
        self.connected = False
        self.tunnel = 1

    @initialize()
    def open(self) -> None:
        for one, other in ((self.a, self.b), (self.b, self.a)):
            one.stream.attach(one.outbox, self.tunnel)
            one.stream.on_opened(other.stream.told_limit)
        self.connected = True

    def other(self, end: End) -> End:
        return self.b if end is self.a else self.a

    ends = st.sampled_from(["a", "b"])

    @rule(end=ends, data=st.binary(min_size=1, max_size=40))
    def write(self, end: str, data: bytes) -> None:
        mine: End = getattr(self, end)
        if not mine.eof:
            mine.wrote += data
            mine.stream.write(data)

    @rule(end=ends)
    def finish(self, end: str) -> None:
        mine: End = getattr(self, end)
        mine.eof = True
        mine.stream.write_eof()

    @rule(end=ends)
    def stall(self, end: str) -> None:
        mine: End = getattr(self, end)
        mine.stalled = True
        mine.stream.stall()

    @rule(end=ends)
    def drain(self, end: str) -> None:
        mine: End = getattr(self, end)
        mine.stalled = False
        mine.stream.drained()

    @rule(end=ends)
    def full(self, end: str) -> None:
        getattr(self, end).outbox.pause()

    @rule(end=ends)
    def room(self, end: str) -> None:
        getattr(self, end).outbox.resume()

    @rule(end=ends, size=st.integers(100, 2000))
    def write_much(self, end: str, size: int) -> None:
        """So that windows grow."""
        self.write(end, bytes(range(256)) * (size // 256) + bytes(size % 256))
        self.carry_all()

    @rule(end=ends)
    def spend(self, end: str) -> None:
        """Other streams draw all that is left."""
        mine: End = getattr(self, end)
        while mine.budget.draw(1):
            mine.others_drew += 1

    @rule(end=ends)
    def spare(self, end: str) -> None:
        mine: End = getattr(self, end)
        mine.budget.give_back(mine.others_drew)
        mine.others_drew = 0

    @rule(end=ends, count=st.integers(1, 5))
    def carry(self, end: str, count: int) -> None:
        mine: End = getattr(self, end)
        for _ in range(min(count, len(mine.out))):
            frame = mux.parse(mine.out.popleft())
            assert frame is not None
            assert frame.tunnel == self.tunnel
            feed(self.other(mine).stream, frame)

    def carry_all(self) -> None:
        for _ in range(2000):
            if not (self.a.out or self.b.out):
                break
            self.carry("a", 5)
            self.carry("b", 5)

    @precondition(lambda self: self.connected)
    @rule()
    def lose_the_path(self) -> None:
        for end in (self.a, self.b):
            end.stream.detach()
            end.out.clear()
            end.outbox = Outbox(end.outbox.send)
        self.connected = False

    @precondition(lambda self: not self.connected)
    @rule(early=st.integers(0, 9))
    def resume(self, early: int = 0) -> None:
        """As it goes: the peer attaches first, and what it sends may arrive before the gateway has attached."""
        self.tunnel += 1
        asked = (self.a.stream.received, self.a.stream.told_limit)
        answered = (self.b.stream.received, self.b.stream.told_limit)
        self.b.stream.attach(self.b.outbox, self.tunnel)
        self.b.stream.resume(*asked)
        self.carry("b", early)
        self.a.stream.attach(self.a.outbox, self.tunnel)
        self.a.stream.resume(*answered)
        self.connected = True

    @invariant()
    def what_arrived_is_a_prefix_of_what_was_written(self) -> None:
        for end in (self.a, self.b):
            got = self.other(end).sink.got
            assert end.wrote[: len(got)] == got
            assert not self.other(end).sink.eof or (end.eof and got == end.wrote)

    def teardown(self) -> None:
        if not self.connected:
            self.resume()
        for name in ("a", "b"):
            self.drain(name)
            self.room(name)
            self.finish(name)
        self.carry_all()
        for end in (self.a, self.b):
            assert self.other(end).sink.got == end.wrote
            assert end.stream.over
            assert not end.sink.held


def test_a_stream_that_is_resumed_while_nobody_reads_and_others_spend_the_budget_goes_on_when_somebody_reads() -> (
    None
):
    ends = TwoEnds()
    ends.open()
    for _ in range(3):
        ends.write_much("a", 1000)
    ends.stall("b")
    ends.write_much("a", 1000)
    ends.lose_the_path()
    ends.resume()
    ends.spend("a")
    ends.teardown()


def test_what_is_sent_again_is_bounded_by_what_was_acknowledged() -> None:
    sent: list[int] = []
    stream = Stream(Recorder(), bytes(16), WindowBudget(0))
    stream.attach(Outbox(lambda head, payload=b"": sent.append(len(payload))), 1)
    stream.on_opened(1 << 40)
    stream.write(bytes(WINDOW_START_BYTES))
    for _ in range(RESENT_MAX_BYTES // WINDOW_START_BYTES):
        stream.resume(0, 1 << 40)
    with pytest.raises(SentTooOften):
        stream.resume(0, 1 << 40)
    assert sum(sent) == RESENT_MAX_BYTES + WINDOW_START_BYTES


def test_a_path_that_is_lost_again_and_again_carries_on_while_bytes_arrive() -> None:
    """A slow line takes a seventh of a window between losses."""
    stream = Stream(Recorder(), bytes(16), WindowBudget(1 << 40))
    stream.on_opened(1 << 40)
    taken = WINDOW_MAX_BYTES // 7
    for turn in range(1, 201):
        stream.attach(Outbox(lambda head, payload=b"": None), turn)
        stream.write(bytes(taken if turn > 1 else WINDOW_MAX_BYTES))
        stream.resume((turn - 1) * taken, 1 << 40)


TestTwoEnds = TwoEnds.TestCase
TestTwoEnds.settings = settings(max_examples=150, stateful_step_count=40, deadline=None)


def test_a_bulk_stream_takes_turns_with_a_small_one() -> None:
    sent: list[bytes] = []
    outbox = Outbox(lambda head, payload=b"": sent.append(head))
    streams = [Stream(Recorder(), bytes(16), WindowBudget(WINDOW_MAX_BYTES)) for _ in range(2)]
    outbox.pause()
    for number, stream in enumerate(streams):
        stream.attach(outbox, number)
        stream.on_opened(1 << 30)
    streams[0].write(bytes(10 * mux.DATA_MAX_BYTES))
    streams[1].write(b"small")
    outbox.resume()
    assert sent[:2] == [mux.header(MuxType.DATA, 0), mux.header(MuxType.DATA, 1)]
    assert len(sent) == 11


def test_control_frames_leave_while_data_waits() -> None:
    sent: list[bytes] = []
    outbox = Outbox(lambda head, payload=b"": sent.append(head))
    outbox.pause()
    stream = Stream(Recorder(), bytes(16), WindowBudget(0), 8)
    stream.attach(outbox, 1)
    stream.on_opened(100)
    stream.write(b"waits")
    stream.on_data(b"1234")
    assert sent == [mux.window_frame(1, 4, 12)]


def test_a_source_is_held_while_too_much_waits_and_let_go_after() -> None:
    outbox = Outbox(lambda head, payload=b"": None)
    sink = Recorder()
    stream = Stream(sink, bytes(16), WindowBudget(0))
    stream.attach(outbox, 1)
    stream.write(bytes(PENDING_HIGH_BYTES + 1))
    assert sink.held
    stream.on_opened(WINDOW_START_BYTES)
    assert not sink.held


@pytest.mark.parametrize("acknowledged", [False, True])
def test_small_pieces_are_joined_while_they_are_kept(acknowledged: bool) -> None:
    sent = bytearray()
    outbox = Outbox(lambda head, payload=b"": sent.extend(payload))
    stream = Stream(Recorder(), bytes(16), WindowBudget(0))
    stream.attach(outbox, 1)
    if acknowledged:
        stream.on_opened(1 << 62)
    wrote = b"".join(number.to_bytes(2, "big") for number in range(20_000))
    for start in range(0, len(wrote), 2):
        stream.write(wrote[start : start + 2])
    assert len(stream._pending) + len(stream._unacked) < 2 * APART_MAX
    stream.attach(outbox, 2)
    sent.clear()
    stream.resume(301 if acknowledged else 0, 1 << 62)
    assert sent == wrote[301 if acknowledged else 0 :]


def test_a_withdrawn_stream_sends_nothing() -> None:
    sent: list[bytes] = []
    outbox = Outbox(lambda head, payload=b"": sent.append(head))
    outbox.pause()
    stream = Stream(Recorder(), bytes(16), WindowBudget(0))
    stream.attach(outbox, 1)
    stream.on_opened(10)
    stream.write(b"x")
    stream.close()
    outbox.resume()
    assert sent == []


def test_a_stream_that_is_closed_lets_go_of_its_sink() -> None:
    class Target(Recorder):
        stream: Stream

    gc.disable()
    try:
        target = Target()
        target.stream = stream = Stream(target, bytes(16), WindowBudget(0))
        stream.close()
        freed = weakref.ref(target)
        del target
        assert freed() is None
        stream.write(bytes(2 * PENDING_HIGH_BYTES))
        stream.drained()
    finally:
        gc.enable()
