"""Holds: one listed device for one key, under a lease that the key's username pins.

The gateway enforces the pin (`-pin-lease-<id>`, see `acquire.lua`) by the reservation that is written here; the lease
itself is a row: of the sale for a dedicated port, of its key for a reserved device. A private hold has its device alone;
shared ports share one up to its customers.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Final

from shared.kernel.codes import IpType, Pool
from shared.kernel.ids import AccountId, Country, EndpointId, PakId
from shared.runtime.redis import RedisCall, Script, command

LOOKED_AT: Final = 256
"""Listed devices of a country that one search draws; beyond it a free one may be missed, and is found by the next."""
LAST_KEPT_PERCENT: Final = 99
"""How much of a country holds that move may have alone: all but its last device, however few there are."""
_HOLD: Final = Script.load("shared.pool", "hold_port")
_UNRESERVE: Final = Script.load("shared.pool", "unreserve")
_TEND: Final = Script.load("shared.pool", "tend_holds")


@dataclass(frozen=True, slots=True)
class PortWish:
    """What kind of device is to be held. `carrier` and `city` are slugs, or empty."""

    pool: Pool
    country: Country | None
    carrier: str
    city: str
    private: bool
    ip_type: IpType | None = None


@dataclass(frozen=True, slots=True)
class Idle:
    """A hold that ends `idle_ms` after it was last used; what is known of it stays for `kept_ms` after that."""

    idle_ms: int
    kept_ms: int


_NEVER_IDLE: Final = Idle(0, 0)


def hold_port(
    wish: PortWish,
    lease_id: str,
    account_id: AccountId,
    pak_id: PakId,
    expires_at_ms: int,
    now_ms: int,
    excluded: Iterable[EndpointId] = (),
    first: EndpointId | None = None,
    idle: Idle = _NEVER_IDLE,
    share_percent: int = 100,
) -> RedisCall[EndpointId | None]:
    """Hold a device under a lease for one key, or answer the one it holds; None when none is free.

    `first` is taken when nobody else holds it, on sale or not: it was the lease's before. With the held device in
    `excluded` the lease moves to another one, and keeps what it has when there is none. A private hold is refused where
    more than `share_percent` of a country's devices would be held alone; of two one may be, and the last one never.
    """
    named = (lease_id, account_id, pak_id)
    return _choose(wish, named, expires_at_ms, now_ms, excluded, first, idle, share_percent, looks=False)


def could_hold(wish: PortWish, now_ms: int, share_percent: int) -> RedisCall[bool]:
    """Whether `hold_port` would find a device for a new lease: its own choice, and nothing is held."""
    call = _choose(wish, ("", "", ""), now_ms, now_ms, (), None, _NEVER_IDLE, share_percent, looks=True)
    return RedisCall(lambda a: call.parse(a) is not None, script=call.script, keys=call.keys, args=call.args)


def _choose(
    wish: PortWish,
    named: tuple[str, str, str],
    expires_at_ms: int,
    now_ms: int,
    excluded: Iterable[EndpointId],
    first: EndpointId | None,
    idle: Idle,
    share_percent: int,
    *,
    looks: bool,
) -> RedisCall[EndpointId | None]:
    """`named`: lease, account and key; empty for who only looks."""
    prefix = f"{{{wish.pool.value}}}:"
    lease_id, account_id, pak_id = named
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
        wish.ip_type.value if wish.ip_type else "",
        int(wish.pool is Pool.PEER),
        idle.idle_ms,
        idle.kept_ms,
        share_percent,
        int(looks),
        *excluded,
    ]
    keys = [f"{prefix}reserved:{lease_id}", f"{prefix}listed:{wish.country or 'any'}"]
    return RedisCall(lambda a: EndpointId(a.decode()) if a else None, script=_HOLD, keys=keys, args=args)


def let_go(pool: Pool, lease_id: str) -> RedisCall[bool]:
    """The lease ends: its username fails closed, and its device is free for others. False when nothing was held."""
    prefix = f"{{{pool.value}}}:"
    return RedisCall(bool, script=_UNRESERVE, keys=[f"{prefix}reserved:{lease_id}"], args=[prefix, lease_id])


@dataclass(frozen=True, slots=True)
class Hold:
    """What the live network knows of a lease. `away_since_ms`: off sale or unreachable since then; 0 while it is there."""

    endpoint_id: EndpointId
    expires_at_ms: int
    used_at_ms: int
    away_since_ms: int


def tend_holds(pool: Pool, lease_ids: Sequence[str], now_ms: int) -> RedisCall[list[Hold | None]]:
    """How holds of one pool stand, in their order; None for one that is lost. What is in use is held longer by it."""
    prefix = f"{{{pool.value}}}:"

    def parse(answer: Any) -> list[Hold | None]:
        return [
            Hold(EndpointId(r[0].decode()), int(r[1]), int(r[2]), int(r[3])) if r else None for r in answer
        ]

    keys = [f"{prefix}reserved:{lease_id}" for lease_id in lease_ids]
    return RedisCall(
        parse, script=_TEND, keys=keys, args=[prefix, now_ms, int(pool is Pool.PEER), *lease_ids]
    )


def is_listed(pool: Pool, endpoint_id: EndpointId) -> RedisCall[bool]:
    """Whether a device is on sale now: what went offline or failed its probes is not."""
    return command("SISMEMBER", f"{{{pool.value}}}:listed:any", endpoint_id, parse=bool)


def is_paused(pool: Pool, endpoint_id: EndpointId) -> RedisCall[bool]:
    """Whether faults were reported of a device a moment ago."""
    return command("EXISTS", f"{{{pool.value}}}:pause:{endpoint_id}", parse=bool)


def is_held(pool: Pool, lease_id: str) -> RedisCall[bool]:
    """Whether the live network still knows what a lease holds."""
    return command("EXISTS", f"{{{pool.value}}}:reserved:{lease_id}", parse=bool)
