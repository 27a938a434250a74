"""Who calls: an API key with its scopes, or a device with its token."""

from fastapi import Request

from functions.api.wiring import Wiring
from functions.http import ProblemError
from shared.access.model import ApiKey, Scope
from shared.access.secrets import token_hash
from shared.access.table import find_api_key
from shared.kernel.ids import DeviceId
from shared.supply.model import Device
from shared.supply.table import get_device
from shared.supply.tokens import Claims, verify


def api_key(wiring: Wiring, text: str) -> ApiKey:
    """The API key of a text, or 401."""
    found = (
        wiring.dynamo.run(find_api_key(wiring.settings.table("access"), token_hash(text))) if text else None
    )
    if found is None:
        raise ProblemError(401, "API_KEY_INVALID", "send a valid API key in X-API-Key")
    return found


def caller(wiring: Wiring, request: Request, scope: Scope) -> ApiKey:
    """The calling API key, or 401; 403 when it may not do this."""
    key = api_key(wiring, request.headers.get("x-api-key", ""))
    if scope not in key.scopes:
        raise ProblemError(403, "SCOPE_MISSING", f"this API key lacks the scope {scope.value}")
    return key


def device_of(wiring: Wiring, request: Request, device_id: str) -> Device:
    """The device that the caller owns, by its own token or its owner's API key; 401, or 404 for anybody else's."""
    device = wiring.dynamo.run(get_device(wiring.settings.table("devices"), DeviceId(device_id)))
    bearer = request.headers.get("authorization", "").removeprefix("Bearer ").strip()
    if bearer:
        claims = verify(bearer, wiring.settings.jwt_public_key.get_secret_value())
        if not isinstance(claims, Claims):
            raise ProblemError(401, "TOKEN_INVALID", "the device token is invalid or expired; refresh it")
        if device is not None and claims.device_id == device_id and claims.generation == device.generation:
            return device
    else:
        key = caller(wiring, request, Scope.SUPPLY)
        if device is not None and device.account_id == key.account_id:
            return device
    raise ProblemError(404, "NOT_FOUND", "there is no such device")
