"""Signed tokens: one Ed25519 key signs, several are believed, and each is named by `kid`.

Rotation in three steps: give everybody the new public key beside the old one, change the private key, drop the old public
key an hour later. `kid` is the key's thumbprint. Source: RFC 7515 section 4.1.4, RFC 7638, RFC 8037.
"""

import base64
import hashlib
import json
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

ISSUER: Final = "psx"
CLOCK_LEEWAY_S: Final = 30
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
    """The payload of a token that one of these keys signed (the library reads the clock). Raises BadToken."""
    try:
        key = _public_keys(public_keys_pem).get(str(jwt.get_unverified_header(token).get("kid")))
        if key is None:
            raise BadToken(expired=False)
        found: Mapping[str, Any] = jwt.decode(
            token,
            key,
            algorithms=[_ALGORITHM],
            audience=audience,
            issuer=ISSUER,
            leeway=CLOCK_LEEWAY_S,
            options={"require": ["exp", "iss", "aud", "sub"]},
        )
    except jwt.ExpiredSignatureError:
        raise BadToken(expired=True) from None
    except jwt.InvalidTokenError:
        raise BadToken(expired=False) from None
    return found


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


@lru_cache(maxsize=8)
def _private_key(pem: str) -> tuple[Ed25519PrivateKey, str]:
    key = load_pem_private_key(pem.encode(), None)
    if not isinstance(key, Ed25519PrivateKey):
        raise TypeError("not an Ed25519 private key")
    return key, key_id(key.public_key())


@lru_cache(maxsize=8)
def _public_keys(text: str) -> Mapping[str, Ed25519PublicKey]:
    """The keys of all PEM blocks by their ids, read once: reading one costs as much as checking a signature."""
    found = {}
    for block in text.split(_PEM_END)[:-1]:
        key = load_pem_public_key((block.strip() + "\n" + _PEM_END + "\n").encode())
        if not isinstance(key, Ed25519PublicKey):
            raise ValueError("must be Ed25519 public keys")
        found[key_id(key)] = key
    return found
