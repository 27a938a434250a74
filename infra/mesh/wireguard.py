"""The interface: `ip` sets it up, `wg` changes and shows it. Existing links are never restarted: peers are synchronised.

An interface that exists is used as it is (a userspace one, or one from before a restart); else the kernel's is made. What
`wg` says of a configuration may quote the private key, so only its exit status is passed on.
"""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Iterable
from ipaddress import IPv4Address
from typing import Final

from infra.mesh.config import read_links
from infra.mesh.model import Link, MeshKey
from infra.mesh.rules import MESH

COMMAND_TIMEOUT_S: Final = 10.0
MTU_BYTES: Final = 1420
DISCARD_PORT: Final = 9


class WireGuardFailed(Exception):
    """A command did not do what it was told; the message names the command, never its input or output."""


class WireGuard:
    """One interface."""

    def __init__(self, interface: str) -> None:
        self.interface = interface

    async def set_up(self, address: IPv4Address) -> None:
        """Make the interface if there is none, and give it exactly this address. Raises WireGuardFailed."""
        name = self.interface
        if name not in {found for _, found in socket.if_nameindex()}:
            await _run("ip", "link", "add", "dev", name, "type", "wireguard")
        wanted = f"{address}/{MESH.prefixlen}"
        held = await _run("ip", "-o", "-4", "address", "show", "dev", name)
        if f" {wanted} " not in held:
            await _run("ip", "-4", "address", "flush", "dev", name)
            await _run("ip", "address", "add", wanted, "dev", name)
        await _run("ip", "link", "set", "dev", name, "mtu", str(MTU_BYTES), "up")

    async def apply(self, config: str) -> None:
        """Make peers and keys what the configuration says; links that stay are not touched. Raises WireGuardFailed."""
        await _run("wg", "syncconf", self.interface, "/dev/stdin", given=config)

    async def links(self) -> dict[MeshKey, Link]:
        """All peers as they are. Raises WireGuardFailed."""
        told = [
            await _run("wg", "show", self.interface, what)
            for what in ("latest-handshakes", "allowed-ips", "endpoints")
        ]
        try:
            return read_links(*told)
        except ValueError:
            raise WireGuardFailed("wg show: its answer was not understood") from None

    async def take_down(self) -> None:
        """Remove the interface: this node is no part of the mesh any more. Raises WireGuardFailed."""
        await _run("ip", "link", "delete", "dev", self.interface)


def nudge(addresses: Iterable[IPv4Address]) -> None:
    """Send each peer an empty datagram: a handshake with the new key begins now and not at the next keepalive."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sender:
        sender.setblocking(False)
        for address in addresses:
            try:
                sender.sendto(b"", (str(address), DISCARD_PORT))
            except OSError:  # the next keepalive does the same, later
                continue


async def _run(*command: str, given: str = "") -> str:
    try:
        process = await asyncio.create_subprocess_exec(
            *command,
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.DEVNULL,
        )
    except OSError as error:
        raise WireGuardFailed(f"{command[0]}: {error.strerror}") from None
    what = " ".join(command[:3])
    try:
        async with asyncio.timeout(COMMAND_TIMEOUT_S):
            out, _ = await process.communicate(given.encode())
    except TimeoutError:
        raise WireGuardFailed(f"{what}: no end within {COMMAND_TIMEOUT_S:.0f} s") from None
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
    if process.returncode:
        raise WireGuardFailed(f"{what}: status {process.returncode}")
    return out.decode("utf-8", "replace")
