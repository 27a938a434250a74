"""How secrets are kept: pak secrets sealed (so that `reveal` works) and found by a keyed hash; API keys as plain SHA-256.

API keys and session tokens are 128 random bits or more, so a plain hash is enough; pak secrets have 96 and get a pepper.
What customers are told again is sealed by `envelope.py`; `SecretBox` is for one key that nodes hold (modems' credentials).
Source: NIST SP 800-38D (AES-GCM).
"""

import base64
import hashlib
import hmac
import os
from typing import Final, Protocol

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

KEY_BYTES: Final = 32
_NONCE_BYTES: Final = 12


class SealBroken(Exception):
    """A sealed secret does not open: another key, another context, or altered bytes."""


class Seals(Protocol):
    """Whatever keeps secrets so that they can be told again. `context` binds a sealed text to the row it stands in."""

    def hash(self, secret: str) -> str:
        """The keyed hash that a pak secret is found by."""

    def seal(self, text: str, context: str) -> str:
        """A secret as it may be stored. Raises StoreUnavailable."""

    def open(self, sealed: str, context: str) -> str:
        """The secret again. Raises SealBroken or StoreUnavailable."""


class SecretBox:
    """Seals and finds secrets under one key. `context` binds a sealed text to the row it stands in."""

    def __init__(self, sealing_key: bytes, pepper: bytes) -> None:
        if len(sealing_key) != KEY_BYTES or len(pepper) != KEY_BYTES:
            raise ValueError(f"keys are {KEY_BYTES} bytes")
        self._aead = AESGCM(sealing_key)
        self._keyed = hmac.new(pepper, digestmod="sha256")

    def hash(self, secret: str) -> str:
        """The keyed hash that a pak secret is found by."""
        keyed = self._keyed.copy()  # half the price of a new one: OpenSSL looks its algorithms up by name
        keyed.update(secret.encode())
        return keyed.hexdigest()

    def seal(self, text: str, context: str) -> str:
        """A secret as it may be stored."""
        nonce = os.urandom(_NONCE_BYTES)
        sealed = self._aead.encrypt(nonce, text.encode(), context.encode())
        return base64.b64encode(nonce + sealed).decode()

    def open(self, sealed: str, context: str) -> str:
        """The secret again. Raises SealBroken."""
        raw = base64.b64decode(sealed)
        try:
            return self._aead.decrypt(raw[:_NONCE_BYTES], raw[_NONCE_BYTES:], context.encode()).decode()
        except InvalidTag:
            raise SealBroken from None


def token_hash(token: str) -> str:
    """The hash that API keys, session tokens and refresh tokens are stored by."""
    return hashlib.sha256(token.encode()).hexdigest()


def new_pak_secret() -> str:
    """`pak_<24 hex>`: the proxy password."""
    return "pak_" + os.urandom(12).hex()


def new_api_key() -> str:
    """`psx_<hex>`."""
    return "psx_" + os.urandom(24).hex()


def new_session_token() -> str:
    """`x402s_<hex>`."""
    return "x402s_" + os.urandom(24).hex()
