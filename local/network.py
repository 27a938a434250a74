"""The whole network on one machine: `async with LocalNetwork(options) as net`. Used by `demo`, `up` and the e2e tests.

Parts start in parallel where they do not need one another; each has its own log. Nothing is left when the block is left,
however it is left.
"""

from __future__ import annotations

import asyncio
import json
import secrets
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Self

from local import lab
from local.bootstrap import HOUSE, RESELLER
from local.cloud import LocalCloud
from local.lambda_runtime import Code
from local.paths import ROOT
from local.stores import STAGE, LocalStores
from local.supervisor import Part, free_port

PEER_SOCKETS: Final = 2


@dataclass(frozen=True, slots=True)
class Ports:
    """Ports of one run; 0 means any free one."""

    api: int = 0
    http: int = 0
    socks: int = 0


@dataclass(frozen=True, slots=True)
class _Picked:
    api: int
    http: int
    socks: int
    gateway_private: int
    target: int
    target_control: int
    probe_targets: dict[str, tuple[int, int]]
    site_plain: int
    site_tls: int
    relay_peer: dict[str, int]
    relay_mesh: dict[str, int]
    relay_private: dict[str, int]
    modems: tuple[int, ...]


def _pick(ports: Ports) -> _Picked:
    regions = lab.RELAY_NAMES
    return _Picked(
        api=ports.api or free_port(),
        http=ports.http or free_port(),
        socks=ports.socks or free_port(),
        gateway_private=free_port(),
        target=free_port(lab.TARGET_ADDRESS),
        target_control=free_port(),
        probe_targets={
            place: (free_port(lab.TARGET_ADDRESS), free_port(lab.TARGET_ADDRESS)) for place in regions
        },
        site_plain=free_port(lab.TARGET_ADDRESS),
        site_tls=free_port(lab.TARGET_ADDRESS),
        relay_peer={r: free_port(regions[r]) for r in regions},
        relay_mesh={r: free_port() for r in regions},
        relay_private={r: free_port() for r in regions},
        modems=tuple(free_port() for _ in lab.MODEMS),
    )


class LocalNetwork(LocalStores):
    """All parts, and handles on what a person would use. A network on several machines has other addresses."""

    target_address = lab.TARGET_ADDRESS
    gateway_host = "127.0.0.1"

    def __init__(self, ports: Ports | None = None) -> None:
        super().__init__()
        self.ports = _pick(ports or Ports())
        self.cloud: LocalCloud
        self._modem_credentials = [(f"user{n}", secrets.token_hex(8)) for n in range(len(lab.MODEMS))]

    # addresses

    @property
    def api_url(self) -> str:
        """The API as clients reach it."""
        return f"http://{self.host}:{self.ports.api}"

    @property
    def target_url(self) -> str:
        """The target site."""
        return f"https://{lab.TARGET_NAME}:{self.ports.target}"

    @property
    def site_urls(self) -> dict[str, str]:
        """The second site of the target, by scheme."""
        ports = {"http": self.ports.site_plain, "https": self.ports.site_tls}
        return {scheme: f"{scheme}://{lab.TARGET_NAME}:{port}" for scheme, port in ports.items()}

    @property
    def site_files(self) -> Path:
        """The folder that the second site serves under `/files`."""
        return self.folder.path / "www"

    # life

    async def __aenter__(self) -> Self:
        try:
            await self.start_stores_and_chains()
            await self.start_network()
        except BaseException:
            await self.close()
            raise
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    async def close(self) -> None:
        """End every part; bounded."""
        if hasattr(self, "cloud"):
            await self.cloud.stop()
        await super().close()

    async def start_network(self) -> None:
        """Target, functions, relays, gateway and prober."""
        await asyncio.gather(
            self._start_target(), self.start_cloud(), *(self.start_relay(r) for r in lab.RELAY_NAMES)
        )
        await asyncio.gather(*(self.start_probe_target(place) for place in self.ports.probe_targets))
        await asyncio.gather(self.start_gateway(), self._start_prober(), self._start_modems())

    async def _start_target(self) -> None:
        self.site_files.mkdir()
        env = {
            "TARGET_CERT": str(self.files.target_cert),
            "TARGET_HOST": self.target_address,
            "TARGET_PORT": str(self.ports.target),
            "TARGET_CONTROL_PORT": str(self.ports.target_control),
            "TARGET_PLAIN_PORT": str(self.ports.site_plain),
            "TARGET_TLS_PORT": str(self.ports.site_tls),
            "TARGET_FILES": str(self.site_files),
        }
        part = await self.supervisor.start("target", [sys.executable, "-m", "local.target"], env)
        await self.supervisor.says(part, "target ready")

    async def start_probe_target(self, place: str) -> None:
        """Start a place's probe target; again after it was stopped."""
        port, plain_port = self.ports.probe_targets[place]
        env = {
            "PSX_STAGE": STAGE,
            "PSX_TARGET_PLACE": place,
            "PSX_TARGET_LISTEN": f"{self.target_address}:{port}",
            "PSX_TARGET_PLAIN_LISTEN": f"{self.target_address}:{plain_port}",
            "PSX_TARGET_CERT": str(self.files.target_cert),
            "PSX_TARGET_SIGNING_KEY": self.secrets.target_private,
            "PSX_PROBE_ASKING_KEY": self.secrets.asking_key,
        }
        command = [sys.executable, "-m", "gateway_node.prober.target"]
        part = await self.supervisor.start(f"probe-target-{place}", command, env)
        await self.supervisor.says(part, "target ready")

    async def start_cloud(self, code: Mapping[str, Code] | None = None) -> None:
        """The functions, behind the API's address; from the checkout, or from the code given for each."""
        self.cloud = LocalCloud(self.supervisor, STAGE, self._function_settings(), code)
        await self.cloud.start(self.host, self.ports.api)

    async def start_relay(self, region: str) -> None:
        """Start a region's relay; again after it was stopped."""
        part = await self.supervisor.start(
            f"relay-{region}", [sys.executable, "-m", "relay_node"], self._relay_settings(region)
        )
        await self.supervisor.says(part, "relay ready")

    async def start_gateway(self) -> None:
        """Start the gateway; again after it was stopped."""
        part = await self.supervisor.start(
            "gateway", [sys.executable, "-m", "gateway_node"], self._gateway_settings()
        )
        await self.supervisor.says(part, "gateway ready")

    async def _start_prober(self) -> None:
        command = [sys.executable, "-m", "gateway_node.prober"]
        part = await self.supervisor.start("prober", command, self._prober_settings())
        await self.supervisor.says(part, "prober ready")

    async def _start_modems(self) -> None:
        modems = [
            {"port": port, "username": username, "password": password, "exit": plan.exit_address}
            for plan, port, (username, password) in zip(
                lab.MODEMS, self.ports.modems, self._modem_credentials, strict=True
            )
        ]
        part = await self.supervisor.start(
            "modems", [sys.executable, "-m", "local.modem"], {"MODEMS": json.dumps(modems)}
        )
        await self.supervisor.says(part, "modems ready")

    async def start_peer(self, plan: lab.PeerPlan) -> Part:
        """Start one peer process; it enrols itself."""
        module = ["local.faulty_peer", plan.fault] if plan.fault else ["psx_peer"]
        if plan.first_region:
            port = self.ports.relay_peer[plan.first_region]
            module = ["local.travelled_peer", f"wss://{self.relay_addresses[plan.first_region]}:{port}/"]
        env = {
            "PYTHONPATH": f"{ROOT}:{ROOT / 'sdk' / 'python'}",
            "API_KEY": self.keys.supplier,
            "PSX_API": self.api_url,
            "AGENT_NAME": plan.name,
            "PEER_BIND": plan.address,
            "WS_CONNECTIONS": str(PEER_SOCKETS),
            "PEER_STATE_FILE": str(self.folder.path / "peers" / f"{plan.name}.json"),
            "PSX_ACCEPT_TERMS": "2026-11",
            "PSX_REDIAL_MIN_S": "0.2",
            "PSX_REDIAL_MAX_S": "0.5",
            **self._lab_settings(),
        }
        command = [sys.executable, "-m", *module, "--ca-file", str(self.files.ca)]
        return await self.supervisor.start(f"peer-{plan.name}", self.peer_command(command), env)

    def peer_command(self, command: list[str]) -> list[str]:
        """The command that starts a peer, where peers run."""
        return command

    def modem_registrations(self) -> list[dict[str, Any]]:
        """Bodies of `POST /v1/farmer/modems` for the farm."""
        return [
            {
                "name": plan.name,
                "host": "127.0.0.1",
                "port": port,
                "username": username,
                "password": password,
                "carrier": plan.network.name,
            }
            for plan, port, (username, password) in zip(
                lab.MODEMS, self.ports.modems, self._modem_credentials, strict=True
            )
        ]

    # settings of each process: it gets what it needs, and no more

    def _lab_settings(self) -> dict[str, str]:
        probed = (port for pair in self.ports.probe_targets.values() for port in pair)
        ports = (self.ports.target, self.ports.site_plain, self.ports.site_tls, *probed)
        return {
            "PSX_STAGE": STAGE,
            "PSX_EGRESS_LAB_ALLOW": ",".join(f"{self.target_address}:{port}" for port in ports),
            "PSX_LAB_HOSTS": f"{lab.TARGET_NAME}={self.target_address}",
        }

    def _origin_settings(self) -> dict[str, str]:
        return {
            "PSX_ASN_MMDB": str(self.files.asn_mmdb),
            "PSX_COUNTRY_MMDB": str(self.files.country_mmdb),
            "PSX_ASN_CLASSES": str(self.files.asn_classes),
        }

    def _key_settings(self) -> dict[str, str]:
        return {"PSX_SECRET_PEPPER": self.secrets.pepper, "PSX_SEALING_KEY": self.secrets.sealing_key}

    def _function_settings(self) -> Mapping[str, Mapping[str, str]]:
        public = {
            "PSX_API_BASE_URL": self.api_url,
            "PSX_GATEWAY_HOST": self.gateway_host,
            "PSX_GATEWAY_HTTP_PORT": str(self.ports.http),
            "PSX_GATEWAY_SOCKS_PORT": str(self.ports.socks),
        }
        api = {
            **self.cache_settings("api"),
            **public,
            **self._key_settings(),
            "PSX_MASTER_KEY": self.secrets.master_key,
            **self._origin_settings(),
            "PSX_JWT_PRIVATE_KEY": self.secrets.jwt_private,
            "PSX_JWT_PUBLIC_KEY": self.secrets.jwt_public,
            "PSX_RELAYS": lab.relays_setting(self.ports.relay_peer, self.relay_addresses),
        }
        x402 = {
            **self.cache_settings("x402"),
            **public,
            "PSX_SECRET_PEPPER": self.secrets.pepper,
            "PSX_MASTER_KEY": self.secrets.master_key,
            "PSX_QUOTE_SECRET": self.secrets.quote_secret,
            "PSX_HOUSE_ACCOUNT": HOUSE,
            "PSX_EVM_RPC_URLS": self.evm.url,
            "PSX_EVM_RECIPIENT": self.evm_recipient,
            "PSX_CLOCK_ERROR_MS": "2000",
            "PSX_GAS_KEY": self.gas_wallet.key.hex(),
            "PSX_SOLANA_RPC_URLS": self.solana.url,
            "PSX_SOLANA_RECIPIENT": self.solana_recipient,
            "PSX_SOLANA_GENESIS": self.solana.genesis(),
            "PSX_SELF_TEST_KEY": self.tester_wallet.key.hex(),
            "PSX_CUSTOMER_KEY": self.customer_wallet.key.hex(),
            "PSX_ECHO_URL": f"{self.target_url}/ip",
            "PSX_ECHO_CA": str(self.files.ca),
        }
        return {
            "api": api,
            "x402": x402,
            "list-exits": self.cache_settings("jobs"),
            "roll-up": self.store_settings(),
            "end-keys": self.cache_settings("jobs"),
            "keep-leases": self.cache_settings("jobs"),
            "live-numbers": self.cache_settings("jobs"),
            "refresh-ip-data": self.store_settings(),
            "drop-ghosts": self.cache_settings("jobs"),
            "watchdog": {**self.store_settings(), **self._watchdog_settings()},
        }

    def _watchdog_settings(self) -> dict[str, str]:
        door = {"name": "gateway-1", "host": "127.0.0.1", "http": self.ports.http, "socks": self.ports.socks}
        return {
            "PSX_API_BASE_URL": self.api_url,
            "PSX_WATCHDOG_API_KEY": self.keys.reseller,
            "PSX_WATCHDOG_ACCOUNT": RESELLER,
            "PSX_WATCHDOG_GATEWAYS": json.dumps([door]),
            "PSX_WATCHDOG_TARGETS": lab.targets_setting(self.ports.probe_targets, self.target_address),
            "PSX_WATCHDOG_RELAYS": lab.relays_setting(self.ports.relay_peer),
            "PSX_WATCHDOG_CA_FILE": str(self.files.ca),
            "PSX_PROBE_ASKING_KEY": self.secrets.asking_key,
            "PSX_WATCHDOG_RECIPIENTS": json.dumps(
                {"base": self.evm_recipient, "solana": self.solana_recipient}
            ),
            "PSX_WATCHDOG_AUDITS_CLOUD": "false",  # the lab's stores know neither schedules nor recovery
        }

    def _relay_settings(self, region: str) -> dict[str, str]:
        ports = self.ports
        return {
            **self.cache_settings("relay"),
            **self._origin_settings(),
            "PSX_RELAY_DRAIN_MAX_S": "3",
            "PSX_RELAY_ID": f"relay-{region}-1",
            "PSX_RELAY_REGION": region,
            "PSX_RELAY_PEER_LISTEN": f"{self.relay_addresses[region]}:{ports.relay_peer[region]}",
            "PSX_RELAY_MESH_LISTEN": f"127.0.0.1:{ports.relay_mesh[region]}",
            "PSX_RELAY_PRIVATE_LISTEN": f"127.0.0.1:{ports.relay_private[region]}",
            "PSX_RELAY_TLS_CERT": str(self.files.relay_cert),
            "PSX_RELAY_TLS_KEY": str(self.files.relay_cert),
            "PSX_RELAYS": lab.relays_setting(ports.relay_peer, self.relay_addresses),
            "PSX_MESH_TOKEN": self.secrets.mesh_token,
            "PSX_JWT_PUBLIC_KEY": self.secrets.jwt_public,
        }

    def _gateway_settings(self) -> dict[str, str]:
        return {
            **self.cache_settings("gateway"),
            **self._lab_settings(),
            **self._key_settings(),
            "PSX_HOUSE_ACCOUNT": HOUSE,
            "PSX_GATEWAY_DRAIN_MAX_S": "3",
            "PSX_GATEWAY_LAST_FLUSH_MAX_S": "1",  # all parts are stopped at once, the stores too
            "PSX_GATEWAY_ID": "gateway-1",
            "PSX_GATEWAY_JOURNAL_DIR": str(self.folder.path / "journal"),
            "PSX_GATEWAY_HTTP_LISTEN": f"127.0.0.1:{self.ports.http}",
            "PSX_GATEWAY_SOCKS_LISTEN": f"127.0.0.1:{self.ports.socks}",
            "PSX_GATEWAY_PRIVATE_LISTEN": f"127.0.0.1:{self.ports.gateway_private}",
            "PSX_MESH_TOKEN": self.secrets.mesh_token,
        }

    def _prober_settings(self) -> dict[str, str]:
        return {
            **self.cache_settings("prober"),
            **self._key_settings(),
            **self._origin_settings(),
            "PSX_MESH_TOKEN": self.secrets.mesh_token,
            "PSX_PROBE_TARGETS": lab.targets_setting(self.ports.probe_targets, self.target_address),
            "PSX_PROBE_TARGET_KEYS": self.secrets.target_public,
            "PSX_PROBE_ASKING_KEY": self.secrets.asking_key,
            "PSX_PROBE_CA_FILE": str(self.files.ca),
        }
