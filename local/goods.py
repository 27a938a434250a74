"""Devices that are on sale in a network without any: for whoever tries the sale alone. Nothing answers behind them."""

from typing import Final

from shared.kernel.codes import IpType, Pool, SpeedTier
from shared.kernel.ids import AccountId, Country, EndpointId
from shared.pool.live import list_endpoint
from shared.pool.model import Endpoint
from shared.pool.numbers import derive, run
from shared.runtime.redis import SyncRedis

MODEM: Final = EndpointId("goods_modem")
_KINDS: Final = {
    MODEM: (Pool.MBL, IpType.MOBILE),
    EndpointId("goods_phone"): (Pool.PEER, IpType.MOBILE),
    EndpointId("goods_home"): (Pool.PEER, IpType.RESIDENTIAL),
}


def put_goods(redis: SyncRedis) -> None:
    """One device of each kind that is sold, in the US, counted at once."""
    for name, (pool, ip_type) in _KINDS.items():
        country, owner = Country("us"), AccountId("psx_farm")
        place = ("127.0.0.1", 8000, "sealed") if pool is Pool.MBL else ()
        found = Endpoint(
            name, pool, owner, country, "lab", 64601, "Lab Mobile", ip_type, SpeedTier.FAST, *place
        )
        redis.run(list_endpoint(found))
    run(redis, derive())
