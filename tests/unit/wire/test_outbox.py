"""Outbox: tunnels of one connection take turns, and nothing leaves while it is full."""

from collections import deque

from shared.wire import mux
from shared.wire.mux import MuxType
from shared.wire.outbox import Outbox


class Waiting:
    """A tunnel whose frames wait for their turn."""

    def __init__(self, tunnel_id: int, *sizes: int) -> None:
        self.queued = False
        self.frames = deque((mux.header(MuxType.DATA, tunnel_id), bytes(size)) for size in sizes)

    def take(self, max_bytes: int) -> tuple[bytes, bytes] | None:
        return self.frames.popleft() if self.frames else None


def test_a_bulk_transfer_takes_turns_with_a_small_one() -> None:
    sent: list[bytes] = []
    outbox = Outbox(lambda head, payload=b"": sent.append(head))
    outbox.pause()
    bulk, small = Waiting(1, *[mux.DATA_MAX_BYTES] * 10), Waiting(2, 5)
    for lane in (bulk, small):
        outbox.offer(lane)
        outbox.offer(lane)
    assert sent == []
    outbox.resume()
    assert sent[:2] == [mux.header(MuxType.DATA, 1), mux.header(MuxType.DATA, 2)]
    assert len(sent) == 11
    assert not bulk.queued
    assert not small.queued


def test_a_connection_that_fills_up_ends_the_turn_and_the_next_one_goes_on_with_the_others() -> None:
    sent: list[bytes] = []

    def send(head: bytes, payload: mux.Bytes = b"") -> None:
        sent.append(head)
        outbox.pause()

    outbox = Outbox(send)
    lanes = [Waiting(number, 1, 1) for number in range(3)]
    outbox.pause()
    for lane in lanes:
        outbox.offer(lane)
    for _ in range(6):
        outbox.resume()
    assert sent == [mux.header(MuxType.DATA, number) for number in (0, 1, 2, 0, 1, 2)]


def test_who_withdraws_sends_nothing() -> None:
    sent: list[bytes] = []
    outbox = Outbox(lambda head, payload=b"": sent.append(head))
    outbox.pause()
    gone, stays = Waiting(1, 1), Waiting(2, 1)
    for lane in (gone, stays):
        outbox.offer(lane)
    outbox.withdraw(gone)
    outbox.withdraw(gone)
    outbox.resume()
    assert sent == [mux.header(MuxType.DATA, 2)]
