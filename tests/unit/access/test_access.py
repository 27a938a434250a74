"""Keys: found by a keyed hash, sealed to their row, suspended once, topped up in one write."""

from dataclasses import replace

import pytest

from shared.access import table as access
from shared.access.model import Account, AccountKind, ApiKey, DisabledReason, Pak, Quality, Scope
from shared.access.rules import CAP_MAX_BYTES, authenticate, cap_fault, is_expired
from shared.access.secrets import (
    SealBroken,
    SecretBox,
    new_api_key,
    new_pak_secret,
    new_session_token,
    token_hash,
)
from shared.kernel.codes import Refusal
from shared.kernel.ids import AccountId, PakId
from shared.runtime.dynamo import SyncDynamo, transact

TABLE = "psx-test-access"
OWNER = AccountId("psx_a")
NOW = 1_800_000_000_000
BOX = SecretBox(b"s" * 32, b"p" * 32)
GOOD = Pak(
    pak_id=PakId("p1"),
    account_id=OWNER,
    label="one",
    secret_hash=BOX.hash("pak_1"),
    secret_sealed="sealed",
    cap_bytes=100,
    used_bytes=0,
    enabled=True,
    disabled_reason=None,
    expires_at_ms=NOW + 1,
    quality=Quality.SAFE,
    socks_allowed=False,
    created_at_ms=NOW,
    updated_at_ms=NOW,
)


@pytest.mark.parametrize(
    ("pak", "refusal"),
    [
        (GOOD, None),
        (None, Refusal.AUTH_INVALID),
        (replace(GOOD, account_id=AccountId("psx_b")), Refusal.AUTH_INVALID),
        (replace(GOOD, used_bytes=100), Refusal.CAP_EXCEEDED),
        (replace(GOOD, enabled=False, disabled_reason=DisabledReason.CAP), Refusal.CAP_EXCEEDED),
        (replace(GOOD, enabled=False, disabled_reason=DisabledReason.ADMIN), Refusal.AUTH_INVALID),
        (replace(GOOD, expires_at_ms=NOW), Refusal.AUTH_INVALID),
        (replace(GOOD, cap_bytes=None, used_bytes=10**15, expires_at_ms=None), None),
    ],
)
def test_who_may_carry_traffic(pak: Pak | None, refusal: Refusal | None) -> None:
    assert authenticate(pak, OWNER, NOW) is refusal


def test_a_key_without_an_expiry_never_expires() -> None:
    assert not is_expired(replace(GOOD, expires_at_ms=None), NOW)


@pytest.mark.parametrize(
    ("cap", "kind", "fine"),
    [
        (1, AccountKind.RESELLER, True),
        (CAP_MAX_BYTES, AccountKind.RESELLER, True),
        (CAP_MAX_BYTES + 1, AccountKind.RESELLER, False),
        (0, AccountKind.RESELLER, False),
        (None, AccountKind.RESELLER, False),
        (None, AccountKind.PARTNER, True),
    ],
)
def test_caps_are_bounded_and_only_partners_go_without(
    cap: int | None, kind: AccountKind, fine: bool
) -> None:
    assert (cap_fault(cap, kind) is None) is fine


def test_a_sealed_secret_opens_only_with_its_key_and_in_its_row() -> None:
    sealed = BOX.seal("pak_secret", "pak#1")
    assert "pak_secret" not in sealed
    assert BOX.open(sealed, "pak#1") == "pak_secret"
    assert BOX.seal("pak_secret", "pak#1") != sealed
    with pytest.raises(SealBroken):
        BOX.open(sealed, "pak#2")
    with pytest.raises(SealBroken):
        SecretBox(b"x" * 32, b"p" * 32).open(sealed, "pak#1")


def test_the_lookup_hash_needs_the_pepper() -> None:
    assert BOX.hash("pak_1") == BOX.hash("pak_1")
    assert BOX.hash("pak_1") != SecretBox(b"s" * 32, b"q" * 32).hash("pak_1")


def test_keys_of_a_wrong_size_are_refused() -> None:
    with pytest.raises(ValueError, match="32 bytes"):
        SecretBox(b"short", b"p" * 32)


def test_secrets_have_their_published_shapes() -> None:
    assert len(new_pak_secret()) == 28
    assert new_pak_secret().startswith("pak_")
    assert new_api_key().startswith("psx_")
    assert new_session_token().startswith("x402s_")
    assert len(token_hash("x")) == 64


def test_accounts_are_created_once(dynamo: SyncDynamo) -> None:
    account = Account(OWNER, AccountKind.SUPPLIER, NOW, "0xabc")
    assert dynamo.run(access.put_account(TABLE, account))
    assert not dynamo.run(access.put_account(TABLE, replace(account, kind=AccountKind.ADMIN)))
    assert dynamo.run(access.get_account(TABLE, OWNER)) == account
    assert dynamo.run(access.get_account(TABLE, AccountId("psx_none"))) is None


def test_api_keys_are_found_by_their_hash(dynamo: SyncDynamo) -> None:
    key = ApiKey(token_hash("psx_k"), OWNER, frozenset({Scope.RESELL, Scope.SUPPLY}), NOW)
    dynamo.run(access.put_api_key(TABLE, key))
    assert dynamo.run(access.find_api_key(TABLE, token_hash("psx_k"))) == key
    assert dynamo.run(access.find_api_key(TABLE, token_hash("psx_x"))) is None


def test_a_minted_key_is_found_by_its_secret(dynamo: SyncDynamo) -> None:
    assert dynamo.run(access.mint(TABLE, GOOD)) is None
    assert dynamo.run(access.mint(TABLE, GOOD)) is not None
    assert dynamo.run(access.find_secret(TABLE, GOOD.secret_hash)) == "p1"
    assert dynamo.run(access.get_pak(TABLE, GOOD.pak_id)) == GOOD
    assert dynamo.run(access.list_paks(TABLE, OWNER, 10)).rows == (GOOD,)


def test_a_suspension_happens_once(dynamo: SyncDynamo) -> None:
    dynamo.run(access.mint(TABLE, GOOD))
    off = transact([access.suspend_capped_item(TABLE, GOOD.pak_id, NOW, GOOD.cap_bytes)])
    assert dynamo.run(transact([access.suspend_capped_item(TABLE, GOOD.pak_id, NOW, 99)])) is not None
    assert dynamo.run(off) is None
    first = dynamo.run(access.get_pak(TABLE, GOOD.pak_id))
    assert first is not None
    assert (first.enabled, first.disabled_reason) == (False, DisabledReason.CAP)
    assert dynamo.run(off) is not None


def test_a_top_up_turns_on_what_its_cap_turned_off_and_nothing_else(dynamo: SyncDynamo) -> None:
    dynamo.run(access.mint(TABLE, GOOD))
    dynamo.run(
        access.change(
            TABLE, GOOD.pak_id, {"enabled": False, "disabled_reason": DisabledReason.CAP.value}, NOW
        )
    )
    item = access.top_up_item(TABLE, GOOD.pak_id, 50, NOW + 9, NOW, reenable=True)
    assert dynamo.run(transact([item])) is None
    pak = dynamo.run(access.get_pak(TABLE, GOOD.pak_id))
    assert pak is not None
    assert (pak.enabled, pak.disabled_reason, pak.cap_bytes, pak.expires_at_ms) == (True, None, 150, NOW + 9)
    dynamo.run(
        access.change(
            TABLE, GOOD.pak_id, {"enabled": False, "disabled_reason": DisabledReason.ADMIN.value}, NOW
        )
    )
    assert dynamo.run(transact([item])) is not None


def test_a_plain_top_up_leaves_a_key_off(dynamo: SyncDynamo) -> None:
    dynamo.run(access.mint(TABLE, GOOD))
    dynamo.run(
        access.change(
            TABLE, GOOD.pak_id, {"enabled": False, "disabled_reason": DisabledReason.CAP.value}, NOW
        )
    )
    dynamo.run(transact([access.top_up_item(TABLE, GOOD.pak_id, 50, None, NOW, reenable=False)]))
    pak = dynamo.run(access.get_pak(TABLE, GOOD.pak_id))
    assert pak is not None
    assert (pak.enabled, pak.cap_bytes) == (False, 150)


def test_regenerating_ends_the_old_secret_in_the_same_moment(dynamo: SyncDynamo) -> None:
    dynamo.run(access.mint(TABLE, GOOD))
    fresh = BOX.hash("pak_2")
    assert dynamo.run(access.regenerate(TABLE, GOOD, fresh, "sealed2", NOW)) is None
    assert dynamo.run(access.find_secret(TABLE, GOOD.secret_hash)) is None
    assert dynamo.run(access.find_secret(TABLE, fresh)) == "p1"
    assert dynamo.run(access.regenerate(TABLE, GOOD, BOX.hash("pak_3"), "s", NOW)) is not None


def test_changes_set_and_remove_fields(dynamo: SyncDynamo) -> None:
    dynamo.run(access.mint(TABLE, GOOD))
    changed = dynamo.run(access.change(TABLE, GOOD.pak_id, {"label": "two", "expires_at_ms": None}, NOW + 5))
    assert changed is not None
    assert (changed.label, changed.expires_at_ms, changed.updated_at_ms) == ("two", None, NOW + 5)
    assert dynamo.run(access.change(TABLE, PakId("none"), {"label": "x"}, NOW)) is None


def test_used_bytes_are_added(dynamo: SyncDynamo) -> None:
    dynamo.run(access.mint(TABLE, GOOD))
    dynamo.run(transact([access.add_used_item(TABLE, GOOD.pak_id, 40, NOW)]))
    pak = dynamo.run(access.get_pak(TABLE, GOOD.pak_id))
    assert pak is not None
    assert (pak.used_bytes, pak.last_used_at_ms) == (40, NOW)
