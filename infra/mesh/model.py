"""What the mesh speaks of: nodes as the table has them, peers as WireGuard is told, links as WireGuard reports them."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from ipaddress import IPv4Address
from typing import NewType

MeshKey = NewType("MeshKey", str)
"""A WireGuard public key: 44 characters of base64. Private keys are never of this type."""
Endpoint = NewType("Endpoint", str)
"""`address:port`, an IP literal: names would be resolved once, and then go stale."""


class Role(StrEnum):
    """Which side of the mesh a node is on. Gateways and relays know one another; nodes of one role do not."""

    GATEWAY = "gateway"
    RELAY = "relay"

    @property
    def opposite(self) -> Role:
        """The role whose nodes are this one's peers."""
        return Role.RELAY if self is Role.GATEWAY else Role.GATEWAY


@dataclass(frozen=True, slots=True)
class Node:
    """One row: what a node says of itself."""

    node_id: str
    role: Role
    region: str
    address: IPv4Address
    endpoint: Endpoint
    inner_endpoint: Endpoint | None
    """Where nodes of the same region reach it: no traffic over public addresses, which costs."""
    key: MeshKey
    next_key: MeshKey | None
    """Announced, and not in use before every live peer has it in its configuration."""
    awaits: frozenset[MeshKey]
    """Announced keys of others that stand in this node's applied configuration."""
    heartbeat_ms: int
    removed: bool = False


@dataclass(frozen=True, slots=True)
class Peer:
    """One `[Peer]` of the configuration. Without an address it is only known: its key may shake hands, and no more."""

    key: MeshKey
    address: IPv4Address | None
    endpoint: Endpoint | None


@dataclass(frozen=True, slots=True)
class Link:
    """A peer as WireGuard reports it. `handshake_s` is unix seconds, 0 for never."""

    key: MeshKey
    addresses: frozenset[IPv4Address]
    endpoint: Endpoint | None
    handshake_s: int


class Step(StrEnum):
    """What a node does next about its own key."""

    NOTHING = "nothing"
    ANNOUNCE = "announce"
    WAIT = "wait"
    SWITCH = "switch"
    ABANDON = "abandon"
