"""psx itself for a benchmark: gateway, relay and peer as processes, with real stores, real keys and listed exits.

The nodes are driven through their settings, their sockets, and what `shared` writes to the stores. Left out: the functions
and the prober. A peer enrols with a stand-in for the API, and is listed here without having been graded.
"""

from __future__ import annotations

import asyncio
import base64
import contextlib
import json
import sys
import time
from typing import Any, Final
from urllib.parse import urlsplit

from benchmarks.bed import Bed
from benchmarks.load import Way
from benchmarks.stores import dynamo_server, redis_server
from local import lab
from local.http_server import HttpAnswer, HttpRequest, serve_http
from local.sdks import Sdk, build
from local.supervisor import Part, PartFailed, free_port
from shared.access import table as access
from shared.access.model import Account, AccountKind, Pak, Quality
from shared.access.secrets import SecretBox, new_pak_secret
from shared.kernel.codes import IpType, Pool, SpeedTier
from shared.kernel.ids import AccountId, Country, DeviceId, EndpointId, PakId
from shared.pool import live
from shared.pool.model import Endpoint
from shared.pool.presence import read_presence
from shared.runtime.clock import now_ms
from shared.runtime.redis import SyncRedis, command, ok
from shared.supply.tokens import Claims, issue

STAGE: Final = "bench"
PREFIX: Final = "psx-bench-"
ACCOUNT: Final = AccountId("psx_bench")
CAP_BYTES: Final = 10**15
MODEM_ENDPOINTS: Final = 2000
PEER_CONNECTIONS_MAX: Final = 100_000
"""A device's caps are for phones on slow links; here one carries what the machine can, and what waits to be given back."""
PRESENT_TIMEOUT_S: Final = 10.0


class Nodes:
    """The nodes of one row, on its bed. `async with Nodes(bed) as nodes`."""

    def __init__(self, bed: Bed) -> None:
        self.bed = bed
        self.secrets = lab.fresh_secrets()
        self.files = lab.write_files(bed.folder.path)
        self.gateway_port, self.mesh_port, self.peer_port = free_port(), free_port(), free_port()
        self._stack = contextlib.AsyncExitStack()
        self._box = SecretBox(bytes.fromhex(self.secrets.sealing_key), bytes.fromhex(self.secrets.pepper))
        self._device_ids: list[DeviceId] = []

    async def __aenter__(self) -> Nodes:
        self._redis_url = self._stack.enter_context(redis_server())
        self._dynamo_url, self._dynamo = self._stack.enter_context(dynamo_server(STAGE))
        self.redis = SyncRedis(self._redis_url)
        self._stack.callback(self.redis.close)
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._stack.aclose()

    # the gateway

    async def gateway(self, allow: str, workers: int = 1) -> Part:
        """Start it; `allow` is the loopback target that the egress policy lets through."""
        private, *_ = (free_port() for _ in range(workers))  # each counts on from the first
        env = {
            **self._common(),
            "PSX_EGRESS_LAB_ALLOW": allow,
            "PSX_SECRET_PEPPER": self.secrets.pepper,
            "PSX_SEALING_KEY": self.secrets.sealing_key,
            "PSX_GATEWAY_DRAIN_MAX_S": "1",
            "PSX_GATEWAY_ID": "gateway-bench",
            "PSX_GATEWAY_WORKERS": str(workers),
            "PSX_GATEWAY_HTTP_LISTEN": f"127.0.0.1:{self.gateway_port}",
            "PSX_GATEWAY_SOCKS_LISTEN": f"127.0.0.1:{free_port()}",
            "PSX_GATEWAY_PRIVATE_LISTEN": f"127.0.0.1:{private}",
            "PSX_MESH_TOKEN": self.secrets.mesh_token,
        }
        name = "gateway" if workers == 1 else "gateway-workers"
        part = await self.bed.supervisor.start(name, [sys.executable, "-m", "gateway_node"], env)
        await self.bed.supervisor.says(part, "gateway ready")
        return part

    def way(self, pool: Pool, target: str, *parts: Part) -> Way:
        """How a customer with a fresh key of this pool goes."""
        secret, pak_id, now = new_pak_secret(), PakId(f"bench-{pool.value}-{free_port()}"), now_ms()
        pak = Pak(
            pak_id, ACCOUNT, "bench", self._box.hash(secret), self._box.seal(secret, f"pak#{pak_id}"), CAP_BYTES, 0,
            True, None, None, Quality.STANDARD, True, now, now,
        )  # fmt: skip
        table = f"{PREFIX}access"
        self._dynamo.run(access.put_account(table, Account(ACCOUNT, AccountKind.RESELLER, now)))
        self._dynamo.run(access.mint(table, pak))
        basic = base64.b64encode(f"{ACCOUNT}-{pool.value}:{secret}".encode()).decode()
        head = f"Proxy-Authorization: Basic {basic}\r\n"
        return Way(f"127.0.0.1:{self.gateway_port}", "connect", target, head, parts)

    def list_modems(self, exit_at: str) -> None:
        """Put modems on sale that are all one exit."""
        host, _, port = exit_at.rpartition(":")
        for number in range(MODEM_ENDPOINTS):
            name = EndpointId(f"modem_{number}")
            sealed = self._box.seal("user:password", f"modem#{name}")
            self.redis.run(live.list_endpoint(_endpoint(name, Pool.MBL, host, int(port), sealed)))

    async def bare(self, *, passed_on: int = 0) -> Way:
        """The least that our processes could be (`bare.py`): a gateway, and so many more in a row behind it."""
        target = at = await self.bed.target()
        redis_port, parts = str(urlsplit(self._redis_url).port), []
        for ask in [*[""] * passed_on, target]:
            port = free_port()
            command = [
                sys.executable,
                "-m",
                "benchmarks.bare",
                str(port),
                redis_port,
                at,
                *filter(None, [ask]),
            ]
            parts.append(await self.bed.listener(f"bare-{port}", command, port))
            at = f"127.0.0.1:{port}"
        return Way(at, "connect", target, parts=tuple(parts))

    # the relay and a peer

    async def relay(self) -> Part:
        """Start it, without TLS."""
        env = {
            **self._common(),
            "PSX_ASN_MMDB": str(self.files.asn_mmdb),
            "PSX_COUNTRY_MMDB": str(self.files.country_mmdb),
            "PSX_ASN_CLASSES": str(self.files.asn_classes),
            "PSX_RELAY_DRAIN_MAX_S": "1",
            "PSX_RELAY_ID": "relay-bench",
            "PSX_RELAY_REGION": "all",
            "PSX_RELAY_PEER_LISTEN": f"127.0.0.1:{self.peer_port}",
            "PSX_RELAY_MESH_LISTEN": f"127.0.0.1:{self.mesh_port}",
            "PSX_RELAY_PRIVATE_LISTEN": f"127.0.0.1:{free_port()}",
            "PSX_RELAYS": json.dumps({"all": {"url": self._relay_url(self.peer_port), "countries": ["*"]}}),
            "PSX_MESH_TOKEN": self.secrets.mesh_token,
            "PSX_JWT_PUBLIC_KEY": self.secrets.jwt_public,
        }
        part = await self.bed.supervisor.start("relay", [sys.executable, "-m", "relay_node"], env)
        await self.bed.supervisor.says(part, "relay ready")
        return part

    async def peer(
        self, allow: str, sockets: int, relay_port: int | None = None, sdk: Sdk | None = None
    ) -> tuple[Part, DeviceId]:
        """Start a peer process at our relay (or another that speaks its protocol) and wait until it is connected."""
        sdk = sdk or build("python")
        device_id = DeviceId(f"agent_bench{len(self._device_ids)}")
        self._device_ids.append(device_id)
        api_port, relay = free_port(), self._relay_url(relay_port or self.peer_port)
        server = await serve_http("127.0.0.1", api_port, self._enrolment(device_id, relay))
        self._stack.callback(server.close)
        env = {
            "PSX_STAGE": "local",
            **sdk.environment,
            "API_KEY": "psx_bench",
            "PSX_API": f"http://127.0.0.1:{api_port}",
            "AGENT_NAME": device_id,
            "WS_CONNECTIONS": str(sockets),
            "PEER_STATE_FILE": str(self.bed.folder.path / f"{device_id}.json"),
            "PSX_ACCEPT_TERMS": "2026-11",
            "PSX_EGRESS_LAB_ALLOW": allow,
            "PSX_REDIAL_MIN_S": "0.2",
            "PSX_REDIAL_MAX_S": "0.5",
        }
        part = await self.bed.supervisor.start(device_id, list(sdk.command), env)
        deadline = time.monotonic() + PRESENT_TIMEOUT_S
        while part.log.read_text().count("[CONNECTED]") < sockets:
            self.bed.supervisor.check()
            if time.monotonic() > deadline:
                raise PartFailed(f"the peer did not connect: {part.tail()}")
            await asyncio.sleep(0.05)
        return part, device_id

    async def list_peer(self, device_id: DeviceId) -> None:
        """Put a connected device on sale, with caps that are not the bottleneck."""
        deadline = time.monotonic() + PRESENT_TIMEOUT_S
        while self.redis.run(read_presence(device_id)) is None:
            if time.monotonic() > deadline:
                raise PartFailed(f"{device_id} is not present")
            await asyncio.sleep(0.05)
        endpoint = _endpoint(EndpointId(device_id), Pool.PEER)
        self.redis.run(live.list_endpoint(endpoint))
        row = f"{{{Pool.PEER.value}}}:ep:{device_id}"
        self.redis.run(command("HSET", row, "max_connections", PEER_CONNECTIONS_MAX, parse=ok))

    def mesh_way(self, device_id: DeviceId, target: str, *parts: Part, port: int | None = None) -> Way:
        """How a gateway goes: straight to the relay's mesh listener."""
        head = f"X-PSX-Mesh-Token: {self.secrets.mesh_token}\r\nX-PSX-Device: {device_id}\r\n"
        return Way(f"127.0.0.1:{port or self.mesh_port}", "connect", target, head, parts)

    def token(self, device_id: DeviceId) -> str:
        """A device's token, as the API signs them."""
        return issue(Claims(device_id, ACCOUNT, 0), self.secrets.jwt_private, int(time.time()))

    def _enrolment(self, device_id: DeviceId, relay: str) -> Any:
        async def answer(_: HttpRequest) -> HttpAnswer:
            body = {
                "deviceId": device_id,
                "token": self.token(device_id),
                "refreshToken": "none",
                "relay": relay,
            }
            return HttpAnswer(200, (("Content-Type", "application/json"),), json.dumps(body).encode())

        return answer

    @staticmethod
    def _relay_url(port: int) -> str:
        return f"ws://127.0.0.1:{port}/"

    def _common(self) -> dict[str, str]:
        return {
            "PSX_STAGE": "local",
            "PSX_TABLE_PREFIX": PREFIX,
            "PSX_REDIS_URL": self._redis_url,
            "AWS_ENDPOINT_URL_DYNAMODB": self._dynamo_url,
            "AWS_ACCESS_KEY_ID": "local",
            "AWS_SECRET_ACCESS_KEY": "local",
            "AWS_REGION": "eu-central-1",
            "AWS_DEFAULT_REGION": "eu-central-1",
        }


def _endpoint(name: EndpointId, pool: Pool, host: str = "", port: int = 0, sealed: str = "") -> Endpoint:
    kind = IpType.MOBILE
    return Endpoint(
        name, pool, AccountId("psx_farm"), Country("us"), "lab", 64601, "Lab", kind, SpeedTier.FAST, host, port, sealed
    )  # fmt: skip
