"""Devices and their owners through the API function: what the tests of supply share."""

from dataclasses import replace
from typing import Any

import pytest

from functions.jobs import list_exits
from functions.jobs import wiring as jobs
from local.bootstrap import RATES
from shared.access import table as access
from shared.access.model import Account, AccountKind, ApiKey, Scope
from shared.access.secrets import new_api_key, token_hash
from shared.grading.model import Grade, ProbeResult
from shared.grading.rules import add_result
from shared.grading.table import get_grade, put_result
from shared.kernel.codes import IpType, Pool
from shared.kernel.ids import AccountId, Country, DeviceId, GatewayId, PakId
from shared.metering.model import FlushBatch, LineKey, UsageLine
from shared.metering.table import put_batch
from shared.pool.model import Presence
from shared.runtime.clock import now_ms
from shared.runtime.dynamo import update
from shared.runtime.settings import Settings
from shared.settlement.service import Tables, roll_up
from shared.supply import table as devices
from shared.supply.model import Device, Kind, Origin
from shared.supply.table import read_device
from tests.support.functions import PREFIX, Functions, Reply
from tests.support.permissions import as_function
from tests.support.pool import presence

PHONE, HOME, SERVER, NOWHERE = "127.10.1.7", "127.11.1.7", "127.12.1.7", "127.99.0.1"
OLD, NEW = "0x" + "a1" * 20, "4Nd1mBQtrMJVYVfKf2PJy9NZUZdTAsp7D4xWLs4gDB4T"
TERMS = {"termsVersion": "2026-11"}


def register(functions: Functions, name: str = "rig-1", source: str = PHONE, **more: Any) -> Reply:
    body = {"name": name, "type": "custom", "apiKey": functions.keys.supplier, **more}
    return functions.call("/v1/peer/agents/register", "POST", body, source=source)


def enrolled(functions: Functions, name: str = "rig-1", source: str = PHONE, **more: Any) -> dict[str, Any]:
    answer = register(functions, name, source, **more)
    assert answer.status == 200, answer.body
    body: dict[str, Any] = answer.body
    return body


def owner(functions: Functions) -> dict[str, str]:
    return {"x-api-key": functions.keys.supplier}


def admin(functions: Functions) -> dict[str, str]:
    return {"x-api-key": functions.keys.admin}


def device(body: dict[str, Any]) -> dict[str, str]:
    return {"authorization": f"Bearer {body['jwt']}"}


def stranger(functions: Functions, account: str = "psx_other") -> dict[str, str]:
    text, ident = new_api_key(), AccountId(account)
    functions.dynamo.run(
        access.put_account(f"{PREFIX}access", Account(ident, AccountKind.SUPPLIER, now_ms()))
    )
    key = ApiKey(token_hash(text), ident, frozenset({Scope.SUPPLY}), now_ms())
    functions.dynamo.run(access.put_api_key(f"{PREFIX}access", key))
    return {"x-api-key": text}


def set_field(functions: Functions, ident: str, field: str, value: Any) -> None:
    request = update(
        f"{PREFIX}devices", f"dev#{ident}", "-", f"SET {field} = :v", {":v": value}, parse=read_device
    )
    functions.dynamo.run(request)


def served(
    functions: Functions, ident: str, gigabytes: int, sequence: int = 0, customer: str = "psx_c"
) -> None:
    """Bytes of a device, counted, rolled up and earned at the mobile rate."""
    key = LineKey(
        PakId("p"),
        AccountId(customer),
        DeviceId(ident),
        AccountId("psx_supplier1"),
        Country("us"),
        Pool.PEER,
        IpType.MOBILE,
    )
    batch = FlushBatch(GatewayId("g"), sequence, now_ms(), (UsageLine(key, 0, gigabytes * 10**9),))
    functions.dynamo.run(put_batch(f"{PREFIX}usage", batch))
    request = update(f"{PREFIX}access", "pak#p", "-", "SET used_bytes = :n", {":n": 0}, parse=lambda row: row)
    functions.dynamo.run(request)
    tables = Tables(*(f"{PREFIX}{name}" for name in ("usage", "access", "ledger", "devices")))
    assert roll_up(functions.dynamo, tables, RATES, now_ms()).applied == 1


def probed(functions: Functions, ident: str, *results: ProbeResult) -> None:
    table = f"{PREFIX}grades"
    for number, result in enumerate(results):
        before = functions.dynamo.run(get_grade(table, DeviceId(ident))) or Grade(DeviceId(ident))
        placed = replace(result, vantage=("eu", "us")[number % 2])
        assert functions.dynamo.run(put_result(table, add_result(before, placed)))


def seen(ip_type: IpType, asn: int) -> ProbeResult:
    return ProbeResult(
        now_ms(), throughput_kbps=2000, exit_country=Country("us"), exit_ip_type=ip_type, exit_asn=asn
    )


@pytest.fixture
def list_now(functions: Functions, monkeypatch: pytest.MonkeyPatch) -> Any:
    settings = Settings(
        stage="local",  # type: ignore[arg-type]
        table_prefix=PREFIX,
        redis_url=functions.api_wiring.settings.redis_url,
    )
    monkeypatch.setattr(
        list_exits, "wiring", lambda: jobs.Wiring(settings, functions.dynamo, functions.redis)
    )

    def run() -> Any:
        with as_function("list-exits"):
            return list_exits.handler({"job": "list_exits"}, None)

    return run


def placed(ident: str, address: str, ip_type: IpType) -> Presence:
    found = presence(ident)
    values = {f: getattr(found, f) for f in Presence.__dataclass_fields__}
    return Presence(**{**values, "ip": address, "ip_type": ip_type})


def put_row(functions: Functions, ident: str) -> None:
    """A device without the cost of registering it."""
    made = Device(DeviceId(ident), AccountId("psx_x"), ident, Kind.SDK, Origin(), "", "us", now_ms())
    assert functions.dynamo.run(devices.create(f"{PREFIX}devices", made)) is None
