"""What can be measured, by name."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from benchmarks import (
    gateway,
    idle,
    keys,
    listing,
    path,
    relay,
    sale,
    sdks,
    selection,
    stall,
    supply,
    tunnelers,
    uplink,
)
from benchmarks.row import Row

ROWS: Final[dict[str, Callable[[], Row | list[Row]]]] = {
    "gateway_bulk": gateway.bulk,
    "gateway_tunnels": gateway.tunnels,
    "path_bulk": path.bulk,
    "path_tunnels": path.tunnels,
    "path_p50": path.p50,
    "path_vs_tunnelers": tunnelers.measure,
    "relay_cpu": relay.cpu,
    "stalled_customer": stall.measure,
    "loaded_uplink": uplink.measure,
    "idle_peers": idle.idle,
    "handshakes": idle.handshakes,
    "sdk_bulk": sdks.bulk,
    "sdk_idle_memory": sdks.idle_memory,
    "selection_100k": selection.measure,
    "keys_flush_1k": keys.flush_cost,
    "keys_flush_8x10k": keys.flush_many,
    "keys_auth": keys.auth_lookup,
    "keys_api_requests": keys.api_requests,
    "keys_list_10k": keys.list_keys,
    "sale_402": sale.measure,
    "sale_mint": sale.measure_mint,
    "sale_cold_start": sale.measure_cold,
    "listing_200k": listing.measure,
    "registrations": supply.registrations,
    "fleet_of_5000": supply.fleet,
    "ip_classification": supply.classification,
    "sale_buyers": sale.measure_buyers,
}


def measure(name: str) -> list[Row]:
    """Measure one row, or those that are found in the same run."""
    found = ROWS[name]()
    return [found] if isinstance(found, Row) else found
