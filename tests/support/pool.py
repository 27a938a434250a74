"""The live pool's exits as tests list them, and customers who take them."""

from typing import Any

from shared.kernel.codes import IpType, Pool, SpeedTier
from shared.kernel.ids import AccountId, Country, DeviceId, EndpointId, GatewayId, PakId, RelayId
from shared.pool import live
from shared.pool.model import (
    Acquired,
    Endpoint,
    NoStock,
    Presence,
)
from shared.pool.username import parse_username
from shared.runtime.redis import RedisCall, SyncRedis

GATEWAY = GatewayId("gw1")
PAK = PakId("p1")
NOW = 1_800_000_000_000


def modem(name: str, country: str = "us", **more: Any) -> Endpoint:
    fields: dict[str, Any] = {
        "carrier": "lab_mobile",
        "asn": 64601,
        "isp": "Lab Mobile US",
        "ip_type": IpType.MOBILE,
        "tier": SpeedTier.FAST,
        "modem_host": "127.0.0.1",
        "modem_port": 8000,
        "modem_credentials_sealed": "sealed",
    }
    return Endpoint(
        endpoint_id=EndpointId(name),
        pool=Pool.MBL,
        country=Country(country),
        **{"account_id": AccountId("psx_farm"), **fields, **more},
    )


def peer(name: str, **more: Any) -> Endpoint:
    base = modem(name, modem_host="", modem_port=0, modem_credentials_sealed="", **more)
    return Endpoint(**{**{f: getattr(base, f) for f in Endpoint.__dataclass_fields__}, "pool": Pool.PEER})


def presence(name: str, relay: str = "r1", port: int = 9000) -> Presence:
    return Presence(
        DeviceId(name), AccountId("psx_farm"), RelayId(relay), "127.0.0.1", port, "127.10.1.1", Country("us"),
        IpType.MOBILE, 64601, "Lab", NOW,
    )  # fmt: skip


def run(redis: SyncRedis, *calls: RedisCall[Any]) -> None:
    for call in calls:
        redis.run(call)


def take(
    redis: SyncRedis,
    username: str,
    pool: Pool = Pool.MBL,
    pak: PakId = PAK,
    now: int = NOW,
    excluded: tuple[str, ...] = (),
    has_many: bool = False,
    away: tuple[str, ...] = (),
) -> Acquired | NoStock:
    route, others = parse_username(username), [EndpointId(e) for e in excluded]
    return redis.run(live.acquire(route, pool, pak, GATEWAY, now, others, has_many=has_many, away=away))


def taken(redis: SyncRedis, username: str, **more: Any) -> str:
    result = take(redis, username, **more)
    assert isinstance(result, Acquired)
    return result.endpoint.endpoint_id


def pin(redis: SyncRedis, username: str, pool: Pool = Pool.MBL, **more: Any) -> Acquired | NoStock:
    return take(redis, username, pool=pool, **more)
