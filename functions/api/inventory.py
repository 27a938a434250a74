"""Public inventory: counts per country, never an address and never an id. All of it is read from one rollup."""

from collections.abc import Callable
from typing import Annotated, Any, Final

from fastapi import Query

from functions.api.wiring import Wiring
from functions.http import ProblemError, Routes
from shared.guard.service import standing_incidents
from shared.kernel.codes import IpType, Pool
from shared.kernel.ids import Country
from shared.pool.numbers import Numbers, live_numbers, networks_of, run
from shared.runtime.clock import now_ms
from shared.upkeep.history import Span, points

INCIDENTS_SHOWN_MAX: Final = 50
HISTORY_POINTS: Final = 60
"""Of one answer; ask on from the last one's `at`."""
FAR_MS: Final = 9_999_999_999_999
Moment = Annotated[int, Query(ge=0, le=FAR_MS)]
"""Unix milliseconds."""
CARRIERS_MAX: Final = 200
"""The largest networks of a country; the rest is counted under `other`."""


def router(wiring: Callable[[], Wiring]) -> Routes:
    """Routes of the inventory."""
    routes = Routes()

    def numbers() -> Numbers:
        return run(wiring().redis, live_numbers(now_ms()))

    @routes.get("/v1/gateway/pool/stock")
    def pool_stock() -> dict[str, Any]:
        found = numbers()
        totals = {pool.value: sum(found.stock_of(pool).values()) for pool in Pool}
        return {
            "pools": {pool.value: found.stock_of(pool) for pool in Pool},
            "totals": {**totals, "all": sum(totals.values())},
            "generatedAt": found.at_ms,
        }

    @routes.get("/v1/gateway/pool/availability")
    def availability() -> dict[str, Any]:
        found = numbers()
        modems, peers = found.stock_of(Pool.MBL), found.stock_of(Pool.PEER)
        online, types = found.online.get(Pool.PEER.value, {}), found.types.get(Pool.PEER.value, {})
        countries = {
            country.upper(): {
                "modem": modems.get(country, 0),
                "peer": peers.get(country, 0),
                "routableModem": modems.get(country, 0),
                "routablePeer": online.get(country, 0),
                "peerIpTypes": {
                    kind.value: types.get(country, {}).get(kind.value, 0)
                    for kind in (IpType.MOBILE, IpType.RESIDENTIAL)
                },
            }
            for country in sorted(modems.keys() | peers.keys())
        }
        return {"countries": countries, "generatedAt": found.at_ms}

    @routes.get("/v1/gateway/pool/live")
    def live() -> dict[str, Any]:
        found = numbers()
        return {
            "stock": found.stock,
            "online": found.online,
            "openConnections": found.load,
            "held": found.held,
            "quality": found.quality,
            "fleet": found.fleet,
            "traffic": {"totalBytes": found.traffic_bytes, "bytesPerSecond": found.bytes_per_s},
            "generatedAt": found.at_ms,
        }

    @routes.get("/v1/gateway/pool/history")
    def history(span: Span = Span.HOUR, since: Moment = 0, until: Moment = 0) -> dict[str, Any]:
        end = until or now_ms()
        begin = min(since or max(end - HISTORY_POINTS * span.length_ms, 0), end)
        asked = points(wiring().settings.table("usage"), span, begin, end, HISTORY_POINTS)
        page = wiring().dynamo.run(asked)
        shown = [
            {"at": p.at_ms, "mean": p.mean, "low": p.low, "high": p.high, "minutes": p.samples}
            for p in page.rows
        ]
        return {"span": span.value, "points": shown, "more": page.next_key is not None}

    @routes.get("/v1/gateway/pool/stock/carriers")
    def carriers(country: str) -> dict[str, Any]:
        code = country.lower()
        if len(code) != 2 or not code.isalpha() or not code.isascii():
            raise ProblemError(400, "INVALID_FIELD", "country: an ISO 3166-1 alpha-2 code")
        found, networks = run(wiring().redis, networks_of(Pool.PEER, Country(code), now_ms()))
        shown, total = networks[:CARRIERS_MAX], sum(network.count for network in networks)
        return {
            "pool": Pool.PEER.value,
            "updatedAt": found.at_ms,
            "country": code,
            "total": total,
            "other": total - sum(network.count for network in shown),
            "carriers": [
                {"asn": n.asn, "name": n.name, "ipType": n.ip_type, "count": n.count} for n in shown
            ],
        }

    @routes.get("/v1/gateway/incidents")
    def incidents() -> dict[str, Any]:
        w = wiring()
        standing = standing_incidents(w.dynamo, w.settings.table("guard"))[:INCIDENTS_SHOWN_MAX]
        shown = [
            {"id": i.incident_id, "kind": i.kind, "message": i.message, "openedAt": i.opened_at_ms}
            for i in standing
        ]
        return {"incidents": shown, "generatedAt": now_ms()}

    return routes
