"""The network on machines of its own: a gateway, relays and peers in namespaces, joined by the project's mesh controller.

WireGuard is Debian's userspace one. Stores, functions and the target stand where the internet is; gateway and relays
speak to one another through the mesh alone.
"""

from __future__ import annotations

import asyncio
import signal
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Final

from infra.mesh.model import MeshKey, Node, Role
from infra.mesh.table import read_role
from local import lab
from local.network import LocalNetwork
from local.paths import ROOT
from local.supervisor import Part
from tests.support.machines import INTERNET, VPC, Machine

POLL_S: Final = "0.5"
WIREGUARD_PORT: Final = 51820
CONNECT_PORT: Final = 7443
ADDRESSES: Final = {
    "gw": "198.51.100.10",
    "eu": "198.51.100.20",
    "us": "203.0.113.20",
    "extra": "203.0.113.30",
}
NETWORKS: Final = (
    lab.Network("198.18.1.0/24", 64601, "Lab Mobile US", "mobile", "US"),
    lab.Network("198.18.2.0/24", 64602, "Lab Mobile DE", "mobile", "DE"),
    lab.Network("198.19.1.0/24", 64611, "Lab Home US", "residential", "US"),
    lab.Network("198.19.2.0/24", 64612, "Lab Home DE", "residential", "DE"),
)
PEERS: Final = tuple(
    lab.PeerPlan(f"{network.ip_class}-{network.country.lower()}", network.host(11), network)
    for network in NETWORKS
)
REGION_NUMBERS: Final = {"eu": 0, "us": 1}


class MeshNetwork(LocalNetwork):
    """The local network, with gateways and relays on machines that only the mesh joins."""

    host = VPC
    target_address = INTERNET
    gateway_host = ADDRESSES["gw"]
    relay_addresses: Mapping[str, str] = {"eu": ADDRESSES["eu"], "us": ADDRESSES["us"]}
    networks = NETWORKS

    def __init__(self) -> None:
        super().__init__()
        sources = [plan.address for plan in PEERS]
        self.machines = {name: Machine(name, ADDRESSES[name]) for name in ("gw", "eu", "us")}
        self.homes = Machine("homes", "198.18.0.1", sources, ["198.18.0.0/16", "198.19.0.0/16"])
        self.outside = Machine("outside", "192.0.2.66")

    # the mesh

    async def join(self, name: str, role: Role, region: str) -> Part:
        """A machine gets WireGuard, the firewall and the controller; answers when the controller has an address."""
        machine = self.machines[name]
        machine.run("nft", "-f", str(ROOT / "infra" / "nodes" / "mesh.nft"))
        tunnel = ["env", "LOG_LEVEL=verbose", "wireguard-go", "-f", f"psx{name}"]
        wireguard = await self.supervisor.start(f"wireguard-{name}", machine.command(*tunnel))
        # Asking `wg` earlier would end it: a socket that is bound and does not listen yet is stale to wg, which deletes it.
        await self.supervisor.says(wireguard, "UAPI listener started")
        return await self.start_controller(name, role, region)

    async def start_controller(self, name: str, role: Role, region: str) -> Part:
        """Start a machine's controller; again after it was stopped."""
        env = {
            **self.store_settings(),
            "PSX_REDIS_URL": "redis://unused",
            "PSX_MESH_NODE_ID": name,
            "PSX_MESH_ROLE": role.value,
            "PSX_MESH_REGION": region,
            "PSX_MESH_REGION_NUMBER": str(REGION_NUMBERS[region]),
            "PSX_MESH_ENDPOINT": f"{ADDRESSES[name]}:{WIREGUARD_PORT}",
            "PSX_MESH_INTERFACE": f"psx{name}",
            "PSX_MESH_STATE_DIR": str(self.folder.path / "mesh" / name),
            "PSX_MESH_PRIVATE_LISTEN": "127.0.0.1:9101",
            "PSX_MESH_ENV_FILE": str(self._env_file(name)),
            "PSX_MESH_CONNECT_PORT": str(CONNECT_PORT),
            "PSX_MESH_POLL_S": POLL_S,
        }
        part = await self.supervisor.start(f"mesh-{name}", self._python(name, "infra.mesh", "run"), env)
        await self.supervisor.says(part, "joined the mesh")
        return part

    def _env_file(self, name: str) -> Path:
        return self.folder.path / "mesh" / f"{name}.env"

    def _python(self, name: str, *module: str) -> list[str]:
        return self.machines[name].command(sys.executable, "-m", *module)

    def rows(self, role: Role) -> dict[str, Node]:
        """The nodes of a role as the table has them."""
        page = self.dynamo.run(read_role(self.table("mesh"), role))
        return {node.node_id: node for node in page.rows if node is not None}

    def keys_at(self, name: str) -> dict[MeshKey, str]:
        """Peers of a machine as WireGuard has them: key -> addresses."""
        told = self.machines[name].run("wg", "show", f"psx{name}", "allowed-ips")
        return {
            MeshKey(key): allowed for key, _, allowed in (line.partition("\t") for line in told.splitlines())
        }

    def rotate(self, name: str) -> None:
        """Ask a machine's controller for a new key, as `systemctl reload` does."""
        self.supervisor.parts[f"mesh-{name}"].process.send_signal(signal.SIGHUP)

    # parts on their machines

    async def start_network(self) -> None:
        """Target, functions, the mesh, relays on it, the gateway and its prober."""
        await asyncio.gather(
            self._start_target(),
            self.start_cloud(),
            self.join("gw", Role.GATEWAY, "eu"),
            self.join("eu", Role.RELAY, "eu"),
            self.join("us", Role.RELAY, "us"),
        )
        await asyncio.gather(*(self.start_probe_target(place) for place in self.ports.probe_targets))
        await asyncio.gather(
            *(self.start_relay(r) for r in ("eu", "us")), self.start_gateway(), self._start_prober()
        )

    async def start_relay(self, region: str, machine: str = "") -> None:
        """A relay on its machine, where its controller told it to listen."""
        name = machine or region
        env = self._relay_settings(region)
        env["PSX_RELAY_ID"] = f"relay-{name}"
        env["PSX_RELAY_PEER_LISTEN"] = f"{ADDRESSES[name]}:{self.ports.relay_peer[region]}"
        env |= dict([self._env_file(name).read_text().strip().split("=", 1)])
        part = await self.supervisor.start(f"relay-{name}", self._python(name, "relay_node"), env)
        await self.supervisor.says(part, "relay ready")

    async def start_gateway(self) -> None:
        """The gateway, on its public address."""
        env = {**self._gateway_settings(), "PSX_GATEWAY_HTTP_LISTEN": f"{ADDRESSES['gw']}:{self.ports.http}"}
        part = await self.supervisor.start("gateway", self._python("gw", "gateway_node"), env)
        await self.supervisor.says(part, "gateway ready")

    async def _start_prober(self) -> None:
        command = self._python("gw", "gateway_node.prober")
        part = await self.supervisor.start("prober", command, self._prober_settings())
        await self.supervisor.says(part, "prober ready")

    def peer_command(self, command: list[str]) -> list[str]:
        """Peers run at home."""
        return self.homes.command(*command)
