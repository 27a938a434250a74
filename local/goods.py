"""Devices that are on sale in a network without any: for whoever tries the sale alone. Nothing answers behind them."""

from dataclasses import replace
from typing import Final

from shared.kernel.codes import IpType, Pool, SpeedTier
from shared.kernel.ids import AccountId, Country, DeviceId, EndpointId, RelayId
from shared.pool.live import list_endpoint
from shared.pool.model import Endpoint, Presence
from shared.pool.numbers import derive, run
from shared.pool.presence import put_presence
from shared.runtime.clock import now_ms
from shared.runtime.redis import SyncRedis

MODEM: Final = EndpointId("goods_modem")
_KINDS: Final = {
    MODEM: (Pool.MBL, IpType.MOBILE),
    EndpointId("goods_phone"): (Pool.PEER, IpType.MOBILE),
    EndpointId("goods_home"): (Pool.PEER, IpType.RESIDENTIAL),
}


def put_goods(redis: SyncRedis) -> None:
    """One device of each kind that is sold, in the US, counted at once. Peers are there for as long as a presence lasts."""
    for name, (pool, ip_type) in _KINDS.items():
        country, owner = Country("us"), AccountId("psx_farm")
        device = Endpoint(name, pool, owner, country, "lab", 64601, "Lab Mobile", ip_type, SpeedTier.FAST)
        if pool is Pool.PEER:
            relay, place = RelayId("goods"), ("127.0.0.1", 9, "127.10.1.1")
            here = Presence(
                DeviceId(name), owner, relay, *place, country, ip_type, 64601, "Lab Mobile", now_ms()
            )
            redis.run(put_presence(here))
        else:
            device = replace(
                device, modem_host="127.0.0.1", modem_port=8000, modem_credentials_sealed="sealed"
            )
        redis.run(list_endpoint(device))
    run(redis, derive())
