"""The live pool in Redis: presence, listed endpoints, selection with leases, stock, and who is told of revocations.

All keys of a pool carry its hash tag, so each script touches one slot. Selection costs the same in a pool of ten and of
ten thousand: it draws from sets of endpoints that have room, and touches those sets only at the full / not-full edge.
Key table: docs/architecture.md.
"""

import re
from collections.abc import Iterable, Mapping, Sequence
from functools import lru_cache
from typing import Any, Final, NamedTuple

from shared.kernel.codes import IpType, Pool, SpeedTier
from shared.kernel.ids import AccountId, Country, DeviceId, EndpointId, GatewayId, PakId, RelayId, pin_id
from shared.pool.model import (
    PRESENCE_TTL_S,
    ROTATION_WINDOW_MS,
    Acquired,
    Endpoint,
    Failover,
    NoStock,
    NoStockReason,
    Presence,
    Rotation,
    Route,
    Selected,
    caps_of,
)
from shared.runtime.redis import RedisCall, Script, command, ok

REVOKE_PAK: Final = "revoke"
REVOKE_DEVICE: Final = "revoke:dev"
REVOKE_ACCOUNT: Final = "revoke:acct"
MOVE_PEERS: Final = "move:relay"
REVOKED_TTL_S: Final = 2 * 3600
GATEWAY_ALIVE_TTL_S: Final = 30
REAP_BATCH: Final = 500
ENDPOINTS_KEPT: Final = 8192
SESSIONS_MAX: Final = 250
"""Sessions with a name that one account (or key of a shared account) has at once."""
STRICT_STABILITY_MIN: Final = 40

_ACQUIRE: Final = Script.load("shared.pool", "acquire")
_RELEASE: Final = Script.load("shared.pool", "release")
_REAP: Final = Script.load("shared.pool", "reap", reads=True)
_LIST: Final = Script.load("shared.pool", "list")
_UNLIST: Final = Script.load("shared.pool", "unlist")
_RENEW_PRESENCE: Final = Script.load("shared.pool", "renew_presence")
_PUT_PRESENCE: Final = Script.load("shared.pool", "put_presence")
_DROP_PRESENCE: Final = Script.load("shared.pool", "drop_presence")
_PRESENCES: Final = Script.load("shared.pool", "presences", reads=True)
_BEAT_RELAY: Final = Script.load("shared.pool", "beat_relay")
_TRIP: Final = Script.load("shared.pool", "trip")
RELAY_BEAT_S: Final = 1.0
RELAY_ALIVE_TTL_MS: Final = 4_000
"""A relay that is lost takes its devices out of the pool within this time."""
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


def _text_map(answer: Any) -> dict[str, str]:
    """A RESP3 map, or a flat list of names and values, as text."""
    if isinstance(answer, Mapping):
        return {k.decode(): v.decode() for k, v in answer.items()}
    items = [part.decode() for part in answer or ()]
    return dict(zip(items[::2], items[1::2], strict=True))


# Presence


class RevokedBelow(NamedTuple):
    """Generations below which tokens of a device, and of all devices of its account, are revoked: 0 is none."""

    device: int
    account: int


class Arrival(NamedTuple):
    """A device that is on a relay, with the generations of its token."""

    presence: Presence
    generation: int = 0
    account_generation: int = 0


def put_presence(
    presence: Presence, generation: int = 0, account_generation: int = 0
) -> RedisCall[RevokedBelow]:
    """The same for one device."""
    asked = put_presences(presence.relay_id, [Arrival(presence, generation, account_generation)])
    return RedisCall(lambda a: asked.parse(a)[0], script=asked.script, keys=asked.keys, args=asked.args)


def put_presences(relay_id: RelayId, arrivals: Sequence[Arrival]) -> RedisCall[list[RevokedBelow]]:
    """Devices are on a relay; run again before `PRESENCE_TTL_S` is over. The relay that a device came to last wins.

    Answers for each which generations are revoked; where its own is one of them nothing is written.
    """
    keys: list[str] = []
    args: list[str | int] = [PRESENCE_TTL_S, relay_id, 0]
    for arrival in arrivals:
        args += _arrival(arrival)
        keys.append(f"{_prefix(Pool.PEER)}live:{arrival.presence.device_id}")
    args[2] = (len(args) - 3) // len(arrivals)
    return RedisCall(
        lambda answer: [RevokedBelow(int(told[1]), int(told[2])) for told in answer],
        script=_PUT_PRESENCE,
        keys=keys,
        args=args,
    )


def _other_keys(presence: Presence) -> tuple[str, str, str]:
    """Where it stands what of a device, and of its account, is revoked, and what pins call it by."""
    device_id, prefix = presence.device_id, _prefix(Pool.PEER)
    alias = pin_id(device_id)
    pin = f"{prefix}pin:{presence.account_id}:{alias}" if alias != device_id else f"{prefix}live:{device_id}"
    return _revoked_key(device_id), _revoked_account_key(presence.account_id), pin


def _arrival(arrival: Arrival) -> tuple[str | int, ...]:
    presence = arrival.presence
    return (
        presence.connected_at_ms, arrival.generation, arrival.account_generation,
        *_other_keys(presence), presence.device_id,
        "account_id", presence.account_id,
        "relay_id", presence.relay_id,
        "mesh_host", presence.mesh_host,
        "mesh_port", presence.mesh_port,
        "protocol", presence.protocol,
        "ip", presence.ip,
        "country", presence.country,
        "ip_type", presence.ip_type.value,
        "asn", presence.asn,
        "isp", presence.isp,
        "connected_at_ms", presence.connected_at_ms,
        "relay_life", presence.relay_life,
    )  # fmt: skip


def renew_presence(device_ids: Sequence[DeviceId], relay_id: RelayId) -> RedisCall[list[bool]]:
    """Devices are still on this relay. False for each that Redis has forgotten, or has elsewhere: put it again."""
    keys = [f"{_prefix(Pool.PEER)}live:{device_id}" for device_id in device_ids]
    return RedisCall(
        lambda answer: [bool(kept) for kept in answer],
        script=_RENEW_PRESENCE,
        keys=keys,
        args=[relay_id, PRESENCE_TTL_S],
    )


def _revoked_key(device_id: DeviceId) -> str:
    return f"{_prefix(Pool.PEER)}revoked:{device_id}"


def _revoked_account_key(account_id: AccountId) -> str:
    return f"{_prefix(Pool.PEER)}revoked-account:{account_id}"


def drop_presences(device_ids: Sequence[DeviceId], relay_id: RelayId) -> RedisCall[list[bool]]:
    """Devices left this relay. False for each that is on another one by now, and stays."""
    keys = [f"{_prefix(Pool.PEER)}live:{device_id}" for device_id in device_ids]
    return RedisCall(
        lambda answer: [bool(dropped) for dropped in answer],
        script=_DROP_PRESENCE,
        keys=keys,
        args=[relay_id],
    )


def beat_relay(relay_id: RelayId, life: str) -> RedisCall[bool]:
    """A relay lives, in this life of it. False when Redis did not know that: it is new there, or everything was lost."""
    key = f"{_prefix(Pool.PEER)}relay:{relay_id}"
    return RedisCall(bool, script=_BEAT_RELAY, keys=[key], args=[life, RELAY_ALIVE_TTL_MS])


def read_presence(device_id: DeviceId) -> RedisCall[Presence | None]:
    """Where a device is now; None when it is on no relay that lives."""
    asked = read_presences([device_id])
    return RedisCall(lambda a: asked.parse(a)[0], script=asked.script, keys=asked.keys, args=asked.args)


def read_presences(device_ids: Sequence[DeviceId]) -> RedisCall[list[Presence | None]]:
    """Where devices are now, in their order; None for one that is on no relay that lives."""
    prefix = _prefix(Pool.PEER)

    def parse(answer: Any) -> list[Presence | None]:
        return [_presence(d, _text_map(row)) for d, row in zip(device_ids, answer, strict=True)]

    keys = [f"{prefix}live:{device_id}" for device_id in device_ids]
    return RedisCall(parse, script=_PRESENCES, keys=keys, args=[prefix])


def _presence(device_id: DeviceId, row: Mapping[str, str]) -> Presence | None:
    if "relay_id" not in row:
        return None
    return Presence(
        device_id=device_id,
        account_id=AccountId(row["account_id"]),
        relay_id=RelayId(row["relay_id"]),
        mesh_host=row["mesh_host"],
        mesh_port=int(row["mesh_port"]),
        protocol=row["protocol"],
        ip=row["ip"],
        country=Country(row["country"]),
        ip_type=IpType(row["ip_type"]),
        asn=int(row["asn"]),
        isp=row["isp"],
        connected_at_ms=int(row["connected_at_ms"]),
        relay_life=row.get("relay_life", ""),
    )


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


def trip(pool: Pool, endpoint_id: EndpointId, about: Doubt | None = None) -> RedisCall[int]:
    """An exit failed a customer: keep selection away for a while, longer each time until a probe passes.

    With a doubt the fault may be the target's: only several different ones open the breaker. Answers for how many seconds
    it is open.
    """
    owner, host = about or ("", "")
    args: list[str | int] = [
        *(BREAKER_PAUSE_S, BREAKER_PAUSE_MAX_S, BREAKER_MEMORY_S),
        *(owner, BREAKER_OWNERS, host, BREAKER_HOSTS),
    ]
    return RedisCall(int, script=_TRIP, keys=_breaker_keys(pool, endpoint_id), args=args)


def _breaker_keys(pool: Pool, endpoint_id: EndpointId) -> list[str]:
    return [f"{_prefix(pool)}{name}:{endpoint_id}" for name in ("pause", "breaker", "suspects")]


# Selection


def acquire(
    route: Route,
    pool: Pool,
    pak_id: PakId,
    gateway_id: GatewayId,
    now_ms: int,
    excluded: Iterable[EndpointId] = (),
    limited_as: str = "",
) -> RedisCall[Acquired | NoStock]:
    """Choose an endpoint of one pool and hold a connection on it until `release`.

    `limited_as` is whose sessions count together: the account, or the key where strangers share an account.
    """
    prefix = _prefix(pool)
    sid = route.session_id or ""
    free = f"{prefix}free:{route.country or 'any'}"
    one_device = route.failover in {Failover.STRICT, Failover.SAME_NODE}
    sticky = route.rotation is Rotation.STICKY
    carrier_is_hard = route.failover in {Failover.SAME_CARRIER, Failover.STRICT}
    pin_kind, pinned = route.pin or ("", "")
    args: list[str | int] = [
        prefix,
        pak_id,
        sid,
        now_ms,
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
        *excluded,
    ]
    keys = [free, f"{prefix}sess:{pak_id}:{sid}" if sid else free, f"{prefix}lease:{gateway_id}"]
    return RedisCall(lambda answer: _acquired(pool, answer), script=_ACQUIRE, keys=keys, args=args)


def _acquired(pool: Pool, answer: Any) -> Acquired | NoStock:
    if not answer[0]:
        return NoStock(int(answer[1]), NoStockReason(answer[2].decode()))
    endpoint_id, fields, live, how, sessions = answer
    presence = _text_map(live) if live else {}
    return Acquired(
        _endpoint(pool, endpoint_id, tuple(fields)),
        presence.get("mesh_host", ""),
        int(presence.get("mesh_port", "0")),
        presence.get("protocol", ""),
        presence.get("ip", ""),
        Selected(int(how)),
        int(sessions),
    )


@lru_cache(maxsize=ENDPOINTS_KEPT)
def _endpoint(pool: Pool, endpoint_id: bytes, fields: tuple[bytes, ...]) -> Endpoint:
    """An endpoint as its row has it; the row's own bytes are the key, so a change is never missed."""
    row = _text_map(fields)
    return Endpoint(
        endpoint_id=EndpointId(endpoint_id.decode()),
        pool=pool,
        account_id=AccountId(row["account_id"]),
        country=Country(row["country"]),
        carrier=row["carrier"],
        asn=int(row["asn"]),
        isp=row["isp"],
        ip_type=IpType(row["ip_type"]),
        tier=SpeedTier(row["tier"]),
        modem_host=row["modem_host"],
        modem_port=int(row["modem_port"]),
        modem_credentials_sealed=row["modem_credentials_sealed"],
        city=row.get("city", ""),
        stability=int(row["stability"]) if row.get("stability") else None,
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


def forget_gateway(pool: Pool, gateway_id: GatewayId) -> RedisCall[None]:
    """A dead gateway has nothing left to give back."""
    return command("SREM", f"{_prefix(pool)}gateways", gateway_id, parse=ok)


def leftover(
    pool: Pool, gateway_id: GatewayId, *, restarted: bool = False
) -> RedisCall[tuple[tuple[EndpointId, PakId, int], ...]]:
    """Up to `REAP_BATCH` entries that a dead (or restarted) gateway still holds; give them to `release`."""
    prefix = _prefix(pool)
    keys = [f"{prefix}lease:{gateway_id}", f"{prefix}alive:{gateway_id}"]
    return RedisCall(_held, script=_REAP, keys=keys, args=[int(restarted), REAP_BATCH])


def held(pool: Pool, gateway_id: GatewayId) -> RedisCall[tuple[tuple[EndpointId, PakId, int], ...]]:
    """All that a gateway holds: what it took and has not given back, as far as this server knows."""
    return command("HGETALL", f"{_prefix(pool)}lease:{gateway_id}", parse=_held)


def _held(answer: Any) -> tuple[tuple[EndpointId, PakId, int], ...]:
    entries = []
    for name, count in _text_map(answer).items():
        endpoint_id, _, pak_id = name.partition("|")
        entries.append((EndpointId(endpoint_id), PakId(pak_id), int(count)))
    return tuple(entries)


# Revocations


def publish_revoke_pak(pak_id: PakId) -> RedisCall[None]:
    """Tell every gateway that a key's right to run may have changed; they read it again and close what must close."""
    return command("PUBLISH", REVOKE_PAK, pak_id, parse=ok)


def revoke_device(device_id: DeviceId, generation: int) -> Sequence[RedisCall[None]]:
    """A device's tokens before `generation` ended: keep that for as long as such a token lives, and tell every relay."""
    return (
        command("SET", _revoked_key(device_id), generation, "EX", REVOKED_TTL_S, parse=ok),
        command("PUBLISH", REVOKE_DEVICE, f"{device_id} {generation}", parse=ok),
    )


def revoke_account(account_id: AccountId, generation: int) -> Sequence[RedisCall[None]]:
    """The same for every device of an account at once."""
    return (
        command("SET", _revoked_account_key(account_id), generation, "EX", REVOKED_TTL_S, parse=ok),
        command("PUBLISH", REVOKE_ACCOUNT, f"{account_id} {generation}", parse=ok),
    )


def publish_move(relay_id: RelayId, url: str) -> RedisCall[None]:
    """An operator's wish: every peer of a relay that follows redirects goes to another one."""
    return command("PUBLISH", MOVE_PEERS, f"{relay_id} {url}", parse=ok)
