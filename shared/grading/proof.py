"""What a probe target signs and a prober believes: who asked, which address was seen, and the digest of the body.

The key lives in targets alone. A prober holds public keys, so an exit that can make certificates still cannot make answers.
Source: `shared.runtime.signing`.
"""

import hashlib
from dataclasses import dataclass
from typing import Final

from shared.runtime.signing import BadToken, read, sign

AUDIENCE: Final = "psx-probe"
PROOF_LIFE_S: Final = 120


@dataclass(frozen=True, slots=True)
class Sight:
    """What a target says: the address that asked, and where the target stands."""

    exit_ip: str
    place: str


def prove(private_key: str, nonce: str, sight: Sight, body: bytes, now_s: int) -> str:
    """The signed header of one answer."""
    payload = {
        "aud": AUDIENCE,
        "sub": nonce,
        "exp": now_s + PROOF_LIFE_S,
        "ip": sight.exit_ip,
        "place": sight.place,
        "sha256": hashlib.sha256(body).hexdigest(),
    }
    return sign(payload, private_key)


def check(proof: str, public_keys: str, nonce: str, body: bytes) -> Sight | None:
    """What the target saw; None for an answer that it did not give to this question with this body."""
    try:
        told = read(proof, public_keys, AUDIENCE)
    except BadToken:
        return None
    if told["sub"] != nonce or told.get("sha256") != hashlib.sha256(body).hexdigest():
        return None
    return Sight(str(told.get("ip", "")), str(told.get("place", "")))


def mark_of(exit_ip: str) -> str:
    """A digest that tells whether two sights were of one address; kept instead of the address."""
    return hashlib.sha256(exit_ip.encode()).hexdigest()[:16] if exit_ip else ""
