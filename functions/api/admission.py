"""Who may write under an Idempotency-Key: counted like every caller, and with a credential that is valid now.

Without this a flood would write rows before any limit, and a key that was ended would go on reading its first responses.
"""

import json
import re
from collections.abc import Callable
from typing import Final

from fastapi import Request

from functions.api.auth import api_key, device_by_token, signed_in
from functions.api.limits import count_caller
from functions.api.wiring import Wiring
from functions.http import bearer, source_network
from functions.idempotency import Admit
from functions.limits import spend
from shared.access import people
from shared.access.live import Limit
from shared.runtime.clock import now_ms

STRANGERS: Final = re.compile(
    r"/v1/peer/(agents/)?register|/v1/peer/(agents|token)/[^/]+/refresh|/v1/auth/sign-in"
)
"""Writes of who shows no credential in a header: what they need stands in their body."""
KEPT_OF_STRANGERS: Final = Limit("kept_of_strangers", 60, 60)
"""For such writes under an Idempotency-Key: each keeps a row for a day."""
REGISTRATIONS: Final = frozenset({"/v1/peer/agents/register", "/v1/peer/register"})


def admitted(wiring: Callable[[], Wiring]) -> Admit:
    """What `install_idempotency` asks before anything else."""

    def admit(request: Request, body: bytes) -> bool:
        w, now = wiring(), now_ms()
        count_caller(w, request, now)
        token = bearer(request)
        keys = [k for k in (request.headers.get("x-api-key", ""), _enrolling_key(request, body)) if k]
        for text in keys:
            api_key(w, text)
        if not token and not keys:
            return _is_strangers(w, request, now)
        if not token:
            return True
        if people.verify(token, w.settings.jwt_public_key.get_secret_value()) is not None:
            signed_in(w, token)
        else:
            device_by_token(w, token)
        return True

    return admit


def _is_strangers(w: Wiring, request: Request, now_ms: int) -> bool:
    """Whether a write without a credential in its headers may do anything, so that its response is kept; counted."""
    if STRANGERS.fullmatch(request.url.path) is None:
        return False
    spend(request, w.redis, [KEPT_OF_STRANGERS], f"ip:{source_network(request)}", now_ms, closed=True)
    return True


def _enrolling_key(request: Request, body: bytes) -> str:
    """The API key that a device registers with, which stands in the body; "" where there is none."""
    if request.url.path not in REGISTRATIONS:
        return ""
    try:
        shown = json.loads(body).get("apiKey")
    except (AttributeError, ValueError):
        return ""
    return shown if isinstance(shown, str) else ""
