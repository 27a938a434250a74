"""Device tokens: JWTs signed with Ed25519 by the API and verified offline by relays.

Claims: `iss` psx, `aud` relay, `sub` device id, `acct` account id, `gen` revocation generation, `relays` the URLs that a
redirect may name, `exp` one hour. Source: RFC 7519, RFC 8037.
"""

from dataclasses import dataclass
from enum import StrEnum
from functools import lru_cache
from typing import Final

import jwt
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
from cryptography.hazmat.primitives.serialization import load_pem_public_key

from shared.kernel.ids import AccountId, DeviceId

TOKEN_LIFE_S: Final = 3600
CLOCK_LEEWAY_S: Final = 30
ISSUER: Final = "psx"
AUDIENCE: Final = "relay"
_ALGORITHM: Final = "EdDSA"


class TokenFault(StrEnum):
    """Why a token is refused."""

    EXPIRED = "token_expired"
    INVALID = "token_invalid"


@dataclass(frozen=True, slots=True)
class Claims:
    """What a valid token says."""

    device_id: DeviceId
    account_id: AccountId
    generation: int


def issue(claims: Claims, relays: tuple[str, ...], private_key_pem: str, now_s: int) -> str:
    """A token that lives for one hour."""
    payload = {
        "iss": ISSUER,
        "aud": AUDIENCE,
        "sub": claims.device_id,
        "acct": claims.account_id,
        "gen": claims.generation,
        "relays": list(relays),
        "iat": now_s,
        "exp": now_s + TOKEN_LIFE_S,
    }
    return jwt.encode(payload, private_key_pem, algorithm=_ALGORITHM)


@lru_cache(maxsize=8)
def _public_key(pem: str) -> Ed25519PublicKey:
    """The key of a PEM, read once: reading it costs as much as checking a signature."""
    key = load_pem_public_key(pem.encode())
    if not isinstance(key, Ed25519PublicKey):
        raise TypeError("not an Ed25519 public key")
    return key


def verify(token: str, public_key_pem: str) -> Claims | TokenFault:
    """The claims of a token that this key signed and that has not expired (the library reads the clock)."""
    try:
        payload = jwt.decode(
            token,
            _public_key(public_key_pem),
            algorithms=[_ALGORITHM],
            audience=AUDIENCE,
            issuer=ISSUER,
            leeway=CLOCK_LEEWAY_S,
            options={"require": ["exp", "iss", "aud", "sub"]},
        )
    except jwt.ExpiredSignatureError:
        return TokenFault.EXPIRED
    except jwt.InvalidTokenError:
        return TokenFault.INVALID
    generation, account = payload.get("gen"), payload.get("acct")
    if not isinstance(generation, int) or not isinstance(account, str):
        return TokenFault.INVALID
    return Claims(DeviceId(payload["sub"]), AccountId(account), generation)
