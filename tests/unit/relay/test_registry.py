"""Whose sockets a device has: those of the newest tokens, eight at most, and its owner's before a stranger's."""

from dataclasses import replace
from typing import Any

import pytest

from relay_node.figures import Reason
from relay_node.peers import PeerSocket
from relay_node.registry import Registry
from shared.kernel.ids import AccountId, DeviceId
from shared.supply.tokens import Claims
from shared.wire.peer import MAX_SOCKETS_PER_DEVICE, Type, encode_text
from shared.wire.websocket import Opcode, encode_frame
from tests.support.relay import Wire, peer, registry

OWNER = Claims(DeviceId("d"), AccountId("a"), 0)
STRANGER = replace(OWNER, owned=False)


def comes(
    here: Registry, claims: Claims, address: str = "192.0.2.1"
) -> tuple[Reason | None, PeerSocket, Wire]:
    socket, wire = peer(here, address)
    socket._head = None
    return here.attach(socket, claims), socket, wire


async def test_a_device_has_eight_sockets_and_no_more() -> None:
    here = registry()
    answers = [comes(here, OWNER)[0] for _ in range(MAX_SOCKETS_PER_DEVICE + 1)]
    assert answers == [None] * MAX_SOCKETS_PER_DEVICE + [Reason.TOO_MANY_SOCKETS]


async def test_a_stranger_that_took_every_socket_is_turned_out_by_the_owner_and_leaves_no_trace() -> None:
    here = registry()
    left: list[Any] = []
    here.hooks = replace(here.hooks, left=left.append)
    strangers = [comes(here, STRANGER, "198.51.100.6") for _ in range(MAX_SOCKETS_PER_DEVICE)]
    assert all(answer is None for answer, _, _ in strangers)
    answer, socket, _ = comes(here, OWNER, "203.0.113.9")
    assert answer is None
    assert all(wire.closing for _, _, wire in strangers)
    device = here.devices["d"]
    assert (device.address, device.sockets) == ("203.0.113.9", [socket])
    for _, stranger, _ in strangers:
        assert stranger.lost_reason is Reason.NOT_OWNED
        stranger.connection_lost(None)
    assert here.devices == {"d": device}
    assert left == [], "presence is the owner's by now"
    socket.connection_lost(None)
    assert here.devices == {}
    assert left == [device]


async def test_a_stranger_gets_no_socket_beside_the_owners_and_may_serve_when_they_are_gone() -> None:
    here = registry()
    _, socket, wire = comes(here, OWNER)
    assert comes(here, STRANGER)[0] is Reason.NOT_OWNED
    assert not wire.closing
    socket.connection_lost(None)
    assert comes(here, STRANGER)[0] is None


@pytest.mark.parametrize("field", ["generation", "account_generation"])
async def test_an_owner_with_ended_tokens_turns_nobody_out(field: str) -> None:
    here = registry()
    newer: dict[str, Any] = {field: 2}
    _, _, wire = comes(here, replace(STRANGER, **newer))
    assert comes(here, OWNER)[0] is Reason.TOKEN_REFUSED
    assert not wire.closing


def says_what_it_speaks(socket: PeerSocket) -> None:
    socket.data_received(encode_frame(Opcode.TEXT, encode_text(Type.DEVICE_INFO), b"mask"))


async def test_a_device_that_comes_from_another_address_is_looked_up_and_told_of_anew() -> None:
    """Its own network is closed to customers by this address: it must not be the one of yesterday's line."""
    here = registry()
    told: list[str] = []
    here.hooks = replace(here.hooks, arrived=lambda device: told.append(device.address))
    _, old, _ = comes(here, OWNER, "192.0.2.1")
    says_what_it_speaks(old)
    _, new, _ = comes(here, OWNER, "198.51.100.9")
    assert here.devices["d"].address == "192.0.2.1", "nothing has been heard from there yet"
    says_what_it_speaks(new)
    device = here.devices["d"]
    assert (device.address, str(device.origin)) == ("198.51.100.9", "198.51.100.9")
    old.connection_lost(None)
    assert told == ["192.0.2.1", "198.51.100.9"]


async def test_a_second_way_of_the_same_line_moves_a_device_only_when_the_first_is_gone() -> None:
    here = registry()
    told: list[str] = []
    here.hooks = replace(here.hooks, arrived=lambda device: told.append(device.address))
    _, first, _ = comes(here, OWNER, "192.0.2.1")
    says_what_it_speaks(first)
    _, second, _ = comes(here, OWNER, "2001:db8::1")
    says_what_it_speaks(second)
    assert told == ["192.0.2.1"]
    first.connection_lost(None)
    assert told == ["192.0.2.1", "2001:db8::1"]
