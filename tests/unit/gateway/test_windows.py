"""Windows of a gateway grow out of one budget: who holds much stops growing first."""

from gateway_node.windows import OF_WHAT_IS_LEFT, WINDOWS_MAX_BYTES, Windows
from shared.wire.outbox import Outbox
from shared.wire.stream import WINDOW_MAX_BYTES, WINDOW_START_BYTES, Stream
from tests.unit.wire.test_stream import Recorder
from tests.unit.wire.test_stream_budget import starve


def grown(windows: Windows, owner: str, tunnels: int) -> list[Stream]:
    """Tunnels of a customer whose senders fill whatever window they are given."""
    streams = [Stream(Recorder(), bytes(16), windows.share(owner)) for _ in range(tunnels)]
    for stream in streams:
        stream.attach(Outbox(lambda head, payload=b"": None), 1)
        for _ in range(5):
            starve(stream)
    return streams


def window(stream: Stream) -> int:
    return stream.told_limit - stream.received


def test_windows_of_a_customer_grow_beside_one_that_takes_all_it_can_have() -> None:
    windows = Windows()
    hoards = grown(windows, "hoards", 300)
    assert min(map(window, hoards)) == WINDOW_START_BYTES, "it has no more than it may"
    held = windows.share("hoards").held_bytes
    assert WINDOWS_MAX_BYTES // (OF_WHAT_IS_LEFT + 2) < held < WINDOWS_MAX_BYTES // OF_WHAT_IS_LEFT
    others = grown(windows, "another", 20)
    assert [window(stream) for stream in others] == [WINDOW_MAX_BYTES] * len(others)


def test_twenty_customers_that_hoard_leave_room_for_downloads_of_one_more() -> None:
    windows = Windows()
    hoards = [windows.share(f"hoards{number}") for number in range(20)]
    for share in hoards:
        while share.draw(WINDOW_START_BYTES):
            pass
    streams = grown(windows, "another", 2)
    assert [window(stream) for stream in streams] == [WINDOW_MAX_BYTES] * len(streams)
    for share in hoards:
        share.give_back(share.held_bytes)
    for stream in streams:
        stream.close()
    assert windows.share("another").draw(WINDOWS_MAX_BYTES // OF_WHAT_IS_LEFT), "all of it came back"


def test_a_customer_is_known_as_long_as_its_tunnels_are() -> None:
    windows = Windows()
    (stream,) = grown(windows, "o", 1)
    assert windows.share("o").held_bytes == WINDOW_MAX_BYTES - WINDOW_START_BYTES
    del stream
    assert windows.share("o").held_bytes == 0


def test_who_holds_all_that_it_may_have_may_still_take_nothing() -> None:
    share = Windows(8).share("o")
    assert share.draw(1)
    assert not share.draw(1)
    assert share.draw(0)
