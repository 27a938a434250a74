"""Leases in use: where their rows and the live network meet. The row is the truth, the hold in Redis follows it."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from shared.kernel.codes import Pool
from shared.kernel.ids import DeviceId, EndpointId
from shared.pool import lease_table as rows
from shared.pool.leases import Lease
from shared.pool.ports import LAST_KEPT_PERCENT, PortWish, hold_port, let_go
from shared.pool.rotation import ask_rotation
from shared.pool.sessions import leave_word, publish_closed
from shared.runtime.dynamo import RunsDynamo
from shared.runtime.redis import SyncRedis


@dataclass(frozen=True, slots=True)
class Leasing:
    """Stores of the leases; `table` holds their rows. Leases that move may hold alone `moved_percent` of a country."""

    dynamo: RunsDynamo
    redis: SyncRedis
    table: str
    now_ms: Callable[[], int]
    moved_percent: int = LAST_KEPT_PERCENT

    def find(self, lease_id: str) -> Lease | None:
        """A lease, released or not."""
        return self.dynamo.run(rows.get_lease(self.table, lease_id))

    def hold_new(self, draft: Lease, pools: Sequence[Pool], share_percent: int) -> Lease | None:
        """The same lease on a free device of the first of these pools that has one; None when none has.

        A carrier that is only wished for comes before the pools' order. At most this share of a country is held alone.
        """
        for best in (True, False):
            for pool in pools:
                lease = replace(draft, pool=pool)
                if not best and lease.wish() == lease.wish(best=True):
                    continue
                endpoint_id = self._hold(lease, lease.wish(best=best), share_percent=share_percent)
                if endpoint_id is not None:
                    return replace(lease, endpoint_id=endpoint_id)
        return None

    def hold(self, lease: Lease) -> EndpointId | None:
        """The device of a lease, held until the row says; put back where Redis lost it, on another one if it was taken."""
        return self._hold(lease, lease.wish(), first=lease.endpoint_id)

    def move(self, lease: Lease) -> Lease | None:
        """The lease on another device; None when none is free, or it was released meanwhile."""
        found = self._hold(lease, lease.wish(), excluded=(lease.endpoint_id,))
        return None if found is None else self.place(lease, found)

    def place(self, lease: Lease, endpoint_id: EndpointId) -> Lease | None:
        """Write down where a lease is now; None when it was released meanwhile."""
        return self.dynamo.run(rows.change(self.table, lease, {"endpoint_id": endpoint_id}))

    def _hold(
        self,
        lease: Lease,
        wish: PortWish,
        excluded: tuple[EndpointId, ...] = (),
        first: EndpointId | None = None,
        share_percent: int | None = None,
    ) -> EndpointId | None:
        call = hold_port(
            wish,
            lease.lease_id,
            lease.account_id,
            lease.pak_id,
            lease.expires_at_ms,
            self.now_ms(),
            excluded,
            first,
            lease.idle,
            self.moved_percent if share_percent is None else share_percent,
        )
        return self.redis.run(call)

    def let_go(self, lease: Lease) -> None:
        """Its username fails closed and its tunnels are cut within a second. Raises StoreUnavailable: try again."""
        name = f"lease:{lease.lease_id}"
        self.redis.run(let_go(lease.pool, lease.lease_id))
        self.redis.run(leave_word(lease.pool, name, self.now_ms()))
        self.redis.run(publish_closed(name))

    def ask_rotation(self, lease: Lease) -> None:
        """Tell the relays which device is to change its address."""
        for call in ask_rotation(DeviceId(lease.endpoint_id), lease.rotation_id, lease.rotated_at_ms):
            self.redis.run(call)
