"""Who may write under an Idempotency-Key: counted like every caller, and with a credential that is valid now.

Without this a flood would write rows before any limit, and a key that was ended would go on reading its first responses.
"""

from collections.abc import Callable

from fastapi import Request

from functions.api.auth import api_key, device_by_token, signed_in
from functions.api.limits import count_caller
from functions.api.wiring import Wiring
from functions.http import bearer
from shared.access import people
from shared.runtime.clock import now_ms


def admitted(wiring: Callable[[], Wiring]) -> Callable[[Request], None]:
    """What `install_idempotency` asks before anything else."""

    def admit(request: Request) -> None:
        w = wiring()
        count_caller(w, request, now_ms())
        text, token = request.headers.get("x-api-key", ""), bearer(request)
        if text:
            api_key(w, text)
        if not token:
            return
        if people.verify(token, w.settings.jwt_public_key.get_secret_value()) is not None:
            signed_in(w, token)
        else:
            device_by_token(w, token)

    return admit
