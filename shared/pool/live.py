"""The live pool in Redis: endpoints on sale and what keeps selection from them, selection, gateways' holds on endpoints.
Where devices are is in `presence.py`.

All keys of a pool carry its hash tag, so each script touches one slot. Selection costs the same in a pool of ten and of
ten thousand: it draws from sets of endpoints that have room, and touches those sets only at the full / not-full edge.
Key table: docs/architecture.md.
"""

import re
from collections.abc import Sequence
from functools import lru_cache, partial
from typing import Any, Final, NamedTuple

from shared.kernel.codes import IpType, Pool, SpeedTier
from shared.kernel.ids import AccountId, Country, DeviceId, EndpointId, GatewayId, PakId
from shared.pool.model import (
    ROTATION_WINDOW_MS,
    Acquired,
    Endpoint,
    Failover,
    NoStock,
    NoStockReason,
    Rotation,
    Route,
    Selected,
    caps_of,
)
from shared.runtime.redis import Opening, RedisCall, Script, command, ok, text_map

REVOKE_PAK: Final = "revoke"
GATEWAY_ALIVE_TTL_S: Final = 30
REAP_BATCH: Final = 500
ENDPOINTS_KEPT: Final = 8192
SESSIONS_MAX: Final = 250
"""Sessions with a name that one account (or key of a shared account) has at once."""
STRICT_STABILITY_MIN: Final = 40

_ACQUIRE: Final = Script.load("shared.pool", "acquire")
_RELEASE: Final = Script.load("shared.pool", "release")
_REAP: Final = Script.load("shared.pool", "reap")
_LIST: Final = Script.load("shared.pool", "list")
_UNLIST: Final = Script.load("shared.pool", "unlist")
_TRIP: Final = Script.load("shared.pool", "trip")
_SUSPECT: Final = Script.load("shared.pool", "suspect")
BREAKER_PAUSE_S: Final = 10
BREAKER_PAUSE_MAX_S: Final = 120
BREAKER_HOSTS: Final = 3
BREAKER_OWNERS: Final = 2
"""So many different hosts, wanted by so many different owners, that fail through one exit are the exit's fault, and neither
theirs nor an owner's who names dead ones.
"""
BREAKER_MEMORY_S: Final = 60


def _prefix(pool: Pool) -> str:
    return f"{{{pool.value}}}:"


def letters(name: str) -> str:
    """A network's name as it is compared: usernames carry no hyphens, blanks or ampersands."""
    return re.sub(r"[^a-z0-9]", "", name.lower())


# Listing


def list_endpoint(endpoint: Endpoint) -> RedisCall[bool]:
    """Put an endpoint on sale, or refresh its facts. True when it was not on sale before."""
    asked = list_endpoints([endpoint])
    return RedisCall(lambda a: asked.parse(a)[0], script=asked.script, keys=asked.keys, args=asked.args)


def list_endpoints(endpoints: Sequence[Endpoint]) -> RedisCall[list[bool]]:
    """Put endpoints of one pool on sale, or refresh their facts. True for each that was not on sale before."""
    prefix = _prefix(endpoints[0].pool)
    rows = [_row(endpoint) for endpoint in endpoints]
    args: list[str | int] = [prefix, len(rows[0]), *rows[0]]
    for endpoint, row in zip(endpoints, rows, strict=True):
        args += [endpoint.endpoint_id, *row.values()]
    keys = [f"{prefix}ep:{endpoint.endpoint_id}" for endpoint in endpoints]
    return RedisCall(lambda answer: [bool(new) for new in answer], script=_LIST, keys=keys, args=args)


def _row(endpoint: Endpoint) -> dict[str, str | int]:
    caps = caps_of(endpoint.pool, endpoint.tier)
    return {
        "account_id": endpoint.account_id,
        "country": endpoint.country,
        "carrier": endpoint.carrier,
        "asn": endpoint.asn,
        "isp": endpoint.isp,
        "isp_slug": letters(endpoint.isp),
        "ip_type": endpoint.ip_type.value,
        "tier": endpoint.tier.value,
        "city": endpoint.city,
        "stability": "" if endpoint.stability is None else endpoint.stability,
        "max_connections": caps.connections,
        "max_customers": caps.customers,
        "modem_host": endpoint.modem_host,
        "modem_port": endpoint.modem_port,
        "modem_credentials_sealed": endpoint.modem_credentials_sealed,
    }


def unlist_endpoint(pool: Pool, endpoint_id: EndpointId) -> RedisCall[bool]:
    """Take an endpoint off sale. True when it was on sale."""
    asked = unlist_endpoints(pool, [endpoint_id])
    return RedisCall(lambda a: asked.parse(a)[0], script=asked.script, keys=asked.keys, args=asked.args)


def unlist_endpoints(pool: Pool, endpoint_ids: Sequence[EndpointId]) -> RedisCall[list[bool]]:
    """Take endpoints of one pool off sale. True for each that was on sale."""
    prefix = _prefix(pool)
    keys = [f"{prefix}ep:{endpoint_id}" for endpoint_id in endpoint_ids]
    return RedisCall(
        lambda answer: [bool(was) for was in answer],
        script=_UNLIST,
        keys=keys,
        args=[prefix, *endpoint_ids],
    )


def are_listed(pool: Pool, endpoint_ids: Sequence[EndpointId]) -> RedisCall[list[bool]]:
    """Which endpoints are on sale, in their order."""
    key = f"{_prefix(pool)}listed:any"
    return command("SMISMEMBER", key, *endpoint_ids, parse=lambda a: [bool(found) for found in a])


def listed_count(pool: Pool) -> RedisCall[int]:
    """How many endpoints are on sale."""
    return command("SCARD", f"{_prefix(pool)}listed:any", parse=int)


def scan_listed(pool: Pool, cursor: str, count: int) -> RedisCall[tuple[str, list[DeviceId]]]:
    """About `count` ids on sale, and where to go on; "0" at the end."""

    def parse(answer: Any) -> tuple[str, list[DeviceId]]:
        return str(int(answer[0])), [DeviceId(i.decode()) for i in answer[1]]

    return command("SSCAN", f"{_prefix(pool)}listed:any", cursor, "COUNT", count, parse=parse)


def listed_ids(pool: Pool) -> RedisCall[frozenset[str]]:
    """Ids of all endpoints on sale."""
    return command(
        "SMEMBERS", f"{_prefix(pool)}listed:any", parse=lambda a: frozenset(i.decode() for i in a or ())
    )


def pause(pool: Pool, endpoint_id: EndpointId, ttl_s: int) -> RedisCall[None]:
    """Keep selection away from an endpoint for a while; its listing stays."""
    return command("SET", f"{_prefix(pool)}pause:{endpoint_id}", "1", "EX", ttl_s, parse=ok)


def unpause(pool: Pool, endpoint_id: EndpointId) -> RedisCall[None]:
    """Let selection have an endpoint again: a probe passed, and its breaker is closed."""
    keys = _breaker_keys(pool, endpoint_id)
    return command("DEL", *keys, parse=ok)


class Doubt(NamedTuple):
    """Whose tunnel failed, and to where: digests, because they are only told apart."""

    owner: str
    host: str


def trip(pool: Pool, endpoint_id: EndpointId) -> RedisCall[int]:
    """An exit failed a customer: keep selection away for a while, longer each time until a probe passes.

    Answers for how many seconds the breaker is open.
    """
    keys = _breaker_keys(pool, endpoint_id)[:2]
    args = [BREAKER_PAUSE_S, BREAKER_PAUSE_MAX_S, BREAKER_MEMORY_S]
    return RedisCall(int, script=_TRIP, keys=keys, args=args)


def suspect(pool: Pool, endpoint_id: EndpointId, about: Doubt) -> RedisCall[bool]:
    """The fault may be the target's. True when so many different ones say so that it is the exit's; counted afresh then."""
    args: list[str | int] = [BREAKER_MEMORY_S, about.owner, BREAKER_OWNERS, about.host, BREAKER_HOSTS]
    return RedisCall(bool, script=_SUSPECT, keys=_breaker_keys(pool, endpoint_id)[2:], args=args)


def _breaker_keys(pool: Pool, endpoint_id: EndpointId) -> list[str]:
    return [f"{_prefix(pool)}{name}:{endpoint_id}" for name in ("pause", "breaker", "suspects")]


# Selection


class Selection:
    """What one key asks for by one username in one pool, written out once: customers ask it again and again.

    `limited_as` is whose sessions count together: the account, or the key where strangers share an account.
    """

    __slots__ = ("_args", "_keys", "_opening", "_parse")

    def __init__(
        self, route: Route, pool: Pool, pak_id: PakId, gateway_id: GatewayId, limited_as: str = ""
    ) -> None:
        prefix, sid = _prefix(pool), route.session_id or ""
        free = f"{prefix}free:{route.country or 'any'}"
        self._keys = (free, f"{prefix}sess:{pak_id}:{sid}" if sid else free, f"{prefix}lease:{gateway_id}")
        self._args = (prefix, pak_id, sid, *_wishes(route, pool, limited_as))
        self._opening = Opening(_ACQUIRE, self._keys, self._args)
        self._parse = partial(_acquired, pool)

    def acquire(
        self,
        now_ms: int,
        excluded: Sequence[EndpointId] = (),
        *,
        has_many: bool = False,
        away: Sequence[str] = (),
    ) -> RedisCall[Acquired | NoStock]:
        """Choose an endpoint and hold a connection on it until `release`. `has_many`: who asks has many connections
        already, and leaves the last place of an endpoint to others (decision 0088). `away`: relays that are not reached,
        as `mesh_address` has them."""
        last: tuple[str | int, ...] = (now_ms, int(has_many), *excluded, *away)
        written = self._opening.followed_by(*last)
        return RedisCall(self._parse, (), _ACQUIRE, self._keys, (*self._args, *last), written)


def acquire(
    route: Route,
    pool: Pool,
    pak_id: PakId,
    gateway_id: GatewayId,
    now_ms: int,
    excluded: Sequence[EndpointId] = (),
    *,
    has_many: bool = False,
    away: Sequence[str] = (),
) -> RedisCall[Acquired | NoStock]:
    """One acquire of a `Selection` that is not kept."""
    return Selection(route, pool, pak_id, gateway_id).acquire(now_ms, excluded, has_many=has_many, away=away)


def mesh_address(host: str, port: int) -> str:
    """A relay, as it is left out of a selection."""
    return f"{host}:{port}"


def _wishes(route: Route, pool: Pool, limited_as: str) -> tuple[str | int, ...]:
    one_device = route.failover in {Failover.STRICT, Failover.SAME_NODE}
    sticky = route.rotation is Rotation.STICKY
    carrier_is_hard = route.failover in {Failover.SAME_CARRIER, Failover.STRICT}
    pin_kind, pinned = route.pin or ("", "")
    return (
        route.ttl_s,
        ROTATION_WINDOW_MS[route.rotation],
        int(pool is Pool.PEER),
        route.ip_type.value if route.ip_type else "",
        "" if route.asn is None else str(route.asn),
        letters(route.isp or ""),
        route.carrier or "",
        int(carrier_is_hard),
        route.country or "",
        int(one_device and sticky),
        pin_kind,
        pinned,
        int(route.failover is Failover.STRICT),
        route.city or "",
        STRICT_STABILITY_MIN if route.strict and sticky else 0,
        route.account_id,
        limited_as or route.account_id,
        SESSIONS_MAX,
        int(route.failover is not Failover.ANY),
    )


def _acquired(pool: Pool, answer: Any) -> Acquired | NoStock:
    if not answer[0]:
        return NoStock(int(answer[1]), NoStockReason(answer[2].decode()))
    endpoint_id, row, place, how, sessions = answer
    endpoint = _endpoint(pool, endpoint_id, tuple(row))
    if not place:
        return Acquired(endpoint, "", 0, "", "", Selected(how), sessions)
    _, _, host, port, protocol, ip = place
    return Acquired(
        endpoint, _text(host), int(port or 0), _text(protocol), _text(ip), Selected(how), sessions
    )


def _text(value: bytes | None) -> str:
    return value.decode() if value else ""


@lru_cache(maxsize=ENDPOINTS_KEPT)
def _endpoint(pool: Pool, endpoint_id: bytes, row: tuple[bytes | None, ...]) -> Endpoint:
    """An endpoint as its row has it; the row's own bytes are the key, so a change is never missed."""
    account_id, country, carrier, asn, isp, ip_type, tier, city, stability, host, port, sealed = map(
        _text, row
    )
    return Endpoint(
        endpoint_id=EndpointId(endpoint_id.decode()),
        pool=pool,
        account_id=AccountId(account_id),
        country=Country(country),
        carrier=carrier,
        asn=int(asn),
        isp=isp,
        ip_type=IpType(ip_type),
        tier=SpeedTier(tier),
        modem_host=host,
        modem_port=int(port),
        modem_credentials_sealed=sealed,
        city=city,
        stability=int(stability) if stability else None,
    )


def release(
    pool: Pool, gateway_id: GatewayId, held: Sequence[tuple[EndpointId, PakId, int]]
) -> RedisCall[None]:
    """Give connections back; what this gateway does not hold is left alone, so a repeat does no harm."""
    prefix = _prefix(pool)
    args: list[str | int] = [prefix]
    for endpoint_id, pak_id, count in held:
        args += [endpoint_id, pak_id, count]
    return RedisCall(ok, script=_RELEASE, keys=[f"{prefix}lease:{gateway_id}"], args=args)


def beat(pool: Pool, gateway_id: GatewayId) -> Sequence[RedisCall[None]]:
    """A gateway is alive; without this for `GATEWAY_ALIVE_TTL_S` its leases are given back."""
    prefix = _prefix(pool)
    return (
        command("SET", f"{prefix}alive:{gateway_id}", "1", "EX", GATEWAY_ALIVE_TTL_S, parse=ok),
        command("SADD", f"{prefix}gateways", gateway_id, parse=ok),
    )


def gateways(pool: Pool) -> RedisCall[frozenset[GatewayId]]:
    """All gateways that ever held a lease in this pool and were not reaped since."""
    return command(
        "SMEMBERS",
        f"{_prefix(pool)}gateways",
        parse=lambda a: frozenset(GatewayId(g.decode()) for g in a or ()),
    )


def leftover(pool: Pool, gateway_id: GatewayId) -> RedisCall[tuple[tuple[EndpointId, PakId, int], ...]]:
    """Up to `REAP_BATCH` entries that a dead gateway still holds; give them to `release`. Without any it is forgotten."""
    prefix = _prefix(pool)
    keys = [f"{prefix}lease:{gateway_id}", f"{prefix}alive:{gateway_id}", f"{prefix}gateways"]
    return RedisCall(_held, script=_REAP, keys=keys, args=[REAP_BATCH, gateway_id])


def held(pool: Pool, gateway_id: GatewayId) -> RedisCall[tuple[tuple[EndpointId, PakId, int], ...]]:
    """All that a gateway holds: what it took and has not given back, as far as this server knows."""
    return command("HGETALL", f"{_prefix(pool)}lease:{gateway_id}", parse=_held)


def _held(answer: Any) -> tuple[tuple[EndpointId, PakId, int], ...]:
    entries = []
    for name, count in text_map(answer).items():
        endpoint_id, _, pak_id = name.partition("|")
        entries.append((EndpointId(endpoint_id), PakId(pak_id), int(count)))
    return tuple(entries)


# Revocations


def publish_revoke_pak(pak_id: PakId) -> RedisCall[None]:
    """Tell every gateway that a key's right to run may have changed; they read it again and close what must close."""
    return command("PUBLISH", REVOKE_PAK, pak_id, parse=ok)
