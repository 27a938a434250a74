"""How often each route may be called: by an address, by a key, and by whoever a route counts. One table for all of them."""

from collections.abc import Awaitable, Callable, Sequence
from typing import Final

from fastapi import Request

from functions.api.audit import RENEWALS, WRITES
from functions.api.wiring import Wiring
from functions.http import bearer, source_network
from functions.limits import spend
from shared.access.live import Limit
from shared.access.secrets import token_hash
from shared.runtime.clock import now_ms

MINUTE_S: Final = 60
HOUR_S: Final = 3600
_KEYS: Final = "/v1/reseller/pool-keys"
ROUTES: Final = {
    ("POST", _KEYS): Limit("create", 600, MINUTE_S),
    ("POST", f"{_KEYS}/{{pak_id}}/topup"): Limit("topup", 300, MINUTE_S),
    ("POST", f"{_KEYS}/{{pak_id}}/reveal"): Limit("reveal", 120, MINUTE_S),
    ("GET", "/v1/gateway/credentials"): Limit("credentials", 120, MINUTE_S),
    ("POST", "/v1/private-pool/{pool_id}/leases"): Limit("reserve", 60, MINUTE_S),
    ("DELETE", "/v1/gateway/pool/my-sessions"): Limit("close_all", 60, MINUTE_S),
    ("DELETE", "/v1/gateway/pool/my-sessions/{session_key}"): Limit("close", 600, MINUTE_S),
    ("POST", "/v1/account/api-keys"): Limit("api_keys", 30, HOUR_S),
    ("POST", "/v1/account/api-keys/{key_id}/rotate"): Limit("api_keys", 30, HOUR_S),
    ("POST", "/v1/admin/resellers/{account_id}/credits"): Limit("credits", 30, MINUTE_S),
}
"""Counted per key."""
PER_OBJECT: Final = {
    ("POST", f"{_KEYS}/{{pak_id}}/regenerate"): (Limit("regenerate", 10, HOUR_S), "pak_id"),
}
"""Counted per key and pool access key."""
SIGN_IN_SOURCE: Final = Limit("sign_in_source", 10, MINUTE_S)
SIGN_IN_PERSON: Final = Limit("sign_in_person", 5, MINUTE_S)
"""Of one person, from one place."""
SIGN_IN_CROWD: Final = Limit("sign_in_crowd", 100, HOUR_S)
"""Of one person, from everywhere: beyond it each place has `SIGN_IN_SLOWED`."""
SIGN_IN_SLOWED: Final = Limit("sign_in_slowed", 1, MINUTE_S)


def credential(request: Request) -> str:
    """A name for the credential of a request, not to be turned back; "" without one."""
    given = request.headers.get("x-api-key") or bearer(request)
    return token_hash(given)[:32] if given else ""


def count_caller(
    w: Wiring, request: Request, now_ms: int, more: Sequence[Limit] = (), *, closed: bool = True
) -> None:
    """Count a request of its address, and of its key under the key's own limit and `more`."""
    request.state.counted = True
    everybody = Limit("address", w.settings.calls_per_minute_address, MINUTE_S)
    spend(request, w.redis, [everybody], f"ip:{source_network(request)}", now_ms, closed=closed)
    key = credential(request)
    if key:
        own = Limit("key", w.settings.calls_per_minute_key, MINUTE_S)
        spend(request, w.redis, [own, *more], f"key:{key}", now_ms, closed=closed)


def limited(wiring: Callable[[], Wiring]) -> Callable[[Request], Awaitable[None]]:
    """A dependency of every route: counts a request before anything is read for it."""

    async def count(request: Request) -> None:
        w, now = wiring(), now_ms()
        template = str(getattr(request.scope.get("route"), "path", ""))
        route, key = (request.method, template), credential(request)
        closed = request.method in WRITES and template not in RENEWALS
        more = [ROUTES[route]] if key and route in ROUTES else []
        if not hasattr(request.state, "counted"):
            count_caller(w, request, now, more, closed=closed)
        elif more:
            spend(request, w.redis, more, f"key:{key}", now, closed=closed)
        if route in PER_OBJECT:
            limit, param = PER_OBJECT[route]
            # Together with the key: a stranger who knows an id cannot use its owner's calls up.
            spend(request, w.redis, [limit], f"{key}:{request.path_params[param]}", now, closed=closed)

    return count
