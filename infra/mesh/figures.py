"""What the controller counts: who is in the mesh, whose link lives, how its rounds went."""

from collections.abc import Iterable, Mapping
from enum import StrEnum

from prometheus_client import Counter, Gauge

from infra.mesh.model import Link, MeshKey, Peer
from infra.mesh.rules import is_fresh


class Outcome(StrEnum):
    """How a round ended."""

    UNCHANGED = "unchanged"
    APPLIED = "applied"
    STORE = "store_unavailable"
    WIREGUARD = "wireguard_failed"


PEERS = Gauge("psx_mesh_peers", "Peers in the applied configuration")
LIVE = Gauge("psx_mesh_live_links", "Peers whose handshake is fresh")
OLDEST = Gauge("psx_mesh_oldest_handshake_seconds", "Age of the oldest handshake of a peer that had one")
KEY_AGE = Gauge("psx_mesh_key_age_seconds", "Age of the own key")
LAST_GOOD = Gauge("psx_mesh_last_good_round_seconds", "Unix time of the last round that reached the table")
ROUNDS = Counter("psx_mesh_rounds", "Rounds of the controller, by outcome", ["outcome"])
BAD_ROWS = Counter("psx_mesh_bad_rows", "Rows of other nodes that were not understood")
SWITCHES = Counter("psx_mesh_key_switches", "Changes of the own key")


def show(peers: Iterable[Peer], links: Mapping[MeshKey, Link], now_ms: int) -> int:
    """Set the gauges of the links; answers how many live."""
    used = [links.get(peer.key) for peer in peers if peer.address is not None]
    live = sum(is_fresh(link, now_ms) for link in used)
    ages = [now_ms / 1000 - link.handshake_s for link in used if link is not None and link.handshake_s]
    PEERS.set(len(used))
    LIVE.set(live)
    OLDEST.set(max(ages, default=0.0))
    return live
