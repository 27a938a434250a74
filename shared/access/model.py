"""Accounts and keys. Secrets stand here only as hashes or sealed."""

from dataclasses import dataclass
from enum import StrEnum

from shared.kernel.ids import AccountId, PakId


class AccountKind(StrEnum):
    """What an account is for."""

    CUSTOMER = "customer"
    RESELLER = "reseller"
    PARTNER = "partner"
    HOUSE = "house"
    SUPPLIER = "supplier"
    ADMIN = "admin"
    WALLET = "wallet"


class Scope(StrEnum):
    """What an API key may do."""

    RESELL = "resell"
    SUPPLY = "supply"
    ADMIN = "admin"


@dataclass(frozen=True, slots=True)
class Account:
    """One account; `consent_version` is set when its owner accepted the terms for all devices that they own."""

    account_id: AccountId
    kind: AccountKind
    created_at_ms: int
    wallet: str | None = None
    consent_version: str | None = None


@dataclass(frozen=True, slots=True)
class ApiKey:
    """An API key as it is stored: by its hash."""

    key_hash: str
    account_id: AccountId
    scopes: frozenset[Scope]
    created_at_ms: int


class Quality(StrEnum):
    """Quality lock of a key: `safe` never leaves the modems, whatever its username says."""

    SAFE = "safe"
    STANDARD = "standard"


class DisabledReason(StrEnum):
    """Why a key is off."""

    CAP = "cap"
    EXPIRED = "expired"
    ADMIN = "admin"
    DELETED = "deleted"


@dataclass(frozen=True, slots=True)
class Pak:
    """A pool access key. `per_pak_limits` is for house keys, whose account is shared by strangers."""

    pak_id: PakId
    account_id: AccountId
    label: str
    secret_hash: str
    secret_sealed: str
    cap_bytes: int | None
    used_bytes: int
    enabled: bool
    disabled_reason: DisabledReason | None
    expires_at_ms: int | None
    quality: Quality
    socks_allowed: bool
    created_at_ms: int
    updated_at_ms: int
    last_used_at_ms: int | None = None
