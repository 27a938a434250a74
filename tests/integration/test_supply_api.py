"""Devices and their owners through the API function: wallets, withdrawals, consent, wishes, classes, hostile callers."""

from collections.abc import Iterator
from dataclasses import replace
from typing import Any
from urllib.parse import urlencode

import pytest

from functions.api import enrolling
from functions.jobs import list_exits
from functions.jobs import wiring as jobs
from local import lab
from local.api_gateway import http_event
from local.bootstrap import RATES
from local.http_server import HttpRequest
from shared.access import table as access
from shared.access.model import Account, AccountKind, ApiKey, Scope
from shared.access.secrets import new_api_key, token_hash
from shared.grading.model import Failure, Grade, ProbeResult
from shared.grading.rules import add_result
from shared.grading.table import get_grade, put_result
from shared.guard.rules import first_broken
from shared.guard.table import entries
from shared.kernel.codes import IpType, Pool
from shared.kernel.ids import AccountId, Country, DeviceId, GatewayId, PakId
from shared.metering.model import FlushBatch, LineKey, UsageLine
from shared.metering.table import put_batch
from shared.pool.live import listed_ids, put_presence
from shared.pool.model import Presence
from shared.runtime.clock import now_ms
from shared.runtime.dynamo import SyncDynamo, update
from shared.runtime.redis import SyncRedis, command
from shared.runtime.settings import Settings
from shared.settlement.service import Tables, roll_up
from shared.supply.live import read_regions
from shared.supply.rules import FAMILIES_MAX, WALLET_COOLING_MS
from shared.supply.table import get_device, read_device
from tests.contract.test_pool_live import presence
from tests.support.functions import PREFIX, Functions, Reply

pytestmark = pytest.mark.slow
PHONE, HOME, SERVER, NOWHERE = "127.10.1.7", "127.11.1.7", "127.12.1.7", "127.99.0.1"
OLD, NEW = "0x" + "a1" * 20, "4Nd1mBQtrMJVYVfKf2PJy9NZUZdTAsp7D4xWLs4gDB4T"
TERMS = {"termsVersion": "2026-11"}


@pytest.fixture
def functions(dynamo: SyncDynamo, valkey_url: str, lab_files: lab.LabFiles) -> Iterator[Functions]:
    made = Functions(dynamo, valkey_url, lab_files)
    yield made
    made.close()


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


def served(functions: Functions, ident: str, gigabytes: int, sequence: int = 0) -> None:
    """Bytes of a device, counted, rolled up and earned at the mobile rate."""
    key = LineKey(
        PakId("p"),
        AccountId("psx_c"),
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
    return lambda: list_exits.handler({"job": "list_exits"}, None)


# What a device is


@pytest.mark.parametrize(
    ("source", "ip_type", "per_gb"),
    [
        (PHONE, "mobile", 1.2),
        (HOME, "residential", 0.5),
        (SERVER, "datacenter", 0.1),
        (NOWHERE, "unknown", 0.1),
    ],
)
def test_a_device_is_classed_and_paid_as_what_its_address_is(
    functions: Functions, source: str, ip_type: str, per_gb: float
) -> None:
    body = enrolled(functions, source=source, country="US", ipType="mobile", carrier="T-Mobile")
    assert (body["ipType"], body["earningsPerGB"]) == (ip_type, per_gb)
    status = functions.call(f"/v1/peer/agents/{body['deviceId']}/status", headers=device(body)).body
    assert (status["ipType"], status["earningsPerGB"]) == (ip_type, per_gb)


def test_a_claimed_country_is_told_beside_the_real_one(functions: Functions) -> None:
    body = enrolled(functions, country="de")
    status = functions.call(f"/v1/peer/agents/{body['deviceId']}/status", headers=device(body)).body
    assert (status["country"], status["claimedCountry"]) == ("US", "DE")


def test_an_unknown_exit_is_never_sold_or_paid_as_the_phone_that_registered(
    functions: Functions, list_now: Any
) -> None:
    """Enrol from a phone, serve from somewhere else: the exit that probes saw decides, and unknown stays unknown."""
    body = enrolled(functions, consent=TERMS)
    ident = body["deviceId"]
    functions.redis.run(put_presence(presence(ident)))
    probed(functions, ident, seen(IpType.UNKNOWN, 64999), seen(IpType.UNKNOWN, 64999))
    assert list_now()["newly_listed"] == [ident]
    kept = functions.redis.run(command("HGET", f"{{peer}}:ep:{ident}", "ip_type", parse=bytes))
    assert kept == b"unknown"
    status = functions.call(f"/v1/peer/agents/{ident}/status", headers=device(body)).body
    assert (status["ipType"], status["earningsPerGB"], status["proven"]) == ("unknown", 0.1, True)


def test_a_device_that_only_failed_probes_is_told_what_its_address_says(functions: Functions) -> None:
    body = enrolled(functions)
    probed(functions, body["deviceId"], ProbeResult(now_ms(), failure=Failure.PEER_OFFLINE))
    status = functions.call(f"/v1/peer/agents/{body['deviceId']}/status", headers=device(body)).body
    assert (status["ipType"], status["earningsPerGB"], status["listed"]) == ("mobile", 1.2, False)


def test_a_modem_is_paid_by_what_probes_see_and_not_by_its_name(functions: Functions) -> None:
    body = {"name": "m1", "host": "127.0.0.1", "port": 1, "username": "u", "password": "secret"}
    added = functions.call("/v1/farmer/modems", "POST", body, owner(functions)).body
    assert (added["ipType"], added["earningsPerGB"]) == ("unknown", 0.1)
    probed(functions, added["deviceId"], seen(IpType.MOBILE, 64601))
    status = functions.call(f"/v1/peer/agents/{added['deviceId']}/status", headers=owner(functions)).body
    assert (status["ipType"], status["earningsPerGB"]) == ("mobile", 1.2)


def test_rates_are_live_and_an_owner_may_have_their_own(functions: Functions) -> None:
    path = "/v1/admin/settings/rates"
    special = {**RATES, "overrides": {"psx_supplier1": {"mobile": 2_500_000}}}
    assert functions.call(path, "PUT", special, admin(functions)).status == 200
    functions.api_wiring.live._kept.clear()
    assert enrolled(functions)["earningsPerGB"] == 2.5
    assert enrolled(functions, "rig-2", HOME)["earningsPerGB"] == 0.5
    lies = {**RATES, "unknown": RATES["mobile"] + 1}
    assert functions.call(path, "PUT", lies, admin(functions)).status == 400
    lies = {**RATES, "overrides": {"psx_supplier1": {"unknown": 900_000}}}
    refused = functions.call(path, "PUT", lies, admin(functions))
    assert refused.body["message"].startswith("rates: overrides.psx_supplier1.unknown")


def test_an_operators_word_on_a_network_beats_the_table_and_is_on_record(
    functions: Functions,
) -> None:
    for subject, ip_type in (("AS64601", "datacenter"), ("127.10.1.0/28", "residential")):
        body = {"ipType": ip_type, "reason": "looked up"}
        path = f"/v1/admin/ip-classes/{subject}"
        assert functions.call(path, "PUT", body, admin(functions)).status == 200
        assert functions.call(path, "PUT", body, owner(functions)).status == 403
    functions.api_wiring.live._kept.clear()
    assert enrolled(functions, "narrow", PHONE)["ipType"] == "residential"
    assert enrolled(functions, "wide", "127.10.1.77", consent=TERMS)["ipType"] == "datacenter"
    log = functions.dynamo.run(entries(f"{PREFIX}audit", "acct#psx_admin", 50, forward=True)).rows
    assert first_broken(log) is None
    assert [e.event.metadata["subject"] for e in log if e.event.action == "ip_class_change"] == [
        "AS64601",
        "127.10.1.0/28",
    ]
    for wrong in ("64601x", "0.0.0.0/0", "10.0.0.1/24"):
        refused = functions.call(
            f"/v1/admin/ip-classes/{wrong}", "PUT", {"ipType": "mobile", "reason": "x"}, admin(functions)
        )
        assert refused.status == 400
    gone = functions.call("/v1/admin/ip-classes/AS64601", "DELETE", headers=admin(functions))
    assert gone.status == 200
    held = functions.call("/v1/admin/ip-classes", headers=admin(functions)).body
    assert list(held["overrides"]) == ["127.10.1.0/28"]


def test_hundreds_of_homes_in_one_small_network_are_flagged_and_a_carriers_nat_is_not(
    functions: Functions, list_now: Any
) -> None:
    crowd = enrolled(functions, "one-of-many", HOME)["deviceId"]
    for number in range(101):
        ident = crowd if number == 0 else f"home-{number}"
        functions.redis.run(put_presence(placed(ident, f"127.11.1.{number + 1}", IpType.RESIDENTIAL)))
        functions.redis.run(put_presence(placed(f"phone-{number}", PHONE, IpType.MOBILE)))
        for name in (ident, f"phone-{number}"):
            if name != crowd:
                put_row(functions, name)
    report = list_now()
    assert report["crowded"] == ["127.11.1.0/24"]
    status = functions.call(f"/v1/peer/agents/{crowd}/status", headers=owner(functions)).body
    assert status["flags"] == ["crowded_network"]
    probed(functions, crowd, seen(IpType.RESIDENTIAL, 64611))
    status = functions.call(f"/v1/peer/agents/{crowd}/status", headers=owner(functions)).body
    assert (status["ipType"], status["earningsPerGB"]) == ("unknown", 0.1)
    told = functions.call("/v1/gateway/incidents").body["incidents"]
    assert [i["kind"] for i in told] == ["crowded_network"]
    assert "127." not in told[0]["message"]
    word = {"ipType": "residential", "reason": "a campus, looked at"}
    functions.call("/v1/admin/ip-classes/127.11.1.0/24", "PUT", word, admin(functions))
    functions.api_wiring.live._kept.clear()
    status = functions.call(f"/v1/peer/agents/{crowd}/status", headers=owner(functions)).body
    assert (status["ipType"], status["earningsPerGB"]) == ("residential", 0.5)


def test_connecting_from_a_network_with_a_good_name_does_not_ennoble_an_exit(
    functions: Functions, list_now: Any
) -> None:
    word = {"ipType": "mobile", "reason": "a carrier"}
    functions.call("/v1/admin/ip-classes/127.12.1.0/24", "PUT", word, admin(functions))
    ident = enrolled(functions, consent=TERMS)["deviceId"]
    functions.redis.run(put_presence(placed(ident, SERVER, IpType.MOBILE)))
    probed(functions, ident, seen(IpType.DATACENTER, 64999), seen(IpType.DATACENTER, 64999))
    assert list_now()["newly_listed"] == [ident]
    sold = functions.redis.run(command("HGET", f"{{peer}}:ep:{ident}", "ip_type", parse=bytes))
    assert sold == b"datacenter"


def placed(ident: str, address: str, ip_type: IpType) -> Presence:
    found = presence(ident)
    values = {f: getattr(found, f) for f in Presence.__dataclass_fields__}
    return Presence(**{**values, "ip": address, "ip_type": ip_type})


def put_row(functions: Functions, ident: str) -> None:
    """A device without the cost of registering it."""
    from shared.supply import table as devices
    from shared.supply.model import Device, Kind, Origin

    made = Device(DeviceId(ident), AccountId("psx_x"), ident, Kind.SDK, Origin(), "", "us", now_ms())
    assert functions.dynamo.run(devices.create(f"{PREFIX}devices", made)) is None


# Identity


def test_the_regions_are_a_setting_that_devices_follow(functions: Functions) -> None:
    held = enrolled(functions)
    moved = {
        "mia": {"url": "wss://mia.example/", "countries": ["us"]},
        "eu": {"url": "wss://eu.example/", "countries": ["*"]},
    }
    path = "/v1/admin/settings/relays"
    assert functions.call(path, "PUT", moved, admin(functions)).status == 200
    assert functions.call(path, "PUT", {"mia": {"url": "wss://m/"}}, admin(functions)).status == 400
    functions.api_wiring.live._kept.clear()
    assert functions.redis.run(read_regions()) == moved
    body = {"refreshToken": held["refreshToken"]}
    fresh = functions.call(f"/v1/peer/token/{held['deviceId']}/refresh", "POST", body, source=PHONE)
    assert (fresh.body["relay"], fresh.body["relays"]) == (
        "wss://mia.example/",
        ["wss://mia.example/", "wss://eu.example/"],
    )


def test_a_token_of_one_device_opens_no_other_and_nobodys_key_another_account(functions: Functions) -> None:
    mine, other = enrolled(functions, "mine"), enrolled(functions, "other")
    thief = stranger(functions)
    theirs = other["deviceId"]
    for method, path, body in (
        ("GET", f"/v1/peer/agents/{theirs}/status", None),
        ("GET", f"/v1/peer/agents/{theirs}/earnings", None),
        ("PUT", f"/v1/peer/agents/{theirs}/wallet", {"walletAddress": NEW}),
        ("POST", f"/v1/peer/agents/{theirs}/withdraw", {"amount": 5}),
        ("PATCH", f"/v1/peer/my-devices/{theirs}/listing", {"listed": False}),
        ("GET", f"/v1/peer/my-devices/{theirs}/verification", None),
        ("POST", f"/v1/peer/my-devices/{theirs}/revoke", None),
        ("DELETE", f"/v1/peer/agents/{theirs}/consent", None),
        ("POST", f"/v1/peer/my-devices/{theirs}/consent", TERMS),
    ):
        for headers in (device(mine), thief):
            assert functions.call(path, method, body, headers).status == 404, (method, path)
        assert functions.call(path, method, body).status == 401, (method, path)
    assert functions.call("/v1/peer/my-devices", headers=thief).body["devices"] == []
    itself = functions.call("/v1/peer/my-devices", headers=device(mine)).body["devices"]
    assert [d["deviceId"] for d in itself] == [mine["deviceId"]]
    for path in ("list-all", "revoke-all"):
        refused = functions.call(f"/v1/peer/my-devices/{path}", "POST", headers=device(mine))
        assert refused.status == 401
    assert functions.call("/v1/peer/consent", "DELETE", headers=device(mine)).status == 401
    path = f"/v1/peer/agents/{theirs}/refresh"
    stolen = functions.call(path, "POST", {"refreshToken": mine["refreshToken"]})
    assert stolen.body["code"] == "REFRESH_INVALID"
    assert functions.call(path, "POST", {"refreshToken": other["refreshToken"]}).status == 200


def test_an_sdk_device_cannot_take_the_name_of_an_agent_or_of_another_account(functions: Functions) -> None:
    body = {"deviceId": "android-1", "apiKey": functions.keys.supplier}
    assert functions.call("/v1/peer/register", "POST", body).status == 200
    thief = {**body, "apiKey": stranger(functions)["x-api-key"]}
    assert functions.call("/v1/peer/register", "POST", thief).body["code"] == "NAME_TAKEN"
    assert register(functions, "android-1").body["code"] == "NAME_TAKEN", "an agent is no SDK device"
    for reserved in ("agent_0123", "modem_0123"):
        refused = functions.call("/v1/peer/register", "POST", {**body, "deviceId": reserved})
        assert refused.body["message"].startswith("deviceId:")


def test_a_key_without_the_scope_enrols_nothing(functions: Functions) -> None:
    assert register(functions, apiKey=functions.keys.reseller).status == 403


@pytest.mark.parametrize(
    ("path", "body", "field"),
    [
        ("agents/register", {"apiKey": "k"}, "name"),
        ("agents/register", {"name": 7, "apiKey": "k"}, "name"),
        ("agents/register", {"name": "-x", "apiKey": "k"}, "name"),
        ("agents/register", {"name": "a\nb", "apiKey": "k"}, "name"),
        ("agents/register", {"name": "x"}, "apiKey"),
        ("agents/register", {"name": "x", "apiKey": "k" * 300}, "apiKey"),
        ("agents/register", {"name": "x", "walletAddress": "0x12"}, "walletAddress"),
        ("agents/register", {"name": "x", "walletAddress": "0" * 40}, "walletAddress"),
        ("agents/register", {"name": "x", "apiKey": "k", "consent": {}}, "consent.termsVersion"),
        (
            "agents/register",
            {"name": "x", "apiKey": "k", "consent": {"termsVersion": "1999"}},
            "consent.termsVersion",
        ),
        (
            "agents/register",
            {"name": "x", "apiKey": "k", "consent": {**TERMS, "method": "<b>"}},
            "consent.method",
        ),
        (
            "agents/register",
            {"name": "x", "apiKey": "k", "consent": {**TERMS, "acceptedAt": -1}},
            "consent.acceptedAt",
        ),
        ("agents/register", [], "body"),
        ("register", {"apiKey": "k"}, "deviceId"),
        ("register", {"deviceId": "x"}, "apiKey"),
        ("register", {"deviceId": "../x", "apiKey": "k"}, "deviceId"),
        ("agents/x/refresh", {}, "refreshToken"),
        ("token/x/refresh", {"refreshToken": None}, "refreshToken"),
    ],
)
def test_bad_input_is_a_400_that_names_the_field(
    functions: Functions, path: str, body: Any, field: str
) -> None:
    answer = functions.call(f"/v1/peer/{path}", "POST", body)
    assert answer.status == 400
    assert answer.body["message"].startswith(f"{field}:"), answer.body


def test_a_fleet_behind_one_address_waits_and_one_subscriber_of_ipv6_is_one_source(
    functions: Functions, monkeypatch: pytest.MonkeyPatch
) -> None:
    answers = [
        register(functions, f"v6-{n}", f"2001:db8:1:1::{n:x}").status
        for n in range(functions.api_wiring.settings.registrations_per_minute + 1)
    ]
    assert answers.count(429) == 1
    assert register(functions, "neighbour", "2001:db8:1:2::1").status == 200
    limited = register(functions, "late", "2001:db8:1:1:ffff::1")
    assert 0 < int(limited.headers["retry-after"]) <= 60
    monkeypatch.setattr(enrolling, "SITE_FACTOR", 1)
    assert register(functions, "site", "2001:db8:1:3::1").status == 429, "a site is one source too"
    assert register(functions, "elsewhere", "2001:db8:2:3::1").status == 200


def test_a_registration_costs_few_calls_of_the_stores(
    functions: Functions, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What bounds how fast a fleet comes up: the function scales, each call of a store takes its milliseconds."""
    asked: list[str] = []
    for kind in (SyncDynamo, SyncRedis):

        def run(self: Any, request: Any, inner: Any = kind.run) -> Any:
            asked.append(getattr(request, "operation", "redis"))
            return inner(self, request)

        monkeypatch.setattr(kind, "run", run)
    enrolled(functions, "warm", consent=TERMS)
    asked.clear()
    enrolled(functions, "measured", consent=TERMS)
    assert sorted(asked) == sorted(["redis"] * 3 + ["get_item"] * 3 + ["transact_write_items"]), (
        "key, owner and name are read; the device is one transaction with its event"
    )


def test_an_owner_ends_every_token_of_every_device_at_once(functions: Functions) -> None:
    held = enrolled(functions)
    path = f"/v1/peer/agents/{held['deviceId']}/status"
    assert functions.call(path, headers=device(held)).status == 200
    assert functions.call("/v1/peer/my-devices/revoke-all", "POST", headers=owner(functions)).status == 200
    assert functions.call(path, headers=device(held)).status == 404
    body = {"refreshToken": held["refreshToken"]}
    assert functions.call(f"/v1/peer/agents/{held['deviceId']}/refresh", "POST", body).status == 401
    again = enrolled(functions)
    assert functions.call(path, headers=device(again)).status == 200
    one = functions.call(f"/v1/peer/my-devices/{held['deviceId']}/revoke", "POST", headers=owner(functions))
    assert one.status == 200
    assert functions.call(path, headers=device(again)).status == 404


def test_strangers_cannot_keep_a_device_from_refreshing(functions: Functions) -> None:
    held = enrolled(functions)
    path = f"/v1/peer/agents/{held['deviceId']}/refresh"
    for number in range(40):
        guess = {"refreshToken": f"{number:016x}.{'0' * 48}"}
        assert functions.call(path, "POST", guess, source="127.10.9.9").body["code"] == "REFRESH_INVALID"
    assert functions.call(path, "POST", {"refreshToken": held["refreshToken"]}).status == 200


def test_one_place_makes_few_wallet_accounts_and_knows_those_it_made(functions: Functions) -> None:
    def wallet(number: int) -> Reply:
        body = {"name": "w", "walletAddress": f"0x{number:040x}"}
        return functions.call("/v1/peer/agents/register", "POST", body, source=PHONE)

    answers = [wallet(number).status for number in range(31)]
    assert answers == [200] * 30 + [429]
    assert wallet(0).status == 200


# Owners


def test_an_owner_pages_through_devices_and_only_through_their_own(functions: Functions) -> None:
    for number in range(5):
        enrolled(functions, f"rig-{number}", f"127.10.1.{number + 1}")
    found, cursor = [], ""
    while True:
        page = functions.call(f"/v1/peer/my-devices?limit=2&cursor={cursor}", headers=owner(functions)).body
        found += [d["name"] for d in page["devices"]]
        assert page["total"] == 5
        if not page["more"]:
            break
        cursor = page["nextCursor"]
    assert sorted(found) == [f"rig-{n}" for n in range(5)]
    thief = stranger(functions)
    assert functions.call(f"/v1/peer/my-devices?limit=2&cursor={cursor}", headers=thief).status == 400


def test_one_call_unlists_every_device_and_a_later_word_on_one_of_them_holds(
    functions: Functions, list_now: Any
) -> None:
    idents = []
    for number in range(3):
        ident = enrolled(functions, f"rig-{number}", consent=TERMS)["deviceId"]
        functions.redis.run(put_presence(presence(ident)))
        probed(functions, ident, seen(IpType.MOBILE, 64601), seen(IpType.MOBILE, 64601))
        idents.append(ident)
    assert list_now()["listed"] == 3
    path = "/v1/peer/my-devices/list-all"
    told = functions.call(path, "POST", {"listed": False}, owner(functions)).body
    assert (told["listed"], told["devices"]) == (False, 3)
    assert list_now()["reasons"] == {"owner_said_no": 3}
    functions.call(f"/v1/peer/my-devices/{idents[1]}/listing", "PATCH", {"listed": True}, owner(functions))
    assert list_now()["newly_listed"] == [idents[1]]
    assert functions.call(path, "POST", headers=owner(functions)).body["listed"] is True
    assert list_now()["listed"] == 3


def test_preferences_decide_for_devices_to_come(functions: Functions) -> None:
    path = "/v1/peer/my-preferences"
    assert functions.call(path, headers=owner(functions)).body["autoList"] is True
    assert functions.call(path, "PATCH", {"autoList": False}, owner(functions)).body["autoList"] is False
    assert functions.call(path, "PATCH", {}, owner(functions)).status == 400
    quiet = enrolled(functions)
    status = functions.call(f"/v1/peer/agents/{quiet['deviceId']}/status", headers=device(quiet)).body
    assert status["listingWanted"] is False


# Money


def test_a_new_wallet_waits_a_week_while_the_old_one_is_told_and_paid(functions: Functions) -> None:
    body = enrolled(functions, walletAddress=OLD)
    path = f"/v1/peer/agents/{body['deviceId']}"
    asked = functions.call(f"{path}/wallet", "PUT", {"walletAddress": NEW}, device(body)).body
    assert (asked["walletAddress"], asked["pendingWalletAddress"]) == (OLD, NEW)
    assert 0 < asked["walletChangesAt"] - now_ms() - WALLET_COOLING_MS + 60_000 < 120_000
    status = functions.call(f"{path}/status", headers=owner(functions)).body
    assert (status["walletAddress"], status["pendingWalletAddress"]) == (OLD, NEW)
    set_field(functions, body["deviceId"], "pending_wallet", {"wallet": NEW, "from_ms": now_ms() - 1})
    status = functions.call(f"{path}/status", headers=owner(functions)).body
    assert (status["walletAddress"], status["pendingWalletAddress"]) == (NEW, None)
    back = functions.call(f"{path}/wallet", "PUT", {"walletAddress": OLD}, device(body)).body
    assert (back["walletAddress"], back["pendingWalletAddress"]) == (NEW, OLD)
    kept = functions.call(f"{path}/wallet", "PUT", {"walletAddress": NEW}, device(body)).body
    assert (kept["walletAddress"], kept["pendingWalletAddress"]) == (NEW, None)
    bad = functions.call(f"{path}/wallet", "PUT", {"walletAddress": "mine"}, device(body))
    assert (bad.status, bad.body["message"].partition(":")[0]) == (400, "walletAddress")


def test_a_devices_own_token_cannot_choose_the_first_wallet_at_once(functions: Functions) -> None:
    body = enrolled(functions)
    path = f"/v1/peer/agents/{body['deviceId']}/wallet"
    asked = functions.call(path, "PUT", {"walletAddress": NEW}, device(body)).body
    assert (asked["walletAddress"], asked["pendingWalletAddress"]) == (None, NEW)
    set_by_owner = functions.call(path, "PUT", {"walletAddress": OLD}, owner(functions)).body
    assert (set_by_owner["walletAddress"], set_by_owner["pendingWalletAddress"]) == (OLD, None)


def test_whoever_knows_a_wallet_cannot_redirect_what_it_earns(functions: Functions) -> None:
    """A wallet is public, so anybody may register its devices: they can only ever earn for it."""
    body = {"name": "w", "walletAddress": OLD}
    first = functions.call("/v1/peer/agents/register", "POST", body, source=PHONE).body
    thief = functions.call("/v1/peer/agents/register", "POST", body, source=HOME).body
    assert thief["deviceId"] == first["deviceId"]
    path = f"/v1/peer/agents/{first['deviceId']}/wallet"
    refused = functions.call(path, "PUT", {"walletAddress": NEW}, device(thief))
    assert refused.body["code"] == "WALLET_FIXED"
    same = functions.call(path, "PUT", {"walletAddress": OLD.upper().replace("X", "x")}, device(first))
    assert same.body["walletAddress"] == OLD


def test_whoever_knows_a_wallet_and_a_name_decides_nothing(functions: Functions) -> None:
    body = {"name": "w", "walletAddress": OLD}
    first = functions.call("/v1/peer/agents/register", "POST", body, source=PHONE).body
    path = f"/v1/peer/agents/{first['deviceId']}"
    for number in range(
        FAMILIES_MAX + 2
    ):  # more than a device keeps: the owner's own registration must outlive them
        more = {**body, "consent": {**TERMS, "method": "dialog"}}
        thief = functions.call("/v1/peer/agents/register", "POST", more, source=f"127.10.2.{number + 1}").body
    assert thief["consentRecorded"] is False
    mine = f"/v1/peer/my-devices/{first['deviceId']}"
    asked = {"refreshToken": thief["refreshToken"]}
    thief = functions.call(f"{path}/refresh", "POST", asked, source=HOME).body
    for target, method, given in (
        (f"{path}/consent", "DELETE", None),
        (f"{path}/consent", "POST", TERMS),
        (f"{mine}/consent", "DELETE", None),
        (f"{mine}/listing", "PATCH", {"listed": False}),
        (f"{mine}/revoke", "POST", {}),
    ):
        refused = functions.call(target, method, given, device(thief))
        assert (refused.status, refused.body["code"]) == (403, "OWNERSHIP_NOT_SHOWN"), target
    assert functions.call(f"{path}/status", headers=device(thief)).status == 200
    renewed = functions.call(f"{path}/refresh", "POST", {"refreshToken": first["refreshToken"]}, source=PHONE)
    assert (
        functions.call(f"{path}/consent", "POST", TERMS, device(renewed.body)).body["consentRecorded"] is True
    )
    assert functions.call(f"{path}/consent", "DELETE", headers=device(renewed.body)).status == 200
    again = functions.call("/v1/peer/agents/register", "POST", body, source=PHONE)
    assert again.body["code"] == "CONSENT_WITHDRAWN"


def test_one_place_fills_no_strangers_wallet_with_ghosts(functions: Functions) -> None:
    answers = [
        functions.call(
            "/v1/peer/agents/register", "POST", {"name": f"g{n}", "walletAddress": OLD}, source=HOME
        )
        for n in range(31)
    ]
    assert [a.status for a in answers] == [200] * 30 + [429]
    known = {"name": "g1", "walletAddress": OLD}
    assert functions.call("/v1/peer/agents/register", "POST", known, source=HOME).status == 200


def test_a_device_withdraws_what_it_earned_once_and_to_its_wallet(functions: Functions) -> None:
    body = enrolled(functions, walletAddress=OLD)
    ident = body["deviceId"]
    path = f"/v1/peer/agents/{ident}"
    served(functions, ident, 10)
    earned = functions.call(f"/v1/peer/earnings/{ident}", headers=device(body)).body
    assert (earned["earnedUSDC"], earned["availableUSDC"], earned["servedBytes"]) == ("12", "12", 10**10)
    assert earned["accountPendingMicroUSDC"] == "12000000"
    for amount, word in ((4.99, "at least 5"), (12.01, "more than"), (5.0000001, "six decimal")):
        refused = functions.call(f"{path}/withdraw", "POST", {"amount": amount}, device(body))
        assert refused.status == 400
        assert word in refused.body["message"]
    asked = functions.call(f"{path}/withdraw", "POST", {"amount": "7.5"}, device(body)).body
    assert (asked["amountUSDC"], asked["walletAddress"], asked["status"]) == ("7.5", OLD, "requested")
    again = functions.call(f"{path}/withdraw", "POST", {"amount": 7.5}, device(body))
    assert again.status == 400
    earned = functions.call(f"{path}/earnings", headers=owner(functions)).body
    assert earned["availableUSDC"] == "4.5"
    assert [w["withdrawalId"] for w in earned["withdrawals"]] == [asked["withdrawalId"]]
    served(functions, ident, 1, 1)
    rest = functions.call(f"{path}/withdraw", "POST", None, device(body)).body
    assert rest["amountUSDC"] == "5.7"


def test_a_device_draws_nothing_of_what_its_neighbours_earned(functions: Functions) -> None:
    rich, poor = enrolled(functions, "rich"), enrolled(functions, "poor", walletAddress=OLD)
    served(functions, rich["deviceId"], 100)
    asked = functions.call(
        f"/v1/peer/agents/{poor['deviceId']}/withdraw", "POST", {"amount": 5}, device(poor)
    )
    assert (asked.status, asked.body["message"].partition(":")[0]) == (400, "amount")
    walletless = functions.call(f"/v1/peer/agents/{rich['deviceId']}/withdraw", "POST", {}, device(rich))
    assert walletless.body["code"] == "WALLET_MISSING"


def test_an_sdk_device_withdraws_ten_at_least(functions: Functions) -> None:
    registered = {"deviceId": "android-1", "apiKey": functions.keys.supplier}
    body = functions.call("/v1/peer/register", "POST", registered, source=PHONE).body
    path = "/v1/peer/agents/android-1"
    functions.call(f"{path}/wallet", "PUT", {"walletAddress": OLD}, owner(functions))
    served(functions, "android-1", 10)
    refused = functions.call(f"{path}/withdraw", "POST", {"amount": 9}, device(body))
    assert "at least 10" in refused.body["message"]
    assert functions.call(f"{path}/withdraw", "POST", {"amount": 10}, device(body)).status == 200


def test_a_served_byte_takes_a_device_out_of_the_unproven_count(functions: Functions) -> None:
    body = enrolled(functions)
    path = f"/v1/peer/agents/{body['deviceId']}/status"
    assert functions.call(path, headers=device(body)).body["proven"] is False
    served(functions, body["deviceId"], 1)
    assert functions.call(path, headers=device(body)).body["proven"] is True


# Consent


def test_a_device_without_consent_is_never_listed_until_its_owner_agrees_for_all(
    functions: Functions, list_now: Any
) -> None:
    ident = enrolled(functions)["deviceId"]
    enrolled(functions, "second")
    functions.redis.run(put_presence(presence(ident)))
    probed(functions, ident, seen(IpType.MOBILE, 64601), seen(IpType.MOBILE, 64601))
    assert list_now()["reasons"] == {"no_consent": 2}
    for headers in ({}, {"x-api-key": functions.keys.reseller}):
        assert functions.call("/v1/peer/consent", "POST", TERMS, headers).status in {401, 403}
    old = functions.call("/v1/peer/consent", "POST", {"termsVersion": "1999"}, owner(functions))
    assert old.body["message"].startswith("termsVersion:")
    given = functions.call("/v1/peer/consent", "POST", TERMS, owner(functions)).body
    assert (given["termsVersion"], given["devices"]) == ("2026-11", 2)
    assert given["acceptedBy"].startswith("key ")
    assert list_now()["newly_listed"] == [ident]
    assert enrolled(functions)["consentRecorded"] is True


def test_withdrawal_ends_everything_at_once_and_only_agreement_brings_it_back(
    functions: Functions, list_now: Any
) -> None:
    body = enrolled(functions, consent={**TERMS, "method": "dialog", "acceptedAt": 5})
    ident = body["deviceId"]
    functions.redis.run(put_presence(presence(ident)))
    probed(functions, ident, seen(IpType.MOBILE, 64601), seen(IpType.MOBILE, 64601))
    assert list_now()["listed"] == 1
    gone = functions.call(f"/v1/peer/agents/{ident}/consent", "DELETE", headers=device(body)).body
    assert (gone["consentRecorded"], [r["action"] for r in gone["receipts"]]) == (
        False,
        ["withdrawn", "accepted"],
    )
    assert functions.redis.run(listed_ids(Pool.PEER)) == frozenset()
    assert functions.redis.run(put_presence(presence(ident), 0)).device == 1
    assert register(functions, consent=TERMS).body["code"] == "CONSENT_WITHDRAWN"
    assert list_now()["reasons"] == {"no_consent": 1}
    functions.call("/v1/peer/consent", "POST", TERMS, owner(functions))
    assert register(functions, consent=TERMS).body["code"] == "CONSENT_WITHDRAWN"
    back = functions.call(f"/v1/peer/my-devices/{ident}/consent", "POST", TERMS, owner(functions)).body
    assert back["consentRecorded"] is True
    assert back["receipts"][0]["by"].startswith("key ")
    assert register(functions).status == 200


def test_an_owner_withdraws_for_all_devices(functions: Functions, list_now: Any) -> None:
    body = enrolled(functions, consent=TERMS)
    ended = functions.call("/v1/peer/consent", "DELETE", headers=owner(functions)).body
    assert (ended["termsVersion"], ended["receipts"][0]["devices"]) == (None, 1)
    assert functions.call(f"/v1/peer/agents/{body['deviceId']}/status", headers=device(body)).status == 404
    assert register(functions, consent=TERMS).body["code"] == "CONSENT_WITHDRAWN"
    assert list_now()["reasons"] == {"no_consent": 1}
    functions.call("/v1/peer/consent", "POST", TERMS, owner(functions))
    assert register(functions).status == 200


def test_anybody_learns_what_a_device_id_is_and_nothing_of_its_owner(functions: Functions) -> None:
    ident = enrolled(functions, consent=TERMS, walletAddress=OLD)["deviceId"]
    told = functions.call(f"/v1/peer/devices/{ident}")
    assert (told.body["known"], told.body["consent"]["recorded"]) == (True, True)
    assert any("/consent" in step for step in told.body["howToWithdraw"])
    for secret in (OLD, "psx_supplier1", "rig-1", "127.", "US"):
        assert secret not in str({k: v for k, v in told.body.items() if k != "howToWithdraw"})
    assert functions.call("/v1/peer/devices/nobody").body["known"] is False
    page = functions.call(f"/peer/device?id={ident}")
    assert page.headers["content-type"].startswith("text/html")
    assert "Its owner agreed" in page.body
    assert "No device of psx" in functions.call("/peer/device?id=nobody").body
    attack = functions.call("/peer/device?id=%22%3E%3Cscript%3Ealert(1)%3C/script%3E")
    assert "<script>" not in attack.body
    limited = [functions.call(f"/v1/peer/devices/guess-{n}").status for n in range(31)]
    assert 429 in limited


def test_the_page_stops_a_device_for_whoever_has_its_accounts_key_and_for_nobody_else(
    functions: Functions,
) -> None:
    ident = enrolled(functions, consent=TERMS)["deviceId"]
    form = {"content-type": "application/x-www-form-urlencoded"}

    def stop(key: str, device_id: str = ident, **headers: str) -> Reply:
        body = urlencode({"id": device_id, "key": key}).encode()
        event = http_event(
            HttpRequest("POST", "/peer/device", tuple({**form, **headers}.items()), body, HOME)
        )
        answer = functions.deliver(event)
        return Reply(answer["statusCode"], answer["headers"], answer["body"])

    wrong = stop("psx_0", "<script>")
    assert (wrong.status, "Nothing was changed" in wrong.body, "<script>" in wrong.body) == (401, True, False)
    for key in (stranger(functions)["x-api-key"], functions.keys.reseller):
        assert stop(key).status == 404
    assert stop(functions.keys.supplier, "nobody").status == 404
    assert stop("").status == 400
    assert functions.call(f"/v1/peer/devices/{ident}").body["consent"]["recorded"] is True
    done = stop(functions.keys.supplier)
    assert (done.status, "takes no part any more" in done.body) == (200, True)
    assert functions.keys.supplier not in done.body
    assert register(functions, consent=TERMS).body["code"] == "CONSENT_WITHDRAWN"
    assert "its owner withdrew" in functions.call(f"/peer/device?id={ident}").body
    receipts = functions.call(f"/v1/peer/my-devices/{ident}/consent", headers=owner(functions)).body[
        "receipts"
    ]
    assert (receipts[0]["action"], receipts[0]["method"]) == ("withdrawn", "page")
    assert 429 in [stop("psx_0").status for _ in range(10)]


def test_receipts_hold_our_time_and_theirs(functions: Functions) -> None:
    body = enrolled(functions, consent={**TERMS, "method": "flag", "acceptedAt": 1_700_000_000_000})
    (receipt,) = functions.call(f"/v1/peer/agents/{body['deviceId']}/consent", headers=device(body)).body[
        "receipts"
    ]
    assert (receipt["method"], receipt["claimedAt"]) == ("flag", 1_700_000_000_000)
    assert abs(receipt["at"] - now_ms()) < 60_000
    stored = functions.dynamo.run(get_device(f"{PREFIX}devices", DeviceId(body["deviceId"])))
    assert stored is not None
    assert stored.consent is not None
    assert stored.consent.accepted_at_ms == receipt["at"]
