"""What both HTTP functions need to keep secrets: a pepper, and a master key: of KMS in AWS, their own on one machine."""

import time
from typing import Final

from pydantic import SecretStr, field_validator, model_validator

from shared.access.envelope import Envelope, KeyRing, KmsKeyRing, LocalKeyRing
from shared.runtime.settings import Settings, Stage, secret_bytes

KEY_BYTES: Final = 32


class SealingSettings(Settings):
    """`PSX_SECRET_PEPPER`, and one of `PSX_KMS_KEY_ID` (any stage) and `PSX_MASTER_KEY` (stage `local` only)."""

    secret_pepper: SecretStr
    kms_key_id: str = ""
    master_key: SecretStr | None = None

    @field_validator("secret_pepper", "master_key")
    @classmethod
    def _key(cls, value: SecretStr | None) -> SecretStr | None:
        if value is not None:
            secret_bytes(value, KEY_BYTES)
        return value

    @model_validator(mode="after")
    def _one_master(self) -> "SealingSettings":
        if bool(self.kms_key_id) == (self.master_key is not None):
            raise ValueError("set PSX_KMS_KEY_ID, or in stage local PSX_MASTER_KEY, and not both")
        if self.master_key is not None and self.stage is not Stage.LOCAL:
            raise ValueError("PSX_MASTER_KEY exists in stage local only: set PSX_KMS_KEY_ID")
        return self


def envelope(settings: SealingSettings) -> Envelope:
    """The envelope that settings ask for."""
    ring: KeyRing
    if settings.master_key is not None:
        ring = LocalKeyRing(secret_bytes(settings.master_key, KEY_BYTES))
    else:
        ring = KmsKeyRing(settings.kms_key_id)
    return Envelope(ring, secret_bytes(settings.secret_pepper, KEY_BYTES), time.monotonic)
