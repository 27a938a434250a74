"""Rate limits at the edge: counting a request, refusing it with 429, and telling every caller where they stand (`http.py`).

Redis away: whatever only reads goes on, whatever may move money or keys is refused until it is back.
Source: draft-ietf-httpapi-ratelimit-headers-10; RFC 9110 section 10.2.3.
"""

from collections.abc import Sequence
from typing import NoReturn

from fastapi import Request

from functions.http import RETRY_AFTER_S, ProblemError, seconds_up
from shared.access.live import Allowance, Limit, count_calls
from shared.runtime.dynamo import StoreUnavailable
from shared.runtime.redis import SyncRedis


def spend(
    request: Request,
    redis: SyncRedis,
    limits: Sequence[Limit],
    who: str,
    now_ms: int,
    *,
    closed: bool,
    message: str = "",
) -> None:
    """Count a request of `who`; 429 when a limit is reached. `closed`: 503 when that cannot be known."""
    try:
        standing = redis.run(count_calls(limits, who, now_ms))
    except StoreUnavailable:
        if closed:
            text = "temporarily unavailable; repeat the same request, and do not pay again"
            headers = {"Retry-After": str(RETRY_AFTER_S)}
            raise ProblemError(503, "TEMPORARILY_UNAVAILABLE", text, headers) from None
        return
    told: list[Allowance] = getattr(request.state, "rate_limits", [])
    request.state.rate_limits = [*told, *standing]
    worst = max(standing, key=lambda allowance: allowance.wait_ms)
    if worst.wait_ms:
        _refuse(worst, message)


def is_reached(redis: SyncRedis, limit: Limit, who: str, now_ms: int) -> bool:
    """Count a call of `who` and say whether there were too many; refuses nobody. Raises StoreUnavailable."""
    (standing,) = redis.run(count_calls([limit], who, now_ms))
    return standing.wait_ms > 0


def _refuse(reached: Allowance, message: str) -> NoReturn:
    limit, wait_s = reached.limit, seconds_up(reached.wait_ms)
    text = f"at most {limit.calls} in {limit.window_s} s here; wait {wait_s} s{message}"
    raise ProblemError(429, "RATE_LIMITED", text, {"Retry-After": str(wait_s)})
