"""Rows of devices. (account, name) is looked up first, so a rotated API key never makes a second device."""

from collections.abc import Mapping
from typing import Any

from shared.kernel.codes import IpType
from shared.kernel.ids import AccountId, Country, DeviceId
from shared.runtime.dynamo import (
    Conflict,
    DynamoRequest,
    Item,
    Page,
    get_item,
    query,
    scan,
    transact,
    transact_put,
    update,
)
from shared.supply.model import Consent, Device, Kind, Modem, Origin


def _row(device: Device) -> dict[str, Any]:
    origin, consent, modem = device.origin, device.consent, device.modem
    return {
        "pk": f"dev#{device.device_id}",
        "sk": "-",
        "account_id": device.account_id,
        "created_at": device.created_at_ms,
        "name": device.name,
        "kind": device.kind.value,
        "country": origin.country,
        "ip_type": origin.ip_type.value,
        "asn": origin.asn,
        "isp": origin.isp,
        "carrier": device.carrier,
        "region": device.region,
        "listing_wanted": device.listing_wanted,
        "generation": device.generation,
        "wallet": device.wallet,
        "refresh_hash": device.refresh_hash,
        "spent_refresh_hash": device.spent_refresh_hash,
        "consent": None
        if consent is None
        else {"version": consent.terms_version, "method": consent.method, "at_ms": consent.accepted_at_ms},
        "modem": None
        if modem is None
        else {"host": modem.host, "port": modem.port, "credentials_sealed": modem.credentials_sealed},
    }


def read_device(row: Item) -> Device:
    """A row as a device."""
    consent, modem = row.get("consent"), row.get("modem")
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
        generation=row["generation"],
        consent=None if consent is None else Consent(consent["version"], consent["method"], consent["at_ms"]),
        wallet=row.get("wallet"),
        modem=None if modem is None else Modem(modem["host"], modem["port"], modem["credentials_sealed"]),
        refresh_hash=row["refresh_hash"],
        spent_refresh_hash=row["spent_refresh_hash"],
    )


def find_name(table: str, account_id: AccountId, name: str) -> DynamoRequest[DeviceId | None]:
    """The device that first registered under a name."""
    return get_item(table, f"name#{account_id}", name, parse=lambda r: DeviceId(r["device"]))


def get_device(table: str, device_id: DeviceId) -> DynamoRequest[Device | None]:
    """A device."""
    return get_item(table, f"dev#{device_id}", parse=read_device)


def create(table: str, device: Device) -> DynamoRequest[Conflict | None]:
    """A new device and its name; a conflict when another machine registered either first."""
    name = {"pk": f"name#{device.account_id}", "sk": device.name, "device": device.device_id}
    return transact([transact_put(table, _row(device)), transact_put(table, name)])


def change(table: str, device_id: DeviceId, fields: Mapping[str, object]) -> DynamoRequest[Device | None]:
    """Set fields of a device; None when it does not exist."""
    row = {k: v for k, v in fields.items() if v is not None}
    return update(
        table,
        f"dev#{device_id}",
        "-",
        "SET " + ", ".join(f"#{k} = :{k}" for k in row),
        {f":{k}": v for k, v in row.items()},
        parse=read_device,
        condition="attribute_exists(pk)",
        names={f"#{k}": k for k in row},
    )


def rotate_refresh(table: str, device_id: DeviceId, spent: str, fresh: str) -> DynamoRequest[Device | None]:
    """Replace a refresh token by the next one; None when it was not the current one (any more)."""
    return update(
        table,
        f"dev#{device_id}",
        "-",
        "SET refresh_hash = :fresh, spent_refresh_hash = :spent",
        {":fresh": fresh, ":spent": spent},
        parse=read_device,
        condition="refresh_hash = :spent",
    )


def revoke(table: str, device_id: DeviceId) -> DynamoRequest[Device | None]:
    """End every token of a device: its generation rises and no refresh token is current."""
    return update(
        table,
        f"dev#{device_id}",
        "-",
        "SET refresh_hash = :none ADD generation :one",
        {":none": "revoked", ":one": 1},
        parse=read_device,
        condition="attribute_exists(pk)",
    )


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


def all_devices(table: str, limit: int, start: Mapping[str, Any] | None) -> DynamoRequest[Page[Device]]:
    """One page of all devices."""
    return scan(table, "dev#", parse=read_device, limit=limit, start=start)
