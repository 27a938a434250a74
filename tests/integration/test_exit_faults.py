"""Whose fault a failed tunnel is: exits that lie are found by several customers, and no customer alone can accuse one."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from psx_peer.client import Peer
from psx_peer.relay import RelaySocket
from psx_peer.tunnels import DialRefused
from psx_peer.wire import mux, peer

from gateway_node import dial
from shared.access.secrets import SecretBox
from shared.kernel.ids import AccountId, PakId
from shared.pool.live import BREAKER_HOSTS, BREAKER_OWNERS, list_endpoint
from shared.runtime.redis import command
from tests.support.dataplane import ACCOUNT, SECRET, WAIT_S, Plane, echo, until
from tests.support.pool import modem

pytestmark = [pytest.mark.slow, pytest.mark.timeout(60)]
HOSTS = [f"site{number}.example" for number in range(BREAKER_HOSTS)]
TRIES_MAX = 60
DEAD_PORT = 1


async def customers(plane: Plane) -> list[dict[str, str]]:
    """As many customers as it takes to accuse an exit."""
    box = SecretBox(bytes(32), bytes(32))
    found = [{"username": f"{ACCOUNT}-peer-us", "secret": SECRET}]
    for number in range(1, BREAKER_OWNERS):
        account, secret = AccountId(f"psx_other{number}"), f"pak_{number:024x}"
        await plane.mint(box, PakId(f"other{number}"), secret, account)
        found.append({"username": f"{account}-peer-us", "secret": secret})
    return found


async def keys(plane: Plane, pattern: str) -> list[Any]:
    """What Redis holds, once all reports were sent."""
    await plane.leases.drain()
    return await plane.redis.run(command("KEYS", pattern, parse=list))


async def given_back(plane: Plane) -> None:
    """Nobody holds a place on any exit: one that is full would not be chosen."""
    async with asyncio.timeout(WAIT_S):
        while await keys(plane, "{peer}:lease:*"):
            await asyncio.sleep(0.01)


async def lies(plane: Plane, name: str, refusal: DialRefused) -> Peer:
    """A peer that says the same of every target."""
    made = await plane.add_peer(name)

    async def dialer(side: asyncio.Protocol, host: str, port: int) -> asyncio.Transport:
        raise refusal

    for socket in made._sockets:
        socket._dialer = dialer
    return made


@pytest.mark.parametrize(
    "refusal",
    [
        DialRefused(peer.OpenFailure.DNS_FAILED, ""),
        DialRefused(peer.OpenFailure.CONNECTION_REFUSED, ""),
        DialRefused(peer.OpenFailure.CONNECTION_REFUSED, "", policy=True),
    ],
    ids=["dns", "refused", "policy"],
)
async def test_an_exit_that_reaches_nothing_costs_nobody_a_tunnel_and_is_soon_kept_from_all(
    plane: Plane, refusal: DialRefused
) -> None:
    port = await plane.target(echo)
    for host in HOSTS:
        plane.names[host] = "127.0.0.1"
    await lies(plane, "liar", refusal)
    await plane.add_peer("good")
    asking = await customers(plane)
    for number in range(TRIES_MAX):
        for who in asking:
            _, writer = await plane.tunnel(port, host=HOSTS[number % len(HOSTS)], **who)
            writer.close()
            await given_back(plane)
        if await keys(plane, "{peer}:pause:*") == [b"{peer}:pause:liar"]:
            return
    raise AssertionError("never suspected")


async def test_a_dead_target_is_told_and_no_exit_pays_for_it(plane: Plane) -> None:
    for host in HOSTS:
        plane.names[host] = "127.0.0.1"
    plane.allowed.add(("127.0.0.1", DEAD_PORT))
    for name in ("p1", "p2", "p3"):
        await plane.add_peer(name)
    for who in await customers(plane):
        for host in HOSTS:
            _, writer, head = await plane.connect(DEAD_PORT, host=host, **who)
            assert head.startswith("HTTP/1.1 502 ")
            assert "E_TARGET_REFUSED" in head
            writer.close()
    assert await keys(plane, "{peer}:suspects:*") == []
    assert await keys(plane, "{peer}:pause:*") == []
    assert await keys(plane, "{probe}:maybe:*") == []


async def test_one_customer_of_a_target_that_never_answers_takes_no_modem_off_sale(
    plane: Plane, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A modem's proxy waits for a target that drops what is sent to it, for longer than the gateway waits for the proxy."""
    monkeypatch.setattr(dial, "EXIT_ANSWER_TIMEOUT_S", 0.2)

    async def waits(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read()
        writer.close()

    plane.allowed.add(("127.0.0.1", DEAD_PORT))
    port = await plane.target(waits)
    sealed = SecretBox(bytes(32), bytes(32)).seal("user:password", "modem#m1")
    endpoint = modem("m1", "us", modem_port=port, modem_credentials_sealed=sealed)
    await plane.redis.run(list_endpoint(endpoint))
    for _ in range(3):
        _, writer, head = await plane.connect(DEAD_PORT, username=f"{ACCOUNT}-mbl-us")
        assert head.startswith("HTTP/1.1 50")
        writer.close()
    assert await keys(plane, "{mbl}:pause:*") == []
    (row,) = plane.leases.fared.take(10)
    assert (row.served, row.failed) == (0, 3), "its customers say so all the same"


async def test_a_session_stays_on_its_device_whatever_that_says_of_a_target(plane: Plane) -> None:
    plane.allowed.add(("127.0.0.1", DEAD_PORT))
    port = await plane.target(echo)
    for name in ("p1", "p2"):
        await plane.add_peer(name)
    session = f"{ACCOUNT}-peer-us-rot-sticky-sid-mine"

    async def device() -> str:
        _, writer = await plane.tunnel(port, username=session)
        (tunnel,) = plane.meter.all_tunnels()
        writer.close()
        await given_back(plane)
        return tunnel.acquired.endpoint.endpoint_id

    first = await device()
    for _ in range(6):
        _, writer, head = await plane.connect(DEAD_PORT, username=session)
        assert head.startswith("HTTP/1.1 502 ")
        writer.close()
        await given_back(plane)
        assert await device() == first


async def test_an_exit_that_accepts_and_resets_in_one_breath_is_told_of(
    plane: Plane, monkeypatch: pytest.MonkeyPatch
) -> None:
    def resets(self: RelaySocket, frame: mux.Frame) -> None:
        if frame.type is mux.MuxType.OPEN:
            self._send_frame(mux.opened_frame(frame.tunnel, mux.DATA_MAX_BYTES))
            self._send_frame(mux.reset_frame(frame.tunnel, mux.MuxReason.TARGET_RESET))

    monkeypatch.setattr(RelaySocket, "_frame", resets)
    noted: list[str] = []
    monkeypatch.setattr(plane.leases.fared, "note", lambda acquired, *who: noted.append(who[-1]))
    await plane.add_peer("p1")
    port = await plane.target(echo)
    _, writer, _ = await plane.connect(port)
    writer.close()
    await until(lambda: bool(noted))
    assert noted == [f"127.0.0.1:{port}"]


async def test_an_exit_that_accepts_and_resets_is_suspect_after_two_customers(
    plane: Plane, monkeypatch: pytest.MonkeyPatch
) -> None:
    def accepts_and_drops(self: RelaySocket, frame: mux.Frame) -> None:
        self._send_frame(mux.opened_frame(frame.tunnel, mux.DATA_MAX_BYTES))

    def resets(self: RelaySocket, frame: mux.Frame) -> None:
        if frame.type is mux.MuxType.OPEN:
            accepts_and_drops(self, frame)
        elif frame.type is mux.MuxType.DATA:
            self._send_frame(mux.reset_frame(frame.tunnel, mux.MuxReason.TARGET_RESET))

    monkeypatch.setattr(RelaySocket, "_frame", resets)
    await plane.add_peer("p1")
    port = await plane.target(echo)
    paused = []
    for who in await customers(plane):
        reader, writer = await plane.tunnel(port, **who)
        writer.write(b"hello")
        with pytest.raises(ConnectionResetError):
            await reader.readexactly(1)
        writer.close()
        paused.append(await keys(plane, "{peer}:pause:*"))
    assert paused == [[], [b"{peer}:pause:p1"]]


async def test_an_old_peer_that_fails_after_it_was_believed_open_ends_its_tunnel(plane: Plane) -> None:
    """Who never says `tunnel_connected` is taken for open after a short wait; its later word still counts."""
    answered = asyncio.Event()

    async def dialer(side: asyncio.Protocol, host: str, port: int) -> asyncio.Transport:
        await answered.wait()
        raise DialRefused(peer.OpenFailure.TIMEOUT, "dial timed out")

    await plane.add_peer("old", protocol="binary-v1", dialer=dialer)
    reader, _ = await plane.tunnel(await plane.target(echo))
    answered.set()
    with pytest.raises(ConnectionResetError):
        await asyncio.wait_for(reader.read(1), WAIT_S)
    await until(lambda: not plane.meter.all_tunnels())
