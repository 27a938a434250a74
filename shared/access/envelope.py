"""Envelope encryption of what must be told again: every sealed text carries its own data key, wrapped by a master key.

The master key is one of KMS in AWS, where it never leaves the service, and a local one elsewhere; so the database alone
opens nothing. A data key seals for an hour or `SEALS_PER_DATA_KEY_MAX` texts, whichever is less. Unwrapped keys are kept
for a bounded number of wrapped ones. Source: NIST SP 800-38D (AES-GCM); AWS KMS API reference, GenerateDataKey, Decrypt.
"""

import base64
import hmac
import os
import threading
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final, Protocol

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from shared.access.secrets import KEY_BYTES, SealBroken
from shared.runtime.dynamo import StoreUnavailable

DATA_KEY_LIFE_S: Final = 3600.0
SEALS_PER_DATA_KEY_MAX: Final = 10_000
UNWRAPPED_KEPT_MAX: Final = 1024
KMS_CONNECT_TIMEOUT_S: Final = 2
KMS_READ_TIMEOUT_S: Final = 5
_VERSION: Final = "e1"
_NONCE_BYTES: Final = 12
_PURPOSE: Final = {"purpose": "psx access secrets"}
_LOCAL_CONTEXT: Final = b"psx data key"
_NOT_OURS: Final = frozenset(
    {"InvalidCiphertextException", "IncorrectKeyException", "InvalidKeyUsageException"}
)


class KeyRing(Protocol):
    """Whoever holds the master key."""

    def new_data_key(self) -> tuple[bytes, bytes]:
        """(data key, the same wrapped). Raises StoreUnavailable."""

    def unwrap(self, wrapped: bytes) -> bytes:
        """The data key again. Raises SealBroken for bytes that this master key did not wrap, or StoreUnavailable."""


class LocalKeyRing:
    """A master key of this process: for one machine, never for AWS."""

    def __init__(self, master_key: bytes) -> None:
        if len(master_key) != KEY_BYTES:
            raise ValueError(f"keys are {KEY_BYTES} bytes")
        self._aead = AESGCM(master_key)

    def new_data_key(self) -> tuple[bytes, bytes]:
        """A random key, wrapped by AES-GCM."""
        data_key, nonce = os.urandom(KEY_BYTES), os.urandom(_NONCE_BYTES)
        return data_key, nonce + self._aead.encrypt(nonce, data_key, _LOCAL_CONTEXT)

    def unwrap(self, wrapped: bytes) -> bytes:
        """The data key again."""
        try:
            return self._aead.decrypt(wrapped[:_NONCE_BYTES], wrapped[_NONCE_BYTES:], _LOCAL_CONTEXT)
        except (InvalidTag, ValueError):
            raise SealBroken from None


class KmsKeyRing:
    """A symmetric key of AWS KMS; `client` is a boto3 client, made once per container."""

    def __init__(self, key_id: str, client: Any = None) -> None:
        self._key_id = key_id
        self._client = client if client is not None else _kms_client()

    def new_data_key(self) -> tuple[bytes, bytes]:
        """GenerateDataKey."""
        answer = self._call(
            "generate_data_key", KeyId=self._key_id, KeySpec="AES_256", EncryptionContext=_PURPOSE
        )
        return bytes(answer["Plaintext"]), bytes(answer["CiphertextBlob"])

    def unwrap(self, wrapped: bytes) -> bytes:
        """Decrypt, with the one key that may have wrapped it."""
        answer = self._call("decrypt", KeyId=self._key_id, CiphertextBlob=wrapped, EncryptionContext=_PURPOSE)
        return bytes(answer["Plaintext"])

    def _call(self, operation: str, **params: Any) -> Any:
        import botocore.exceptions as failures  # noqa: PLC0415 - processes with a local key never load it

        try:
            return getattr(self._client, operation)(**params)
        except failures.ClientError as error:
            code = str(error.response.get("Error", {}).get("Code", ""))
            if code in _NOT_OURS:
                raise SealBroken from None
            raise StoreUnavailable(f"kms: {operation}: {code}") from error
        except failures.BotoCoreError as error:
            raise StoreUnavailable(f"kms: {operation}: {type(error).__name__}") from error


def _kms_client() -> Any:
    import boto3  # noqa: PLC0415 - processes with a local key never load it
    from botocore.config import Config  # noqa: PLC0415

    config = Config(
        connect_timeout=KMS_CONNECT_TIMEOUT_S,
        read_timeout=KMS_READ_TIMEOUT_S,
        retries={"mode": "standard", "total_max_attempts": 3},
    )
    return boto3.client("kms", config=config)


@dataclass(slots=True)
class _DataKey:
    aead: AESGCM
    wrapped: bytes
    until_s: float
    seals_left: int


class Envelope:
    """Seals secrets under data keys, and finds them by a keyed hash."""

    def __init__(self, ring: KeyRing, pepper: bytes, now_s: Callable[[], float]) -> None:
        if len(pepper) != KEY_BYTES:
            raise ValueError(f"keys are {KEY_BYTES} bytes")
        self._ring = ring
        self._pepper = pepper
        self._now_s = now_s
        self._lock = threading.Lock()
        self._current: _DataKey | None = None
        self._unwrapped: OrderedDict[bytes, AESGCM] = OrderedDict()

    def hash(self, secret: str) -> str:
        """The keyed hash that a pak secret is found by."""
        return hmac.digest(self._pepper, secret.encode(), "sha256").hex()

    def seal(self, text: str, context: str) -> str:
        """A secret as it may be stored, bound to the row it stands in. Raises StoreUnavailable."""
        with self._lock:
            key = self._data_key()
            key.seals_left -= 1
        nonce = os.urandom(_NONCE_BYTES)
        sealed = nonce + key.aead.encrypt(nonce, text.encode(), context.encode())
        return ".".join((_VERSION, _text(key.wrapped), _text(sealed)))

    def open(self, sealed: str, context: str) -> str:
        """The secret again. Raises SealBroken or StoreUnavailable."""
        try:
            version, wrapped, body = sealed.split(".")
            raw = base64.urlsafe_b64decode(body)
            aead = self._aead_of(base64.urlsafe_b64decode(wrapped))
            if version != _VERSION:
                raise SealBroken
            return aead.decrypt(raw[:_NONCE_BYTES], raw[_NONCE_BYTES:], context.encode()).decode()
        except (ValueError, InvalidTag):
            raise SealBroken from None

    def _data_key(self) -> _DataKey:
        key = self._current
        if key is None or key.seals_left <= 0 or self._now_s() >= key.until_s:
            plain, wrapped = self._ring.new_data_key()
            key = _DataKey(AESGCM(plain), wrapped, self._now_s() + DATA_KEY_LIFE_S, SEALS_PER_DATA_KEY_MAX)
            self._current = key
            self._keep(wrapped, key.aead)
        return key

    def _aead_of(self, wrapped: bytes) -> AESGCM:
        with self._lock:
            known = self._unwrapped.get(wrapped)
            if known is not None:
                self._unwrapped.move_to_end(wrapped)
                return known
        found = AESGCM(self._ring.unwrap(wrapped))
        with self._lock:
            self._keep(wrapped, found)
        return found

    def _keep(self, wrapped: bytes, aead: AESGCM) -> None:
        self._unwrapped[wrapped] = aead
        while len(self._unwrapped) > UNWRAPPED_KEPT_MAX:
            self._unwrapped.popitem(last=False)


def _text(raw: bytes) -> str:
    return base64.urlsafe_b64encode(raw).decode()
