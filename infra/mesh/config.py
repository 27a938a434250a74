"""WireGuard's text, both ways, pure: the configuration for `wg syncconf`, and what `wg show` lists.

Everything that comes from a row is checked here before it may stand in a configuration: a line break in a key would be
an order of somebody else's. Source: wg(8), "CONFIGURATION FILE FORMAT" and "show".
"""

from __future__ import annotations

import base64
import binascii
from collections.abc import Iterable, Mapping
from ipaddress import IPv4Address, ip_address
from typing import Final

from infra.mesh.model import Endpoint, Link, MeshKey, Peer

KEEPALIVE_S: Final = 25
KEY_BYTES: Final = 32
NOT_SET: Final = "(none)"


def mesh_key(text: str) -> MeshKey:
    """A public key. Raises ValueError."""
    try:
        raw = base64.b64decode(text.encode("ascii"), validate=True)
    except (binascii.Error, UnicodeEncodeError):
        raise ValueError("a key is 32 bytes in base64") from None
    if len(raw) != KEY_BYTES or base64.b64encode(raw).decode() != text:
        raise ValueError("a key is 32 bytes in base64")
    return MeshKey(text)


def endpoint(text: str) -> Endpoint:
    """`address:port` with a literal address, in its one spelling. Raises ValueError."""
    host, _, port = text.rpartition(":")
    number = int(port) if port.isascii() and port.isdecimal() else 0
    if not 0 < number < 65_536:
        raise ValueError("an endpoint is address:port")
    address = ip_address(host.removeprefix("[").removesuffix("]"))
    if getattr(address, "scope_id", None) is not None:
        raise ValueError("an endpoint's address has no zone")
    return Endpoint(f"{address}:{number}" if address.version == 4 else f"[{address}]:{number}")


def render(private_key: str, listen_port: int, peers: Iterable[Peer]) -> str:
    """The whole configuration. It holds the private key: for a pipe, never for a log or a file that others read."""
    lines = ["[Interface]", f"PrivateKey = {private_key}", f"ListenPort = {listen_port}"]
    for peer in peers:
        lines += ["", "[Peer]", f"PublicKey = {peer.key}"]
        if peer.address is not None:
            lines += [f"AllowedIPs = {peer.address}/32", f"PersistentKeepalive = {KEEPALIVE_S}"]
        if peer.endpoint is not None:
            lines.append(f"Endpoint = {peer.endpoint}")
    return "\n".join(lines) + "\n"


def read_links(handshakes: str, allowed: str, endpoints: str) -> dict[MeshKey, Link]:
    """Links from `wg show IF latest-handshakes`, `allowed-ips` and `endpoints`. Raises ValueError for another format.

    Never from `wg show IF dump`: that prints the private key.
    """
    addresses = _columns(allowed)
    reached = _columns(endpoints)
    return {
        mesh_key(key): Link(
            mesh_key(key),
            frozenset(
                IPv4Address(a.removesuffix("/32"))
                for a in addresses.get(key, NOT_SET).split()
                if a != NOT_SET
            ),
            None if reached.get(key, NOT_SET) == NOT_SET else endpoint(reached[key]),
            int(handshake_s),
        )
        for key, handshake_s in _columns(handshakes).items()
    }


def _columns(text: str) -> Mapping[str, str]:
    pairs = (line.partition("\t") for line in text.splitlines())
    return {key: value for key, _, value in pairs}
