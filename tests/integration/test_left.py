"""Customers who leave before an exit has answered: what the exit does for them meanwhile keeps its place."""

from __future__ import annotations

import asyncio
import base64
from functools import partial
from typing import cast

import pytest
from psx_peer.tunnels import DirectDialer
from psx_peer.wire import egress

from shared.kernel.codes import SpeedTier
from shared.pool.model import PEER_CAPS
from shared.runtime.transports import reset
from tests.support.dataplane import ACCOUNT, SECRET, Plane, echo, until

pytestmark = [pytest.mark.slow, pytest.mark.timeout(60)]
PLACES = PEER_CAPS[SpeedTier.FAST].connections


async def test_a_peer_that_still_looks_a_name_up_is_asked_for_no_more_than_its_places_allow(
    plane: Plane,
) -> None:
    asked: list[str] = []
    answered = asyncio.Event()
    direct = DirectDialer(
        egress.EgressPolicy(lab_allow=plane.allowed), hosts=(("slow.example", "127.0.0.1"),)
    )

    async def dialer(side: asyncio.Protocol, host: str, port: int) -> asyncio.Transport:
        asked.append(host)
        await answered.wait()
        return await direct(side, host, port)

    port = await plane.target(echo)
    plane.names["slow.example"] = "127.0.0.1"
    await plane.add_peer("p1", dialer=dialer)
    for number in range(PLACES):
        _, writer = await asyncio.open_connection("127.0.0.1", plane.http_port)
        token = base64.b64encode(f"{ACCOUNT}-peer-us:{SECRET}".encode()).decode()
        ask = f"CONNECT slow.example:{port} HTTP/1.1\r\nProxy-Authorization: Basic {token}\r\n\r\n"
        writer.write(ask.encode())
        await until(partial(asked.__getitem__, slice(number, None)))
        reset(cast(asyncio.Transport, writer.transport))
        await until(lambda: plane.pipeline.lobby.crowd() == 0)
    await plane.leases.drain()
    _, writer, head = await plane.connect(port, host="slow.example")
    writer.close()
    assert "E_NO_STOCK" in head
    assert len(asked) == PLACES
    answered.set()
    await until(lambda: plane.pipeline.opening == 0)
    await plane.leases.drain()
    _, writer = await plane.tunnel(port, host="slow.example")
    writer.close()
    await until(lambda: not plane.meter.all_tunnels())
