"""Selection in Redis: microseconds in the server per acquire, with 100,000 endpoints against 1,000."""

from __future__ import annotations

import statistics
from typing import Any, Final

from benchmarks.row import Row
from benchmarks.stores import redis_server
from shared.kernel.codes import IpType, Pool, SpeedTier
from shared.kernel.ids import AccountId, Country, EndpointId, GatewayId, PakId
from shared.pool import live
from shared.pool.model import Acquired, Endpoint
from shared.pool.username import parse_username
from shared.runtime.redis import SyncRedis, command

ROUNDS: Final = 5
CALLS_PER_ROUND: Final = 300
SMALL, LARGE = 1_000, 100_000
COUNTRIES: Final = ("us", "de", "gb", "fr", "br")
GOAL_US: Final = 60.0
GOAL_RATIO: Final = 2.0


def measure() -> Row:
    """Interleaved rounds on two pools of one server; the server's own clock."""
    with redis_server() as url:
        redis = SyncRedis(url)
        figures: dict[int, list[float]] = {SMALL: [], LARGE: []}
        filled = 0
        for size in (SMALL, LARGE):
            pool = Pool.MBL
            for number in range(filled, size):
                redis.run(live.list_endpoint(_endpoint(pool, number)))
            filled = size
            figures[size] = [_round(redis, pool, r) for r in range(ROUNDS)]
        redis.close()
    small, large = statistics.median(figures[SMALL]), statistics.median(figures[LARGE])
    ratio = large / small
    noise = f"{min(figures[LARGE]):.1f}-{max(figures[LARGE]):.1f} us"
    goal = f"<= {GOAL_US:.0f} us and <= {GOAL_RATIO:.0f} x the 1k figure"
    ok = large <= GOAL_US and ratio <= GOAL_RATIO
    return Row(
        "selection_100k",
        "us/call",
        round(large, 1),
        {"same_1k": round(small, 1)},
        round(ratio, 2),
        goal,
        ok,
        [],
        noise,
    )


def _endpoint(pool: Pool, number: int) -> Endpoint:
    return Endpoint(
        EndpointId(f"m{number}"), pool, AccountId("psx_farm"), Country(COUNTRIES[number % len(COUNTRIES)]), "lab", 64601,
        "Lab", IpType.MOBILE, SpeedTier.FAST, "127.0.0.1", 1, "sealed",
    )  # fmt: skip


def _round(redis: SyncRedis, pool: Pool, number: int) -> float:
    redis.run(command("CONFIG", "RESETSTAT", parse=bool))
    held: list[tuple[EndpointId, PakId, int]] = []
    route, pak, gateway = parse_username("psx_a-mbl-us"), PakId(f"p{number}"), GatewayId("bench")
    for _ in range(CALLS_PER_ROUND):
        result = redis.run(live.acquire(route, pool, pak, gateway, 0))
        if not isinstance(result, Acquired):
            raise RuntimeError("nothing to select: the pool is full")
        held.append((result.endpoint.endpoint_id, pak, 1))
    spent = redis.run(command("INFO", "commandstats", parse=_usec_per_eval))
    for start in range(0, len(held), 100):
        redis.run(live.release(pool, gateway, held[start : start + 100]))
    return spent


def _usec_per_eval(answer: Any) -> float:
    stats = answer if isinstance(answer, dict) else {}
    return float(stats["cmdstat_evalsha"]["usec_per_call"])
