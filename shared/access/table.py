"""Rows of accounts, API keys and paks. A pak's secret is a row of its own, so a lookup is one consistent read."""

from collections.abc import Mapping, Sequence
from typing import Any, Final

from shared.access.model import Account, AccountKind, ApiKey, DisabledReason, Pak, Quality, Scope
from shared.kernel.ids import AccountId, PakId
from shared.runtime.dynamo import (
    Conflict,
    DynamoRequest,
    Item,
    Page,
    TransactItem,
    batch_get,
    get_item,
    put_new,
    query,
    transact,
    transact_put,
    transact_update,
    update,
)
from shared.runtime.dynamo import key as item_key

API_KEYS_PER_ACCOUNT_MAX: Final = 50
API_KEY_ROW_KEPT_S: Final = 30 * 86_400
EXPIRING: Final = "1"
"""The partition of the index `by_expiry`: keys that end some time and are still to be turned off then."""

# Accounts and API keys


def _account_row(account: Account) -> dict[str, Any]:
    return {
        "pk": f"acct#{account.account_id}",
        "sk": "-",
        "kind": account.kind.value,
        "created_ms": account.created_at_ms,
        "wallet": account.wallet,
    }


def put_account(table: str, account: Account) -> DynamoRequest[bool]:
    """Create an account; False when the name is taken."""
    return put_new(table, _account_row(account))


def account_item(table: str, account: Account) -> TransactItem:
    """The same inside a transaction."""
    return transact_put(table, _account_row(account))


def _read_account(row: Item) -> Account:
    return Account(
        AccountId(row["pk"].removeprefix("acct#")),
        AccountKind(row["kind"]),
        row["created_ms"],
        row.get("wallet"),
    )


def get_account(table: str, account_id: AccountId) -> DynamoRequest[Account | None]:
    """An account."""
    return get_item(table, f"acct#{account_id}", parse=_read_account)


def api_key_items(table: str, key: ApiKey, *, successor: bool = False) -> list[TransactItem]:
    """A new API key by its hash, in its account's list, and counted; the last item fails when there are too many.

    A `successor` takes the place of a key that ends in the same transaction, and is not counted.
    """
    row = {
        "pk": f"apikey#{key.key_hash}",
        "sk": "-",
        "account": key.account_id,
        "scopes": sorted(key.scopes),
        "created_ms": key.created_at_ms,
        "label": key.label,
        "ends_ms": key.ends_at_ms,
    }
    listed = {**_listed_as(key), "hash": key.key_hash}
    counted = transact_update(
        table,
        f"keycount#{key.account_id}",
        "-",
        "ADD live :one",
        {":one": 1, ":max": API_KEYS_PER_ACCOUNT_MAX},
        condition="attribute_not_exists(live) OR live < :max",
    )
    items = [transact_put(table, row), transact_put(table, listed, new=False)]
    return items if successor else [*items, counted]


def _listed_as(key: ApiKey) -> dict[str, str]:
    return {"pk": f"keys#{key.account_id}", "sk": f"{key.created_at_ms:013d}#{key.key_id}"}


def put_api_key(table: str, key: ApiKey) -> DynamoRequest[bool]:
    """Store an API key; False when it is known, or the account has too many."""
    asked = transact(api_key_items(table, key))
    return DynamoRequest(asked.operation, asked.params, lambda _: True, lambda _: False)


def find_api_key(table: str, key_hash: str) -> DynamoRequest[ApiKey | None]:
    """The API key with this hash, ended or not."""

    def parse(row: Item) -> ApiKey:
        scopes = frozenset(Scope(s) for s in row["scopes"])
        account, created = AccountId(row["account"]), row["created_ms"]
        return ApiKey(key_hash, account, scopes, created, row.get("label", ""), row.get("ends_ms"))

    return get_item(table, f"apikey#{key_hash}", parse=parse)


def api_key_hashes(
    table: str, account_id: AccountId, limit: int, start: Mapping[str, Any] | None = None
) -> DynamoRequest[Page[str]]:
    """Hashes of an account's keys that were not ended, the newest first."""
    return query(
        table,
        "pk = :pk",
        {":pk": f"keys#{account_id}"},
        parse=lambda row: str(row["hash"]),
        limit=limit,
        forward=False,
        start=start,
    )


def end_api_key_items(table: str, key: ApiKey, at_ms: int, *, succeeded: bool = False) -> list[TransactItem]:
    """Let a key work until a time; it leaves the list, and its row goes when nobody asks for it any more.

    Fails when it was ended in the same moment. `succeeded`: another one has its place.
    """
    ended = transact_update(
        table,
        f"apikey#{key.key_hash}",
        "-",
        "SET ends_ms = :at, #ttl = :ttl",
        {":at": at_ms, ":ttl": at_ms // 1000 + API_KEY_ROW_KEPT_S},
        condition="attribute_exists(pk) AND attribute_not_exists(ends_ms)",
        names={"#ttl": "ttl"},
    )
    place = _listed_as(key)
    unlisted: TransactItem = {"Delete": {"TableName": table, "Key": item_key(place["pk"], place["sk"])}}
    counted = transact_update(table, f"keycount#{key.account_id}", "-", "ADD live :less", {":less": -1})
    return [ended, unlisted] if succeeded else [ended, unlisted, counted]


# Pool access keys


def _pak_row(pak: Pak) -> dict[str, Any]:
    return {
        "pk": f"pak#{pak.pak_id}",
        "sk": "-",
        "account_id": pak.account_id,
        "created_at": pak.created_at_ms,
        "updated_at_ms": pak.updated_at_ms,
        "label": pak.label,
        "secret_hash": pak.secret_hash,
        "secret_sealed": pak.secret_sealed,
        "cap_bytes": pak.cap_bytes,
        "used_bytes": pak.used_bytes,
        "enabled": pak.enabled,
        "disabled_reason": pak.disabled_reason.value if pak.disabled_reason else None,
        "expires_at_ms": pak.expires_at_ms,
        "expiring": None if pak.expires_at_ms is None or not pak.enabled else EXPIRING,
        "quality": pak.quality.value,
        "socks_allowed": pak.socks_allowed,
        "ip_type": pak.ip_type,
        "drawn_bytes": pak.drawn_bytes,
    }


def read_pak(row: Item) -> Pak:
    """A row as a pak."""
    reason = row.get("disabled_reason")
    return Pak(
        pak_id=PakId(row["pk"].removeprefix("pak#")),
        account_id=AccountId(row["account_id"]),
        label=row["label"],
        secret_hash=row["secret_hash"],
        secret_sealed=row["secret_sealed"],
        cap_bytes=row.get("cap_bytes"),
        used_bytes=row["used_bytes"],
        enabled=row["enabled"],
        disabled_reason=DisabledReason(reason) if reason else None,
        expires_at_ms=row.get("expires_at_ms"),
        quality=Quality(row["quality"]),
        socks_allowed=row["socks_allowed"],
        created_at_ms=row["created_at"],
        updated_at_ms=row["updated_at_ms"],
        last_used_at_ms=row.get("last_used_at_ms"),
        ip_type=row.get("ip_type", ""),
        drawn_bytes=row.get("drawn_bytes", 0),
    )


def mint_items(table: str, pak: Pak) -> list[TransactItem]:
    """A new pak and its secret, for a transaction of whoever sells it."""
    return [transact_put(table, _pak_row(pak)), _secret_item(table, pak.secret_hash, pak.pak_id)]


def _secret_item(table: str, secret_hash: str, pak_id: PakId) -> TransactItem:
    return transact_put(table, {"pk": f"secret#{secret_hash}", "sk": "-", "pak": pak_id})


def mint(table: str, pak: Pak) -> DynamoRequest[Conflict | None]:
    """A new pak on its own."""
    return transact(mint_items(table, pak))


def find_secret(table: str, secret_hash: str) -> DynamoRequest[PakId | None]:
    """The pak that a secret belongs to."""
    return get_item(table, f"secret#{secret_hash}", parse=lambda r: PakId(r["pak"]))


def get_pak(table: str, pak_id: PakId) -> DynamoRequest[Pak | None]:
    """A pak, as it is now."""
    return get_item(table, f"pak#{pak_id}", parse=read_pak)


def ended_paks(table: str, pak_ids: Sequence[PakId]) -> DynamoRequest[frozenset[PakId]]:
    """Those of up to 100 paks that were deleted, or never were. What the store had no time for counts as standing."""
    asked = batch_get(table, [(f"pak#{pak_id}", "-") for pak_id in pak_ids], parse=read_pak)

    def parse(answer: Mapping[str, Any]) -> frozenset[PakId]:
        found = asked.parse(answer)
        standing = {p.pak_id for p in found.rows if p.disabled_reason is not DisabledReason.DELETED}
        unread = {PakId(pk.removeprefix("pak#")) for pk, _ in found.left}
        return frozenset(pak_ids) - standing - unread

    return DynamoRequest(asked.operation, asked.params, parse)


def list_paks(
    table: str, account_id: AccountId, limit: int, start: Mapping[str, Any] | None = None
) -> DynamoRequest[Page[Pak]]:
    """Paks of an account, newest first."""
    return query(
        table,
        "account_id = :a",
        {":a": account_id},
        parse=read_pak,
        limit=limit,
        index="by_account",
        forward=False,
        start=start,
    )


def suspend_capped_item(table: str, pak_id: PakId, now_ms: int, cap_bytes: int | None) -> TransactItem:
    """Turn off a key that reached its cap, unless it was off already, or its cap is no longer the one that was reached."""
    values: dict[str, object] = {":no": False, ":yes": True, ":now": now_ms}
    condition = "enabled = :yes"
    if cap_bytes is not None:
        condition += " AND cap_bytes = :cap"
        values[":cap"] = cap_bytes
    return transact_update(
        table,
        f"pak#{pak_id}",
        "-",
        "SET enabled = :no, disabled_reason = :reason, updated_at_ms = :now",
        values | {":reason": DisabledReason.CAP.value},
        condition=condition,
    )


def suspend_expired_item(table: str, pak: Pak, now_ms: int) -> TransactItem:
    """Turn off a key whose time is over, unless its end moved or it was off already; it leaves the index."""
    values: dict[str, object] = {":no": False, ":yes": True, ":end": pak.expires_at_ms, ":now": now_ms}
    return transact_update(
        table,
        f"pak#{pak.pak_id}",
        "-",
        "SET enabled = :no, disabled_reason = :reason, updated_at_ms = :now REMOVE expiring",
        values | {":reason": DisabledReason.EXPIRED.value},
        condition="enabled = :yes AND expires_at_ms = :end",
    )


def unlist_expired(table: str, pak: Pak) -> DynamoRequest[Pak | None]:
    """A key that was off already when its time was over: it leaves the index; None when its end moved."""
    return update(
        table,
        f"pak#{pak.pak_id}",
        "-",
        "REMOVE expiring",
        {":end": pak.expires_at_ms, ":no": False},
        parse=read_pak,
        condition="expires_at_ms = :end AND enabled = :no",
    )


def expired_paks(table: str, now_ms: int, limit: int) -> DynamoRequest[Page[PakId]]:
    """Keys whose time is over and that were not looked at since, the longest ago first (the index may lag)."""
    return query(
        table,
        "expiring = :one AND expires_at_ms <= :now",
        {":one": EXPIRING, ":now": now_ms},
        parse=lambda row: PakId(row["pk"].removeprefix("pak#")),
        limit=limit,
        index="by_expiry",
    )


_STANDS: Final = (
    "attribute_exists(pk) AND (attribute_not_exists(disabled_reason) OR disabled_reason <> :deleted)"
)
"""A key that its owner has not deleted: nothing brings one back that was deleted in the same moment."""


def _changing(fields: Mapping[str, object], now_ms: int) -> tuple[str, dict[str, object], dict[str, str]]:
    """Expression, values and names that set fields (None removes one). With an end, or on again, it is looked at then."""
    if {"expires_at_ms", "enabled"} & fields.keys():
        fields = {**fields, "expiring": EXPIRING}
    setting = {k: v for k, v in fields.items() if v is not None} | {"updated_at_ms": now_ms}
    removing = [k for k, v in fields.items() if v is None]
    expression = "SET " + ", ".join(f"#{k} = :{k}" for k in setting)
    if removing:
        expression += " REMOVE " + ", ".join(f"#{k}" for k in removing)
    values = {f":{k}": v for k, v in setting.items()} | {":deleted": DisabledReason.DELETED.value}
    return expression, values, {f"#{k}": k for k in (*setting, *removing)}


def change(table: str, pak_id: PakId, fields: Mapping[str, object], now_ms: int) -> DynamoRequest[Pak | None]:
    """Set fields of a pak (None removes one); None when it does not exist, or was deleted."""
    expression, values, names = _changing(fields, now_ms)
    pk = f"pak#{pak_id}"
    return update(table, pk, "-", expression, values, parse=read_pak, condition=_STANDS, names=names)


def set_item(table: str, pak_id: PakId, fields: Mapping[str, object], now_ms: int) -> TransactItem:
    """`change` inside a transaction."""
    expression, values, names = _changing(fields, now_ms)
    return transact_update(table, f"pak#{pak_id}", "-", expression, values, condition=_STANDS, names=names)


def change_item(table: str, pak: Pak, fields: Mapping[str, object], now_ms: int) -> TransactItem:
    """The same for a key whose cap, and what was drawn for it, are still as they were read."""
    expression, values, names = _changing(fields, now_ms)
    condition = f"{_STANDS} AND attribute_not_exists(cap_bytes)"
    if pak.cap_bytes is not None:
        values[":cap_before"] = pak.cap_bytes
        condition = f"{_STANDS} AND cap_bytes = :cap_before"
    values[":drawn_before"] = pak.drawn_bytes
    drawn = "drawn_bytes = :drawn_before"
    condition += (
        f" AND {drawn}" if pak.drawn_bytes else f" AND (attribute_not_exists(drawn_bytes) OR {drawn})"
    )
    pk = f"pak#{pak.pak_id}"
    return transact_update(table, pk, "-", expression, values, condition=condition, names=names)


def top_up_item(
    table: str,
    pak_id: PakId,
    add_bytes: int,
    expires_at_ms: int | None,
    now_ms: int,
    *,
    reenable: bool,
    expiry_was: tuple[int | None] | None = None,
    cap_max_bytes: int | None = None,
    drawn_bytes: int = 0,
) -> TransactItem:
    """Raise a finite cap, move the expiry, and (for keys that were bought so) turn a capped or expired key on again.

    With `expiry_was` the expiry moves only from what was read, so that no extension is lost to another one. With
    `cap_max_bytes` the cap stays within it, whoever else raises it. `drawn_bytes` of it come from a prepaid balance.
    """
    expression = "SET updated_at_ms = :now"
    values: dict[str, object] = {":now": now_ms}
    if expires_at_ms is not None:
        expression += ", expires_at_ms = :expires"
        values[":expires"] = expires_at_ms
    if expires_at_ms is not None or reenable:
        expression += ", expiring = :expiring"
        values[":expiring"] = EXPIRING
    condition = "attribute_exists(cap_bytes)" if add_bytes else "attribute_exists(pk)"
    if add_bytes and cap_max_bytes is not None:
        condition = "cap_bytes <= :room"
        values[":room"] = cap_max_bytes - add_bytes
    if expires_at_ms is not None and expiry_was is not None:
        before = expiry_was[0]
        condition += " AND " + (
            "attribute_not_exists(expires_at_ms)" if before is None else "expires_at_ms = :was"
        )
        if before is not None:
            values[":was"] = before
    if reenable:
        expression += ", enabled = :yes REMOVE disabled_reason"
        values |= {":yes": True, ":cap": DisabledReason.CAP.value, ":late": DisabledReason.EXPIRED.value}
        condition += " AND (attribute_not_exists(disabled_reason) OR disabled_reason IN (:cap, :late))"
    else:
        condition += f" AND {_STANDS}"
        values[":deleted"] = DisabledReason.DELETED.value
    if add_bytes:
        expression += " ADD cap_bytes :add"
        values[":add"] = add_bytes
        if drawn_bytes:
            expression += ", drawn_bytes :drawn"
            values[":drawn"] = drawn_bytes
    return transact_update(table, f"pak#{pak_id}", "-", expression, values, condition=condition)


def regenerate_items(
    table: str, pak: Pak, secret_hash: str, secret_sealed: str, now_ms: int
) -> list[TransactItem]:
    """Another secret for the same pak; the old one is gone in the same moment."""
    changed = transact_update(
        table,
        f"pak#{pak.pak_id}",
        "-",
        "SET secret_hash = :hash, secret_sealed = :sealed, updated_at_ms = :now",
        {":hash": secret_hash, ":sealed": secret_sealed, ":now": now_ms, ":before": pak.secret_hash},
        condition="secret_hash = :before",
    )
    gone: TransactItem = {
        "Delete": {"TableName": table, "Key": {"pk": {"S": f"secret#{pak.secret_hash}"}, "sk": {"S": "-"}}}
    }
    return [changed, gone, _secret_item(table, secret_hash, pak.pak_id)]


def regenerate(
    table: str, pak: Pak, secret_hash: str, secret_sealed: str, now_ms: int
) -> DynamoRequest[Conflict | None]:
    """`regenerate_items` on their own."""
    return transact(regenerate_items(table, pak, secret_hash, secret_sealed, now_ms))


def add_used_item(table: str, pak_id: PakId, used_bytes: int, now_ms: int) -> TransactItem:
    """Add rolled-up bytes to a pak, for the transaction that marks their batch as applied."""
    return transact_update(
        table,
        f"pak#{pak_id}",
        "-",
        "ADD used_bytes :used SET last_used_at_ms = :now",
        {":used": used_bytes, ":now": now_ms},
        condition="attribute_exists(pk)",
    )
