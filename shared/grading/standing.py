"""What the truth says of devices that stand on relays: who may serve their owner, and whose tokens ended.

Owners reach their own devices by pins also while these are not on sale, but none that nobody agreed to share.
"""

from collections.abc import Iterable

from shared.kernel.codes import Pool
from shared.kernel.ids import DeviceId
from shared.pool.model import Presence
from shared.pool.presence import drop_may_serve, may_serve, put_may_serve
from shared.runtime.redis import SyncRedis
from shared.supply.model import Device, Owner


def is_revoked(device: Device, owner: Owner, presence: Presence | None) -> bool:
    """Whether a device stands on a relay by tokens that ended: nobody could tell that relay, or it did not hear."""
    if presence is None:
        return False
    return presence.generation < device.generation or presence.account_generation < owner.generation


def settle_may_serve(redis: SyncRedis, looked: Iterable[tuple[Device, bool]]) -> None:
    """Write what differs. Each peer with whether it may serve: it is here, by tokens that hold, and was agreed to."""
    wanted: dict[DeviceId, bool] = {d.device_id: may for d, may in looked if d.pool is Pool.PEER}
    if not wanted:
        return
    answers: list[bool] = redis.run(may_serve(list(wanted)))
    held = dict(zip(wanted, answers, strict=True))
    added = [i for i, may in wanted.items() if may and not held[i]]
    gone = [i for i, may in wanted.items() if held[i] and not may]
    if added:
        redis.run(put_may_serve(added))
    if gone:
        redis.run(drop_may_serve(gone))
