"""Who asks for exits, and for which: a key and the username it is used by, worked out once for many tunnels."""

from __future__ import annotations

from dataclasses import replace
from typing import Final

from shared.access.model import Pak, Quality
from shared.kernel.codes import IpType, Pool
from shared.kernel.ids import AccountId, GatewayId, PakId
from shared.pool.live import Selection
from shared.pool.model import Acquired, Failover, Route

BUYERS_KEPT: Final = 10_000
"""Pairs of username and key; beyond it all are worked out again."""


class Buyer:
    """`route` is what the username says within what the key may have; `owner` is whose connections and sessions count
    together: the account, or the key where strangers share an account.
    """

    __slots__ = ("_selections", "_strict", "owner", "pak", "route")

    def __init__(self, pak: Pak, route: Route, owner: str) -> None:
        self.pak = pak
        self.route = route
        self.owner = owner
        self._selections: dict[Pool, Selection] = {}
        self._strict: Buyer | None = None
        if route.pin is not None and len(route.pools) > 1 and route.failover is not Failover.STRICT:
            self._strict = Buyer(pak, replace(route, failover=Failover.STRICT), owner)

    @property
    def pak_id(self) -> PakId:
        """Its key."""
        return self.pak.pak_id

    def selection(self, pool: Pool, gateway_id: GatewayId) -> Selection:
        """What it asks of one pool, through the one gateway that it is known to."""
        selection = self._selections.get(pool)
        if selection is None:
            selection = Selection(self.route, pool, self.pak.pak_id, gateway_id, self.owner)
            self._selections[pool] = selection
        return selection

    def turns(self) -> tuple[Buyer, ...]:
        """What is asked for first, and what then: whichever pool has what is pinned comes before a stand-in from either."""
        return (self,) if self._strict is None else (self._strict, self)


class Buyers:
    """Those that came lately. A key that was read again since is worked out again: what it may have may have changed."""

    def __init__(self, house_account: AccountId) -> None:
        self._house_account = house_account
        self._kept: dict[tuple[str, PakId], Buyer] = {}

    def of(self, username: str, route: Route, pak: Pak) -> Buyer:
        """The buyer behind a username and the key that it came with; `route` is what the username says."""
        name = username, pak.pak_id
        buyer = self._kept.get(name)
        if buyer is None or buyer.pak is not pak:
            if len(self._kept) >= BUYERS_KEPT:
                self._kept.clear()
            owner = pak.pak_id if pak.account_id == self._house_account else pak.account_id
            buyer = self._kept[name] = Buyer(pak, lock_quality(route, pak), owner)
        return buyer


def lock_quality(route: Route, pak: Pak) -> Route:
    """A `safe` key never leaves the modems, one of a peer tier never leaves its IP type, whatever its username says."""
    if pak.ip_type:
        return replace(route, pools=(Pool.PEER,), ip_type=IpType(pak.ip_type))
    if pak.quality is Quality.SAFE and route.pools != (Pool.MBL,):
        return replace(route, pools=(Pool.MBL,))
    return route


def may_use(pak: Pak, acquired: Acquired) -> bool:
    """Whether a key, as it is now, may have an exit that was chosen for it as it was."""
    endpoint = acquired.endpoint
    if pak.ip_type:
        return endpoint.pool is Pool.PEER and endpoint.ip_type == pak.ip_type
    return pak.quality is not Quality.SAFE or endpoint.pool is Pool.MBL
