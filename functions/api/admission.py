"""Who may write under an Idempotency-Key: counted like every caller, and with a credential that is valid now.

Without this a flood would write rows before any limit, and a key that was ended would go on reading its first responses.
"""

import json
from collections.abc import Callable
from typing import Final

from fastapi import Request

from functions.api.auth import api_key, device_by_token, signed_in
from functions.api.limits import count_caller
from functions.api.wiring import Wiring
from functions.http import bearer
from functions.idempotency import Admit
from shared.access import people
from shared.runtime.clock import now_ms

REGISTRATIONS: Final = frozenset({"/v1/peer/agents/register", "/v1/peer/register"})


def admitted(wiring: Callable[[], Wiring]) -> Admit:
    """What `install_idempotency` asks before anything else."""

    def admit(request: Request, body: bytes) -> None:
        w = wiring()
        count_caller(w, request, now_ms())
        token = bearer(request)
        for text in (request.headers.get("x-api-key", ""), _enrolling_key(request, body)):
            if text:
                api_key(w, text)
        if not token:
            return
        if people.verify(token, w.settings.jwt_public_key.get_secret_value()) is not None:
            signed_in(w, token)
        else:
            device_by_token(w, token)

    return admit


def _enrolling_key(request: Request, body: bytes) -> str:
    """The API key that a device registers with, which stands in the body; "" where there is none."""
    if request.url.path not in REGISTRATIONS:
        return ""
    try:
        shown = json.loads(body).get("apiKey")
    except (AttributeError, ValueError):
        return ""
    return shown if isinstance(shown, str) else ""
