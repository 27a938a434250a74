"""Who calls: an API key with its scopes, or a device with its token."""

from fastapi import Request

from functions.api.audit import concerns
from functions.api.limits import SIGN_IN_CROWD, SIGN_IN_PERSON, SIGN_IN_SLOWED, SIGN_IN_SOURCE
from functions.api.wiring import Wiring
from functions.http import ProblemError, bearer, source_network
from functions.limits import is_reached, spend
from shared.access import people
from shared.access.model import ApiKey, Scope
from shared.access.people import Person
from shared.access.secrets import token_hash
from shared.access.table import find_api_key, get_account
from shared.kernel.ids import DEVICE_ID, DeviceId
from shared.runtime.clock import now_ms
from shared.supply.model import Device
from shared.supply.owners import get_owner
from shared.supply.table import get_device
from shared.supply.tokens import Claims, verify_either


def api_key(wiring: Wiring, text: str) -> ApiKey:
    """The API key of a text, or 401."""
    found = (
        wiring.dynamo.run(find_api_key(wiring.settings.table("access"), token_hash(text))) if text else None
    )
    if found is None or found.has_ended(now_ms()):
        raise ProblemError(401, "API_KEY_INVALID", "send a valid API key in X-API-Key")
    return found


def caller(wiring: Wiring, request: Request, scope: Scope | None) -> ApiKey:
    """The calling API key or signed-in human, or 401; 403 when it may not do this. A `read` key may only look."""
    text = request.headers.get("x-api-key", "")
    token = bearer(request)
    key = signed_in(wiring, token) if token and not text else api_key(wiring, text)
    looks = request.method == "GET" and Scope.READ in key.scopes and scope is not Scope.ADMIN
    if scope is not None and scope not in key.scopes and not looks:
        raise ProblemError(403, "SCOPE_MISSING", f"this API key lacks the scope {scope.value}")
    how = "password" if key.person else "api_key"
    concerns(request, f"acct#{key.account_id}", key.person or key.account_id, how)
    return key


def signed_in(wiring: Wiring, token: str) -> ApiKey:
    """A human's token as a key of their account, or 401."""
    claims = people.verify(token, wiring.settings.jwt_public_key.get_secret_value())
    table = wiring.settings.table("access")
    person = wiring.dynamo.run(people.get_person(table, claims.email)) if claims else None
    account = wiring.dynamo.run(get_account(table, person.account_id)) if person else None
    if claims is None or person is None or account is None or claims.generation != person.generation:
        raise ProblemError(401, "TOKEN_INVALID", "the sign-in is invalid or over; sign in again")
    return ApiKey(
        key_hash="",
        account_id=person.account_id,
        scopes=people.SCOPES[account.kind],
        created_at_ms=person.created_at_ms,
        person=person.email,
        password_at_ms=claims.password_at_ms,
    )


def fresh(wiring: Wiring, request: Request, key: ApiKey) -> ApiKey:
    """The same caller, when a human gave the password within five minutes or gives it now; API keys need none."""
    if not key.person or now_ms() - key.password_at_ms < people.FRESH_MS:
        return key
    given = request.headers.get("x-confirm-password", "")
    if given and password_matches(wiring, request, key.person, given) is not None:
        return key
    message = "this needs your password: sign in again, or send it in X-Confirm-Password"
    raise ProblemError(403, "FRESH_AUTH_REQUIRED", message)


def password_matches(wiring: Wiring, request: Request, email: str, password: str) -> Person | None:
    """Whoever has this address and password; 429 after too many tries from one place.

    Tries are counted per place, and per place and person. When very many places try one person, each of them is slowed
    down; nobody is locked out by what others do.
    """
    now, source, who = now_ms(), source_network(request), token_hash(email.lower())
    spend(request, wiring.redis, [SIGN_IN_SOURCE], f"ip:{source}", now, closed=True)
    spend(request, wiring.redis, [SIGN_IN_PERSON], f"{who}:{source}", now, closed=True)
    if is_reached(wiring.redis, SIGN_IN_CROWD, who, now):
        spend(request, wiring.redis, [SIGN_IN_SLOWED], f"{who}:{source}", now, closed=True)
    person = wiring.dynamo.run(people.get_person(wiring.settings.table("access"), email))
    right = people.is_password(password, person.password_hash if person else people.NOBODY)
    return person if right else None


def device_of(wiring: Wiring, request: Request, device_id: str) -> Device:
    """The device that the caller owns, by its own token or its owner's API key; 401, or 404 for anybody else's."""
    table, named = wiring.settings.table("devices"), DEVICE_ID.fullmatch(device_id) is not None
    device = wiring.dynamo.run(get_device(table, DeviceId(device_id))) if named else None
    token = bearer(request)
    if token:
        claims = verify_either(token, wiring.settings.jwt_public_key.get_secret_value())
        if not isinstance(claims, Claims):
            return _of_human(wiring, request, device)
        if device is not None and claims.device_id == device_id and _is_current(wiring, claims, device):
            concerns(request, f"dev#{device_id}", device_id, "device_token")
            return device
    else:
        key = caller(wiring, request, Scope.SUPPLY)
        if device is not None and device.account_id == key.account_id:
            concerns(request, f"dev#{device_id}", key.person or key.account_id, "api_key")
            return device
    raise ProblemError(404, "NOT_FOUND", "there is no such device")


def device_by_token(wiring: Wiring, token: str) -> Device:
    """The device of a token that is valid now, or 401."""
    claims = verify_either(token, wiring.settings.jwt_public_key.get_secret_value())
    table = wiring.settings.table("devices")
    device = wiring.dynamo.run(get_device(table, claims.device_id)) if isinstance(claims, Claims) else None
    if not isinstance(claims, Claims) or device is None or not _is_current(wiring, claims, device):
        raise ProblemError(401, "TOKEN_INVALID", "the device token is invalid or expired; refresh it")
    return device


def managed_device(wiring: Wiring, request: Request, device_id: str) -> Device:
    """The same for whoever decides something for the owner; 403 for a device that was registered by a wallet alone.

    A wallet and a name are public: with them anybody gets a token that may serve and look, and decides nothing.
    """
    device = device_of(wiring, request, device_id)
    must_decide(wiring, request)
    return device


def must_decide(wiring: Wiring, request: Request) -> None:
    """403 for a caller that `device_of` let pass by a token which decides nothing in the owner's place."""
    claims = _claims(wiring, request)
    if claims is not None and not (claims.owned and claims.decides):
        message = (
            "this token decides nothing for the owner: refresh with purpose owner, if the device registered as its owner's;"
            " after the first registration a wallet alone is no proof of that"
        )
        raise ProblemError(403, "OWNERSHIP_NOT_SHOWN", message)


def by_device(wiring: Wiring, request: Request) -> bool:
    """Whether a caller that `device_of` let pass is the device itself, and not its owner."""
    return _claims(wiring, request) is not None


def _claims(wiring: Wiring, request: Request) -> Claims | None:
    """What the bearer says, if it is a device's token."""
    token = bearer(request)
    found = verify_either(token, wiring.settings.jwt_public_key.get_secret_value()) if token else None
    return found if isinstance(found, Claims) else None


def _of_human(wiring: Wiring, request: Request, device: Device | None) -> Device:
    """The same for a signed-in human of the owner's account; 401 for a bearer that is neither."""
    if people.verify(bearer(request), wiring.settings.jwt_public_key.get_secret_value()) is None:
        raise ProblemError(401, "TOKEN_INVALID", "the device token is invalid or expired; refresh it")
    key = caller(wiring, request, Scope.SUPPLY)
    if device is None or device.account_id != key.account_id:
        raise ProblemError(404, "NOT_FOUND", "there is no such device")
    return device


def _is_current(wiring: Wiring, claims: Claims, device: Device) -> bool:
    """Whether neither the device's tokens nor those of its whole account were revoked since."""
    owner = wiring.dynamo.run(get_owner(wiring.settings.table("devices"), device.account_id))
    return claims.generation == device.generation and claims.account_generation == owner.generation
