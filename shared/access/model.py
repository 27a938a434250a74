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
    KEYS = "keys"
    READ = "read"


@dataclass(frozen=True, slots=True)
class Account:
    """One account."""

    account_id: AccountId
    kind: AccountKind
    created_at_ms: int
    wallet: str | None = None


@dataclass(frozen=True, slots=True)
class ApiKey:
    """An API key as it is stored: by its hash. For a signed-in human, `person` and when the password was given."""

    key_hash: str
    account_id: AccountId
    scopes: frozenset[Scope]
    created_at_ms: int
    label: str = ""
    ends_at_ms: int | None = None
    person: str = ""
    password_at_ms: int = 0

    @property
    def key_id(self) -> str:
        """What a key is named by; not enough to find it by hash, and not a credential."""
        return self.key_hash[:16]

    def has_ended(self, now_ms: int) -> bool:
        """Whether the key was rotated away or ended."""
        return self.ends_at_ms is not None and self.ends_at_ms <= now_ms


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
    ip_type: str = ""
    """Locked to peers of this IP type; empty for no such lock."""
    drawn_bytes: int = 0
    """What the account's prepaid balance gave this key; 0 for what was given on invoice."""
