"""What windows of a v2 tunnel, and what is kept until it is acknowledged, draw on a budget and give back to it."""

from collections import deque

import pytest

from shared.wire import mux
from shared.wire.outbox import Outbox
from shared.wire.stream import LIMITS_KEPT, WINDOW_MAX_BYTES, WINDOW_START_BYTES, Stream, WindowBudget
from tests.unit.wire.test_stream import Recorder, feed


def starve(stream: Stream) -> None:
    """The sender fills what it was told, and says so."""
    limit = stream.told_limit
    while stream.received < limit:
        stream.on_data(bytes(min(limit - stream.received, 65536)))
    stream.on_blocked(limit)


def test_windows_grow_no_further_than_their_ceiling_and_their_budget() -> None:
    budget = WindowBudget(WINDOW_START_BYTES)
    outbox = Outbox(lambda head, payload=b"": None)
    first, second = (Stream(Recorder(), bytes(16), budget) for _ in range(2))
    for stream in (first, second):
        stream.attach(outbox, 1)
        starve(stream)
    assert first.told_limit - first.received == 2 * WINDOW_START_BYTES
    assert second.told_limit - second.received == WINDOW_START_BYTES
    first.close()
    starve(second)
    assert second.told_limit - second.received == 2 * WINDOW_START_BYTES
    wide = Stream(Recorder(), bytes(16), WindowBudget(1 << 40))
    wide.attach(outbox, 1)
    for _ in range(8):
        starve(wide)
    assert wide.told_limit - wide.received == WINDOW_MAX_BYTES


def test_what_waited_for_room_in_the_budget_goes_on_when_it_is_tried_again() -> None:
    """A receiver of another make may let in much at first, and acknowledge only half of that."""
    sent: list[int] = []
    budget = WindowBudget(WINDOW_START_BYTES)
    assert budget.draw(WINDOW_START_BYTES)
    stream = Stream(Recorder(), bytes(16), budget)
    stream.attach(Outbox(lambda head, payload=b"": sent.append(len(payload))), 1)
    stream.on_opened(WINDOW_MAX_BYTES)
    stream.write(bytes(2 * WINDOW_START_BYTES))
    stream.try_again()
    assert sum(sent) == WINDOW_START_BYTES
    budget.give_back(WINDOW_START_BYTES)
    stream.try_again()
    assert sum(sent) == 2 * WINDOW_START_BYTES


@pytest.mark.parametrize(("budget", "kept"), [(1 << 40, WINDOW_MAX_BYTES), (0, WINDOW_START_BYTES)])
def test_a_sender_keeps_what_its_ceiling_and_its_budget_allow_whatever_it_is_told(
    budget: int, kept: int
) -> None:
    sent: list[int] = []
    outbox = Outbox(lambda head, payload=b"": sent.append(len(payload)))
    sink = Recorder()
    stream = Stream(sink, bytes(16), WindowBudget(budget))
    stream.attach(outbox, 1)
    stream.on_opened(1 << 62)
    stream.write(bytes(WINDOW_MAX_BYTES + 200_000))
    assert sum(sent) == kept
    assert sink.held
    stream.on_window(kept, 1 << 62)
    assert sum(sent) > kept, "an acknowledgement is room, though the limit stays"


def test_what_a_sender_keeps_draws_on_the_budget_until_it_closes() -> None:
    budget = WindowBudget(WINDOW_START_BYTES)
    outbox = Outbox(lambda head, payload=b"": None)
    stream = Stream(Recorder(), bytes(16), budget)
    stream.attach(outbox, 1)
    stream.on_opened(1 << 62)
    stream.write(bytes(WINDOW_START_BYTES))
    assert budget.draw(1), "the start is everybody's"
    budget.give_back(1)
    stream.write(b"x")
    assert not budget.draw(1)
    stream.close()
    assert budget.draw(WINDOW_START_BYTES)


def test_room_that_a_window_does_not_use_goes_back_to_the_budget() -> None:
    budget = WindowBudget(WINDOW_START_BYTES)
    stream = Stream(Recorder(), bytes(16), budget)
    said: list[bytes] = []
    stream.attach(Outbox(lambda head, payload=b"": said.append(head)), 1)
    stream.on_opened(WINDOW_START_BYTES)
    stream.write(bytes(2 * WINDOW_START_BYTES))
    assert said[-1] == mux.blocked_frame(1, WINDOW_START_BYTES)
    assert not budget.draw(1), "the window may be twice as large now"
    stream.on_window(WINDOW_START_BYTES, 2 * WINDOW_START_BYTES)
    assert not budget.draw(1), "this was said before BLOCKED was heard"
    stream.on_window(2 * WINDOW_START_BYTES, 3 * WINDOW_START_BYTES)
    assert budget.draw(WINDOW_START_BYTES), "it is not: its sink does not keep up"


def test_a_receiver_that_pauses_at_each_window_makes_a_sender_keep_no_more_than_its_next_ones() -> None:
    budget = WindowBudget(1 << 40)
    sender = Stream(Recorder(), bytes(16), budget)
    sender.attach(Outbox(lambda head, payload=b"": None), 1)
    limit = WINDOW_START_BYTES
    sender.on_opened(limit)
    for _ in range(40):
        sender.write(bytes(WINDOW_START_BYTES + 1))
        sender.on_window(limit, limit + WINDOW_START_BYTES)
        limit += WINDOW_START_BYTES
        assert sender._keeps <= 4 * WINDOW_START_BYTES
    sender.close()
    assert budget.draw(1 << 40)


def test_a_receiver_that_lets_in_a_byte_at_a_time_makes_a_sender_remember_no_more_than_it_may_believe() -> (
    None
):
    sender = Stream(Recorder(), bytes(16), WindowBudget(1 << 40))
    sender.attach(Outbox(lambda head, payload=b"": None), 1)
    sender.on_opened(1)
    sender.write(bytes(10_000))
    for limit in range(2, 1000):
        sender.on_window(0, limit)
        assert len(sender._asked) <= LIMITS_KEPT


def test_a_sender_whose_budget_is_spent_passes_everything_through_a_window_that_grew() -> None:
    """What it may keep is never less than what a receiver wants to have before it acknowledges."""
    a, b = Recorder(), Recorder()
    to_b: deque[bytes] = deque()
    to_a: deque[bytes] = deque()
    budget = WindowBudget(WINDOW_START_BYTES)
    sender = Stream(a, bytes(16), budget)
    receiver = Stream(b, bytes(16), WindowBudget(1 << 40))
    sender.attach(Outbox(lambda head, payload=b"": to_b.append(head + bytes(payload))), 1)
    receiver.attach(Outbox(lambda head, payload=b"": to_a.append(head + bytes(payload))), 1)
    sender.on_opened(receiver.told_limit)
    total = 4 * WINDOW_MAX_BYTES
    sender.write(bytes(total))
    while to_a or to_b:
        for frames, end in ((to_b, receiver), (to_a, sender)):
            while frames:
                frame = mux.parse(frames.popleft())
                assert frame is not None
                feed(end, frame)
    assert len(b.got) == total
    sender.close()
    assert budget.draw(WINDOW_START_BYTES), "all of it came back"
    assert not budget.draw(1)
