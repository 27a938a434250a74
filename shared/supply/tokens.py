"""Device tokens: JWTs signed with Ed25519 by the API and verified offline by relays.

Claims: `iss` psx, `aud` relay, `sub` device id, `acct` account id, `gen` and `agen` the revocation generations of device
and account, `own` whether the holder showed that the device is theirs, `relays` the URLs that a redirect may name, `exp`
one hour. Keys and their rotation: `runtime/signing.py`.
"""

from dataclasses import dataclass, field
from enum import StrEnum
from typing import Final

from shared.kernel.ids import AccountId, DeviceId
from shared.runtime.signing import BadToken, read, sign

TOKEN_LIFE_S: Final = 3600
AUDIENCE: Final = "relay"


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
    issued_s: int = field(default=0, compare=False)


def issue(claims: Claims, private_key_pem: str, now_s: int) -> str:
    """A token that lives for one hour."""
    payload = {
        "aud": AUDIENCE,
        "sub": claims.device_id,
        "acct": claims.account_id,
        "gen": claims.generation,
        "agen": claims.account_generation,
        "own": claims.owned,
        "relays": list(claims.relays),
        "iat": now_s,
        "exp": now_s + TOKEN_LIFE_S,
    }
    return sign(payload, private_key_pem)


def verify(token: str, public_keys_pem: str) -> Claims | TokenFault:
    """The claims of a token that one of these keys signed and that has not expired."""
    try:
        payload = read(token, public_keys_pem, AUDIENCE)
    except BadToken as bad:
        return TokenFault.EXPIRED if bad.expired else TokenFault.INVALID
    account, generations = payload.get("acct"), (payload.get("gen"), payload.get("agen"))
    owned, relays, issued_s = payload.get("own"), payload.get("relays"), payload.get("iat")
    if not isinstance(account, str) or not all(type(n) is int for n in (*generations, issued_s)):
        return TokenFault.INVALID
    if not isinstance(owned, bool) or not isinstance(relays, list):
        return TokenFault.INVALID
    return Claims(
        device_id=DeviceId(payload["sub"]),
        account_id=AccountId(account),
        generation=payload["gen"],
        account_generation=payload["agen"],
        owned=owned,
        relays=tuple(map(str, relays)),
        issued_s=payload["iat"],
    )
