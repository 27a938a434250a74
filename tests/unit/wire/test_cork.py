"""Cork: frames of one turn leave together, in order, and large ones at once."""

from collections.abc import Callable, Sequence

from hypothesis import given
from hypothesis import strategies as st

from shared.wire.cork import GATHER_MAX_BYTES, Cork
from shared.wire.mux import Bytes


class Turn:
    """A loop's turn by hand, and a connection that keeps what was written."""

    def __init__(self) -> None:
        self.soon: list[Callable[[], None]] = []
        self.writes: list[list[bytes]] = []
        self.closing = False
        self.cork = Cork(self.soon.append)
        self.cork.connection = self

    def is_closing(self) -> bool:
        return self.closing

    def writelines(self, parts: Sequence[Bytes], /) -> None:
        self.writes.append([bytes(part) for part in parts])

    def end(self) -> None:
        soon = self.soon.copy()
        self.soon.clear()
        for callback in soon:
            callback()


def test_frames_of_one_turn_leave_in_one_write() -> None:
    turn = Turn()
    turn.cork.write(b"a", b"1")
    turn.cork.write(b"b")
    assert turn.writes == []
    turn.end()
    assert turn.writes == [[b"a1", b"b"]]
    turn.cork.write(b"c")
    turn.end()
    assert turn.writes[1:] == [[b"c"]]


def test_a_large_frame_does_not_wait_and_takes_the_small_ones_before_it_along() -> None:
    turn = Turn()
    turn.cork.write(b"a")
    turn.cork.write(b"b", bytes(GATHER_MAX_BYTES))
    assert turn.writes == [[b"a", b"b", bytes(GATHER_MAX_BYTES)]]
    turn.end()
    assert len(turn.writes) == 1


def test_how_much_is_gathered_may_change_on_the_way() -> None:
    turn = Turn()
    turn.cork.gather_max_bytes = 3 * GATHER_MAX_BYTES
    for _ in range(2):
        turn.cork.write(b"a", bytes(GATHER_MAX_BYTES))
    assert turn.writes == []
    turn.cork.write(b"b", bytes(GATHER_MAX_BYTES))
    assert len(turn.writes) == 1
    turn.cork.gather_max_bytes = GATHER_MAX_BYTES
    turn.cork.write(b"c", bytes(GATHER_MAX_BYTES))
    assert len(turn.writes) == 2


def test_flush_before_a_close_writes_what_waits_once() -> None:
    turn = Turn()
    turn.cork.write(b"a")
    turn.cork.flush()
    turn.end()
    assert turn.writes == [[b"a"]]


class Closed(Turn):
    """uvloop's way: a transport that closed in this very turn does not say so before it is written to."""

    def writelines(self, parts: Sequence[Bytes], /) -> None:
        super().writelines(parts)
        raise RuntimeError("unable to perform operation; the handler is closed")


def test_what_leaves_too_late_is_lost_and_nothing_breaks() -> None:
    turn, closed = Turn(), Closed()
    turn.closing = True
    for late in (turn, closed):
        late.cork.write(b"a")
        late.end()
    assert (turn.writes, closed.writes) == ([], [[b"a"]])
    closed.end()
    assert len(closed.writes) == 1


def test_before_there_is_a_connection_nothing_leaves() -> None:
    turn = Turn()
    turn.cork.connection = None
    turn.cork.write(b"a")
    turn.end()
    turn.cork.connection = turn
    turn.cork.write(b"b")
    turn.end()
    assert turn.writes == [[b"b"]]


@given(st.lists(st.tuples(st.binary(min_size=1, max_size=9), st.integers(0, 20_000), st.booleans())))
def test_every_byte_leaves_once_and_in_order(frames: list[tuple[bytes, int, bool]]) -> None:
    turn = Turn()
    for head, size, ends in frames:
        turn.cork.write(head, bytes(size))
        assert sum(map(len, turn.cork._parts)) < GATHER_MAX_BYTES
        if ends:
            turn.end()
    turn.end()
    wanted = b"".join(head + bytes(size) for head, size, _ in frames)
    assert b"".join(part for write in turn.writes for part in write) == wanted
