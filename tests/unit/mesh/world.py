"""A made-up network of WireGuard interfaces: two shake hands when each is configured with the key the other uses."""

from __future__ import annotations

import base64
import hashlib
import re
import time
from collections.abc import Iterable, Mapping
from ipaddress import IPv4Address

from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey

from infra.mesh.config import endpoint
from infra.mesh.model import Endpoint, Link, MeshKey, Node, Peer, Role
from infra.mesh.wireguard import WireGuardFailed

_FIELD = re.compile(r"(\w+) = (\S+)")


def key(name: str) -> MeshKey:
    """A key of the right shape."""
    return MeshKey(base64.b64encode(hashlib.sha256(name.encode()).digest()).decode())


def node(
    node_id: str,
    *,
    heartbeat_ms: int,
    region: str = "eu",
    inner: Endpoint | None = None,
    next_key: MeshKey | None = None,
    awaits: frozenset[MeshKey] = frozenset(),
    removed: bool = False,
) -> Node:
    """A relay's row."""
    address = IPv4Address("10.96.0.7")
    reached = endpoint("198.51.100.7:51820")
    return Node(
        node_id,
        Role.RELAY,
        region,
        address,
        reached,
        inner,
        key(node_id),
        next_key,
        awaits,
        heartbeat_ms,
        removed,
    )


def links_of(peers: Iterable[Peer], handshakes: Mapping[MeshKey, int]) -> dict[MeshKey, Link]:
    """What WireGuard reports once these peers are applied."""
    return {
        p.key: Link(
            p.key,
            frozenset() if p.address is None else frozenset({p.address}),
            p.endpoint,
            handshakes.get(p.key, 0),
        )
        for p in peers
    }


class World:
    """All interfaces, and a clock that only the test moves."""

    def __init__(self) -> None:
        self.now_ms = time.time_ns() // 1_000_000  # key files have the age that their folder says
        self.interfaces: list[FakeWireGuard] = []
        self.cut: set[frozenset[str]] = set()

    def join(self, name: str) -> FakeWireGuard:
        """Another machine's interface."""
        made = FakeWireGuard(self, name)
        self.interfaces.append(made)
        return made

    def pass_s(self, seconds: float) -> None:
        """Time passes, and whoever can shakes hands."""
        self.now_ms += int(seconds * 1000)
        for one in self.interfaces:
            for other in self.interfaces:
                if one is not other and frozenset({one.name, other.name}) not in self.cut:
                    one.greet(other)

    def carries(self, one: FakeWireGuard, other: FakeWireGuard) -> bool:
        """Whether bytes go from one to the other and back: each sends to, and takes from, the key the other uses."""
        return one.reaches(other) and other.reaches(one)


class FakeWireGuard:
    """One interface: keys, peers, handshakes. A changed private key leaves nothing shaken."""

    def __init__(self, world: World, name: str) -> None:
        self.name = name
        self.public: MeshKey | None = None
        self.address: IPv4Address | None = None
        self.applied = 0
        self.failing = False
        self._world = world
        self._peers: dict[MeshKey, Link] = {}

    async def set_up(self, address: IPv4Address) -> None:
        """The interface has this address."""
        self.address = address

    async def apply(self, config: str) -> None:
        """As `wg syncconf`: handshakes of peers that stay, stay."""
        if self.failing:
            raise WireGuardFailed("wg syncconf: status 1")
        head, *sections = config.split("\n[Peer]\n")
        private = dict(_FIELD.findall(head))["PrivateKey"]
        raw = X25519PrivateKey.from_private_bytes(base64.b64decode(private)).public_key().public_bytes_raw()
        self.public = MeshKey(base64.b64encode(raw).decode())
        peers = {}
        for section in sections:
            fields = dict(_FIELD.findall(section))
            found = MeshKey(fields["PublicKey"])
            given = fields.get("AllowedIPs")
            allowed = (
                frozenset({IPv4Address(given.removesuffix("/32"))}) if given else frozenset[IPv4Address]()
            )
            shaken = self._peers[found].handshake_s if found in self._peers else 0
            peers[found] = Link(
                found, allowed, endpoint(fields["Endpoint"]) if "Endpoint" in fields else None, shaken
            )
        self._peers = peers
        self.applied += 1

    async def links(self) -> dict[MeshKey, Link]:
        """All peers as they are."""
        return dict(self._peers)

    def waits(self) -> bool:
        """Whether it knows an announced key."""
        return any(not link.addresses for link in self._peers.values())

    def greet(self, other: FakeWireGuard) -> None:
        """Shake hands if both know the key that the other uses now."""
        if other.public in self._peers and self.public in other._peers:
            assert other.public is not None
            link = self._peers[other.public]
            self._peers[other.public] = Link(
                link.key, link.addresses, link.endpoint, self._world.now_ms // 1000
            )

    def reaches(self, other: FakeWireGuard) -> bool:
        """Whether the other's address belongs to the key that it uses."""
        link = None if other.public is None else self._peers.get(other.public)
        return link is not None and other.address in link.addresses and link.handshake_s > 0
