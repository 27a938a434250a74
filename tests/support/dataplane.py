"""A data plane in one process for tests: relays, a gateway, SDK peers, targets; real sockets, Redis and DynamoDB API.

Parts can be broken from inside: sockets aborted, relays killed or drained, peers cut off.
"""

from __future__ import annotations

import asyncio
import base64
import contextlib
import hashlib
import secrets
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, cast

import pytest
import pytest_asyncio
from psx_peer.client import Peer
from psx_peer.consent import Consent
from psx_peer.identity import Identity, IdentityKeeper
from psx_peer.options import Options
from psx_peer.pulse import Times
from psx_peer.tunnels import Dialer

from gateway_node.auth import Authenticator
from gateway_node.dial import ExitDialer
from gateway_node.domains import BlockedDomains
from gateway_node.http_front import HttpFront
from gateway_node.leases import Leases
from gateway_node.links import RelayLinks
from gateway_node.meter import MeterService
from gateway_node.names import Names
from gateway_node.pipeline import Pipeline
from gateway_node.places import Places
from gateway_node.resolve import Resolver
from gateway_node.socks_front import SocksFront
from local import lab
from relay_node.drain import drain
from relay_node.mesh import MeshConnection
from relay_node.peers import PeerSocket
from relay_node.presence import PresenceWriter, follow_orders, sweep_for_ever
from relay_node.regions import RegionTable
from relay_node.registry import Device, Hooks, Registry
from relay_node.rotation import RotationTeller
from shared.access import table as access
from shared.access.model import Pak, Quality
from shared.access.secrets import SecretBox
from shared.kernel.codes import IpType, Pool, SpeedTier
from shared.kernel.ids import AccountId, Country, DeviceId, EndpointId, GatewayId, PakId
from shared.pool import live
from shared.pool.model import Endpoint
from shared.pool.presence import read_presence
from shared.runtime.clock import now_ms
from shared.runtime.dynamo import AsyncDynamo, SyncDynamo
from shared.runtime.redis import AsyncRedis
from shared.supply.model import Origin
from shared.supply.tokens import Claims, issue, verify
from shared.wire.egress import EgressPolicy
from tests.support.permissions import as_node, assert_allowed
from tests.support.stores import PREFIX

MESH_TOKEN: Final = "mesh-" + "m" * 40
ACCOUNT: Final = AccountId("psx_buyer")
SECRET: Final = "pak_" + "5" * 24
ORIGIN: Final = Origin(Country("us"), IpType.MOBILE, 64601, "Lab")
WAIT_S: Final = 8.0


async def until(condition: Callable[[], Any], wait_s: float = WAIT_S) -> None:
    """Wait for something to become true."""
    async with asyncio.timeout(wait_s):
        while not condition():
            await asyncio.sleep(0.01)


class Relay:
    """One relay in this process."""

    def __init__(self, redis: AsyncRedis, name: str, public_key: str) -> None:
        self.name = name
        self.redis = redis
        self._public_key = public_key
        self._servers: list[asyncio.Server] = []
        self._tasks: list[asyncio.Task[None]] = []
        self._mesh: set[MeshConnection] = set()
        self.peer_port = 0
        self.mesh_port = 0
        self.registry: Registry
        self.presence: PresenceWriter
        self.regions: RegionTable | None = None

    async def start(self) -> None:
        """Listen; on the ports of its last life when it had one."""
        with as_node("relay"):
            await self._start()

    async def _start(self) -> None:
        loop = asyncio.get_running_loop()
        peers = await loop.create_server(lambda: PeerSocket(self.registry), "127.0.0.1", self.peer_port)
        mesh = await loop.create_server(self._mesh_connection, "127.0.0.1", self.mesh_port)
        self.peer_port = peers.sockets[0].getsockname()[1]
        self.mesh_port = mesh.sockets[0].getsockname()[1]
        self.presence = PresenceWriter(self.redis, self.name, ("127.0.0.1", self.mesh_port))
        teller = RotationTeller(self.redis)
        self.registry = Registry(
            Hooks(
                verify=lambda token: verify(token, self._public_key),
                origin=lambda address: ORIGIN,
                now_ms=now_ms,
                arrived=self.presence.arrived,
                left=self.presence.left,
                redirect_for=self._redirect_for,
                rotated=teller.rotated,
            )
        )
        self.presence.revoke = self.registry.revoke
        self._servers = [peers, mesh]
        self._tasks = [
            loop.create_task(self.presence.run()),
            loop.create_task(teller.run()),
            loop.create_task(self.presence.beat_for_ever(self.registry)),
            loop.create_task(follow_orders(self.redis, self.registry, self.presence, self.name)),
            loop.create_task(sweep_for_ever(self.registry, self.presence)),
        ]

    def _redirect_for(self, device: Device) -> str | None:
        """Elsewhere when the test gave a table of regions, in which this relay's name is its region."""
        return self.regions.elsewhere(device.origin.country, self.name) if self.regions else None

    def _mesh_connection(self) -> MeshConnection:
        return MeshConnection(self.registry, MESH_TOKEN, lambda: secrets.token_hex(8))

    async def kill(self) -> None:
        """As if the process died: every socket is reset, nobody is told."""
        for task in self._tasks:
            task.cancel()
        for server in self._servers:
            server.close()
        for socket in list(self.registry.sockets):
            _abort(socket)
        for link in list(self.registry.links):
            _abort(link)
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await asyncio.sleep(0.02)

    async def drain(self, max_s: float) -> None:
        """As SIGTERM does it."""
        self._servers[0].close()
        await drain(self.registry, self.presence, max_s)
        await self.kill()

    @property
    def url(self) -> str:
        """Where peers connect."""
        return f"ws://127.0.0.1:{self.peer_port}/"


def _abort(connection: Any) -> None:
    transport = cast("asyncio.Transport | None", connection._transport)
    if transport is not None:
        transport.abort()


class Keeper(IdentityKeeper):
    """Identities signed here, without an API."""

    def __init__(self, make: Callable[[], Identity]) -> None:
        self._make = make

    async def get(self) -> Identity:
        return self._make()

    async def renew(self, stale: Identity) -> Identity:
        return self._make()


@dataclass
class Plane:
    """All of it. `proxy` is where customers go; `policy` lets the test's own targets through."""

    redis: AsyncRedis
    dynamo: AsyncDynamo
    private_key: str
    public_key: str
    folder: Path
    relays: list[Relay] = field(default_factory=list)
    peers: list[tuple[Peer, asyncio.Task[None]]] = field(default_factory=list)
    tasks: list[asyncio.Task[Any]] = field(default_factory=list)
    allowed: set[tuple[str, int]] = field(default_factory=set)
    names: dict[str, str] = field(default_factory=dict)
    http_port: int = 0
    socks_port: int = 0
    generation: int = 0
    servers: list[Any] = field(default_factory=list)
    meter: MeterService = field(init=False)
    links: RelayLinks = field(init=False)
    leases: Leases = field(init=False)
    pipeline: Pipeline = field(init=False)
    auth: Authenticator = field(init=False)
    domains: BlockedDomains = field(init=False)
    dialer: ExitDialer = field(init=False)

    async def start_relay(self, name: str = "relay-a") -> Relay:
        """A relay that peers may go to."""
        relay = Relay(self.redis, name, self.public_key)
        await relay.start()
        self.relays.append(relay)
        return relay

    async def start_gateway(self) -> None:
        """A gateway with one key, `SECRET` of `ACCOUNT`."""
        loop = asyncio.get_running_loop()
        box = SecretBox(bytes(32), bytes(32))
        await self.mint(box, PakId("pak1"), SECRET)
        with as_node("gateway"):
            await self._start_gateway(loop, box)

    async def _start_gateway(self, loop: asyncio.AbstractEventLoop, box: SecretBox) -> None:
        self.meter = MeterService(self.dynamo, self.redis, lambda n: PREFIX + n, GatewayId("gw"), now_ms)
        await self.meter.start()
        table, met = PREFIX + "access", self.meter.met
        self.auth = Authenticator(self.dynamo, table, box, loop.time, now_ms, met, redis=self.redis)
        self.leases = Leases(self.redis, GatewayId("gw"), now_ms)
        self.links = RelayLinks(
            MESH_TOKEN, lambda device: self.redis.run(read_presence(device)), self.leases.path_lost
        )
        policy = EgressPolicy(lab_allow=cast("frozenset[tuple[str, int]]", self.allowed))
        self.domains = BlockedDomains(self.dynamo, PREFIX + "guard", self.meter.all_tunnels)
        self.resolved = Names()
        resolver = Resolver(policy, self.names, self.resolved.addresses, self.domains.covers)
        self.dialer = ExitDialer(MESH_TOKEN, box, self.links)
        places = Places(self.redis, GatewayId("gw"))
        self.pipeline = Pipeline(self.auth, resolver, self.leases, self.dialer, self.meter, places, now_ms)
        for front in (HttpFront, SocksFront):
            make = cast("Callable[[], asyncio.Protocol]", lambda front=front: front(self.pipeline))
            self.servers.append(await loop.create_server(make, "127.0.0.1", 0))
        self.http_port, self.socks_port = (s.sockets[0].getsockname()[1] for s in self.servers)
        self.tasks += [
            loop.create_task(self.meter.run()),
            loop.create_task(self.leases.run()),
            loop.create_task(self.links.sweep_for_ever()),
        ]

    async def mint(self, box: SecretBox, pak_id: PakId, secret: str, account: AccountId = ACCOUNT) -> None:
        """A key without a cap."""
        now = now_ms()
        pak = Pak(
            pak_id, account, "test", box.hash(secret), box.seal(secret, pak_id), None, 0, True, None, None,
            Quality.STANDARD, True, now, now,
        )  # fmt: skip
        assert await self.dynamo.run(access.mint(PREFIX + "access", pak)) is None

    async def add_peer(
        self,
        name: str,
        *relays: Relay,
        protocol: str = "binary-v2",
        sockets: int = 2,
        tier: SpeedTier = SpeedTier.FAST,
        token_age_s: int = 0,
        rotate: Callable[[], Awaitable[None]] | None = None,
        dialer: Dialer | None = None,
    ) -> Peer:
        """An SDK peer that is connected and on sale."""
        options = Options(
            api="http://unused", api_key="", name=name, consent=Consent("", 0, "none"), connections=sockets,
            state_file=self.folder / name, protocol=protocol,
            times=Times(redial_min=0.05, redial_max=0.1, heartbeat=0.3, tick=0.1),
            lab_allow=cast("frozenset[tuple[str, int]]", self.allowed), lab_hosts=tuple(self.names.items()),
        )  # fmt: skip

        ages = iter([token_age_s])

        def identity() -> Identity:
            urls = tuple(relay.url for relay in relays or self.relays)
            claims = Claims(DeviceId(name), AccountId("psx_owner"), self.generation, relays=urls)
            token = issue(claims, self.private_key, now_ms() // 1000 - next(ages, 0))
            return Identity(name, token, "", urls[0], urls, 1.0)

        peer = Peer(options, dialer, Keeper(identity), rotate)
        self.peers.append((peer, asyncio.get_running_loop().create_task(peer.run())))
        await self.list_peer(name, tier)
        await self.present(name)
        return peer

    async def list_peer(self, name: str, tier: SpeedTier = SpeedTier.FAST) -> None:
        """Put a peer on sale without a prober."""
        endpoint = Endpoint(
            EndpointId(name),
            Pool.PEER,
            AccountId("psx_owner"),
            Country("us"),
            "lab",
            64601,
            "Lab",
            IpType.MOBILE,
            tier,
        )
        await self.redis.run(live.list_endpoint(endpoint))

    async def present(self, name: str, relay: Relay | None = None) -> None:
        """Wait until a device is where gateways look."""
        async with asyncio.timeout(WAIT_S):
            while True:
                found = await self.redis.run(read_presence(DeviceId(name)))
                if found is not None and (relay is None or found.relay_id == relay.name):
                    return
                await asyncio.sleep(0.01)

    def sockets_of(self, name: str) -> list[PeerSocket]:
        """A device's sockets over all relays."""
        return [s for r in self.relays for s in r.registry.sockets if s.device and s.device.device_id == name]

    async def target(self, serve: Callable[[asyncio.StreamReader, asyncio.StreamWriter], Any]) -> int:
        """A target of the test's own; its port, which egress lets through."""
        server = await asyncio.start_server(serve, "127.0.0.1", 0, limit=1 << 20)
        self.servers.append(server)
        port = int(server.sockets[0].getsockname()[1])
        self.allowed.add(("127.0.0.1", port))
        return port

    async def connect(
        self, port: int, username: str = f"{ACCOUNT}-peer-us", secret: str = SECRET, host: str = "127.0.0.1"
    ) -> tuple[asyncio.StreamReader, asyncio.StreamWriter, str]:
        """A CONNECT through the gateway: streams and the answer's head."""
        reader, writer = await asyncio.open_connection("127.0.0.1", self.http_port, limit=1 << 20)
        token = base64.b64encode(f"{username}:{secret}".encode()).decode()
        writer.write(f"CONNECT {host}:{port} HTTP/1.1\r\nProxy-Authorization: Basic {token}\r\n\r\n".encode())
        head = (await reader.readuntil(b"\r\n\r\n")).decode()
        return reader, writer, head

    async def tunnel(self, port: int, **more: Any) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        """The same, which must succeed."""
        reader, writer, head = await self.connect(port, **more)
        assert head.startswith("HTTP/1.1 200 "), head
        return reader, writer

    async def close(self) -> None:
        """End everything."""
        for peer, _ in self.peers:
            peer.stop()
        await asyncio.gather(*(task for _, task in self.peers), return_exceptions=True)
        for server in self.servers:
            server.close()
        for task in self.tasks:
            task.cancel()
        await asyncio.gather(*self.tasks, return_exceptions=True)
        if hasattr(self, "meter"):
            for tunnel in self.meter.all_tunnels():
                tunnel.cut()
            self.links.close()
            await self.resolved.close()
        for relay in self.relays:
            await relay.kill()
        await self.redis.close()
        await asyncio.sleep(0.02)


@pytest_asyncio.fixture
async def plane(
    dynoxide: SyncDynamo, dynoxide_url: str, valkey_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> AsyncIterator[Plane]:
    """One relay and a gateway; peers and targets are the test's."""
    monkeypatch.setenv("AWS_ENDPOINT_URL_DYNAMODB", dynoxide_url)
    for name, value in (
        ("ACCESS_KEY_ID", "t"),
        ("SECRET_ACCESS_KEY", "t"),
        ("DEFAULT_REGION", "eu-central-1"),
    ):
        monkeypatch.setenv(f"AWS_{name}", value)
    monkeypatch.delenv("AWS_CA_BUNDLE", raising=False)
    keys = lab.fresh_secrets()
    async with AsyncDynamo() as dynamo:
        made = Plane(AsyncRedis(valkey_url), dynamo, keys.jwt_private, keys.jwt_public, tmp_path)
        try:
            await made.start_relay()
            await made.start_gateway()
            yield made
        finally:
            await made.close()
        assert_allowed("gateway-node")
        assert_allowed("relay-node")


async def echo(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """A target that says what it hears, and ends when the other side ends."""
    with contextlib.suppress(ConnectionError):
        while data := await reader.read(65536):
            writer.write(data)
            await writer.drain()
    writer.close()


def pattern(size: int, seed: int = 0) -> bytes:
    """Bytes in which no two blocks are alike, so that a lost or repeated one shows."""
    blocks = (hashlib.sha256(f"{seed}:{n}".encode()).digest() for n in range(size // 32 + 1))
    return b"".join(blocks)[:size]
