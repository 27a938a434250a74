"""How customers come in: TLS, balancers, SOCKS5, limits, revocation; and what one bad exit costs them."""

import asyncio
import base64
import contextlib
import socket
import ssl
import struct
from typing import Any
from urllib.parse import urlsplit

import pytest

from gateway_node import allowance, lobby
from gateway_node.http_front import HttpFront
from gateway_node.listen import listen, tls_context
from gateway_node.lobby import WAITING_PER_NETWORK_MAX
from gateway_node.settings import networks
from local import lab
from shared.access import table as access
from shared.access.secrets import SecretBox
from shared.guard.table import write_setting
from shared.kernel.codes import IpType, Pool, SpeedTier
from shared.kernel.ids import AccountId, Country, EndpointId, GatewayId, PakId
from shared.pool.live import list_endpoint, publish_revoke_pak
from shared.pool.model import Endpoint
from shared.pool.places import CONNECTIONS_MAX, hold_places
from shared.runtime.clock import now_ms
from shared.runtime.dynamo import StoreUnavailable
from shared.runtime.redis import AsyncRedis, command
from shared.wire.proxy_protocol import SIGNATURE
from tests.support.dataplane import ACCOUNT, SECRET, Plane, echo, until
from tests.support.permissions import as_node
from tests.support.stores import PREFIX

pytestmark = [pytest.mark.slow, pytest.mark.timeout(60)]
CREDENTIALS = base64.b64encode(f"{ACCOUNT}-peer-us:{SECRET}".encode()).decode()


def connect(port: int) -> bytes:
    return f"CONNECT 127.0.0.1:{port} HTTP/1.1\r\nProxy-Authorization: Basic {CREDENTIALS}\r\n\r\n".encode()


def proxied(address: str) -> bytes:
    body = socket.inet_aton(address) + socket.inet_aton("192.0.2.1") + struct.pack("!HH", 4000, 7000)
    return SIGNATURE + b"\x21\x11" + struct.pack("!H", len(body)) + body


async def front(plane: Plane, *, tls: ssl.SSLContext | None = None, balancer: str = "") -> int:
    balancers = networks(balancer)
    server = await listen(lambda: HttpFront(plane.pipeline), "127.0.0.1", 0, tls=tls, balancers=balancers)
    plane.servers.append(server)
    return int(server.sockets[0].getsockname()[1])


def client_context(files: lab.LabFiles) -> ssl.SSLContext:
    context = ssl.create_default_context(cafile=str(files.ca))
    context.check_hostname = False
    return context


async def tls_client(
    port: int, context: ssl.SSLContext, first: bytes
) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    """A TLS connection, after some plain bytes."""
    raw = socket.create_connection(("127.0.0.1", port))
    raw.sendall(first)
    raw.setblocking(False)
    return await asyncio.open_connection(sock=raw, ssl=context, server_hostname=lab.TARGET_NAME)


@pytest.mark.parametrize("behind_balancer", [False, True])
async def test_tls_in_front_carries_tunnels(
    plane: Plane, lab_files: lab.LabFiles, behind_balancer: bool
) -> None:
    await plane.add_peer("p1")
    target = await plane.target(echo)
    port = await front(
        plane,
        tls=tls_context(lab_files.target_cert, lab_files.target_cert),
        balancer="127.0.0.1/32" if behind_balancer else "",
    )
    reader, writer = await tls_client(
        port, client_context(lab_files), proxied("203.0.113.9") if behind_balancer else b""
    )
    writer.write(connect(target))
    assert (await reader.readuntil(b"\r\n\r\n")).startswith(b"HTTP/1.1 200 ")
    writer.write(b"x" * 100_000)
    assert await reader.readexactly(100_000) == b"x" * 100_000
    writer.close()


async def test_behind_a_balancer_bans_meet_the_customer_and_not_the_balancer(plane: Plane) -> None:
    port = await front(plane, balancer="127.0.0.1/32")
    wrong = connect(1).replace(CREDENTIALS.encode(), base64.b64encode(b"psx_other:pak_wrong"))

    async def ask(address: str) -> bytes:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(proxied(address) + wrong)
        head = await reader.readuntil(b"\r\n\r\n")
        writer.transport.abort()
        return head[:12]

    answers = [await ask("203.0.113.9") for _ in range(11)]
    assert answers[:10] == [b"HTTP/1.1 407"] * 10
    assert answers[10] == b"HTTP/1.1 429"
    assert await ask("203.0.113.10") == b"HTTP/1.1 407"


async def test_behind_a_balancer_nobody_comes_in_without_its_header(plane: Plane) -> None:
    port = await front(plane, balancer="127.0.0.1/32")
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(connect(1))
    with pytest.raises((asyncio.IncompleteReadError, ConnectionResetError)):
        await reader.readuntil(b"\r\n\r\n")
    writer.close()


@pytest.mark.parametrize(("network", "let_in"), [("10.0.0.0/8, 127.0.0.1/32", True), ("10.0.0.0/8", False)])
async def test_a_header_is_believed_from_balancers_alone(plane: Plane, network: str, let_in: bool) -> None:
    port = await front(plane, balancer=network)
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    with contextlib.suppress(ConnectionError):
        writer.write(proxied("203.0.113.9") + b"CONNECT a.example:443 HTTP/1.1\r\n\r\n")
        answer = await reader.read(12)
        assert (answer == b"HTTP/1.1 407") is let_in
    writer.transport.abort()


async def test_an_account_has_so_many_connections_over_all_gateways_and_no_more(plane: Plane) -> None:
    await plane.add_peer("p1")
    port = await plane.target(echo)
    elsewhere = CONNECTIONS_MAX - 1
    assert await plane.redis.run(hold_places(ACCOUNT, GatewayId("other"), elsewhere, elsewhere)) == elsewhere
    _, writer = await plane.tunnel(port)
    _, refused, head = await plane.connect(port)
    assert head.startswith("HTTP/1.1 429 ")
    assert "E_RATE_LIMITED_CONN" in head
    writer.close()
    refused.close()
    await until(lambda: not plane.meter.all_tunnels())
    _, writer = await plane.tunnel(port)
    writer.close()


async def test_a_filter_whose_value_is_unusable_is_never_sold_as_none(plane: Plane) -> None:
    await plane.add_peer("p1")
    port = await plane.target(echo)
    _, writer, head = await plane.connect(port, username=f"{ACCOUNT}-peer-us-iptype-residental")
    writer.close()
    assert head.startswith("HTTP/1.1 502 ")
    assert "E_NO_STOCK_COUNTRY" in head
    assert "iptype=unusable" in head


async def test_a_key_has_no_place_of_a_tunnel_that_was_not_opened(plane: Plane) -> None:
    await plane.add_peer("p1")
    for host in ("127.0.0.1", "10.0.0.1", "no.such.name.example"):
        _, writer, head = await plane.connect(9, host=host)
        assert not head.startswith("HTTP/1.1 200 ")
        writer.close()
    assert plane.pipeline._places.open_of(ACCOUNT) == 0


async def test_a_domain_that_operators_closed_is_refused_and_stays_so_while_the_setting_cannot_be_read(
    plane: Plane, monkeypatch: pytest.MonkeyPatch
) -> None:
    plane.names |= {"www.shop.example": "127.0.0.1", "shop.example.org": "127.0.0.1"}
    await plane.add_peer("p1")
    port = await plane.target(echo)
    closed, open_one = await plane.tunnel(port, host="www.shop.example")
    other, open_other = await plane.tunnel(port, host="shop.example.org")
    await plane.dynamo.run(
        write_setting(PREFIX + "guard", "domains", {"blocked": ["shop.example"]}, now_ms())
    )
    await plane.domains.read()
    with pytest.raises(ConnectionResetError):
        await closed.read()
    open_other.write(b"still here")
    assert await other.readexactly(10) == b"still here"
    open_one.close()
    open_other.close()
    monkeypatch.setattr(plane.domains, "_table", "psx-test-nowhere")
    await plane.domains.read()
    _, writer, head = await plane.connect(port, host="WWW.shop.example.")
    assert head.startswith("HTTP/1.1 403 ")
    assert 'details="E_DOMAIN_BLOCKED"' in head
    writer.close()
    _, another = await plane.tunnel(port, host="shop.example.org")
    another.close()


async def test_a_tunnel_on_a_connection_that_carried_a_plain_request_outlives_the_drain(plane: Plane) -> None:
    async def page(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok")
        writer.close()

    plain, port = await plane.target(page), await plane.target(echo)
    await plane.add_peer("p1")
    login = f"Proxy-Authorization: Basic {base64.b64encode(f'{ACCOUNT}-peer-us:{SECRET}'.encode()).decode()}\r\n\r\n"
    reader, writer = await asyncio.open_connection("127.0.0.1", plane.http_port)
    writer.write(f"GET http://127.0.0.1:{plain}/ HTTP/1.1\r\nHost: x\r\n{login}".encode())
    assert (await reader.readuntil(b"ok")).startswith(b"HTTP/1.1 200")
    writer.write(f"CONNECT 127.0.0.1:{port} HTTP/1.1\r\n{login}".encode())
    assert (await reader.readuntil(b"\r\n\r\n")).startswith(b"HTTP/1.1 200")
    plane.pipeline.drain()
    writer.write(b"still here")
    assert await reader.readexactly(10) == b"still here"
    writer.close()


def modem(name: str) -> Endpoint:
    """A modem on sale whose port nobody listens on."""
    return Endpoint(
        EndpointId(name), Pool.MBL, AccountId("psx_farm"), Country("us"), "lab", 64601, "Lab", IpType.MOBILE,
        SpeedTier.FAST, modem_host="127.0.0.1", modem_port=1,
    )  # fmt: skip


async def test_a_session_of_any_pool_stays_where_it_began(plane: Plane) -> None:
    await plane.add_peer("p1")
    port = await plane.target(echo)
    username = f"{ACCOUNT}-any-us-rot-sticky-sid-mine"
    for _ in range(2):
        _, writer = await plane.tunnel(port, username=username)
        (tunnel,) = plane.meter.all_tunnels()
        assert tunnel.acquired.endpoint.endpoint_id == "p1"
        writer.close()
        await until(lambda: not plane.meter.all_tunnels())
        await plane.redis.run(list_endpoint(modem("m1")))  # modems come first for whoever is new


async def test_a_pin_finds_its_device_in_any_pool(plane: Plane) -> None:
    await plane.mint(SecretBox(bytes(32), bytes(32)), PakId("pak2"), "pak_owner", AccountId("psx_owner"))
    await plane.redis.run(list_endpoint(modem("m1")))
    await plane.add_peer("p1")
    port = await plane.target(echo)
    _, writer, head = await plane.connect(port, username="psx_owner-any-us-pin-device-p1", secret="pak_owner")
    assert head.startswith("HTTP/1.1 200 "), head
    assert "pin=substituted" not in head
    writer.close()


async def test_corrections_and_request_id_come_with_the_200(plane: Plane) -> None:
    await plane.add_peer("p1")
    _, writer, head = await plane.connect(
        await plane.target(echo), username=f"{ACCOUNT}-peer-us-ttl-5-foo-bar"
    )
    assert head.startswith("HTTP/1.1 200 ")
    assert "X-PSX-Corrections: ttl=60, foo=unknown" in head
    assert "X-Request-ID: " in head
    writer.close()


async def test_a_hard_wish_that_cannot_be_read_finds_nothing_and_is_told(plane: Plane) -> None:
    await plane.add_peer("p1")
    port = await plane.target(echo)
    _, writer, head = await plane.connect(port, username=f"{ACCOUNT}-peer-us-iptype-wifi")
    assert head.startswith("HTTP/1.1 502 ")
    assert 'details="E_NO_STOCK_COUNTRY"' in head
    assert "X-PSX-Corrections: iptype=unusable" in head
    writer.close()


async def test_socks_speaks_to_names_and_addresses(plane: Plane) -> None:
    plane.names["target.lab"] = "127.0.0.1"
    await plane.add_peer("p1")
    port = await plane.target(echo)
    for address in (b"\x01\x7f\x00\x00\x01", b"\x03\x0atarget.lab"):
        reader, writer = await asyncio.open_connection("127.0.0.1", plane.socks_port)
        user, password = f"{ACCOUNT}-peer-us".encode(), SECRET.encode()
        writer.write(b"\x05\x02\x00\x02")
        assert await reader.readexactly(2) == b"\x05\x02"
        writer.write(bytes((1, len(user))) + user + bytes((len(password),)) + password)
        assert await reader.readexactly(2) == b"\x01\x00"
        writer.write(b"\x05\x01\x00" + address + struct.pack("!H", port) + b"early")
        assert (await reader.readexactly(10))[:2] == b"\x05\x00"
        assert await reader.readexactly(5) == b"early"
        writer.close()


async def test_a_key_that_is_turned_off_loses_its_tunnels_at_once(plane: Plane) -> None:
    from gateway_node.revocation import follow_revocations

    with as_node("gateway"):
        follower = asyncio.create_task(follow_revocations(plane.redis, plane.auth, plane.meter))
    plane.tasks.append(follower)
    await plane.add_peer("p1")
    reader, writer = await plane.tunnel(await plane.target(echo))
    await asyncio.sleep(0.2)
    await plane.dynamo.run(access.change(PREFIX + "access", PakId("pak1"), {"enabled": False}, now_ms()))
    await plane.redis.run(publish_revoke_pak(PakId("pak1")))
    async with asyncio.timeout(1):
        with pytest.raises(ConnectionResetError):
            await reader.read()
    writer.close()


async def test_a_key_that_is_turned_off_while_its_tunnel_is_opened_gets_none(plane: Plane) -> None:
    await plane.add_peer("p1")
    dial = plane.pipeline.attempts._dialer.open

    async def slow_dial(*given: Any) -> Any:
        side = await dial(*given)
        await plane.dynamo.run(access.change(PREFIX + "access", PakId("pak1"), {"enabled": False}, now_ms()))
        await plane.auth.recheck(PakId("pak1"))
        return side

    plane.pipeline.attempts._dialer.open = slow_dial  # type: ignore[assignment, method-assign]
    _, writer, head = await plane.connect(await plane.target(echo))
    assert head.startswith("HTTP/1.1 407 "), head
    await until(lambda: not any(socket.load for socket in plane.sockets_of("p1")))
    assert not plane.meter.all_tunnels()
    writer.close()


async def test_a_key_that_expires_loses_its_tunnels_within_a_second(plane: Plane) -> None:
    from gateway_node.revocation import sweep_expired

    plane.tasks.append(asyncio.create_task(sweep_expired(plane.meter)))
    expires = now_ms() + 1500
    await plane.dynamo.run(
        access.change(PREFIX + "access", PakId("pak1"), {"expires_at_ms": expires}, now_ms())
    )
    await plane.add_peer("p1")
    reader, writer = await plane.tunnel(await plane.target(echo))
    with pytest.raises(ConnectionResetError):
        await asyncio.wait_for(reader.read(), 5)
    assert expires <= now_ms() <= expires + 1000
    writer.close()


async def test_another_exit_steps_in_before_the_first_byte(plane: Plane) -> None:
    await plane.add_peer("good")
    for number in range(3):
        name = f"gone{number}"
        await plane.list_peer(name)
        await plane.add_peer(name)
    for socket_ in [s for n in range(3) for s in plane.sockets_of(f"gone{n}")]:
        socket_.ready = False  # the relay refuses them, Redis does not know it yet
    port = await plane.target(echo)
    for _ in range(4):
        _, writer = await plane.tunnel(port)
        writer.close()


async def test_an_exit_that_drops_two_customers_is_kept_from_others_and_one_alone_cannot_do_that(
    plane: Plane,
) -> None:
    async def drops(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read(1)
        writer.close()

    await plane.add_peer("p1")
    await plane.mint(SecretBox(bytes(32), bytes(32)), PakId("pak2"), "pak_other", AccountId("psx_other"))
    port = await plane.target(drops)

    async def dropped(**more: str) -> None:
        reader, writer = await plane.tunnel(port, **more)
        writer.write(b"hello")
        await reader.read()
        writer.close()
        await until(lambda: not plane.meter.all_tunnels())

    paused = command("EXISTS", "{peer}:pause:p1", parse=int)
    for _ in range(4):
        await dropped()
    await asyncio.sleep(0.1)
    assert not await plane.redis.run(paused)
    await dropped(username="psx_other-peer-us", secret="pak_other")
    async with asyncio.timeout(5):
        while not await plane.redis.run(paused):
            await asyncio.sleep(0.01)


async def far_redis(plane: Plane, url: str) -> AsyncRedis:
    """The same Redis behind a wire on which every answer takes a while."""
    near = urlsplit(url)

    async def carry(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        near_reader, near_writer = await asyncio.open_connection(near.hostname, near.port)

        async def answers() -> None:
            while data := await near_reader.read(65536):
                await asyncio.sleep(0.05)
                writer.write(data)

        answering = asyncio.get_running_loop().create_task(answers())
        while data := await reader.read(65536):
            near_writer.write(data)
        answering.cancel()
        near_writer.close()
        writer.close()

    server = await asyncio.start_server(carry, "127.0.0.1", 0)
    plane.servers.append(server)
    return AsyncRedis(f"redis://127.0.0.1:{server.sockets[0].getsockname()[1]}")


async def test_customers_that_leave_while_an_exit_is_chosen_hold_no_place(
    plane: Plane, valkey_url: str
) -> None:
    await plane.add_peer("p1")
    port = await plane.target(echo)
    plane.leases.redis = far = await far_redis(plane, valkey_url)
    for _ in range(6):
        _, writer = await asyncio.open_connection("127.0.0.1", plane.http_port)
        writer.write(connect(port))
        await asyncio.sleep(0.03)
        writer.transport.abort()
    await asyncio.sleep(0.5)
    plane.leases.redis = plane.redis
    assert await plane.redis.run(command("EXISTS", "{peer}:load:p1", parse=int)) == 0
    await far.close()


async def test_a_customer_that_never_reads_is_let_go(plane: Plane, monkeypatch: pytest.MonkeyPatch) -> None:
    import gateway_node.customer

    monkeypatch.setattr(gateway_node.customer, "FLUSH_LOOK_S", 0.3)

    async def pours(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(bytes(3_000_000))
        writer.close()

    await plane.add_peer("p1")
    _, writer = await plane.tunnel(await plane.target(pours))
    writer.transport.pause_reading()  # type: ignore[attr-defined]  # a transport that reads
    (tunnel,) = plane.meter.all_tunnels()
    await asyncio.sleep(0.3)
    tunnel.finish()
    customer: Any = tunnel.customer
    assert plane.pipeline.tunnels.places.open_of(ACCOUNT) == 1, "its last bytes wait here"
    await until(lambda: customer._transport is None, 3)
    assert plane.pipeline.tunnels.places.open_of(ACCOUNT) == 0
    writer.transport.abort()


async def test_who_resets_pays_for_what_it_had_acknowledged(
    plane: Plane, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also of bytes that nobody had looked at since they left."""
    monkeypatch.setattr(allowance, "SETTLE_AGAIN_S", 60.0)
    said_bytes, read_bytes, kernels_bytes = 500_000, 300_000, 16 * 1024

    async def pours(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(bytes(said_bytes))
        await reader.read()
        writer.close()

    await plane.add_peer("p1")
    target = await plane.target(pours)
    loop = asyncio.get_running_loop()
    for server in plane.servers:
        for listening in server.sockets:
            listening.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, kernels_bytes)
    with socket.socket() as customer:
        customer.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, kernels_bytes)
        customer.setblocking(False)
        await loop.sock_connect(customer, ("127.0.0.1", plane.http_port))
        await loop.sock_sendall(customer, connect(target))
        await until(lambda: any(t.down_bytes == said_bytes for t in plane.meter.all_tunnels()))
        (tunnel,) = plane.meter.all_tunnels()
        assert tunnel.flushed_down < read_bytes / 2
        left = read_bytes
        while left:
            left -= len(await loop.sock_recv(customer, min(left, 65536)))
        customer.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    await until(lambda: not tunnel.open)
    assert read_bytes - 1000 < tunnel.flushed_down < read_bytes + 8 * kernels_bytes < said_bytes


async def test_a_flood_of_unpaid_requests_ends_with_the_connection(plane: Plane) -> None:
    reader, writer = await asyncio.open_connection("127.0.0.1", plane.http_port)
    writer.write(b"CONNECT 192.0.2.1:443 HTTP/1.1\r\n\r\n" * 300)
    answers = await asyncio.wait_for(reader.read(), 5)
    assert answers.count(b"HTTP/1.1 407 ") == 21
    writer.close()


class Away:
    """A store that does not answer."""

    async def run(self, request: object) -> None:
        raise StoreUnavailable("away")


async def test_known_keys_go_on_while_dynamodb_is_away(plane: Plane, monkeypatch: pytest.MonkeyPatch) -> None:
    await plane.add_peer("p1")
    port = await plane.target(echo)
    _, writer = await plane.tunnel(port)
    writer.close()
    monkeypatch.setattr(plane.auth, "_dynamo", Away())
    for entry in plane.auth._cache.values():
        entry.read_s -= 120
    _, writer, head = await plane.connect(port)
    assert head.startswith("HTTP/1.1 200 "), head
    writer.close()
    _, writer, head = await plane.connect(port, secret="pak_unknown")
    assert head.startswith("HTTP/1.1 503 ")
    writer.close()


async def test_handshakes_of_one_address_cannot_fill_the_gateway(
    plane: Plane, lab_files: lab.LabFiles, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lobby, "WAITING_PER_NETWORK_MAX", 2)
    port = await front(plane, tls=tls_context(lab_files.target_cert, lab_files.target_cert))
    silent = [await asyncio.open_connection("127.0.0.1", port) for _ in range(2)]
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    with contextlib.suppress(ConnectionResetError):
        assert await asyncio.wait_for(reader.read(), 5) == b""
    for _, open_ in (*silent, (reader, writer)):
        open_.transport.abort()


async def test_strangers_of_one_address_cannot_fill_the_gateway(plane: Plane) -> None:
    await plane.add_peer("p1")
    target, port = await plane.target(echo), await front(plane)
    strangers = [await asyncio.open_connection("127.0.0.1", port) for _ in range(WAITING_PER_NETWORK_MAX)]
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    with pytest.raises(ConnectionResetError):
        await reader.readexactly(1)
    writer.close()

    other, from_elsewhere = await asyncio.open_connection("127.0.0.1", port, local_addr=("127.0.0.2", 0))
    from_elsewhere.write(connect(target))
    assert (await other.readuntil(b"\r\n\r\n")).startswith(b"HTTP/1.1 200 ")
    from_elsewhere.close()

    strangers[0][1].write(connect(target))  # it says who it is, gets its tunnel, and makes room
    assert (await strangers[0][0].readuntil(b"\r\n\r\n")).startswith(b"HTTP/1.1 200 ")
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(connect(target))
    assert (await reader.readuntil(b"\r\n\r\n")).startswith(b"HTTP/1.1 200 ")
    for _, open_ in (*strangers, (reader, writer)):
        open_.close()
    await until(lambda: not plane.pipeline.lobby.crowd())
