"""The live numbers: stock, online, load and traffic, derived once from the live network and read by every route and page.

A job derives them every 5 s. One of those who find them aging derives them itself, and all who find them older than 10 s
do, so that nobody ever shows older ones, and a job that is away costs nothing. No surface counts anything of its own.

Steps are generators that ask for Redis calls: `run` and `run_async` drive them.
"""

import json
from collections import Counter, defaultdict
from collections.abc import Generator, Iterator, Mapping
from dataclasses import asdict, dataclass, field, fields
from typing import Any, Final, NamedTuple, TypeVar

from shared.kernel.codes import IpType, Pool, SpeedTier
from shared.kernel.ids import Country
from shared.metering.live import read_traffic
from shared.runtime.dynamo import StoreUnavailable
from shared.runtime.redis import AsyncRedis, RedisCall, Script, SyncRedis, command, ok

T = TypeVar("T")
FRESH_MS: Final = 10_000
AGING_MS: Final = 7_500
"""Older than the job leaves it: one reader derives it anew, the others show it until it is `FRESH_MS` old."""
DERIVE_EVERY_S: Final = 5.0
KEPT_S: Final = 120
LOCK_MS: Final = 8_000
"""Longer than a derivation takes; a deriver that died keeps others from it no longer."""
CHUNK: Final = 500
READ_TRIES_MAX: Final = 5
ROW_FIELDS: Final = 9
PAUSED: Final = "paused"
_NUMBERS: Final = "{live}:rollup"
_NETWORKS: Final = "{live}:rollup_networks"
_LOCK: Final = "{live}:lock"
_FLEET: Final = "{live}:fleet"
FLEET_KEPT_S: Final = 3600
_COUNT: Final = Script.load("shared.pool", "count", reads=True)
_NOW: Final = Script.load("shared.pool", "now", reads=True)
_PUT: Final = Script.load("shared.pool", "put_numbers")

Steps = Generator[RedisCall[Any], Any, T]
Counts = dict[str, dict[str, int]]
"""pool -> country -> count."""


@dataclass(frozen=True, slots=True)
class Network:
    """Listed endpoints of one network in one country; never an address or an id."""

    asn: int
    name: str
    ip_type: str
    count: int


@dataclass(slots=True)
class Numbers:
    """One derivation. `stock` counts listed endpoints that anybody may be routed to: what a private port or a lease has
    alone is under `held`, and nowhere else but in `load`.

    `online` counts those of the stock that are connected now, `load` open connections on all listed ones.
    `quality` counts the stock by speed tier, and under `paused` those that selection is kept from just now. `fleet`
    counts all devices as the listing run last saw them: by verdict and by tier.
    `traffic_bytes` is all that was flushed since Redis began; `bytes_per_s` its growth since the derivation before.
    """

    at_ms: int
    stock: Counts = field(default_factory=dict)
    online: Counts = field(default_factory=dict)
    load: Counts = field(default_factory=dict)
    held: Counts = field(default_factory=dict)
    types: dict[str, dict[str, dict[str, int]]] = field(default_factory=dict)
    quality: dict[str, dict[str, dict[str, int]]] = field(default_factory=dict)
    fleet: dict[str, int] = field(default_factory=dict)
    traffic_bytes: int = 0
    bytes_per_s: int = 0

    def stock_of(self, pool: Pool) -> dict[Country, int]:
        """What of a pool anybody may be routed to, per country."""
        return {Country(country): count for country, count in self.stock.get(pool.value, {}).items()}

    def is_free(self, pool: Pool, country: Country | None, ip_type: str = "") -> bool:
        """Whether a pool has anything for everybody: in a country, or anywhere; of one IP type, or of any."""
        types = self.types.get(pool.value, {})
        found = (types.get(country, {}),) if country else types.values()
        return any(counts.get(ip_type, 0) if ip_type else sum(counts.values()) for counts in found)


Networks = dict[tuple[Pool, str], list[Network]]


def run(redis: SyncRedis, steps: Steps[T]) -> T:
    """Drive steps from synchronous code. Raises StoreUnavailable."""
    answer: Any = None
    try:
        while True:
            answer = redis.run(steps.send(answer))
    except StopIteration as done:
        return done.value  # type: ignore[no-any-return]  # a generator's value is not typed


async def run_async(redis: AsyncRedis, steps: Steps[T]) -> T:
    """Drive steps on a loop. Raises StoreUnavailable."""
    answer: Any = None
    try:
        while True:
            answer = await redis.run(steps.send(answer))
    except StopIteration as done:
        return done.value  # type: ignore[no-any-return]  # a generator's value is not typed


def live_numbers(now_ms: int) -> Steps[Numbers]:
    """The rollup, at most `FRESH_MS` old: derived here when it ages and nobody else is at it, or is older.

    A deriver that died keeps its lock, so who finds nothing fresh waits for nobody; to derive twice does no harm.
    """
    found: Numbers | None = yield _read()
    age_ms = FRESH_MS if found is None else abs(now_ms - found.at_ms)
    if found is not None and age_ms < FRESH_MS and (age_ms < AGING_MS or not (yield _lock())):
        return found
    return (yield from derive())


def networks_of(pool: Pool, country: Country, now_ms: int) -> Steps[tuple[Numbers, list[Network]]]:
    """The rollup, and the networks of one country from the same derivation."""
    for _ in range(READ_TRIES_MAX):
        numbers = yield from live_numbers(now_ms)
        at_ms, rows = yield command("HMGET", _NETWORKS, "at_ms", f"{pool.value}:{country}", parse=tuple)
        if int(at_ms or 0) == numbers.at_ms:
            return numbers, _networks(rows)
    raise StoreUnavailable("the live numbers change faster than they can be read")


def derive() -> Steps[Numbers]:
    """Derive and store. The job's work; its time is the server's."""
    before: Numbers | None = yield _read()
    at_ms: int = yield RedisCall(int, script=_NOW, keys=[_NUMBERS])
    numbers, networks = Numbers(at_ms), Networks()
    for pool in Pool:
        yield from _count(pool, numbers, networks)
    numbers.fleet = yield command("GET", _FLEET, parse=lambda raw: json.loads(raw) if raw else {})
    numbers.traffic_bytes = yield read_traffic()
    if before is not None and at_ms > before.at_ms:
        grown = max(numbers.traffic_bytes - before.traffic_bytes, 0)
        numbers.bytes_per_s = grown * 1000 // (at_ms - before.at_ms)
    yield _put(numbers, networks)
    return numbers


def _count(pool: Pool, numbers: Numbers, networks: Networks) -> Steps[None]:
    prefix, seen = f"{{{pool.value}}}:", set[bytes]()
    stock, online, load, held = Counter[str](), Counter[str](), Counter[str](), Counter[str]()
    types: dict[str, Counter[str]] = defaultdict(Counter)
    quality: dict[str, Counter[str]] = defaultdict(Counter)
    found: Counter[tuple[str, int, str, str]] = Counter()
    cursor = b"0"
    while True:
        cursor, ids = yield command("SSCAN", f"{prefix}listed:any", cursor, "COUNT", CHUNK, parse=tuple)
        fresh = [one for one in ids if one not in seen]
        seen.update(fresh)
        for start in range(0, len(fresh), CHUNK):
            args = [prefix, int(pool is Pool.PEER), *fresh[start : start + CHUNK]]
            answer = yield RedisCall(list, script=_COUNT, keys=[f"{prefix}listed:any"], args=args)
            for row in _rows(answer):
                load[row.country] += row.connections
                if row.held:
                    held[row.country] += 1
                    continue
                stock[row.country] += 1
                online[row.country] += row.online
                types[row.country][row.ip_type] += 1
                quality[row.country][row.tier] += 1
                quality[row.country][PAUSED] += row.paused
                found[row.country, row.asn, row.isp, row.ip_type] += 1
        if int(cursor) == 0:
            break
    name = pool.value
    numbers.stock[name], numbers.online[name], numbers.load[name] = dict(stock), dict(online), dict(load)
    numbers.held[name] = dict(held)
    numbers.types[name] = {country: dict(counts) for country, counts in types.items()}
    numbers.quality[name] = {country: dict(counts) for country, counts in quality.items()}
    for (country, asn, isp, ip_type), count in found.most_common():
        networks.setdefault((pool, country), []).append(Network(asn, isp, ip_type, count))


class _Row(NamedTuple):
    country: str
    asn: int
    isp: str
    ip_type: str
    tier: str
    connections: int
    online: int
    paused: int
    held: int


def _rows(answer: list[Any]) -> Iterator[_Row]:
    for at in range(0, len(answer), ROW_FIELDS):
        country, asn, isp, ip_type, tier, *counts = answer[at : at + ROW_FIELDS]
        kind, speed = IpType(ip_type.decode()).value, SpeedTier(tier.decode() or "unknown").value
        yield _Row(country.decode(), int(asn or 0), isp.decode(), kind, speed, *map(int, counts))


def put_fleet(counts: Mapping[str, int]) -> RedisCall[None]:
    """What the listing run saw of all devices; the next derivation tells it."""
    return command("SET", _FLEET, json.dumps(dict(counts)), "EX", FLEET_KEPT_S, parse=ok)


def _read() -> RedisCall[Numbers | None]:
    return command("GET", _NUMBERS, parse=lambda raw: None if raw is None else _known(json.loads(raw)))


def _known(stored: Mapping[str, Any]) -> Numbers:
    """What this version knows of a rollup: one that is newer may have put more into it."""
    return Numbers(**{f.name: stored[f.name] for f in fields(Numbers) if f.name in stored})


def _lock() -> RedisCall[bool]:
    return command("SET", _LOCK, 1, "NX", "PX", LOCK_MS, parse=bool)


def _put(numbers: Numbers, networks: Networks) -> RedisCall[None]:
    args: list[str | int] = [json.dumps(asdict(numbers)), numbers.at_ms, KEPT_S, "at_ms", numbers.at_ms]
    for (pool, country), rows in networks.items():
        args += [f"{pool.value}:{country}", json.dumps([asdict(row) for row in rows])]
    return RedisCall(ok, script=_PUT, keys=[_NUMBERS, _NETWORKS, _LOCK], args=args)


def _networks(raw: bytes | None) -> list[Network]:
    return [] if raw is None else [Network(**row) for row in json.loads(raw)]


def known(redis: SyncRedis, now_ms: int) -> Numbers | None:
    """The rollup, or None when the live network cannot be asked."""
    try:
        return run(redis, live_numbers(now_ms))
    except StoreUnavailable:
        return None
