"""Rows of devices. (account, name) is looked up first, so a rotated API key never makes a second device.

A new device is written together with its name and with the count that bounds its account, so counts are exact whoever
registers at the same time. Counts stand in several rows per account: one row would make a starting fleet wait.
"""

from collections.abc import Mapping
from typing import Any, Final

from shared.kernel.codes import IpType
from shared.kernel.ids import AccountId, Country, DeviceId
from shared.runtime.dynamo import (
    Conflict,
    DynamoRequest,
    Item,
    Page,
    TransactItem,
    get_item,
    query,
    scan,
    transact,
    transact_delete,
    transact_put,
    transact_update,
    update,
)
from shared.supply.model import Consent, Device, Family, Kind, Modem, Origin, PendingWallet
from shared.supply.rules import COUNT_SHARDS, DEVICES_MAX, UNPROVEN_MAX, shard_cap

COUNT_ITEM: Final = 0
"""Where the place in the counts stands in a transaction that takes one."""


def consent_row(consent: Consent) -> dict[str, Any]:
    """Consent as it stands in a device's row."""
    return {"version": consent.terms_version, "method": consent.method, "at_ms": consent.accepted_at_ms}


def origin_row(origin: Origin) -> dict[str, Any]:
    """An origin as it stands in a device's row."""
    return {
        "country": origin.country,
        "ip_type": origin.ip_type.value,
        "asn": origin.asn,
        "isp": origin.isp,
    }


def modem_row(modem: Modem) -> dict[str, Any]:
    """A modem as it stands in a device's row."""
    return {"host": modem.host, "port": modem.port, "credentials_sealed": modem.credentials_sealed}


def family_row(family: Family) -> dict[str, Any]:
    """A refresh family as it stands in a device's row."""
    row: dict[str, Any] = {
        "hash": family.refresh_hash,
        "begun_ms": family.begun_at_ms,
        "used_ms": family.used_at_ms,
        "agen": family.account_generation,
        "owned": family.owned,
    }
    if family.apart:
        row["apart"] = True
    if family.previous_hash:
        row |= {"was": family.previous_hash, "spent_ms": family.spent_at_ms}
    return row


def _row(device: Device) -> dict[str, Any]:
    pending = device.pending_wallet
    return {
        "pk": f"dev#{device.device_id}",
        "sk": "-",
        "account_id": device.account_id,
        "created_at": device.created_at_ms,
        "name": device.name,
        "kind": device.kind.value,
        **origin_row(device.origin),
        "carrier": device.carrier,
        "region": device.region,
        "listing_wanted": device.listing_wanted,
        "listing_set_ms": device.listing_set_at_ms,
        "generation": device.generation,
        "shard": device.shard,
        "proven_ms": device.proven_at_ms,
        "wallet": device.wallet,
        "pending_wallet": {"wallet": pending.wallet, "from_ms": pending.from_ms} if pending else None,
        "requested_micro": device.requested_micro,
        "claimed_country": device.claimed_country,
        "begun_with": device.begun_with or None,
        "twins_ms": device.twins_at_ms,
        "withdrawn_ms": device.withdrawn_at_ms,
        "released_ms": device.released_at_ms,
        "consent": consent_row(device.consent) if device.consent else None,
        "modem": modem_row(device.modem) if device.modem else None,
        "families": {name: family_row(family) for name, family in device.families.items()},
    }


def read_device(row: Item) -> Device:
    """A row as a device."""
    consent, modem, pending = row.get("consent"), row.get("modem"), row.get("pending_wallet")
    return Device(
        device_id=DeviceId(row["pk"].removeprefix("dev#")),
        account_id=AccountId(row["account_id"]),
        name=row["name"],
        kind=Kind(row["kind"]),
        origin=Origin(Country(row["country"]), IpType(row["ip_type"]), row["asn"], row["isp"]),
        carrier=row["carrier"],
        region=row["region"],
        created_at_ms=row["created_at"],
        listing_wanted=row["listing_wanted"],
        listing_set_at_ms=row["listing_set_ms"],
        generation=row["generation"],
        shard=row["shard"],
        proven_at_ms=row.get("proven_ms"),
        consent=Consent(consent["version"], consent["method"], consent["at_ms"]) if consent else None,
        withdrawn_at_ms=row.get("withdrawn_ms"),
        released_at_ms=row.get("released_ms"),
        wallet=row.get("wallet"),
        pending_wallet=PendingWallet(pending["wallet"], pending["from_ms"]) if pending else None,
        requested_micro=row["requested_micro"],
        claimed_country=row["claimed_country"],
        begun_with=row.get("begun_with") or "",
        twins_at_ms=row.get("twins_ms"),
        modem=Modem(modem["host"], modem["port"], modem["credentials_sealed"]) if modem else None,
        families={name: _read_family(family) for name, family in row["families"].items()},
    )


def _read_family(row: Item) -> Family:
    previous = row.get("was", ""), row.get("spent_ms", 0)
    return Family(
        row["hash"],
        row["begun_ms"],
        row["used_ms"],
        row["agen"],
        row["owned"],
        *previous,
        row.get("apart", False),
    )


def find_name(table: str, account_id: AccountId, name: str) -> DynamoRequest[DeviceId | None]:
    """The device that first registered under a name."""
    return get_item(table, f"name#{account_id}", name, parse=lambda r: DeviceId(r["device"]))


def get_device(table: str, device_id: DeviceId) -> DynamoRequest[Device | None]:
    """A device."""
    return get_item(table, f"dev#{device_id}", parse=read_device)


# Creation and counts


def creation(table: str, device: Device) -> list[TransactItem]:
    """A new device, its name, and its place in the count of its shard.

    When only `COUNT_ITEM` fails, the shard is full; else another machine was first.
    """
    name = {"pk": f"name#{device.account_id}", "sk": device.name, "device": device.device_id}
    return [_count_item(table, device), transact_put(table, _row(device)), transact_put(table, name)]


def create(table: str, device: Device) -> DynamoRequest[Conflict | None]:
    """`creation`, as a transaction of its own."""
    return transact(creation(table, device))


def count_again(table: str, device: Device) -> DynamoRequest[Conflict | None]:
    """A device whose place was released takes one in its shard; failures as in `creation`."""
    back = transact_update(
        table,
        f"dev#{device.device_id}",
        "-",
        "SET #shard = :shard REMOVE released_ms",
        {":shard": device.shard},
        condition="attribute_exists(released_ms)",
        names={"#shard": "shard"},
    )
    return transact([_count_item(table, device), back])


def _count_item(table: str, device: Device) -> TransactItem:
    room = {
        ":devices_max": shard_cap(DEVICES_MAX, device.shard),
        ":unproven_max": shard_cap(UNPROVEN_MAX, device.shard),
    }
    return transact_update(
        table,
        f"count#{device.account_id}",
        f"{device.shard:02d}",
        "ADD devices :one, unproven :one",
        {":one": 1, **room},
        condition="attribute_not_exists(devices) OR (devices < :devices_max AND unproven < :unproven_max)",
    )


def read_counts(table: str, account_id: AccountId) -> DynamoRequest[Mapping[int, tuple[int, int]]]:
    """(devices, unproven ones) of an account by shard; a shard without a device is left out."""
    asked = query(
        table,
        "pk = :pk",
        {":pk": f"count#{account_id}"},
        parse=lambda r: (int(r["sk"]), (r["devices"], r["unproven"])),
        limit=COUNT_SHARDS,
    )
    return DynamoRequest(asked.operation, asked.params, lambda a: dict(asked.parse(a).rows))


def prove(table: str, device: Device, now_ms: int) -> DynamoRequest[bool]:
    """A device was verified or served: it leaves the unproven count. False when it had left before."""
    proven = transact_update(
        table,
        f"dev#{device.device_id}",
        "-",
        "SET proven_ms = :now",
        {":now": now_ms},
        condition="attribute_exists(pk) AND attribute_not_exists(proven_ms) AND attribute_not_exists(released_ms)",
    )
    counted = transact_update(
        table, f"count#{device.account_id}", f"{device.shard:02d}", "ADD unproven :less", {":less": -1}
    )
    asked = transact([proven, counted])
    return DynamoRequest(asked.operation, asked.params, lambda _: True, lambda _: False)


def drop_ghost(table: str, device: Device) -> DynamoRequest[bool]:
    """Forget a device that never served, with its name and its place in the count.

    False when it was proven, or came back, since it was read.
    """
    there, values = _unchanged(device)
    gone = transact_delete(
        table,
        f"dev#{device.device_id}",
        condition=f"{there} AND attribute_not_exists(withdrawn_ms)",
        values=values,
    )
    name = transact_delete(table, f"name#{device.account_id}", device.name)
    counted = [] if device.released_at_ms is not None else [_uncount_item(table, device)]
    asked = transact([gone, name, *counted])
    return DynamoRequest(asked.operation, asked.params, lambda _: True, lambda _: False)


def release_place(table: str, device: Device, now_ms: int) -> DynamoRequest[bool]:
    """A withdrawn device that never served leaves the counts. Its row stays: who comes back must not agree by itself.

    False when it was proven, came back, or left since it was read.
    """
    there, values = _unchanged(device)
    released = transact_update(
        table,
        f"dev#{device.device_id}",
        "-",
        "SET released_ms = :now",
        {":now": now_ms, **values},
        condition=there,
    )
    asked = transact([released, _uncount_item(table, device)])
    return DynamoRequest(asked.operation, asked.params, lambda _: True, lambda _: False)


def _unchanged(device: Device) -> tuple[str, dict[str, Any]]:
    """The condition, with its values, that an unproven device still is as it was read."""
    families = {name: family_row(family) for name, family in device.families.items()}
    there = "attribute_not_exists" if device.released_at_ms is None else "attribute_exists"
    return f"attribute_not_exists(proven_ms) AND {there}(released_ms) AND families = :seen", {
        ":seen": families
    }


def _uncount_item(table: str, device: Device) -> TransactItem:
    place = f"count#{device.account_id}", f"{device.shard:02d}"
    return transact_update(table, *place, "ADD devices :less, unproven :less", {":less": -1})


# Changes


def change(
    table: str, device_id: DeviceId, fields: Mapping[str, object], remove: tuple[str, ...] = ()
) -> DynamoRequest[Device | None]:
    """Set and remove fields of a device; None when it does not exist."""
    row = {k: v for k, v in fields.items() if v is not None}
    expression = ("SET " + ", ".join(f"#{k} = :{k}" for k in row) if row else "") + (
        " REMOVE " + ", ".join(f"#{k}" for k in remove) if remove else ""
    )
    return update(
        table,
        f"dev#{device_id}",
        "-",
        expression,
        {f":{k}": v for k, v in row.items()},
        parse=read_device,
        condition="attribute_exists(pk)",
        names={f"#{k}": k for k in (*row, *remove)},
    )


def begin_family(
    table: str,
    device_id: DeviceId,
    name: str,
    family: Family,
    replaced: tuple[str, ...],
    fields: Mapping[str, object],
) -> DynamoRequest[Device | None]:
    """A registration of a known device: another chain of refresh tokens, and what its address says now."""
    return _with_family(table, device_id, name, family, replaced, fields, condition="attribute_exists(pk)")


def rotate_refresh(
    table: str, device_id: DeviceId, name: str, family: Family, newest_hash: str, fields: Mapping[str, object]
) -> DynamoRequest[Device | None]:
    """The next refresh token of a family; None when its newest one is another than `newest_hash` (by now)."""
    return _with_family(
        table, device_id, name, family, (), fields, condition="families.#f.#h = :newest", newest=newest_hash
    )


def _with_family(
    table: str,
    device_id: DeviceId,
    name: str,
    family: Family,
    replaced: tuple[str, ...],
    fields: Mapping[str, object],
    *,
    condition: str,
    newest: str | None = None,
) -> DynamoRequest[Device | None]:
    row = {k: v for k, v in fields.items() if v is not None}
    sets = ", ".join(["families.#f = :f", *(f"#{k} = :{k}" for k in row)])
    gone = ", ".join(f"families.#r{n}" for n in range(len(replaced)))
    names = {"#f": name, **{f"#r{n}": r for n, r in enumerate(replaced)}, **{f"#{k}": k for k in row}}
    values: dict[str, object] = {":f": family_row(family), **{f":{k}": v for k, v in row.items()}}
    if newest is not None:
        names["#h"], values[":newest"] = "hash", newest
    return update(
        table,
        f"dev#{device_id}",
        "-",
        f"SET {sets}" + (f" REMOVE {gone}" if gone else ""),
        values,
        parse=read_device,
        condition=condition,
        names=names,
    )


def end_family(table: str, device_id: DeviceId, name: str) -> DynamoRequest[Device | None]:
    """End a family whose spent token was used again: no token that came of it, or of any other, goes on unrenewed."""
    return update(
        table,
        f"dev#{device_id}",
        "-",
        "REMOVE families.#f ADD generation :one",
        {":one": 1},
        parse=read_device,
        condition="attribute_exists(families.#f)",
        names={"#f": name},
    )


def revoke(
    table: str, device_id: DeviceId, fields: Mapping[str, object] | None = None
) -> DynamoRequest[Device | None]:
    """End every token of a device, refresh tokens too: it has to register again. `fields` are set with it."""
    row = {"families": {}, **(fields or {})}
    return update(
        table,
        f"dev#{device_id}",
        "-",
        "SET " + ", ".join(f"#{k} = :{k}" for k in row) + " ADD generation :one",
        {":one": 1, **{f":{k}": v for k, v in row.items()}},
        parse=read_device,
        condition="attribute_exists(pk)",
        names={f"#{k}": k for k in row},
    )


# Lists


def of_account(
    table: str, account_id: AccountId, limit: int, start: Mapping[str, Any] | None = None
) -> DynamoRequest[Page[Device]]:
    """Devices of an account, newest first."""
    return query(
        table,
        "account_id = :a",
        {":a": account_id},
        parse=read_device,
        limit=limit,
        index="by_account",
        forward=False,
        start=start,
    )


def all_devices(
    table: str, limit: int, start: Mapping[str, Any] | None, segment: tuple[int, int] | None = None
) -> DynamoRequest[Page[Device]]:
    """One page of all devices, or of one segment of them."""
    return scan(table, "dev#", parse=read_device, limit=limit, start=start, segment=segment)


def device_key(device_id: DeviceId) -> tuple[str, str]:
    """Where a device stands."""
    return f"dev#{device_id}", "-"
