"""A connection between plain requests rests: it counts somewhere, for no longer than its last answer is read."""

from typing import Any

import pytest

from gateway_node import lobby
from gateway_node.customer import FLUSH_MIN_BYTES
from gateway_node.http_front import UNREAD_FREE_BYTES, HttpFront
from tests.unit.gateway.test_front import Opens, connected, post, turns

CLOSES = b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"


async def test_a_connection_between_plain_requests_counts_among_those_that_rest() -> None:
    pipeline = Opens()
    front, _ = await connected(pipeline)
    assert (pipeline.lobby.crowd(), pipeline.resting.crowd()) == (1, 0)
    for _ in range(2):
        front.data_received(post(4, b"body"))
        await turns()
        assert (pipeline.lobby.crowd(), pipeline.resting.crowd()) == (0, 0), "its tunnel counts it"
        tunnel = pipeline.exit.tunnel
        tunnel.to_customer(CLOSES)
        assert (pipeline.lobby.crowd(), pipeline.resting.crowd()) == (0, 1)
        assert tunnel.place._left
    front.connection_lost(None)
    assert pipeline.resting.crowd() == 0


async def test_a_connection_that_is_lost_amid_a_plain_request_counts_nowhere() -> None:
    pipeline = Opens()
    front, _ = await connected(pipeline)
    front.data_received(post(4, b"body"))
    await turns()
    front.connection_lost(ConnectionResetError())
    assert (pipeline.lobby.crowd(), pipeline.resting.crowd()) == (0, 0)
    assert pipeline.exit.tunnel.place._left


async def test_where_too_many_rest_an_answer_that_was_cut_is_not_ended(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    pipeline = Opens()
    monkeypatch.setattr(pipeline.resting, "enter", lambda address: False)
    cuts: list[Any] = []

    def cut(front: HttpFront) -> None:
        cuts.append(front)

    monkeypatch.setattr(HttpFront, "cut", cut)
    front, wire = await connected(pipeline)
    front.data_received(post(4, b"body"))
    await turns()
    tunnel = pipeline.exit.tunnel
    tunnel.to_customer(b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nhalf")
    tunnel.exit_reset(by_target=True)
    assert cuts == [front]
    assert not wire.closing


async def test_where_too_many_rest_a_connection_ends_after_its_answer(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(lobby, "WAITING_PER_NETWORK_MAX", 1)
    pipeline = Opens()
    for closes in (False, True):
        front, wire = await connected(pipeline)
        front.data_received(post(4, b"body"))
        await turns()
        pipeline.exit.tunnel.to_customer(CLOSES)
        assert b"200 OK" in wire.written
        assert wire.closing is closes


async def test_an_answer_that_is_not_read_counts_as_its_tunnel_until_it_is() -> None:
    pipeline = Opens()
    front, wire = await connected(pipeline)
    places = []
    for _ in range(2):
        front.data_received(post(4, b"body"))
        await turns()
        wire.unsent = UNREAD_FREE_BYTES + 1
        pipeline.exit.tunnel.to_customer(CLOSES)
        places.append(pipeline.exit.tunnel.place)
    for _ in range(2):
        look = front._unread_look
        assert look is not None
        look.callback()
        assert not any(place._left for place in places)
    wire.unsent = UNREAD_FREE_BYTES
    look = front._unread_look
    assert look is not None
    look.callback()
    assert all(place._left for place in places)
    assert front._unread_look is None


@pytest.mark.parametrize(
    ("before", "after", "ends"),
    [
        *((0, 0, True), (100, 100, True), (100, 50, True), (100, 0, False)),
        *((FLUSH_MIN_BYTES + 9, 9, False), (FLUSH_MIN_BYTES + 9, 10, True)),
    ],
)
async def test_a_connection_rests_on_while_its_last_answer_is_read(
    before: int, after: int, ends: bool
) -> None:
    front, wire = await connected(Opens())
    wire.unsent = before
    front._end_when_idle()
    wire.unsent = after
    assert front._deadline is not None
    front._deadline.callback()
    assert wire.closing is ends
    front.connection_lost(None)
