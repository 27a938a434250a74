"""The API through its function: devices, resellers, inventory, operations."""

import json
import re
from dataclasses import replace
from functools import partial
from typing import Any

import pytest

from functions.api import enrolling
from functions.jobs import list_exits, roll_up
from functions.jobs import wiring as jobs
from local.bootstrap import RATES
from shared.guard.rules import first_broken
from shared.guard.table import entries
from shared.kernel.ids import DeviceId
from shared.pool.presence import put_presence
from shared.runtime.clock import now_ms
from shared.runtime.settings import Settings, Stage
from tests.support.functions import PREFIX, Functions, Reply
from tests.support.pool import presence
from tests.support.supply import PHONE, register

pytestmark = pytest.mark.slow


def supplier(functions: Functions) -> dict[str, str]:
    return {"x-api-key": functions.keys.supplier}


def reseller(functions: Functions) -> dict[str, str]:
    return {"x-api-key": functions.keys.reseller}


# Devices


def test_registration_answers_what_a_device_needs_and_believes_nothing_it_says(functions: Functions) -> None:
    answer = register(functions, country="DE", ipType="residential")
    assert answer.status == 200
    body = answer.body
    assert (body["country"], body["ipType"], body["earningsPerGB"]) == ("US", "mobile", 1.2)
    assert body["token"] == body["jwt"]
    assert body["relay"] in body["relays"]
    assert body["consentRecorded"] is False
    again = register(functions, consent={"termsVersion": "2026-11"})
    assert again.body["deviceId"] == body["deviceId"]
    assert again.body["consentRecorded"] is True


def test_an_sdk_device_keeps_the_id_its_app_sends(functions: Functions) -> None:
    body = {"deviceId": "android-1", "apiKey": functions.keys.supplier, "model": "x", "country": "FR"}
    answer = functions.call("/v1/peer/register", "POST", body, source=PHONE)
    assert answer.body["device"] == {"deviceId": "android-1"}


def test_a_wallet_may_enrol_without_a_key(functions: Functions) -> None:
    body = {"name": "w", "walletAddress": "0x" + "12" * 20}
    assert functions.call("/v1/peer/agents/register", "POST", body, source=PHONE).status == 200


@pytest.mark.parametrize(
    ("body", "status"),
    [
        ({"name": "x"}, 400),
        ({}, 400),
        ({"name": "", "apiKey": "k"}, 400),
        ({"name": "x", "apiKey": "psx_wrong"}, 401),
        ({"name": "x" * 300, "apiKey": "k"}, 400),
    ],
)
def test_bad_registrations_are_told_why(functions: Functions, body: dict[str, Any], status: int) -> None:
    answer = functions.call("/v1/peer/agents/register", "POST", body)
    assert answer.status == status
    assert answer.body["code"]


def test_random_names_are_warned_of(functions: Functions) -> None:
    assert "warning" in register(functions, name="node-0123456789abcdef").body
    assert "warning" not in register(functions).body


def test_registrations_are_limited_per_address(functions: Functions, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(enrolling, "now_ms", partial(int, now_ms()))
    statuses = [register(functions).status for _ in range(62)]
    assert statuses.count(429) == 2
    assert register(functions, source="127.10.2.1").status == 200


def test_refresh_rotates_and_reuse_ends_the_family(functions: Functions) -> None:
    body = register(functions).body
    path = f"/v1/peer/agents/{body['deviceId']}/refresh"
    second = functions.call(path, "POST", {"refreshToken": body["refreshToken"]})
    assert second.status == 200
    third = functions.call(path, "POST", {"refreshToken": second.body["refreshToken"]})
    assert third.status == 200
    assert (
        functions.call(path, "POST", {"refreshToken": body["refreshToken"]}).body["code"] == "REFRESH_REUSED"
    )
    assert functions.call(path, "POST", {"refreshToken": third.body["refreshToken"]}).status == 401


def test_a_device_is_read_by_its_token_or_its_owners_key_and_nobody_else(functions: Functions) -> None:
    body = register(functions).body
    ident = body["deviceId"]
    for call in [put_presence(presence(ident))]:
        functions.redis.run(call)
    by_token = functions.call(
        f"/v1/peer/agents/{ident}/status", headers={"authorization": f"Bearer {body['jwt']}"}
    )
    by_key = functions.call(f"/v1/peer/my-devices/{ident}/verification", headers=supplier(functions))
    assert by_token.body == by_key.body
    assert (by_key.body["online"], by_key.body["listingReason"]) == (True, "not_probed")
    assert functions.call(f"/v1/peer/agents/{ident}/status").status == 401
    assert (
        functions.call(f"/v1/peer/agents/{ident}/status", headers={"authorization": "Bearer x"}).status == 401
    )
    assert functions.call(f"/v1/peer/agents/{ident}/status", headers=reseller(functions)).status == 403
    assert functions.call("/v1/peer/agents/other/status", headers=supplier(functions)).status == 404
    earned = functions.call(f"/v1/peer/earnings/{ident}", headers=supplier(functions))
    assert (earned.body["servedBytes"], earned.body["accountPendingMicroUSDC"]) == (0, "0")


def test_an_owner_sees_and_unlists_devices_and_consents_for_all(functions: Functions) -> None:
    ident = register(functions).body["deviceId"]
    mine = functions.call("/v1/peer/my-devices?limit=5", headers=supplier(functions))
    assert [d["deviceId"] for d in mine.body["devices"]] == [ident]
    path = f"/v1/peer/my-devices/{ident}/listing"
    assert (
        functions.call(path, "PATCH", {"listed": False}, supplier(functions)).body["listingWanted"] is False
    )
    consent = functions.call("/v1/peer/consent", "POST", {"termsVersion": "2026-11"}, supplier(functions))
    assert consent.body["termsVersion"] == "2026-11"


def test_a_modem_is_added_by_its_farmer(functions: Functions) -> None:
    body = {"name": "m1", "host": "127.0.0.1", "port": 1, "username": "u", "password": "secret"}
    added = functions.call("/v1/farmer/modems", "POST", body, supplier(functions))
    assert added.body["pool"] == "mbl"
    assert "secret" not in json.dumps(added.body)
    assert functions.call("/v1/farmer/modems", "POST", body).status == 401
    assert functions.call("/v1/farmer/modems", "POST", {**body, "port": 0}, supplier(functions)).status == 400
    assert (
        functions.call("/v1/farmer/modems", "POST", {**body, "username": "a:b"}, supplier(functions)).status
        == 400
    )


@pytest.mark.parametrize(
    "host", ["127.0.0.1", "10.0.0.5", "169.254.169.254", "redis.internal", "::ffff:10.0.0.1"]
)
def test_a_farm_cannot_point_the_nodes_into_the_operators_network(functions: Functions, host: str) -> None:
    deployed = functions.api_wiring.settings.model_copy(update={"stage": Stage.PROD})
    functions.api_wiring = replace(functions.api_wiring, settings=deployed)
    body = {"name": "m1", "host": host, "port": 8000, "username": "u", "password": "p"}
    answer = functions.call("/v1/farmer/modems", "POST", body, supplier(functions))
    assert answer.status == 400
    assert answer.body["message"].startswith("host:")
    public = functions.call("/v1/farmer/modems", "POST", {**body, "host": "1.1.1.1"}, supplier(functions))
    assert public.status == 200


# Resellers

KEYS = "/v1/reseller/pool-keys"


def create(functions: Functions, **more: Any) -> Reply:
    return functions.call(KEYS, "POST", {"label": "one", "trafficCapGB": 2.5, **more}, reseller(functions))


def test_a_reseller_makes_reads_and_ends_keys(functions: Functions) -> None:
    made = create(functions).body
    assert made["key"].startswith("pak_")
    assert (made["trafficCapGB"], made["trafficUsedGB"], made["enabled"], made["qualityTier"]) == (
        2.5,
        0,
        True,
        "standard",
    )
    path = f"{KEYS}/{made['id']}"
    record = functions.call(path, headers=reseller(functions)).body
    assert "key" not in record
    assert functions.call(KEYS, headers=reseller(functions)).body == [record]
    assert functions.call(f"{path}/reveal", "POST", {}, reseller(functions)).body["key"] == made["key"]
    fresh = functions.call(f"{path}/regenerate", "POST", {}, reseller(functions)).body["key"]
    assert fresh != made["key"]
    changed = functions.call(
        path,
        "PATCH",
        {"label": "two", "enabled": False, "trafficCapGB": 3, "expiresAt": 5, "qualityTier": "safe"},
        reseller(functions),
    ).body
    assert (
        changed["label"],
        changed["enabled"],
        changed["trafficCapGB"],
        changed["isExpired"],
        changed["qualityTier"],
    ) == ("two", False, 3, True, "safe")
    topped = functions.call(
        f"{path}/topup", "POST", {"addTrafficGB": 0.5, "extendDays": 1}, reseller(functions)
    ).body
    assert (topped["trafficCapGB"], topped["isExpired"], topped["enabled"]) == (3.5, False, False)
    assert functions.call(f"{path}/topup", "POST", {"extendDays": 1}, reseller(functions)).status == 200
    assert functions.call(f"{path}/usage", headers=reseller(functions)).body["usage"] == []
    assert functions.call(path, "DELETE", headers=reseller(functions)).body == {
        "id": made["id"],
        "deleted": True,
    }
    assert functions.call(path, headers=reseller(functions)).status == 404
    assert functions.call(KEYS, headers=reseller(functions)).body == []
    history = functions.dynamo.run(entries(f"{PREFIX}audit", f"pak#{made['id']}", 20, forward=True)).rows
    assert [e.event.action for e in history] == [
        "create",
        "reveal",
        "regenerate",
        "update",
        "topup",
        "topup",
        "delete",
    ]
    assert first_broken(history) is None


def test_a_keys_history_is_read_newest_first(functions: Functions) -> None:
    made = create(functions).body
    functions.call(f"{KEYS}/{made['id']}/reveal", "POST", {}, reseller(functions))
    audit = functions.call(f"{KEYS}/{made['id']}/audit", headers=reseller(functions)).body
    assert [e["action"] for e in audit] == ["reveal", "create"]
    only = functions.call(
        f"{KEYS}/{made['id']}/audit?action=create&limit=5", headers=reseller(functions)
    ).body
    assert [e["action"] for e in only] == ["create"]
    assert functions.call(f"{KEYS}/{made['id']}/audit?before=1", headers=reseller(functions)).body == only


def test_keys_are_listed_in_pages_that_follow_each_other(functions: Functions) -> None:
    made = [create(functions, label=str(n)).body["id"] for n in range(5)]
    seen, cursor = [], ""
    while True:
        page = functions.call(f"{KEYS}?limit=2&cursor={cursor}", headers=reseller(functions))
        assert len(page.body) <= 2
        seen += [record["id"] for record in page.body]
        cursor = page.headers.get("x-next-cursor", "")
        if not cursor:
            break
    assert sorted(seen) == sorted(made)
    for wrong in ("x", "e30=", "W10=", "a" * 2000):
        assert functions.call(f"{KEYS}?cursor={wrong}", headers=reseller(functions)).status == 400


@pytest.mark.parametrize("cap", [0, -1, 1000.5, None, "x"])
def test_caps_outside_their_bounds_are_400(functions: Functions, cap: Any) -> None:
    answer = create(functions, trafficCapGB=cap)
    assert answer.status == 400
    assert "trafficCapGB" in answer.body["message"]


def test_a_key_of_another_account_is_not_there(functions: Functions) -> None:
    made = create(functions).body
    admin = {"x-api-key": functions.keys.admin}
    functions.call("/v1/admin/accounts", "POST", {"accountId": "psx_other", "kind": "reseller"}, admin)
    theirs = functions.call(
        "/v1/admin/accounts/psx_other/api-keys", "POST", {"scopes": ["resell"]}, admin
    ).body["apiKey"]
    assert functions.call(f"{KEYS}/{made['id']}", headers={"x-api-key": theirs}).status == 404
    assert functions.call(f"{KEYS}/none", headers={"x-api-key": theirs}).status == 404
    assert functions.call(KEYS).status == 401
    assert functions.call(KEYS, headers=supplier(functions)).status == 403


# Operations


def test_only_an_admin_changes_settings_and_the_switch(functions: Functions) -> None:
    admin = {"x-api-key": functions.keys.admin}
    body = {"stopped": True, "reason": "drill"}
    assert functions.call("/v1/admin/switch", "POST", body, reseller(functions)).status == 403
    assert functions.call("/v1/admin/switch", "POST", body, admin).status == 200
    assert functions.call("/health").body["loopsStopped"] is True
    assert functions.call("/v1/admin/settings/rates", "PUT", RATES, admin).status == 200
    assert functions.call("/v1/admin/settings/rates", "PUT", {**RATES, "mobile": 1.5}, admin).status == 400
    assert functions.call("/v1/admin/settings/sale", "PUT", {"ok": True}, admin).status == 404
    refused = functions.call("/v1/admin/settings/domains", "PUT", {"blocked": ["Bank"]}, admin)
    assert (refused.status, refused.body["message"][:16]) == (400, "domains: blocked")
    assert (
        functions.call("/v1/admin/accounts", "POST", {"accountId": "Bad!", "kind": "reseller"}, admin).status
        == 400
    )
    assert (
        functions.call(
            "/v1/admin/accounts", "POST", {"accountId": "psx_admin", "kind": "admin"}, admin
        ).status
        == 409
    )
    assert (
        functions.call("/v1/admin/accounts/psx_none/api-keys", "POST", {"scopes": ["resell"]}, admin).status
        == 404
    )
    history = functions.dynamo.run(entries(f"{PREFIX}audit", "acct#psx_admin", 20)).rows
    assert [e.event.action for e in history] == ["setting_change", "kill_switch"]


def test_jobs_obey_the_switch_and_otherwise_report(
    functions: Functions, valkey_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = Settings(stage="local", table_prefix=PREFIX, redis_url=valkey_url)  # type: ignore[arg-type]  # pydantic reads it
    wired = jobs.Wiring(settings, functions.dynamo, functions.redis)
    monkeypatch.setattr(list_exits, "wiring", lambda: wired)
    monkeypatch.setattr(roll_up, "wiring", lambda: wired)
    assert list_exits.handler({"job": "list_exits"}, None)["devices"] == 0
    assert roll_up.handler({"job": "roll_up"}, None)["applied"] == 0
    admin = {"x-api-key": functions.keys.admin}
    functions.call("/v1/admin/switch", "POST", {"stopped": True, "reason": "drill"}, admin)
    assert list_exits.handler({"job": "list_exits"}, None) == {"refused": "kill_switch_on"}
    assert roll_up.handler({"job": "roll_up"}, None) == {"refused": "kill_switch_on"}


def test_inventory_counts_and_never_names(functions: Functions) -> None:
    from shared.pool.live import list_endpoint
    from tests.support.pool import modem, peer

    functions.redis.run(list_endpoint(modem("m1", "us")))
    functions.redis.run(list_endpoint(peer("d1")))
    stock = functions.call("/v1/gateway/pool/stock").body
    assert (stock["pools"], stock["totals"]) == (
        {"mbl": {"us": 1}, "peer": {"us": 1}},
        {"mbl": 1, "peer": 1, "all": 2},
    )
    there = functions.call("/v1/gateway/pool/availability").body
    assert there["countries"]["US"]["peerIpTypes"] == {"mobile": 1, "residential": 0}
    carriers = functions.call("/v1/gateway/pool/stock/carriers?country=us").body
    assert [(c["asn"], c["count"]) for c in carriers["carriers"]] == [(64601, 1)]
    assert functions.call("/v1/gateway/pool/stock/carriers?country=usa").status == 400
    assert functions.call("/v1/gateway/incidents").body["incidents"] == []
    assert "127." not in json.dumps([stock, there, carriers])
    assert DeviceId("d1") not in json.dumps([stock, there, carriers])


def test_pages_for_machines_are_there(functions: Functions) -> None:
    assert "https://api.example/v1/x402/pool" in functions.call("/skill.md").body
    assert functions.call("/llms.txt").status == 200
    products = ["https://api.example/v1/x402/pool", "https://api.example/v1/x402/proxy"]
    assert functions.call("/.well-known/x402.json").body["resources"] == products
    whole = functions.call("/openapi.json").body
    assert whole["info"]["title"] == "psx"
    assert {"/v1/x402/pool", "/v1/x402/manage/pool/topup", "/v1/reseller/pool-keys"} <= whole["paths"].keys()
    names = [
        operation["operationId"] for methods in whole["paths"].values() for operation in methods.values()
    ]
    assert len(set(names)) == len(names)
    assert (
        set(re.findall(r'"#/components/schemas/([^"]+)"', json.dumps(whole)))
        <= whole["components"]["schemas"].keys()
    )
    missing = functions.call("/nothing", headers={"x-request-id": "abcdefgh-1"})
    assert (missing.status, missing.body["code"], missing.body["requestId"]) == (
        404,
        "NOT_FOUND",
        "abcdefgh-1",
    )
