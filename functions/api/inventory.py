"""Public inventory: counts per country, never an address and never an id."""

from collections import Counter
from collections.abc import Callable
from typing import Any, Final

from fastapi import APIRouter

from functions.api.wiring import Wiring
from functions.http import ProblemError
from shared.guard.table import open_incidents
from shared.kernel.codes import IpType, Pool
from shared.kernel.ids import Country
from shared.pool.live import network_facts, stock
from shared.runtime.clock import now_ms

INCIDENTS_MAX: Final = 50
FEW: Final = 1
"""A carrier with fewer exits than this is counted under `other`, so that no single device shows."""


def router(wiring: Callable[[], Wiring]) -> APIRouter:
    """Routes of the inventory."""
    routes = APIRouter()

    def counts() -> dict[Pool, dict[Country, int]]:
        return {pool: wiring().redis.run(stock(pool)) for pool in Pool}

    @routes.get("/v1/gateway/pool/stock")
    def pool_stock() -> dict[str, Any]:
        pools = counts()
        totals = {pool.value: sum(by_country.values()) for pool, by_country in pools.items()}
        return {
            "pools": {pool.value: by_country for pool, by_country in pools.items()},
            "totals": {**totals, "all": sum(totals.values())},
            "generatedAt": now_ms(),
        }

    @routes.get("/v1/gateway/pool/availability")
    def availability() -> dict[str, Any]:
        pools = counts()
        countries: dict[str, Any] = {}
        for country in sorted(pools[Pool.MBL].keys() | pools[Pool.PEER].keys()):
            modem, peer = pools[Pool.MBL].get(country, 0), pools[Pool.PEER].get(country, 0)
            types = Counter(f.ip_type for f in wiring().redis.run(network_facts(Pool.PEER, country)))
            countries[country.upper()] = {
                "modem": modem,
                "peer": peer,
                "routableModem": modem,
                "routablePeer": peer,
                "peerIpTypes": {t.value: types.get(t, 0) for t in (IpType.MOBILE, IpType.RESIDENTIAL)},
            }
        return {"countries": countries}

    @routes.get("/v1/gateway/pool/stock/carriers")
    def carriers(country: str) -> dict[str, Any]:
        code = country.lower()
        if len(code) != 2 or not code.isalpha() or not code.isascii():
            raise ProblemError(400, "INVALID_FIELD", "country: an ISO 3166-1 alpha-2 code")
        facts = wiring().redis.run(network_facts(Pool.PEER, Country(code)))
        by_network = Counter((f.asn, f.isp, f.ip_type) for f in facts)
        shown = {network: count for network, count in by_network.items() if count >= FEW}
        return {
            "pool": Pool.PEER.value,
            "updatedAt": now_ms(),
            "country": code,
            "total": len(facts),
            "other": len(facts) - sum(shown.values()),
            "carriers": [
                {"asn": asn, "name": name, "ipType": ip_type.value, "count": count}
                for (asn, name, ip_type), count in sorted(shown.items(), key=lambda item: -item[1])
            ],
        }

    @routes.get("/v1/gateway/incidents")
    def incidents() -> dict[str, Any]:
        page = wiring().dynamo.run(open_incidents(wiring().settings.table("guard"), INCIDENTS_MAX))
        shown = [
            {"id": i.incident_id, "kind": i.kind, "message": i.message, "openedAt": i.opened_at_ms}
            for i in page.rows
            if i.closed_at_ms is None
        ]
        return {"incidents": shown, "generatedAt": now_ms()}

    return routes
