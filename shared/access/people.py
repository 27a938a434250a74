"""Humans of an account: passwords as scrypt hashes, and sign-in tokens for the portals.

A token says when its owner last gave the password; what is dangerous asks for that within `FRESH_MS`. Tokens of an older
generation ended with a password change. Source: RFC 7519; RFC 7914; OpenID Connect Core 1.0 (`auth_time`).
"""

import base64
import hashlib
import hmac
import os
from dataclasses import dataclass
from typing import Final

from shared.access.model import AccountKind, Scope
from shared.kernel.ids import AccountId
from shared.runtime.dynamo import (
    DynamoRequest,
    Item,
    TransactItem,
    get_item,
    transact_put,
    transact_update,
)
from shared.runtime.signing import BadToken, read, sign

TOKEN_LIFE_S: Final = 3600
FRESH_MS: Final = 5 * 60_000
PASSWORD_MIN_CHARS: Final = 12
PASSWORD_MAX_CHARS: Final = 256
AUDIENCE: Final = "portal"
_SALT_BYTES: Final = 16
_SCRYPT_N: Final = 1 << 14
SCOPES: Final = {
    AccountKind.CUSTOMER: frozenset({Scope.RESELL, Scope.KEYS}),
    AccountKind.RESELLER: frozenset({Scope.RESELL, Scope.KEYS}),
    AccountKind.PARTNER: frozenset({Scope.RESELL, Scope.KEYS}),
    AccountKind.SUPPLIER: frozenset({Scope.SUPPLY, Scope.KEYS}),
    AccountKind.ADMIN: frozenset({Scope.ADMIN, Scope.KEYS}),
    AccountKind.HOUSE: frozenset[Scope](),
    AccountKind.WALLET: frozenset[Scope](),
}


@dataclass(frozen=True, slots=True)
class Person:
    """Somebody who signs in for an account."""

    email: str
    account_id: AccountId
    password_hash: str
    generation: int
    created_at_ms: int


@dataclass(frozen=True, slots=True)
class SignedIn:
    """What a valid token says."""

    email: str
    account_id: AccountId
    generation: int
    password_at_ms: int


def hash_password(password: str) -> str:
    """A password as it is stored."""
    salt = os.urandom(_SALT_BYTES)
    return base64.b64encode(salt + _scrypt(password, salt)).decode()


def is_password(password: str, stored: str) -> bool:
    """Whether a password is the stored one; takes the same time either way."""
    raw = base64.b64decode(stored)
    return hmac.compare_digest(_scrypt(password, raw[:_SALT_BYTES]), raw[_SALT_BYTES:])


def _scrypt(password: str, salt: bytes) -> bytes:
    return hashlib.scrypt(password.encode(), salt=salt, n=_SCRYPT_N, r=8, p=1)


NOBODY: Final = base64.b64encode(bytes(_SALT_BYTES) + bytes(64)).decode()
"""The hash that is compared for an address nobody has, so that its answer takes as long."""


def issue(person: Person, private_key_pem: str, now_ms: int) -> str:
    """A token for somebody who has just given the password."""
    now_s = now_ms // 1000
    payload = {
        "aud": AUDIENCE,
        "sub": person.email,
        "acct": person.account_id,
        "gen": person.generation,
        "auth_time": now_s,
        "iat": now_s,
        "exp": now_s + TOKEN_LIFE_S,
    }
    return sign(payload, private_key_pem)


def verify(token: str, public_keys_pem: str) -> SignedIn | None:
    """The claims of a token that one of these keys signed for a portal; None for anything else."""
    try:
        payload = read(token, public_keys_pem, AUDIENCE)
    except BadToken:
        return None
    account, generation, at_s = payload.get("acct"), payload.get("gen"), payload.get("auth_time")
    if not isinstance(account, str) or not isinstance(generation, int) or not isinstance(at_s, int):
        return None
    return SignedIn(payload["sub"], AccountId(account), generation, at_s * 1000)


def _pk(email: str) -> str:
    return f"user#{email.lower()}"


def _read(row: Item) -> Person:
    return Person(row["email"], AccountId(row["account"]), row["password"], row["gen"], row["created_ms"])


def person_item(table: str, person: Person) -> TransactItem:
    """Somebody new; fails when the address is taken."""
    row = {
        "pk": _pk(person.email),
        "sk": "-",
        "email": person.email.lower(),
        "account": person.account_id,
        "password": person.password_hash,
        "gen": person.generation,
        "created_ms": person.created_at_ms,
    }
    return transact_put(table, row)


def get_person(table: str, email: str) -> DynamoRequest[Person | None]:
    """Somebody by their address."""
    return get_item(table, _pk(email), parse=_read)


def password_item(table: str, person: Person, password_hash: str) -> TransactItem:
    """Another password; every token so far ends. Fails when it changed in the same moment."""
    return transact_update(
        table,
        _pk(person.email),
        "-",
        "SET password = :new ADD gen :one",
        {":new": password_hash, ":one": 1, ":before": person.password_hash},
        condition="password = :before",
    )
