"""Dedicated ports: one listed device held for one sold key, under a lease that the key's username pins.

The gateway enforces the pin (`-pin-lease-<id>`, see `acquire.lua`) by the reservation that is written here; the lease
itself is a row of the sale. A private port has its device alone; shared ports share one up to its customers.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final

from shared.kernel.codes import Pool
from shared.kernel.ids import AccountId, Country, EndpointId, PakId
from shared.pool.live import unreserve
from shared.runtime.redis import RedisCall, Script, command

LOOKED_AT: Final = 256
"""Listed devices of a country that one search draws; beyond it a free one may be missed, and is found by the next."""
_HOLD: Final = Script.load("shared.pool", "hold_port")


@dataclass(frozen=True, slots=True)
class PortWish:
    """What kind of device a port is to have. `carrier` and `city` are slugs, or empty."""

    pool: Pool
    country: Country | None
    carrier: str
    city: str
    private: bool


def hold_port(
    wish: PortWish,
    lease_id: str,
    account_id: AccountId,
    pak_id: PakId,
    expires_at_ms: int,
    now_ms: int,
    excluded: Iterable[EndpointId] = (),
    first: EndpointId | None = None,
) -> RedisCall[EndpointId | None]:
    """Hold a device under a lease for one key, or answer the one it holds; None when none is free.

    `first` is taken when it is free, whatever else is. With the held device in `excluded` the lease moves to another one,
    and keeps what it has when there is none.
    """
    prefix = f"{{{wish.pool.value}}}:"
    args: list[str | int] = [
        prefix,
        lease_id,
        account_id,
        expires_at_ms,
        now_ms,
        int(wish.private),
        wish.city,
        wish.carrier,
        LOOKED_AT,
        pak_id,
        first or "",
        *excluded,
    ]
    keys = [f"{prefix}reserved:{lease_id}", f"{prefix}listed:{wish.country or 'any'}"]
    return RedisCall(lambda a: EndpointId(a.decode()) if a else None, script=_HOLD, keys=keys, args=args)


def let_go(pool: Pool, lease_id: str, endpoint_id: EndpointId) -> tuple[RedisCall[bool], RedisCall[int]]:
    """The lease ends: its username fails closed, and its device is free for others."""
    key = f"{{{pool.value}}}:ports:{endpoint_id}"
    return unreserve(pool, lease_id), command("ZREM", key, lease_id, parse=int)


def is_listed(pool: Pool, endpoint_id: EndpointId) -> RedisCall[bool]:
    """Whether a device is on sale now: what went offline or failed its probes is not."""
    return command("SISMEMBER", f"{{{pool.value}}}:listed:any", endpoint_id, parse=bool)


def is_paused(pool: Pool, endpoint_id: EndpointId) -> RedisCall[bool]:
    """Whether faults were reported of a device a moment ago."""
    return command("EXISTS", f"{{{pool.value}}}:pause:{endpoint_id}", parse=bool)


def is_held(pool: Pool, lease_id: str) -> RedisCall[bool]:
    """Whether the live network still knows what a lease holds."""
    return command("EXISTS", f"{{{pool.value}}}:reserved:{lease_id}", parse=bool)
