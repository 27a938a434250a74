"""Signed tokens: one Ed25519 key signs, several are believed, and each is named by `kid`.

Rotation in three steps: give everybody the new public key beside the old one, change the private key, drop the old public
key an hour later. `kid` is the key's thumbprint. Signatures are checked by libsodium, and a good one once (decision 0095).
Source: RFC 7515 sections 4.1 and 5.2, RFC 7519, RFC 7638, RFC 8032, RFC 8037.
"""

import base64
import hashlib
import json
import time
from collections.abc import Mapping
from functools import lru_cache
from typing import Any, Final

import jwt
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    PublicFormat,
    load_pem_private_key,
    load_pem_public_key,
)
from nacl.exceptions import BadSignatureError
from nacl.signing import VerifyKey

ISSUER: Final = "psx"
CLOCK_LEEWAY_S: Final = 30
HEADERS_KEPT: Final = 64
TOKENS_KEPT: Final = 2048
"""A device shows the same token on each of its sockets, and again where it is sent."""
_ALGORITHM: Final = "EdDSA"
_PEM_END: Final = "-----END PUBLIC KEY-----"


class BadToken(Exception):
    """A token that is not believed; `expired` when that is the only thing wrong with it."""

    def __init__(self, *, expired: bool) -> None:
        super().__init__("expired" if expired else "invalid")
        self.expired = expired


def sign(payload: Mapping[str, Any], private_key_pem: str) -> str:
    """A token with this payload, by this key; its header names the key."""
    key, kid = _private_key(private_key_pem)
    return jwt.encode({"iss": ISSUER, **payload}, key, algorithm=_ALGORITHM, headers={"kid": kid})


def read(token: str, public_keys_pem: str, audience: str) -> Mapping[str, Any]:
    """The payload of a token that one of these keys signed, by the clock of this machine. Raises BadToken.

    Ed25519 is the only algorithm whatever a header says. What a signature says is kept; what claims and the time say is
    asked each time.
    """
    try:
        payload = json.loads(_signed_body(token, public_keys_pem))
    except (BadSignatureError, ValueError, RecursionError):
        raise BadToken(expired=False) from None
    now_s = time.time()
    if not _is_meant(payload, audience, now_s):
        raise BadToken(expired=False)
    if payload["exp"] <= now_s - CLOCK_LEEWAY_S:
        raise BadToken(expired=True)
    found: Mapping[str, Any] = payload
    return found


def _is_meant(payload: Any, audience: str, now_s: float) -> bool:
    """Whether claims that were signed are ours, for this audience, whole, and not of a time to come."""
    if not isinstance(payload, dict) or payload.get("iss") != ISSUER or payload.get("aud") != audience:
        return False
    if not isinstance(payload.get("sub"), str) or type(payload.get("exp")) is not int:
        return False
    begins = (payload.get("iat", 0), payload.get("nbf", 0))
    return all(type(at) is int and at <= now_s + CLOCK_LEEWAY_S for at in begins)


def key_id(key: Ed25519PublicKey) -> str:
    """The thumbprint by which a key is named."""
    x = _base64url(key.public_bytes(Encoding.Raw, PublicFormat.Raw))
    text = json.dumps({"crv": "Ed25519", "kty": "OKP", "x": x}, separators=(",", ":"))
    return _base64url(hashlib.sha256(text.encode()).digest())


def check_public_keys(text: str) -> None:
    """Raises ValueError unless the text holds one or more Ed25519 public keys as PEM."""
    if not _public_keys(text):
        raise ValueError("must hold at least one public key as PEM")


def _base64url(raw: bytes) -> str:
    return base64.urlsafe_b64encode(raw).rstrip(b"=").decode()


def _bytes_of(text: str) -> bytes:
    """Base64url without padding, in the one spelling that it has. Raises ValueError."""
    raw = base64.urlsafe_b64decode(text + "=" * (-len(text) % 4))
    if _base64url(raw) != text:
        raise ValueError("not base64url")
    return raw


@lru_cache(maxsize=TOKENS_KEPT)
def _signed_body(token: str, public_keys_pem: str) -> str:
    """The claims of a token that one of these keys signed, as JSON. Raises BadSignatureError and ValueError, and then
    nothing is kept.
    """
    signed, _, signature = token.rpartition(".")
    header, _, body = signed.partition(".")
    _named_key(header, public_keys_pem).verify(signed.encode("ascii"), _bytes_of(signature))
    return _bytes_of(body).decode()


@lru_cache(maxsize=HEADERS_KEPT)
def _named_key(header: str, public_keys_pem: str) -> VerifyKey:
    """The key that a header names. Raises ValueError for one that is not ours."""
    told = json.loads(_bytes_of(header))
    if not isinstance(told, dict) or told.get("alg") != _ALGORITHM or "crit" in told:
        raise ValueError("not a header of ours")
    key = _public_keys(public_keys_pem).get(str(told.get("kid")))
    if key is None:
        raise ValueError("not a key of ours")
    return key


@lru_cache(maxsize=8)
def _private_key(pem: str) -> tuple[Ed25519PrivateKey, str]:
    key = load_pem_private_key(pem.encode(), None)
    if not isinstance(key, Ed25519PrivateKey):
        raise TypeError("not an Ed25519 private key")
    return key, key_id(key.public_key())


@lru_cache(maxsize=8)
def _public_keys(text: str) -> Mapping[str, VerifyKey]:
    """The keys of all PEM blocks by their ids, read once: reading one costs as much as checking a signature."""
    found = {}
    for block in text.split(_PEM_END)[:-1]:
        key = load_pem_public_key((block.strip() + "\n" + _PEM_END + "\n").encode())
        if not isinstance(key, Ed25519PublicKey):
            raise ValueError("must be Ed25519 public keys")
        found[key_id(key)] = VerifyKey(key.public_bytes(Encoding.Raw, PublicFormat.Raw))
    return found
