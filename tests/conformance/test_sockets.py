"""What every SDK does with its sockets to relays: who it is, when it comes again, where it goes, and that it stops."""

import asyncio
import contextlib
import signal
import ssl

import pytest
import trustme
from websockets.frames import CloseCode

from shared.wire import mux, peer
from tests.conformance.device import Rig
from tests.conformance.relay import ScriptedRelay, Tunnel
from tests.conformance.targets import Target

pytestmark = pytest.mark.slow

STOP_WITHIN_S = 4


async def test_sockets_come_with_the_token_in_the_subprotocol(rig: Rig) -> None:
    device = await rig.device(WS_CONNECTIONS="4")
    sockets = [await rig.relay.socket() for _ in range(4)]
    assert rig.relay.upgrades == [("/", "token.jwt-1")] * 4
    for socket in sockets:
        info = socket.device_info
        assert info["protocol"] == mux.PROTOCOL
        assert info["currentIp"] == "auto"
        assert info["supportsRelayRedirect"] is True
        assert info["sdkVersion"].startswith(f"{rig.sdk.name}-")
        assert {"country", "carrier"} <= info.keys()
    assert len(rig.api.named("register")) == 1
    line = await device.logged("[REGISTERED]")
    assert f"device=agent_c0ffee relay={rig.relay.url} sockets=4 usdcPerGB=0.5" in line
    await device.logged("[CONNECTED]")


async def test_a_relay_that_does_not_select_the_token_is_left(rig: Rig) -> None:
    rig.relay.select = lambda offered: None
    await rig.device()
    await asyncio.sleep(0.8)
    assert rig.relay.arrived.empty()
    rig.relay.select = lambda offered: offered
    await rig.relay.socket()


async def test_heartbeats_are_sent_and_acknowledged(rig: Rig) -> None:
    rig.times["heartbeat"] = 0.5
    device = await rig.device()
    socket = await rig.relay.socket()
    async with asyncio.timeout(10):
        while socket.heartbeats < 3:
            await asyncio.sleep(0.02)
    await device.logged("[ACK]")
    assert not socket.closed.is_set()


@pytest.mark.parametrize("open_tunnels", [0, 1])
async def test_a_silent_relay_is_left(rig: Rig, target: Target, open_tunnels: int) -> None:
    rig.times |= {"heartbeat": 0.5, "tick": 0.2, "dead": 2.2 - open_tunnels, "streams_dead": 1.2}
    await rig.device()
    socket = await rig.relay.socket()
    if open_tunnels:
        await Tunnel(1).open(socket, "127.0.0.1", target.port)
    rig.relay.silent = True
    began = asyncio.get_running_loop().time()
    await rig.relay.socket(8)
    took = asyncio.get_running_loop().time() - began
    assert took > 0.8
    if open_tunnels:
        assert socket.pings, "a silent path under open tunnels was not asked"


async def test_after_a_sleep_the_path_is_doubted_at_once(rig: Rig) -> None:
    rig.times |= {"heartbeat": 1, "tick": 0.2, "dead": 60, "wake": 0.5}
    device = await rig.device()
    await rig.relay.socket()
    rig.relay.silent = True
    await asyncio.sleep(0.2)  # an answer that is under way would be heard after the sleep
    device.process.send_signal(signal.SIGSTOP)
    await asyncio.sleep(1.2)
    device.process.send_signal(signal.SIGCONT)
    await rig.relay.socket(8)


async def test_an_invalid_identity_is_refreshed_once_for_all_sockets(rig: Rig) -> None:
    await rig.device(WS_CONNECTIONS="4")
    for _ in range(4):
        await rig.relay.socket()
    for number, code in enumerate((4001, 4002), 1):
        await asyncio.gather(*(s.ws.close(code) for s in list(rig.relay.open)))
        again = [await rig.relay.socket() for _ in range(4)]
        assert {s.token for s in again} == {f"jwt-{number + 1}"}
        assert rig.api.named("refresh")[number - 1 :] == [{"refreshToken": f"refresh-{number}"}]
    assert len(rig.api.named("register")) == 1


async def test_an_identity_that_cannot_be_refreshed_is_registered_again_once(rig: Rig) -> None:
    rig.api.statuses["refresh"] = [401] * 5
    await rig.device(WS_CONNECTIONS="3")
    for _ in range(3):
        await rig.relay.socket()
    await asyncio.gather(*(s.ws.close(4001) for s in list(rig.relay.open)))
    assert {(await rig.relay.socket()).token for _ in range(3)} == {"jwt-2"}
    assert len(rig.api.named("refresh")) == 1
    assert len(rig.api.named("register")) == 2


async def test_an_api_in_trouble_is_asked_again(rig: Rig) -> None:
    rig.api.statuses["register"] = [503, 429]
    await rig.device()
    await rig.relay.socket(12)
    assert len(rig.api.named("register")) == 3


async def test_a_refused_device_ends_with_a_clear_line(rig: Rig) -> None:
    rig.api.statuses["register"] = [401]
    device = await rig.device()
    assert await device.ended() == 1
    assert "401" in device.log


async def test_any_other_close_redials_that_one_socket(rig: Rig) -> None:
    await rig.device(WS_CONNECTIONS="2")
    one, second = await rig.relay.socket(), await rig.relay.socket()
    for code in (1000, 1011, 4000):
        await one.ws.close(code)
        one = await rig.relay.socket()
        assert not second.closed.is_set(), code
    assert len(rig.api.calls) == 1


async def test_a_lone_socket_waits_before_it_comes_again(rig: Rig) -> None:
    rig.times |= {"redial_min": 1.0, "redial_max": 1.4}
    await rig.device()
    socket = await rig.relay.socket()
    await socket.ws.close(1000)
    began = asyncio.get_running_loop().time()
    again = await rig.relay.socket()
    assert again.arrival_s - began > 0.8


async def test_a_relay_that_never_answers_is_asked_ever_more_seldom(rig: Rig) -> None:
    await rig.relay.stop()
    port = rig.relay.port
    dials = 0

    async def count(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal dials
        dials += 1
        writer.close()

    server = await asyncio.start_server(count, "127.0.0.1", port)
    await rig.device()
    async with asyncio.timeout(10):
        while not dials:
            await asyncio.sleep(0.02)
    await asyncio.sleep(3)
    server.close()
    assert dials <= 10, "without backoff there would be about 15"


async def test_a_redirect_moves_all_sockets_and_only_once_a_while(rig: Rig) -> None:
    rig.times["redirect"] = 1.5
    second = await rig.add_relay(ScriptedRelay())
    await rig.device(WS_CONNECTIONS="2")
    sockets = [await rig.relay.socket(), await rig.relay.socket()]
    for socket in sockets:
        socket.send(f'{{"type":"relay_redirect","payload":{{"relay":"{second.url}","reason":"test"}}}}')
    moved = [await second.socket(), await second.socket()]
    assert [s.close_code for s in sockets] == [4100, 4100]
    for socket in moved:
        socket.send(f'{{"type":"relay_redirect","payload":{{"relay":"{rig.relay.url}"}}}}')
    await rig.relay.no_socket(0.6)
    await asyncio.sleep(1.1)
    for socket in moved:
        socket.send(f'{{"type":"relay_redirect","payload":{{"relay":"{rig.relay.url}"}}}}')
    await rig.relay.socket()
    await rig.relay.socket()


async def test_a_redirect_to_a_host_that_the_api_never_named_is_ignored(rig: Rig) -> None:
    stranger = ScriptedRelay()
    await stranger.start()
    await rig.device()
    socket = await rig.relay.socket()
    for url in (stranger.url, f"{rig.relay.url}../x", "ws://0x7f000001/", "", "http://"):
        socket.send(f'{{"type":"relay_redirect","payload":{{"relay":"{url}"}}}}')
    await stranger.no_socket(1)
    assert not stranger.upgrades
    assert not socket.closed.is_set()
    await socket.alive()
    await stranger.stop()


async def test_a_redirect_to_where_a_device_is_moves_nothing(rig: Rig) -> None:
    second = await rig.add_relay(ScriptedRelay())
    await rig.device()
    socket = await rig.relay.socket()
    socket.say(peer.Type.RELAY_REDIRECT, relay=rig.relay.url)
    await socket.alive()
    socket.say(peer.Type.RELAY_REDIRECT, relay=second.url)
    moved = await second.socket()
    for _ in range(3):
        moved.say(peer.Type.RELAY_REDIRECT, relay=second.url)
    await moved.alive()
    assert (rig.relay.arrived.empty(), second.arrived.empty()) == (True, True)


async def test_a_relay_that_sends_its_devices_away_again_and_again_is_dialled_seldom(rig: Rig) -> None:
    rig.times |= {"redial_min": 1.0, "redial_max": 1.4}
    away = await rig.add_relay(ScriptedRelay())
    await away.stop()
    await rig.device()
    came = 0

    async def send_away() -> None:
        nonlocal came
        while True:
            (await rig.relay.socket()).send(mux.goaway_frame(0, 5000))
            came += 1

    with contextlib.suppress(TimeoutError):
        await asyncio.wait_for(send_away(), 2.5)
    assert 0 < came <= 2 * 3, "two relays at once, then a wait of a second"


async def test_a_relay_that_is_not_reached_is_left_for_the_next_one(rig: Rig) -> None:
    second = await rig.add_relay(ScriptedRelay())
    await rig.relay.stop()
    await rig.device()
    await second.socket()


async def test_a_pinned_relay_is_kept(rig: Rig) -> None:
    pinned = ScriptedRelay()
    await pinned.start()
    await rig.device(RELAY_URL=pinned.url)
    socket = await pinned.socket()
    assert socket.device_info["supportsRelayRedirect"] is False
    socket.say(peer.Type.RELAY_REDIRECT, relay=rig.relay.url)
    await socket.alive()
    assert not rig.relay.upgrades
    await rig.devices[0].stop()
    await pinned.stop()


async def test_a_stop_ends_tunnels_and_sockets_at_once(rig: Rig, target: Target) -> None:
    device = await rig.device(WS_CONNECTIONS="2")
    socket = await rig.relay.socket()
    await rig.relay.socket()
    await Tunnel(1).open(socket, "127.0.0.1", target.port)
    connection = await target.connection()
    device.process.send_signal(signal.SIGTERM)
    await connection.end()
    assert await device.ended(STOP_WITHIN_S) == 0
    assert await socket.gone() in {CloseCode.NORMAL_CLOSURE, CloseCode.GOING_AWAY}


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
async def test_a_stop_works_while_nothing_answers(rig: Rig, number: signal.Signals) -> None:
    await rig.api.stop()
    device = await rig.device()
    await device.logged("API")
    device.process.send_signal(number)
    assert await device.ended(STOP_WITHIN_S) == 0


@pytest.mark.parametrize("trusted", [True, False])
async def test_a_relay_must_prove_who_it_is(rig: Rig, target: Target, trusted: bool) -> None:
    authority, other = trustme.CA(), trustme.CA()
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert("127.0.0.1").configure_cert(context)
    relay = ScriptedRelay(tls=context)
    await relay.start()
    rig.api.relays[:] = [relay.url]
    trust = rig.folder / "trust.pem"
    (authority if trusted else other).cert_pem.write_to_path(str(trust))
    device = await rig.device(PSX_CA_FILE=str(trust))
    if trusted:
        tunnel = Tunnel(1)
        await tunnel.open(await relay.socket(), "127.0.0.1", target.port)
        connection = await target.connection()
        await connection.say(bytes(300_000))
        assert len(await tunnel.received(300_000)) == 300_000
    else:
        await device.logged("[REGISTERED]")
        await asyncio.sleep(1)
        assert not relay.upgrades, "the token went to a relay that nobody vouches for"
    await device.stop()
    await relay.stop()
