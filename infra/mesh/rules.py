"""The mesh's decisions, pure: which address a node may have, who is a peer, who is dead, when a key may change.

Leaves out the shape of WireGuard's files (`config.py`) and of rows (`table.py`). Source: decision 0050; WireGuard
whitepaper, sections 2 (cryptokey routing) and 6 (timers).
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from ipaddress import IPv4Address, IPv4Network
from typing import Final

from infra.mesh.model import Endpoint, Link, MeshKey, Node, Peer, Step

MESH: Final = IPv4Network("10.96.0.0/12")
REGION_PREFIX_BITS: Final = 20
REGIONS_MAX: Final = 2 ** (REGION_PREFIX_BITS - MESH.prefixlen)
ADDRESS_TRIES_MAX: Final = 64
DEAD_AFTER_S: Final = 120
"""A node whose heartbeat is older, and whom no handshake proves alive, is left out."""
FORGET_AFTER_S: Final = 3600
"""Then its row and its address are given up too."""
HANDSHAKE_FRESH_S: Final = 185
"""A live link shakes hands anew every 120 s and refuses keys older than 180 s, whichever side sends."""
KEY_MAX_AGE_S: Final = 30 * 86_400
ROTATION_MAX_S: Final = 600
"""An announced key that not every peer took up by then is given up; the next day brings another."""
ROTATION_RETRY_S: Final = 86_400


def region_network(number: int) -> IPv4Network:
    """The addresses of a region, by its number in the plan. Raises ValueError beyond the plan."""
    if not 0 <= number < REGIONS_MAX:
        raise ValueError(f"a region's number is 0 to {REGIONS_MAX - 1}, not {number}")
    first = int(MESH.network_address) + number * 2 ** (32 - REGION_PREFIX_BITS)
    return IPv4Network((first, REGION_PREFIX_BITS))


def candidates(node_id: str, network: IPv4Network) -> Iterator[IPv4Address]:
    """Addresses for a node to claim, in order: the same ones each time, so that it mostly gets back what it had."""
    usable = network.num_addresses - 2
    start = int.from_bytes(hashlib.sha256(node_id.encode()).digest()[:8])
    for step in range(min(ADDRESS_TRIES_MAX, usable)):
        yield network.network_address + 1 + (start + step) % usable


def is_fresh(link: Link | None, now_ms: int) -> bool:
    """Whether a link's handshake says that the other side is there."""
    return (
        link is not None
        and link.handshake_s > 0
        and now_ms - link.handshake_s * 1000 < HANDSHAKE_FRESH_S * 1000
    )


def is_dead(node: Node, links: Mapping[MeshKey, Link], now_ms: int) -> bool:
    """No heartbeat and no handshake. One alone is not enough: a store's outage must not cut links that work."""
    silent = now_ms - node.heartbeat_ms > DEAD_AFTER_S * 1000
    return silent and not any(is_fresh(links.get(key), now_ms) for key in _keys(node))


def _keys(node: Node) -> tuple[MeshKey, ...]:
    return (node.key,) if node.next_key is None else (node.key, node.next_key)


def peers_of(
    region: str, nodes: Sequence[Node], links: Mapping[MeshKey, Link], now_ms: int
) -> tuple[Peer, ...]:
    """The peers that a node of `region` should have, sorted by key.

    An announced key gets the address as soon as it has shaken hands: its owner has switched. A peer whose row is gone
    is kept while its link lives, unless it was removed or its address is another's by now.
    """
    living = [n for n in nodes if not n.removed and not is_dead(n, links, now_ms)]
    peers: dict[MeshKey, Peer] = {}
    taken: set[IPv4Address] = set()
    for node in sorted(living, key=lambda n: (-n.heartbeat_ms, n.node_id)):
        if node.address in taken or any(key in peers for key in _keys(node)):
            continue  # rows that contradict one another: the one heard of last holds
        taken.add(node.address)
        peers |= {peer.key: peer for peer in _peers_for(node, region, links)}
    known = {key for node in nodes for key in _keys(node)}
    for link in links.values():
        if link.key not in known and is_fresh(link, now_ms) and len(link.addresses) == 1:
            (address,) = link.addresses
            if address not in taken:
                taken.add(address)
                peers[link.key] = Peer(link.key, address, link.endpoint)
    return tuple(peers[key] for key in sorted(peers))


def _peers_for(node: Node, region: str, links: Mapping[MeshKey, Link]) -> Iterator[Peer]:
    same = node.region == region and node.inner_endpoint is not None
    endpoint: Endpoint | None = node.inner_endpoint if same else node.endpoint
    following = links.get(node.next_key) if node.next_key is not None else None
    if node.next_key is not None and following is not None and following.handshake_s > 0:
        yield Peer(node.next_key, node.address, endpoint)
        return
    yield Peer(node.key, node.address, endpoint)
    if node.next_key is not None:
        yield Peer(node.next_key, None, None)


def awaited(peers: Iterable[Peer]) -> frozenset[MeshKey]:
    """Announced keys in a configuration that have not shaken hands yet."""
    return frozenset(peer.key for peer in peers if peer.address is None)


def forgettable(nodes: Iterable[Node], links: Mapping[MeshKey, Link], now_ms: int) -> tuple[Node, ...]:
    """Nodes that have been gone for so long that their addresses may be others'."""
    old_ms = now_ms - FORGET_AFTER_S * 1000
    return tuple(n for n in nodes if not n.removed and n.heartbeat_ms < old_ms and is_dead(n, links, now_ms))


def next_step(
    me: Node,
    nodes: Sequence[Node],
    links: Mapping[MeshKey, Link],
    now_ms: int,
    *,
    wanted: bool,
    announced_ms: int | None,
) -> Step:
    """What to do about the own key, given the rows of the other role.

    Two nodes that share a link never switch at once: neither could tell the other its new key. Who has the smaller id
    goes first. A peer that is alive and has not taken up the announced key holds the switch up: it could not follow.
    """
    living = [n for n in nodes if not n.removed and not is_dead(n, links, now_ms)]
    rotating = [n.node_id for n in living if n.next_key is not None]
    if me.next_key is None:
        return Step.ANNOUNCE if wanted and not rotating else Step.NOTHING
    if announced_ms is None or now_ms - announced_ms > ROTATION_MAX_S * 1000:
        return Step.ABANDON
    if any(me.next_key not in n.awaits for n in living) or any(other < me.node_id for other in rotating):
        return Step.WAIT
    return Step.SWITCH
