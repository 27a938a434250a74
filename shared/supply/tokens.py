"""Device tokens: JWTs signed with Ed25519 by the API and verified offline by relays.

Claims: `iss` psx, `aud` relay, `sub` device id, `acct` account id, `gen` and `agen` the revocation generations of device
and account, `own` whether the holder showed that the device is theirs, `decides` whether such a token also decides in its
owner's place, `relays` the URLs that a redirect may name, `exp` one hour. Keys and rotation: `runtime/signing.py`.
A relay reads the tokens of its devices: what only the API shall see, and no relay takes, has `aud` owner.
"""

from dataclasses import dataclass, field
from enum import StrEnum
from typing import Final

from shared.kernel.ids import AccountId, DeviceId
from shared.runtime.signing import BadToken, read, sign

TOKEN_LIFE_S: Final = 3600
AUDIENCE: Final = "relay"
OWNER_AUDIENCE: Final = "owner"


class TokenFault(StrEnum):
    """Why a token is refused."""

    EXPIRED = "token_expired"
    INVALID = "token_invalid"


@dataclass(frozen=True, slots=True)
class Claims:
    """What a valid token says; `issued_s` is written by `issue` alone."""

    device_id: DeviceId
    account_id: AccountId
    generation: int
    account_generation: int = 0
    owned: bool = True
    relays: tuple[str, ...] = ()
    decides: bool = True
    issued_s: int = field(default=0, compare=False)


def issue(claims: Claims, private_key_pem: str, now_s: int, audience: str = AUDIENCE) -> str:
    """A token that lives for one hour."""
    payload = {
        "aud": audience,
        "sub": claims.device_id,
        "acct": claims.account_id,
        "gen": claims.generation,
        "agen": claims.account_generation,
        "own": claims.owned,
        "decides": claims.decides,
        "relays": list(claims.relays),
        "iat": now_s,
        "exp": now_s + TOKEN_LIFE_S,
    }
    return sign(payload, private_key_pem)


def verify_either(token: str, public_keys_pem: str) -> Claims | TokenFault:
    """The same for the API, which devices also show tokens that no relay takes."""
    found = verify(token, public_keys_pem, OWNER_AUDIENCE)
    return verify(token, public_keys_pem) if found is TokenFault.INVALID else found


def verify(token: str, public_keys_pem: str, audience: str = AUDIENCE) -> Claims | TokenFault:
    """The claims of a token that one of these keys signed and that has not expired."""
    try:
        payload = read(token, public_keys_pem, audience)
    except BadToken as bad:
        return TokenFault.EXPIRED if bad.expired else TokenFault.INVALID
    account, generations = payload.get("acct"), (payload.get("gen"), payload.get("agen"))
    owned, relays, issued_s = payload.get("own"), payload.get("relays"), payload.get("iat")
    if not isinstance(account, str) or not all(type(n) is int for n in (*generations, issued_s)):
        return TokenFault.INVALID
    decides = payload.get("decides", True)
    if not isinstance(owned, bool) or not isinstance(decides, bool) or not isinstance(relays, list):
        return TokenFault.INVALID
    return Claims(
        device_id=DeviceId(payload["sub"]),
        account_id=AccountId(account),
        generation=payload["gen"],
        account_generation=payload["agen"],
        owned=owned,
        decides=decides,
        relays=tuple(map(str, relays)),
        issued_s=payload["iat"],
    )
