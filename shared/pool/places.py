"""How many connections an owner has at once over all gateways: places, leased to each gateway as it needs them.

An owner is an account, or a key where strangers share the account. While less than a fifth of the places are used a gateway
gets a few more than it asks for, so that most connections cost no call; beyond that it gets exactly what it needs.
"""

from typing import Final

from shared.kernel.ids import GatewayId
from shared.runtime.redis import RedisCall, Script

CONNECTIONS_MAX: Final = 500
"""At once, per owner."""
PLACES_TTL_S: Final = 20
"""A gateway that died gives its places back within this time."""
SPARE_PLACES: Final = 8
_HOLD: Final = Script.load("shared.pool", "hold_places")


def hold_places(
    owner: str, gateway_id: GatewayId, needed: int, open_now: int, spare: int = SPARE_PLACES
) -> RedisCall[int]:
    """A gateway needs so many places, of which `open_now` are taken. Answers how many it has: fewer than it needs when the
    owner has no more. A repeat renews the lease, and gives back what is not needed."""
    args: list[str | int] = [gateway_id, needed, open_now, CONNECTIONS_MAX, spare, PLACES_TTL_S * 1000]
    return RedisCall(int, script=_HOLD, keys=[f"{{places:{owner}}}"], args=args)
